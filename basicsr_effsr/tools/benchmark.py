"""``effsr benchmark``: what a network costs, beside RLFN and SPAN measured in the same process."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from basicsr_effsr.tools import networks
from basicsr_effsr.tools.ntire import GATE, challenge_of, images_of, ntire, other_than
from basicsr_effsr.utils import latency
from basicsr_effsr.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from basicsr_effsr.utils.complexity import Cost

OUTPUTS = {'720p': (720, 1280), '1080p': (1080, 1920), '4k': (2160, 3840)}  # height and width of the output


@dataclass
class BenchmarkReport:
    """Everything a benchmark has found, of networks of one scale factor."""

    environment: dict[str, Any]
    scale: int
    costs: list[Cost] = field(default_factory=list)
    latencies: list[latency.Latency] = field(default_factory=list)
    ntire: dict[str, Any] | None = None


def channels_of(net: nn.Module, network: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of input and output, as the network, its options or their defaults say; 3 where nothing does.

    Args:
        net: the network.
        network: its options.
    """
    parameters = inspect.signature(type(net)).parameters

    def told(*names: str) -> int | None:
        for name in names:
            default = parameters[name].default if name in parameters else None
            for value in (getattr(net, name, None), network.get(name), default):
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return None

    taken = told('num_in_ch', 'in_chans', 'in_channels') or 3
    return taken, told('num_out_ch', 'out_channels') or taken


def lr_size(text: str, scale: int) -> tuple[int, int]:
    """``256x256`` (height x width of the input), or 720p, 1080p, 4k (of the output) as (H, W) of the input.

    Raises:
        UserError: it is neither.
    """
    if text.lower() in OUTPUTS:
        height, width = OUTPUTS[text.lower()]
        return round(height / scale), round(width / scale)
    height_text, _, width_text = text.lower().partition('x')
    if not (height_text.isdigit() and width_text.isdigit() and int(height_text) and int(width_text)):
        raise UserError(f'--size must be HxW of the input, or one of {", ".join(OUTPUTS)}, got {text!r}')
    return int(height_text), int(width_text)


def run(
    forms: dict[str, nn.Module],
    model: str,
    scale: int,
    device: torch.device,
    *,
    sizes: Sequence[tuple[int, int]],
    dtypes: Sequence[str] = ('fp32',),
    channels_last: bool = False,
    compiled: bool = False,
    warmup: int = 3,
    runs: int = 10,
    yardsticks: Sequence[str] = ('SPAN', 'RLFN'),
    channels: tuple[int, int] = (3, 3),
) -> BenchmarkReport:
    """Counts every form and measures the last one against the yardsticks.

    Args:
        forms: form (``as trained``, ``fused``) -> network in eval mode; the last one is measured.
        model: its name.
        scale: scale factor, also of the yardsticks.
        device: where to measure.
        sizes: LR sizes (H, W).
        dtypes: fp32, fp16, bf16.
        channels_last: measure this memory format too.
        compiled: measure with torch.compile too.
        warmup: runs before those that count.
        runs: runs that count.
        yardsticks: names of ``tools.yardsticks``; ratios are to the last.
        channels: of input and output, also of the yardsticks.

    Raises:
        UserError: memory runs out.
        ValueError: a network cannot be counted.
    """
    from basicsr_effsr.tools.yardsticks import YARDSTICKS
    from basicsr_effsr.utils.complexity import cost

    taken, given = channels
    built = {name: YARDSTICKS[name](upscale=scale, num_in_ch=taken, num_out_ch=given) for name in yardsticks}
    references = {other_than(model, name): net.eval() for name, net in built.items()}
    report = BenchmarkReport(latency.environment(device) | {'warm-up': warmup, 'runs': runs}, scale)
    for size in sizes:
        for form, net in forms.items():
            report.costs.append(cost(net, model, form, size, taken))
        report.costs += [cost(net, name, 'yardstick', size, taken) for name, net in references.items()]
    nets = {model: list(forms.values())[-1], **references}
    for size in sizes:
        for dtype in dtypes:
            for last in (False, True)[: 1 + channels_last]:
                for fast in (False, True)[: 1 + compiled]:
                    with latency.enough_memory(f'an input of {size[0]}x{size[1]} in {dtype}'):
                        report.latencies += latency.latencies(
                            nets,
                            size,
                            device,
                            dtype=dtype,
                            channels_last=last,
                            compiled=fast,
                            warmup=warmup,
                            runs=runs,
                            num_in_ch=taken,
                        )
    if report.latencies and device.type == 'cuda' and 'SM clock [MHz]' in (state := latency.gpu_state(device)):
        report.environment['SM clock after [MHz]'] = state['SM clock [MHz]']  # an idle GPU lowers its clock
    return report


