"""``effsr benchmark``: what a network costs, beside RLFN and SPAN measured in the same process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from basicsr_effsr._registration import defaults_of
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.ntire import GATE, images_of, ntire, other_than
from basicsr_effsr.tools.papers import challenge_of
from basicsr_effsr.utils import latency
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import enough_memory
from basicsr_effsr.utils.report import csv_table, escaped, markdown_table, strict_json, write_texts
from basicsr_effsr.weights.checkpoint import can_be_fused, fused

OUTPUTS = {'720p': (720, 1280), '1080p': (1080, 1920), '4k': (2160, 3840)}  # height and width of the output


@dataclass
class BenchmarkReport:
    """Everything a benchmark has found, of networks of one scale factor."""

    environment: dict[str, Any]
    scale: int
    costs: list[latency.Cost] = field(default_factory=list)
    latencies: list[latency.Latency] = field(default_factory=list)
    ntire: dict[str, Any] | None = None

    def machine(self) -> str:
        """The environment in words."""
        return '; '.join(f'{key} {value}' for key, value in self.environment.items())


def channels_of(net: nn.Module, network: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of input and output, as ``net``, its options or their defaults say; 3 where nothing does."""
    stated = {
        k: v for known in (defaults_of(type(net)), network, vars(net)) for k, v in known.items() if isinstance(v, int)
    }
    taken = next((stated[name] for name in ('num_in_ch', 'in_chans', 'in_channels') if name in stated), 3)
    return taken, next((stated[name] for name in ('num_out_ch', 'out_channels') if name in stated), taken)


def lr_size(text: str, scale: int) -> tuple[int, int]:
    """``256x256`` (height x width of the input), or 720p, 1080p, 4k (of the output) as (H, W) of the input."""
    if text.lower() in OUTPUTS:
        height, width = OUTPUTS[text.lower()]
        return round(height / scale), round(width / scale)
    found = re.fullmatch(r'0*([1-9]\d*)x0*([1-9]\d*)', text.lower(), re.ASCII)
    if found is None:
        raise UserError(f'--size must be HxW of the input, or one of {", ".join(OUTPUTS)}, got {text!r}')
    return int(found[1]), int(found[2])


def benchmark(
    chosen: Sequence[networks.Chosen],
    *,
    sizes: Sequence[str] = ('256x256', '720p'),
    dtypes: Sequence[str] = ('fp32',),
    channels_last: bool = False,
    compiled: bool = False,
    runs: int | None = None,
    warmup: int | None = None,
) -> BenchmarkReport:
    """Counts every form of networks of one scale and measures the last one, in turns with the yardsticks.

    Arguments and errors are those of ``basicsr_effsr.benchmark``.
    """
    from basicsr_effsr.tools.yardsticks import YARDSTICKS  # with BasicSR

    scale, device = chosen[0].scale, chosen[0].device
    channels = {one.name: channels_of(one.net, one.network) for one in chosen}
    if len(set(channels.values())) > 1:
        raise UserError(f'networks measured together must have the same input and output channels, got {channels}')
    taken, given = channels[chosen[0].name]
    usual = (50, 10) if device.type == 'cuda' else (10, 2)
    runs, warmup = runs or usual[0], usual[1] if warmup is None else warmup
    report = BenchmarkReport(latency.environment(device) | {'warm-up': warmup, 'runs': runs}, scale)
    counted, nets = [], {}
    for one in chosen:
        forms = {'as trained': one.net} | ({'fused': fused(one.net)} if can_be_fused(one.net) else {})
        counted += [(net, one.name, form) for form, net in forms.items()]
        nets[one.name] = counted[-1][0]
    for yardstick, make in YARDSTICKS.items():
        name = other_than(channels, yardstick)
        nets[name] = make(upscale=scale, num_in_ch=taken, num_out_ch=given).eval()
        counted.append((nets[name], name, 'yardstick'))
    lr_sizes = [lr_size(text, scale) for text in sizes]
    report.costs = [latency.cost(*each, size, taken) for size in lr_sizes for each in counted]
    grid = product(lr_sizes, dtypes, (False, True)[: 1 + channels_last], (False, True)[: 1 + compiled])
    for size, dtype, last, fast in grid:
        with enough_memory(f'an input of {size[0]}x{size[1]} in {dtype}', 'use smaller images, or --no-latency'):
            how: dict[str, Any] = {'dtype': dtype, 'channels_last': last, 'compiled': fast, 'num_in_ch': taken}
            report.latencies += latency.latencies(nets, size, device, **how, warmup=warmup, runs=runs)
    if report.latencies and device.type == 'cuda' and 'SM clock [MHz]' in (state := latency.gpu_state(device)):
        report.environment['SM clock after [MHz]'] = state['SM clock [MHz]']  # an idle GPU lowers its clock
    return report


