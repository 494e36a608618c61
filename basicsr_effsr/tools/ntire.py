"""The NTIRE efficient-SR challenges: a network's row in their units, and its score."""

from __future__ import annotations

import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.data.benchmark_sets import hr_of, images_in
from basicsr_effsr.data.pairs import check_sizes
from basicsr_effsr.imaging.decode import read_rgb
from basicsr_effsr.utils import latency
from basicsr_effsr.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NTIRE_SIZE = (256, 256)  # the LR size at which the challenges count
GATE = 26.90  # dB that an entry must reach on the validation set
BORDER = 4
PAPERS = Path(__file__).with_name('papers.json')


def challenge_of(name: str) -> dict[str, Any]:
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
    found = images_in(data)
    if not found:
        raise UserError(f'--data: {data} holds no image')
    return found


def psnr_rgb(output: Tensor, gt: Tensor, border: int = BORDER) -> float:
    """PSNR [dB] on RGB of (3, H, W) tensors of bytes, ``border`` pixels cropped: the challenge's score."""
    a, b = (t[:, border:-border, border:-border].double() for t in (output, gt))
    error = (a - b).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def other_than(model: str, yardstick: str) -> str:
    """The name of a yardstick beside a network that may be called the same."""
    return yardstick if yardstick != model else f'{yardstick} (yardstick)'


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
        ValueError: an image has no partner, or one of another size.
    """
    import torch

    def read(path: Path) -> Tensor:
        return torch.from_numpy(read_rgb(path).transpose(2, 0, 1).copy())

    total = dict.fromkeys(nets, 0.0)
    scores, peaks = [], []
    first = next(iter(nets))
    others = latency.place(nets, lambda net: net.to(device), device)[first]
    with torch.no_grad():
        for file in files:
            image = read(file)[None].to(device).float() / 255
            for name, net in nets.items():
                if warmup:
                    net(image)
                spent, peak = latency.at_most(device, partial(latency.once, net, image))
                total[name] += spent
                if name == first and peak is not None:
                    peaks.append((peak - others) / 2**20)
            if gt is None:
                continue
            partner = hr_of(file, gt, 4)
            output = nets[first](image)[0].clamp(0, 1).mul(255).round().to('cpu', torch.uint8)
            whole = read(partner)
            check_sizes(str(partner), str(file), whole.shape[1:], image.shape[2:], 4, training=False)
            scores.append(psnr_rgb(output, whole[:, : output.shape[1], : output.shape[2]]))
    for net in nets.values():
        net.to('cpu')
    psnr = sum(scores) / len(scores) if scores else None
    return {name: value / len(files) for name, value in total.items()}, psnr, max(peaks, default=None)


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
        net: the x4 network in fused form.
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
    from basicsr_effsr.utils.complexity import cost

    protocol = challenge_of(year)
    baseline = baseline_of(protocol)
    beside = other_than(model, protocol['baseline'])
    nets = {model: net} | ({beside: baseline} if baseline is not None else {})
    found = cost(net, model, 'fused', NTIRE_SIZE)
    mean: dict[str, float] = {}
    peak: float | None = None
    how = ''
    if data is not None:
        with latency.enough_memory(f'--data: an image of {data}'):
            mean, measured, peak = over_images(nets, images_of(data), gt, device, warmup=not strict)
        psnr = measured if measured is not None else psnr
        how = f'mean of {len(images_of(data))} images of {data}'
    elif timed:
        import torch

        before = 0 if strict else warmup
        with latency.enough_memory(f'the random image of --protocol {year}'):
            others = latency.place(nets, lambda one: one.to(device), device)[model]
            image = torch.rand(1, 3, *NTIRE_SIZE, device=device)
            times = latency.interleaved(dict(nets), image, before, runs)
            peak = latency.measured_peak(net, image, others)
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
