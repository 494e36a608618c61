"""What networks cost: counted; measured in turns, with memory at its peak; the state of the machine meanwhile."""

from __future__ import annotations

import copy
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_effsr.utils.complexity import count_macs, count_params, peak_memory
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.memory import out_of_memory
from basicsr_effsr.utils.training import DTYPES


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


def cost(net: nn.Module, model: str, form: str, lr_size: tuple[int, int], num_in_ch: int = 3) -> Cost:
    """Counts one network.

    Raises:
        ValueError: it cannot be counted, or does not take such an input.
    """
    macs = count_macs(net, lr_size, num_in_ch=num_in_ch)
    counts = (count_params(net), macs.total, macs.fvcore, macs.activations, macs.convolutions)
    memory = peak_memory(net, lr_size, num_in_ch=num_in_ch)
    return Cost(model, form, lr_size, *counts, memory, macs.uncounted)


def once(net: Callable, image: Tensor) -> float:
    """Milliseconds of one forward pass, by CUDA events or by the clock."""
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


def interleaved(
    nets: Mapping[str, Callable], image: Tensor, warmup: int, runs: int, found: dict[str, list[float]] | None = None
) -> dict[str, list[float]]:
    """Milliseconds of every run of every network, in turns (A B C, A B C ...), the first of them the cold one.

    ``image`` is (1, C, H, W). The ``warmup`` runs of each come first, and the caller leaves them out. ``found`` is
    filled, for who wants to know where it stopped.
    """
    found = {} if found is None else found
    found |= {name: [] for name in nets}
    with torch.no_grad():
        for _ in range(warmup + runs):
            for name, net in nets.items():
                found[name].append(once(net, image))
    return found


def peak_mib(net: nn.Module, image: Tensor) -> float | None:
    """MiB that tensors hold at most in a forward pass, weights and image included, whatever else is on the GPU.

    Returns:
        None on a CPU, which does not say.
    """
    if image.device.type != 'cuda':
        return None
    own = image.nbytes + sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    before = torch.cuda.memory_allocated(image.device)
    torch.cuda.reset_peak_memory_stats(image.device)
    with torch.no_grad():
        net(image)
    return (torch.cuda.max_memory_allocated(image.device) - before + own) / 2**20


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
        UserError: a network does not run in ``dtype`` or compiled.
    """
    kind = DTYPES[dtype]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    image = torch.rand(1, num_in_ch, *size).to(device, kind).contiguous(memory_format=layout)
    ready: dict[str, Any] = {n: copy.deepcopy(net).to(device, kind).to(memory_format=layout) for n, net in nets.items()}
    if compiled:
        torch.compiler.reset()  # after a handful of variants of one network torch would go on without compiling
        ready = {name: torch.compile(net, dynamic=False) for name, net in ready.items()}
    times: dict[str, list[float]] = {}
    try:
        interleaved(ready, image, warmup, runs, times)
    except RuntimeError as error:
        if out_of_memory(error) or (dtype == 'fp32' and not compiled):
            raise
        how = f'{dtype}, compiled,' if compiled else dtype
        stopped = min(times, key=lambda name: len(times[name]))  # the first of those that ran least
        raise UserError(f'{stopped} does not run in {how} on {device}: {one_line(error)}') from error
    counted = {name: np.percentile(values[warmup:], (50, 5, 95)).tolist() for name, values in times.items()}
    return [
        Latency(
            model=name,
            lr_size=size,
            dtype=dtype,
            memory_format='channels_last' if channels_last else 'contiguous',
            compiled=compiled,
            runs=runs,
            **dict(zip(('median', 'p5', 'p95'), counted[name], strict=True)),
            mean=statistics.fmean(values[warmup:]),
            first=values[0],
            peak_mib=peak_mib(ready[name], image),
            ratio=counted[name][0] / counted[list(nets)[-1]][0],
        )
        for name, values in times.items()
    ]


def gpu_state(device: torch.device) -> dict[str, str | int]:
    """Driver, load and clock of a GPU at this moment; what nvidia-smi does not say is left out."""
    # by its identity, since CUDA_VISIBLE_DEVICES gives GPUs other numbers than nvidia-smi has
    identity = str(getattr(torch.cuda.get_device_properties(device), 'uuid', '')).removeprefix('GPU-')
    words = ['nvidia-smi', '--query-gpu=driver_version,utilization.gpu,clocks.sm', '--format=csv,noheader,nounits']
    try:
        words.append(f'--id=GPU-{identity}')
        said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    cells = zip(('driver', 'GPU load [%]', 'SM clock [MHz]'), map(str.strip, said.split(',')))  # noqa: B905
    return {name: int(cell) if cell.isdigit() else cell for name, cell in cells if cell[:1].isdigit()}


def environment(device: torch.device) -> dict[str, Any]:
    """What a latency depends on, before anything is measured."""
    facts: dict[str, Any] = {'device': platform.processor() or 'CPU', 'torch': torch.__version__}
    facts |= {'threads': torch.get_num_threads(), 'CPU cores': os.cpu_count()}
    if device.type == 'cuda':
        cudnn = torch.backends.cudnn
        facts |= {'device': torch.cuda.get_device_name(device), 'CUDA': torch.version.cuda, 'cuDNN': cudnn.version()}
        facts |= {'TF32 convolutions': cudnn.allow_tf32, 'cudnn.benchmark': cudnn.benchmark, **gpu_state(device)}
    else:
        with suppress(OSError, StopIteration):  # machines without the line exist, ARM for one
            lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
            facts['device'] = next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    with suppress(OSError, AttributeError):
        facts['load average'] = round(os.getloadavg()[0], 2)
    return facts
