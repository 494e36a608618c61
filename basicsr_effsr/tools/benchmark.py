"""``effsr benchmark``: what a network costs, beside RLFN and SPAN measured in the same process."""

from __future__ import annotations

import copy
import csv
import inspect
import io
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools import networks
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import build, scale_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OUTPUTS = {'720p': (720, 1280), '1080p': (1080, 1920), '4k': (2160, 3840)}  # height and width of the output
NTIRE_SIZE = (256, 256)  # the LR size at which the challenges count
GATE = 26.90  # dB that an entry must reach on the validation set
BORDER = 4
PAPERS = Path(__file__).with_name('papers.json')


@dataclass(frozen=True)
class Cost:
    """Counted cost of a network in one form at one LR size; multiply-adds count as one."""

    model: str
    form: str
    lr_size: tuple[int, int]
    params: int
    multi_adds: int
    fvcore: int
    activations: int
    convolutions: int
    memory: int
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Latency:
    """Measured latency of one network in one setting, milliseconds per image."""

    model: str
    lr_size: tuple[int, int]
    dtype: str
    memory_format: str
    compiled: bool
    runs: int
    median: float
    p5: float
    p95: float
    mean: float
    first: float
    peak_mib: float | None
    ratio: float


@dataclass
class Report:
    """Everything a benchmark has found, of networks of one scale factor."""

    environment: dict[str, Any]
    scale: int
    costs: list[Cost] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    ntire: dict[str, Any] | None = None


# ---------------------------------------------------------------------- counting


def cost(net: nn.Module, model: str, form: str, lr_size: tuple[int, int], num_in_ch: int = 3) -> Cost:
    """Counts one network.

    Raises:
        ValueError: it cannot be counted, or does not take such an input.
    """
    from basicsr_effsr.utils.complexity import count_macs, count_params, peak_memory

    macs = count_macs(net, lr_size, num_in_ch=num_in_ch)
    return Cost(
        model,
        form,
        lr_size,
        count_params(net),
        macs.total,
        macs.fvcore,
        macs.activations,
        macs.convolutions,
        peak_memory(net, lr_size, num_in_ch=num_in_ch),
        macs.uncounted,
    )


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


# ---------------------------------------------------------------------- timing


def once(net: Callable, image: Tensor) -> float:
    """Milliseconds of one forward pass, by CUDA events or by the clock."""
    import torch

    if image.device.type == 'cuda':
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        net(image)
        end.record()
        torch.cuda.synchronize(image.device)
        return begin.elapsed_time(end)
    started = time.perf_counter()
    net(image)
    return (time.perf_counter() - started) * 1000


def interleaved(nets: dict[str, Callable], image: Tensor, warmup: int, runs: int) -> dict[str, list[float]]:
    """Milliseconds of every run of every network, in turns (A B C, A B C ...), the first of them the cold one.

    Args:
        nets: by name.
        image: (1, C, H, W).
        warmup: runs of each that come first; the caller leaves them out.
        runs: runs of each after them.

    Returns:
        Name -> ``warmup + runs`` times.
    """
    import torch

    found: dict[str, list[float]] = {name: [] for name in nets}
    with torch.no_grad():
        for _ in range(warmup + runs):
            for name, net in nets.items():
                found[name].append(once(net, image))
    return found