# ---------------------------------------------------------------------- writing


COST_COLUMNS = ('model', 'form', 'input', 'params [K]', 'multiply-adds [G]', 'fvcore [G]', 'activations [M]', 'convs')
TIME_COLUMNS = ('model', 'input', 'dtype', 'format', 'compiled', 'median [ms]', 'p5', 'p95', 'mean', 'first', 'ratio')


def cost_rows(report: BenchmarkReport) -> list[list[str]]:
    """The counted part, as text."""
    return [
        [
            c.model,
            c.form,
            f'{c.lr_size[0]}x{c.lr_size[1]}',
            f'{c.params / 1e3:.3f}',
            f'{c.multi_adds / 1e9:.3f}',
            f'{c.fvcore / 1e9:.3f}',
            f'{c.activations / 1e6:.2f}',
            str(c.convolutions),
            f'{c.memory / 2**20:.1f}',
        ]
        for c in report.costs
    ]


def time_rows(report: BenchmarkReport) -> list[list[str]]:
    """The measured part, as text."""
    return [
        [
            t.model,
            f'{t.lr_size[0]}x{t.lr_size[1]}',
            t.dtype,
            t.memory_format,
            'yes' if t.compiled else 'no',
            *(f'{v:.2f}' for v in (t.median, t.p5, t.p95, t.mean, t.first)),
            f'{t.ratio:.2f}',
            '-' if t.peak_mib is None else f'{t.peak_mib:.0f}',
        ]
        for t in report.latencies
    ]


def _tables(report: BenchmarkReport) -> list[tuple[str, list[str], list[list[str]]]]:
    reference = report.latencies[-1].model if report.latencies else ''
    tables = [('Counted', [*COST_COLUMNS, 'memory [MiB]'], cost_rows(report))]
    if report.latencies:
        title = f'Measured, in turns; ratio of medians to {reference}'
        tables.append((title, [*TIME_COLUMNS, 'peak [MiB]'], time_rows(report)))
    if report.ntire:
        names = [k for k in report.ntire if k not in ('protocol', 'timed')]
        texts = [
            f'{v:.3f}' if isinstance(v, float) else '-' if v is None else str(v) for v in map(report.ntire.get, names)
        ]
        tables.append((f'{report.ntire["protocol"]}: {report.ntire["timed"]}', names, [texts]))
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
    seen: dict[str, int] = {}
    for found in report.costs:
        if found.form != 'yardstick':
            seen |= found.uncounted
    lines.append('not counted as multiply-adds: ' + ', '.join(f'{name} ({n})' for name, n in sorted(seen.items())))
    return lines


def markdown(report: BenchmarkReport) -> str:
    """The report for a README."""
    lines = ['; '.join(f'{k} {v}' for k, v in report.environment.items()), '']
    for title, head, rows in _tables(report):
        lines += [f'**{title}**', '', f'| {" | ".join(head)} |', f'|{" --- |" * len(head)}']
        lines += [f'| {" | ".join(row)} |' for row in rows]
        lines.append('')
    return '\n'.join([*lines, *notes(report), ''])


