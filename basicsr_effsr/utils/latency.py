"""Latency in turns, memory at its peak, and the state of the machine that they depend on."""

from __future__ import annotations

import copy
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


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