def allocated(device: torch.device) -> int | None:
    """Bytes that tensors hold on a GPU; None on a CPU, which does not say."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else None


def at_most(device: torch.device, work: Callable[[], Any]) -> tuple[Any, int | None]:
    """What ``work`` returns, and the bytes that tensors held at most on a GPU meanwhile; None on a CPU."""
    import torch

    if device.type != 'cuda':
        return work(), None
    torch.cuda.reset_peak_memory_stats(device)
    return work(), torch.cuda.max_memory_allocated(device)


def place(
    nets: Mapping[str, nn.Module], move: Callable[[nn.Module], nn.Module], device: torch.device
) -> dict[str, int]:
    """Moves every network to ``device``.

    Args:
        nets: by name.
        move: brings one there.
        device: a GPU, or the CPU, of which no memory is known.

    Returns:
        Name -> bytes there of all the other networks, which share the GPU and are no part of what this one needs.
    """
    own: dict[str, int] = {}
    for name, net in nets.items():
        before = allocated(device)
        move(net)
        own[name] = (allocated(device) or 0) - (before or 0)
    return {name: sum(own.values()) - size for name, size in own.items()}


def measured_peak(net: Callable, image: Tensor, others: int = 0) -> float | None:
    """MiB that a forward pass allocates at most, less ``others`` bytes; None on a CPU, which does not say."""
    import torch

    if allocated(image.device) is None:
        return None  # without a pass that would say nothing
    with torch.no_grad():
        _, peak = at_most(image.device, lambda: net(image))
    return None if peak is None else (peak - others) / 2**20


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """One sentence where memory runs out.

    Raises:
        UserError: it did.
    """
    from basicsr_effsr.utils.memory import out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f'{what} needs more memory than there is; take smaller images, or --no-latency') from error


def latencies(
    nets: dict[str, nn.Module],
    size: tuple[int, int],
    device: torch.device,
    *,
    dtype: str,
    channels_last: bool,
    compiled: bool,
    warmup: int,
    runs: int,
    num_in_ch: int = 3,
) -> list[Latency]:
    """One row per network, the ratio being that of the medians to the last network, the reference.

    The networks keep their weights as they are: copies are measured, as a way to bf16 and back would round them.

    Raises:
        UserError: the first network does not run in ``dtype`` or compiled; the yardsticks do.
    """
    import torch

    from basicsr_effsr.utils.memory import out_of_memory

    kind = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}[dtype]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    image = torch.rand(1, num_in_ch, *size).to(device, kind).contiguous(memory_format=layout)
    placed = {name: copy.deepcopy(net) for name, net in nets.items()}
    others = place(placed, lambda net: net.to(device, kind).to(memory_format=layout), device)
    ready: dict[str, Callable] = dict(placed)
    if compiled:
        torch.compiler.reset()  # after a handful of variants of one network torch would go on without compiling
        ready = {name: torch.compile(net, dynamic=False) for name, net in placed.items()}
    try:
        times = interleaved(ready, image, warmup, runs)
    except RuntimeError as error:
        if out_of_memory(error) or (dtype == 'fp32' and not compiled):
            raise
        how = f'{dtype}, compiled,' if compiled else dtype
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f'{next(iter(nets))} does not run in {how} on {device}: {reason}') from error
    peaks = {name: measured_peak(net, image, others[name]) for name, net in ready.items()}
    reference = statistics.median(times[list(nets)[-1]][warmup:])
    rows = []
    for name, values in times.items():
        counted = values[warmup:]
        median, p5, p95 = np.percentile(counted, (50, 5, 95)).tolist()
        rows.append(
            Latency(
                model=name,
                lr_size=size,
                dtype=dtype,
                memory_format='channels_last' if channels_last else 'contiguous',
                compiled=compiled,
                runs=runs,
                median=median,
                p5=p5,
                p95=p95,
                mean=statistics.fmean(counted),
                first=values[0],
                peak_mib=peaks[name],
                ratio=median / reference,
            )
        )
    return rows


def gpu_state(device: torch.device) -> dict[str, str | int]:
    """Driver, load and clock of a GPU at this moment; what nvidia-smi does not tell is left out."""
    import torch

    fields = 'uuid,driver_version,utilization.gpu,clocks.sm'
    try:
        said = subprocess.run(
            ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader,nounits'],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [row for row in ([cell.strip() for cell in line.split(',')] for line in said.splitlines()) if len(row) == 4]
    # by its identity, since CUDA_VISIBLE_DEVICES gives GPUs other numbers than nvidia-smi has
    identity = str(getattr(torch.cuda.get_device_properties(device), 'uuid', '')).removeprefix('GPU-')
    own = next((row for row in rows if identity and row[0].removeprefix('GPU-') == identity), None)
    own = rows[0] if own is None and len(rows) == 1 else own
    state: dict[str, str | int] = {'driver': rows[0][1]} if rows else {}
    for name, text in zip(('GPU load [%]', 'SM clock [MHz]'), own[2:] if own else (), strict=False):
        if text.isdigit():  # else it is N/A
            state[name] = int(text)
    return state


def environment(device: torch.device) -> dict[str, Any]:
    """What a latency depends on, before anything is measured."""
    import torch

    facts: dict[str, Any] = {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or 'CPU',
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'CPU cores': os.cpu_count(),
    }
    if device.type == 'cuda':
        facts |= {'CUDA': torch.version.cuda, 'cuDNN': torch.backends.cudnn.version()}
        facts['TF32 convolutions'] = torch.backends.cudnn.allow_tf32
        facts['cudnn.benchmark'] = torch.backends.cudnn.benchmark
        facts |= gpu_state(device)
    else:
        with suppress(OSError):
            lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
            facts['device'] = next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    with suppress(OSError, AttributeError):
        facts['load average'] = round(os.getloadavg()[0], 2)
    return facts


# ---------------------------------------------------------------------- NTIRE


def protocol_of(name: str) -> dict[str, Any]:
    """Baseline values and weights of a year's challenge, as published.

    Raises:
        UserError: there is none of that name.
    """
    years = {f'ntire{row["year"]}': row for row in json.loads(PAPERS.read_text(encoding='utf-8'))['ntire']}
    if name not in years:
        raise UserError(f'--protocol must be one of {", ".join(years)}, got {name!r}')
    return years[name]


def ntire_score(protocol: dict[str, Any], *, runtime_ratio: float, flops: float, params: float) -> float:
    """Weighted sum of exp(2 x / baseline) over runtime, FLOPs [G] and parameters [M]; lower is better."""
    ratios = {
        'runtime': runtime_ratio,
        'flops': flops / protocol['flops'],
        'params': params / protocol['params'],
    }
    return sum(protocol['weights'][name] * math.exp(2 * ratio) for name, ratio in ratios.items())


def baseline_of(protocol: dict[str, Any]) -> nn.Module | None:
    """The baseline network of a year where it is one of our yardsticks: RLFN, or SPAN at 28 channels; else None."""
    from basicsr_effsr.tools.yardsticks import RLFN, SPAN

    if protocol['baseline'] == 'RLFN':
        return RLFN().eval()
    return SPAN(num_feat=28).eval() if protocol['baseline'] == 'SPAN' else None


def images_of(data: Path) -> list[Path]:
    """The images of a folder, by name.

    Raises:
        UserError: there is none.
    """
    found = sorted(p for p in data.glob('*') if p.suffix.lower() in ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff'))
    if not found:
        raise UserError(f'--data: {data} holds no image')
    return found


def psnr_rgb(output: Tensor, gt: Tensor, border: int = BORDER) -> float:
    """PSNR [dB] on RGB of (3, H, W) tensors of bytes, ``border`` pixels cropped: the challenge's score."""
    a, b = (t[:, border:-border, border:-border].double() for t in (output, gt))
    error = (a - b).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def over_images(
    nets: dict[str, nn.Module], files: list[Path], gt: Path | None, device: torch.device, *, warmup: bool
) -> tuple[dict[str, float], float | None, float | None]:
    """Mean milliseconds per whole image of every network, in turns; PSNR and peak of memory [MiB] of the first one.

    Args:
        nets: by name, the one to be judged first.
        files: LR images.
        gt: folder of their HR partners (same name, or with the ending x4 dropped); None scores nothing.
        device: where.
        warmup: run every image once before it counts; False is the challenge's own way.

    Returns:
        Name -> milliseconds; PSNR, None without ``gt``; what tensors held at most over the timed passes, None on a
        CPU, which does not say.

    Raises:
        UserError: an image has no partner.
    """
    import torch

    def read(path: Path) -> Tensor:
        return torch.from_numpy(read_rgb(path).transpose(2, 0, 1).copy())

    total = dict.fromkeys(nets, 0.0)
    scores, peaks = [], []
    first = next(iter(nets))
    others = place(nets, lambda net: net.to(device), device)[first]
    with torch.no_grad():
        for file in files:
            image = read(file)[None].to(device).float() / 255
            for name, net in nets.items():
                if warmup:
                    net(image)
                spent, peak = at_most(device, partial(once, net, image))
                total[name] += spent
                if name == first and peak is not None:
                    peaks.append((peak - others) / 2**20)
            if gt is None:
                continue
            partner = next((p for s in (file.stem, file.stem.removesuffix('x4')) for p in gt.glob(f'{s}.*')), None)
            if partner is None:
                raise UserError(f'--gt: {gt} has no partner for {file.name}')
            output = nets[first](image)[0].clamp(0, 1).mul(255).round().to('cpu', torch.uint8)
            target = read(partner)[:, : output.shape[1], : output.shape[2]]
            if target.shape != output.shape:
                raise UserError(f'--gt: {partner} must be {output.shape[2]}x{output.shape[1]} for {file.name}')
            scores.append(psnr_rgb(output, target))
    for net in nets.values():
        net.to('cpu')
    psnr = sum(scores) / len(scores) if scores else None
    return {name: value / len(files) for name, value in total.items()}, psnr, max(peaks, default=None)