def as_csv(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a spreadsheet."""
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([head, *rows])
    return out.getvalue()


def write(report: BenchmarkReport, folder: Path) -> None:
    """benchmark.md, .json, cost.csv and latency.csv, each all or nothing."""
    from basicsr_effsr.utils.files import write_atomic

    texts = {
        'benchmark.md': markdown(report),
        'benchmark.json': json.dumps(asdict(report), indent=2) + '\n',
        'cost.csv': as_csv([*COST_COLUMNS, 'memory [MiB]'], cost_rows(report)),
        'latency.csv': as_csv([*TIME_COLUMNS, 'peak [MiB]'], time_rows(report)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, lambda path, text=text: path.write_text(text, encoding='utf-8'))  # type: ignore[misc]


def _print(report: BenchmarkReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width to fit in
    console.print('; '.join(f'{k} {v}' for k, v in report.environment.items()), markup=False, highlight=False)
    for title, head, rows in _tables(report):
        table = Table(*head, title=title, title_justify='left')
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in notes(report):
        console.print(line, markup=False, highlight=False)


def _refuse_idle(given: Mapping[str, Any], protocol: str | None, no_latency: bool) -> None:
    """Refuses options that would change nothing, and values out of range.

    Args:
        given: option without its dashes -> what the command line gave; None, False or empty if nothing.
        protocol: year of the challenge.
        no_latency: nothing is measured.

    Raises:
        UserError: one of them.
    """
    there = [name for name, value in given.items() if value is not None and value is not False and value != []]
    asked = [f'--{name}' for name in there if name in ('strict', 'data', 'gt', 'psnr', 'baseline-ms')]
    if asked and protocol is None:
        raise UserError(f'{", ".join(asked)} only matter to the row of a challenge; give --protocol')
    idle = [f'--{name}' for name in there if name not in ('gt', 'psnr', *(('data',) if given['gt'] else ()))]
    if idle and no_latency:
        raise UserError(f'--no-latency measures nothing, so {", ".join(idle)} would not matter; leave one or the other')
    if given['gt'] is not None and given['data'] is None:
        raise UserError('--gt needs --data, the LR images')
    if given['gt'] is not None and given['psnr'] is not None:
        raise UserError('--gt measures the PSNR that --psnr states; leave one or the other')
    if given['baseline-ms'] is not None and not 0 < given['baseline-ms'] < math.inf:
        raise UserError(f'--baseline-ms must be greater than 0, got {given["baseline-ms"]:g}')
    if given['psnr'] is not None and not 0 < given['psnr'] < math.inf:
        raise UserError(f'--psnr must be greater than 0, got {given["psnr"]:g}')
    if protocol is not None and given['dtype'] and 'fp32' not in given['dtype']:
        raise UserError('--protocol times in fp32, so --dtype must name fp32 too, or be left out')


def command(
    opt: networks.OptFile = None,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    weights: networks.Weights = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    size: Annotated[
        list[str] | None, typer.Option(help='HxW of the input, or 720p, 1080p, 4k of the output; repeatable.')
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help='fp32, fp16, bf16; repeatable.')] = None,
    channels_last: Annotated[bool, typer.Option('--channels-last', help='Measure this memory format too.')] = False,
    compiled: Annotated[bool, typer.Option('--compile', help='Measure with torch.compile too.')] = False,
    runs: Annotated[int | None, typer.Option(min=1, help='Runs that count; default 50 on a GPU, 10 on a CPU.')] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help='Runs before; default 10 on a GPU, 2 on a CPU.')] = None,
    threads: Annotated[int | None, typer.Option(min=1, help='CPU threads.')] = None,
    no_latency: Annotated[bool, typer.Option('--no-latency', help='Count only, measure nothing.')] = False,
    protocol: Annotated[
        str | None, typer.Option(help='Add the row and score of ntire2024, ntire2025, ntire2026.')
    ] = None,
    strict: Annotated[bool, typer.Option('--strict', help='Time as the challenge does: mean, no warm-up.')] = False,
    data: Annotated[Path | None, typer.Option(help='LR images for the protocol; default: one random image.')] = None,
    gt: Annotated[Path | None, typer.Option(help='Their HR images: PSNR and the gate of the protocol.')] = None,
    psnr: Annotated[float | None, typer.Option(help='PSNR on the validation set, if known already.')] = None,
    baseline_ms: Annotated[
        float | None, typer.Option(help="Runtime of the protocol's baseline on this machine.")
    ] = None,
    device: networks.Device = None,
    out: Annotated[Path | None, typer.Option(help='Folder for benchmark.md, .json and .csv files.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Parameters, multiply-adds, memory and latency, with RLFN and SPAN measured in turns in the same process."""
    import torch

    from basicsr_effsr.weights.fuse import can_be_fused, fused

    try:
        if out is not None:
            networks.check_folder(out)
        unknown = set(dtype or ()) - {'fp32', 'fp16', 'bf16'}
        if unknown:
            raise UserError(f'--dtype must be fp32, fp16 or bf16, got {sorted(unknown)[0]!r}')
        for option, folder in (('--data', data), ('--gt', gt)):
            if folder is not None and not folder.is_dir():
                raise UserError(f'{option}: the folder {folder} does not exist')
        given = {'strict': strict, 'data': data, 'gt': gt, 'psnr': psnr, 'baseline-ms': baseline_ms, 'dtype': dtype}
        given |= {'channels-last': channels_last, 'compile': compiled, 'runs': runs, 'warmup': warmup}
        _refuse_idle(given | {'threads': threads}, protocol, no_latency)
        if data is not None:
            images_of(data)
        chosen = networks.choose(opt, arch, scale, weights, settings, param_key, without='missing')
        net, factor = chosen.net, chosen.scale
        channels = channels_of(net, chosen.network)
        if protocol is not None:
            challenge_of(protocol)
            if factor != 4:
                raise UserError(f'--protocol is for x4, the network has upscale {factor}')
            if channels != (3, 3):
                raise UserError(f'--protocol is for RGB, the network takes and gives {channels} channels')
        where = networks.pick_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        sizes = [lr_size(text, factor) for text in size or ['256x256', '720p']]
        least = getattr(net, 'min_size', 1)
        for height, width in sizes:
            if min(height, width) < least:
                raise UserError(f'--size {height}x{width}: {type(net).__name__} needs at least {least} pixels a side')
        forms = {'as trained': net}
        if can_be_fused(net):
            forms['fused'] = fused(net)
        on_gpu = where.type == 'cuda'
        rounds = runs or (50 if on_gpu else 10)
        before = warmup if warmup is not None else (10 if on_gpu else 2)
        report = run(
            forms,
            type(net).__name__,
            factor,
            where,
            sizes=sizes,
            dtypes=() if no_latency else (dtype or ['fp32']),
            channels_last=channels_last,
            compiled=compiled,
            warmup=before,
            runs=rounds,
            channels=channels,
        )
        if protocol is not None:
            report.ntire = ntire(
                list(forms.values())[-1],
                type(net).__name__,
                protocol,
                where,
                data=data,
                gt=gt,
                psnr=psnr,
                baseline_ms=baseline_ms,
                strict=strict,
                timed=not no_latency,
                warmup=before,
                runs=rounds,
            )
        if out is not None:
            write(report, out)
    except (OSError, ValueError, KeyError) as error:
        raise networks.stop('benchmark', error) from error
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    if report.ntire and report.ntire['gate passed'] is False:
        typer.echo(f'effsr benchmark: {report.ntire["Val PSNR"]} dB is below the gate of {GATE:.2f} dB', err=True)
        raise typer.Exit(1)