COST_COLUMNS: dict[str, Callable[[latency.Cost], str]] = {
    'model': lambda c: c.model,
    'form': lambda c: c.form,
    'input': lambda c: '{}x{}'.format(*c.lr_size),
    'params [K]': lambda c: f'{c.params / 1e3:.3f}',
    'multiply-adds [G]': lambda c: f'{c.multi_adds / 1e9:.3f}',
    'fvcore [G]': lambda c: f'{c.fvcore / 1e9:.3f}',
    'activations [M]': lambda c: f'{c.activations / 1e6:.2f}',
    'convs': lambda c: str(c.convolutions),
    'memory [MiB]': lambda c: f'{c.memory / 2**20:.1f}',
}
TIME_COLUMNS: dict[str, Callable[[latency.Latency], str]] = {
    'model': lambda t: t.model,
    'input': lambda t: '{}x{}'.format(*t.lr_size),
    'dtype': lambda t: t.dtype,
    'format': lambda t: t.memory_format,
    'compiled': lambda t: 'yes' if t.compiled else 'no',
    'median [ms]': lambda t: f'{t.median:.2f}',
    'p5': lambda t: f'{t.p5:.2f}',
    'p95': lambda t: f'{t.p95:.2f}',
    'mean': lambda t: f'{t.mean:.2f}',
    'first': lambda t: f'{t.first:.2f}',
    'ratio': lambda t: f'{t.ratio:.2f}',
    'peak [MiB]': lambda t: '-' if t.peak_mib is None else f'{t.peak_mib:.0f}',
}
Table = tuple[list[str], list[list[str]]]


def _table(columns: Mapping[str, Callable[[Any], str]], rows: Sequence[Any]) -> Table:
    return list(columns), [[show(row) for show in columns.values()] for row in rows]


def _tables(report: BenchmarkReport) -> dict[str, Table]:
    """Title -> head and rows, of what there is."""
    tables = {'Counted': _table(COST_COLUMNS, report.costs)}
    if report.latencies:
        title = f'Measured, in turns; ratio of medians to {report.latencies[-1].model}'
        tables[title] = _table(TIME_COLUMNS, report.latencies)
    if report.ntire:
        row = {key: value for key, value in report.ntire.items() if key not in ('protocol', 'timed')}
        shown = [f'{v:.3f}' if isinstance(v, float) else '-' if v is None else str(v) for v in row.values()]
        tables[f'{report.ntire["protocol"]}: {report.ntire["timed"]}'] = list(row), [shown]
    return tables


def notes(report: BenchmarkReport) -> list[str]:
    """How to read the tables."""
    lines = [
        'multiply-adds: convolutions, linear layers and matrix products (attention included), 1 per multiply-add; '
        "biases and element-wise work are not counted. fvcore: the same plus fvcore's rates for norms, resizing, pools "
        '(the column FLOPs of the NTIRE challenges). memory: weights and live tensors of one pass in fp32, counted.'
    ]
    if report.ntire:
        lines.append(
            'Mem: the most that tensors held on the GPU during a timed pass, weights and image included, in MiB; a CPU '
            'does not say. counted mem: the column memory of the table above, at 256x256.'
        )
    seen: dict[str, dict[str, int]] = {}
    for found in report.costs:
        if found.form != 'yardstick':
            seen.setdefault(found.model, {}).update(found.uncounted)
    for model, parts in seen.items():
        whose, left = f' of {model}' if len(seen) > 1 else '', (f'{k} ({n})' for k, n in sorted(parts.items()))
        lines.append(f'not counted as multiply-adds{whose}: {", ".join(left)}')
    return lines


def texts(report: BenchmarkReport) -> dict[str, str]:
    """The report in every format: file name -> text."""
    parts = [escaped(report.machine())]
    parts += [f'**{escaped(title)}**\n\n{markdown_table(*table)}' for title, table in _tables(report).items()]
    return {
        'benchmark.md': '\n\n'.join([*parts, *map(escaped, notes(report))]) + '\n',
        'benchmark.json': strict_json(report) + '\n',
        'cost.csv': csv_table(*_table(COST_COLUMNS, report.costs)),
        'latency.csv': csv_table(*_table(TIME_COLUMNS, report.latencies)),
    }