# ---------------------------------------------------------------------- the whole


def _other_than(model: str, yardstick: str) -> str:
    """The name of a yardstick beside a network that may be called the same."""
    return yardstick if yardstick != model else f'{yardstick} (yardstick)'


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
) -> Report:
    """Counts every form and measures the last one against the yardsticks.

    Args:
        forms: form (``as trained``, ``deployed``) -> network in eval mode; the last one is measured.
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

    taken, given = channels
    built = {name: YARDSTICKS[name](upscale=scale, num_in_ch=taken, num_out_ch=given) for name in yardsticks}
    references = {_other_than(model, name): net.eval() for name, net in built.items()}
    report = Report(environment(device) | {'warm-up': warmup, 'runs': runs}, scale)
    for size in sizes:
        for form, net in forms.items():
            report.costs.append(cost(net, model, form, size, taken))
        report.costs += [cost(net, name, 'yardstick', size, taken) for name, net in references.items()]
    nets = {model: list(forms.values())[-1], **references}
    for size in sizes:
        for dtype in dtypes:
            for last in (False, True)[: 1 + channels_last]:
                for fast in (False, True)[: 1 + compiled]:
                    with enough_memory(f'an input of {size[0]}x{size[1]} in {dtype}'):
                        report.latencies += latencies(
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
    if report.latencies and device.type == 'cuda' and 'SM clock [MHz]' in (state := gpu_state(device)):
        report.environment['SM clock after [MHz]'] = state['SM clock [MHz]']  # an idle GPU lowers its clock
    return report


def ntire(
    net: nn.Module,
    model: str,
    year: str,
    device: torch.device,
    *,
    data: Path | None = None,
    gt: Path | None = None,
    psnr: float | None = None,
    baseline_ms: float | None = None,
    strict: bool = False,
    timed: bool = True,
    warmup: int = 3,
    runs: int = 10,
) -> dict[str, Any]:
    """The challenge's row of a network, in its units, and its score against the baseline measured here.

    Args:
        net: the x4 network in deployed form.
        model: its name.
        year: ntire2024, ntire2025 or ntire2026.
        device: where to measure.
        data: folder of LR images to be timed; None times one random image of 256x256.
        gt: folder of their HR images, for the PSNR.
        psnr: PSNR on the validation set, if known already.
        baseline_ms: runtime of the year's baseline on this machine, if it is not measured here (EFDN).
        strict: the challenge's mean without warm-up, the first image included.
        timed: False leaves out the time and the score.
        warmup: runs before those that count.
        runs: runs that count.
    """
    protocol = protocol_of(year)
    baseline = baseline_of(protocol)
    beside = _other_than(model, protocol['baseline'])
    nets = {model: net} | ({beside: baseline} if baseline is not None else {})
    found = cost(net, model, 'deployed', NTIRE_SIZE)
    mean: dict[str, float] = {}
    peak: float | None = None
    how = ''
    if data is not None:
        with enough_memory(f'--data: an image of {data}'):
            mean, measured, peak = over_images(nets, images_of(data), gt, device, warmup=not strict)
        psnr = measured if measured is not None else psnr
        how = f'mean of {len(images_of(data))} images of {data}'
    elif timed:
        import torch

        before = 0 if strict else warmup
        with enough_memory(f'the random image of --protocol {year}'):
            others = place(nets, lambda one: one.to(device), device)[model]
            image = torch.rand(1, 3, *NTIRE_SIZE, device=device)
            times = interleaved(dict(nets), image, before, runs)
            peak = measured_peak(net, image, others)
        mean = {n: statistics.fmean(values[before:]) for n, values in times.items()}
        how = f'mean of {runs} runs on a random 256x256 image'
        for one in nets.values():
            one.to('cpu')
    if not timed:
        mean = {}
        how = 'counted, not timed'
    else:
        how += ' in fp32, ' + ('no warm-up' if strict or (data is None and not warmup) else 'after warm-up')
    reference = mean.get(beside) if baseline_ms is None else baseline_ms
    row: dict[str, Any] = {
        'Model': model,
        'Val PSNR': None if psnr is None else round(psnr, 2),
        'Val Time [ms]': mean.get(model),
        'Params [M]': found.params / 1e6,
        'FLOPs [G]': found.fvcore / 1e9,
        'Acts [M]': found.activations / 1e6,
        'Mem [M]': peak,
        'Conv': found.convolutions,
        'counted mem [M]': found.memory / 2**20,
        'protocol': year,
        'baseline': protocol['baseline'],
        'baseline time [ms]': reference,
        'timed': how,
        'gate passed': None if psnr is None else psnr >= GATE,
        'score': None,
    }
    if reference is not None and mean:
        row['score'] = ntire_score(
            protocol, runtime_ratio=mean[model] / reference, flops=row['FLOPs [G]'], params=row['Params [M]']
        )
    return row


# ---------------------------------------------------------------------- writing


COST_COLUMNS = ('model', 'form', 'input', 'params [K]', 'multiply-adds [G]', 'fvcore [G]', 'activations [M]', 'convs')
TIME_COLUMNS = ('model', 'input', 'dtype', 'format', 'compiled', 'median [ms]', 'p5', 'p95', 'mean', 'first', 'ratio')


def cost_rows(report: Report) -> list[list[str]]:
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


def time_rows(report: Report) -> list[list[str]]:
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


def _tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
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


def notes(report: Report) -> list[str]:
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


def markdown(report: Report) -> str:
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


def write(report: Report, folder: Path) -> None:
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


def _print(report: Report) -> None:
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
        network, checkpoint, key = networks.describe(opt, arch, scale, weights, settings, param_key)
        if checkpoint is not None and not checkpoint.is_file() and weights is None:
            checkpoint = None  # cost does not depend on weights; a test file may name some that are not there
        net = build(network, checkpoint, key, fuse=False)
        told = networks.read_options(opt).get('scale') if opt is not None and scale is None else None
        factor, channels = scale_of(net, network, told), channels_of(net, network)
        if protocol is not None:
            protocol_of(protocol)
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
            forms['deployed'] = fused(net)
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
