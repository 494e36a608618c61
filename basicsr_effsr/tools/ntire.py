"""The NTIRE efficient-SR challenges: a network's row in their units, and its score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from basicsr_effsr.data.benchmark_sets import hr_of, images_in
from basicsr_effsr.data.pairs import check_sizes
from basicsr_effsr.imaging.metrics import psnr as psnr_of
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools.papers import challenge_of
from basicsr_effsr.utils import latency
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import enough_memory

NTIRE_SIZE = (256, 256)  # the LR size at which the challenges count
GATE = 26.90  # dB that an entry must reach on the validation set
BORDER = 4


def ntire_score(protocol: dict[str, Any], *, runtime_ratio: float, flops: float, params: float) -> float:
    """Weighted sum of exp(2 x / baseline) over runtime, FLOPs [G] and parameters [M]; lower is better."""
    ratios = {'runtime': runtime_ratio, 'flops': flops / protocol['flops'], 'params': params / protocol['params']}
    return sum(protocol['weights'][name] * math.exp(2 * ratio) for name, ratio in ratios.items())


def images_of(data: Path) -> list[Path]:
    """The images of a folder, by name."""
    if found := images_in(data):
        return found
    raise UserError(f'--data: {data} holds no image')


def other_than(models: Container[str], yardstick: str) -> str:
    """The name of a yardstick beside networks of which one may be called the same."""
    return yardstick if yardstick not in models else f'{yardstick} (yardstick)'


def over_images(
    nets: dict[str, nn.Module],
    files: list[Path] | None,
    gt: Path | None,
    device: torch.device,
    *,
    warmup: int,
    runs: int = 1,
) -> tuple[dict[str, float], float | None, float | None]:
    """Mean milliseconds per whole image of every network, in turns; PSNR and peak of memory [MiB] of the first one.

    ``files`` are LR images, None takes one random image of 256x256; ``gt`` is the folder of their HR partners (same
    name, or with the ending x4 dropped). ``warmup`` runs of every image come before the ``runs`` that count.

    Returns:
        Name -> milliseconds; PSNR on RGB, a border of 4 pixels cropped, None without ``gt``; what tensors held at
        most on the largest image, None on a CPU, which does not say.

    Raises:
        ValueError: an image has no partner, or one of another size.
    """
    times: dict[str, list[float]] = {name: [] for name in nets}
    scores = []
    judged = next(iter(nets.values()))
    largest = torch.empty(0)
    for file in files if files is not None else [None]:
        if file is None:
            image = torch.rand(1, 3, *NTIRE_SIZE, device=device)
        else:
            image = torch.from_numpy(read_rgb(file).transpose(2, 0, 1).copy())[None].to(device).float() / 255
        for name, spent in latency.interleaved(nets, image, warmup, runs).items():
            times[name] += spent[warmup:]
        if image.numel() > largest.numel():
            largest = image
        if file is not None and gt is not None:
            partner = hr_of(file, gt, 4)
            whole = read_rgb(partner)
            check_sizes(str(partner), str(file), whole.shape[:2], image.shape[2:], 4, training=False)
            with torch.no_grad():
                out = judged(image)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).cpu().numpy()
            whole = whole[: out.shape[0], : out.shape[1]]
            scores.append(psnr_of(out.astype(np.float64), whole.astype(np.float64), BORDER))
    mean = {name: statistics.fmean(spent) for name, spent in times.items()}
    return mean, statistics.fmean(scores) if scores else None, latency.peak_mib(judged, largest)


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
    """The challenge's row of a fused x4 network, in its units, and its score against the baseline measured here.

    The arguments from ``data`` on are the options of ``effsr benchmark``; ``timed`` False leaves out time and score.
    """
    from basicsr_effsr.tools.yardsticks import BASELINES  # with BasicSR

    protocol = challenge_of(year)
    found = latency.cost(net, model, 'fused', NTIRE_SIZE)
    beside = other_than([model], protocol['baseline'])
    nets = {model: net}
    if (baseline := BASELINES.get(protocol['baseline'])) is not None:
        nets[beside] = baseline().eval()
    mean: dict[str, float] = {}
    peak, how = None, 'counted, not timed'
    if data is not None or timed:
        files = None if data is None else images_of(data)
        before = 0 if strict else warmup if files is None else 1
        what = f'the random image of --protocol {year}' if files is None else f'--data: an image of {data}'
        with enough_memory(what, 'use smaller images, or --no-latency'):
            nets = {name: one.to(device) for name, one in nets.items()}
            repeats = runs if files is None else 1
            mean, measured, peak = over_images(nets, files, gt, device, warmup=before, runs=repeats)
        psnr = psnr if measured is None else measured
        words = f'{runs} runs on a random 256x256 image' if files is None else f'{len(files)} images of {data}'
        if timed:
            how = f'mean of {words} in fp32, {"after warm-up" if before else "no warm-up"}'
        else:
            mean = {}
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