@networks.names_networks
def command(
    choose: Callable[..., list[networks.Chosen]],
    size: Annotated[
        list[str] | None, typer.Option(help='HxW of the input, or 720p, 1080p, 4k of the output; repeatable.')
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help='fp32, fp16, bf16; repeatable.')] = None,
    channels_last: Annotated[bool, typer.Option('--channels-last', help='Also measure this memory format.')] = False,
    compiled: Annotated[bool, typer.Option('--compile', help='Also measure with torch.compile.')] = False,
    runs: Annotated[int | None, typer.Option(min=1, help='Timed runs; default 50 on a GPU, 10 on a CPU.')] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help='Warm-up runs; default 10 on a GPU, 2 on a CPU.')] = None,
    threads: Annotated[int | None, typer.Option(min=1, help='CPU threads.')] = None,
    no_latency: Annotated[bool, typer.Option('--no-latency', help='Count only, measure nothing.')] = False,
    protocol: Annotated[
        str | None, typer.Option(help='Challenge whose row and score to add: ntire2024, ntire2025 or ntire2026.')
    ] = None,
    strict: Annotated[bool, typer.Option('--strict', help='Time as the challenge does: mean, no warm-up.')] = False,
    data: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help='LR images for the protocol; default: one random image.'),
    ] = None,
    gt: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help='Their HR images, for PSNR and the gate of the protocol.'),
    ] = None,
    psnr: Annotated[float | None, typer.Option(min=1, help='PSNR on the validation set, if known.')] = None,
    baseline_ms: Annotated[
        float | None, typer.Option(min=1e-6, help="Runtime of the protocol's baseline on this machine.")
    ] = None,
    device: networks.Device = None,
    out: Annotated[
        Path | None, typer.Option('--out', '-o', help='Folder for benchmark.md, .json and .csv files.')
    ] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Count and measure parameters, multiply-adds, memory and latency, in turns with RLFN and SPAN."""
    if out is not None:
        networks.check_folder(out)
    if unknown := set(dtype or ()) - {'fp32', 'fp16', 'bf16'}:
        raise UserError(f'--dtype must be fp32, fp16 or bf16, got {min(unknown)!r}')
    asked: dict[str, Any] = {'strict': strict, 'data': data, 'gt': gt, 'psnr': psnr, 'baseline_ms': baseline_ms}
    measured: dict[str, Any] = {'dtype': dtype, 'channels_last': channels_last, 'compile': compiled}
    measured |= {'runs': runs, 'warmup': warmup, 'threads': threads}

    def given(options: Mapping[str, Any], *other: str) -> str:
        there = [k for k, v in options.items() if k not in other and v is not None and v is not False and v != []]
        return ', '.join(f'--{name.replace("_", "-")}' for name in there)

    if protocol is None and (idle := given(asked)):
        raise UserError(f'{idle} can only be used with --protocol')
    if no_latency and (idle := given(asked | measured, 'gt', 'psnr', 'data' if gt else '')):
        raise UserError(f'--no-latency cannot be combined with {idle}, which would have no effect')
    if gt is not None and (data is None or psnr is not None):
        raise UserError('--gt needs --data (the LR images) and cannot be combined with --psnr')
    if protocol is not None and dtype and 'fp32' not in dtype:
        raise UserError('--protocol times in fp32, so --dtype must name fp32 too, or be left out')
    if data is not None:
        images_of(data)
    chosen = choose(device=device, without='missing')
    first = chosen[0]
    if protocol is not None:
        challenge_of(protocol)
        channels = channels_of(first.net, first.network)
        if len(chosen) > 1 or first.scale != 4 or channels != (3, 3):
            what = f'{len(chosen)} of x{first.scale} with {channels[0]} input and {channels[1]} output channels'
            raise UserError(f'--protocol needs one x4 network for RGB images, got {what}')
    if threads is not None:
        torch.set_num_threads(threads)
    grid: dict[str, Any] = {'dtypes': () if no_latency else dtype or ['fp32'], 'compiled': compiled}
    grid |= {'channels_last': channels_last, 'sizes': size or ['256x256', '720p']}
    report = benchmark(chosen, **grid, runs=runs, warmup=warmup)
    if protocol is not None:
        asked |= {'runs': report.environment['runs'], 'warmup': report.environment['warm-up']}
        report.ntire = ntire(fused(first.net), first.name, protocol, first.device, timed=not no_latency, **asked)
    if out is not None:
        write_texts(out, texts(report))
    if as_json:
        typer.echo(strict_json(report))
    else:
        say(report.machine())
        for title, table in _tables(report).items():
            Console().table(title, *table)
        for line in notes(report):
            say(line)
    if report.ntire and report.ntire['gate passed'] is False:
        say(f'effsr benchmark: {report.ntire["Val PSNR"]} dB is below the gate of {GATE:.2f} dB', err=True)
        raise typer.Exit(1)
