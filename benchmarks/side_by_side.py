"""Forms of one computation measured side by side: in turns within one process, as medians and ratios."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

Step = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """Milliseconds of every counted call, and the peak of memory of one in MiB."""

    times: list[float]
    mib: float

    @property
    def ms(self) -> float:
        """Median."""
        return statistics.median(self.times)

    @property
    def spread(self) -> str:
        """Fastest and slowest."""
        return f'{min(self.times):.1f} .. {max(self.times):.1f}'


def inference_step(net: nn.Module, lq: Tensor) -> Step:
    """One image (N, C, H, W) through the net in eval mode."""
    net.eval()
    return torch.inference_mode()(lambda: net(lq))


def timed(step: Step, device: str) -> float:
    """Milliseconds of one call."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def peak_memory(step: Step, device: str) -> float:
    """MiB of tensors that one call holds at most beyond those that are there before it.

    Scratch space inside the libraries is not in it.
    """
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes)) / 2**20


def measure(steps: Mapping[str, Step], device: str, warmup: int, repeats: int) -> dict[str, Measured]:
    """Every form ``repeats`` times, in turns, after ``warmup`` rounds that do not count."""
    times: dict[str, list[float]] = {form: [] for form in steps}
    for repeat in range(warmup + repeats):
        for form, step in steps.items():
            elapsed = timed(step, device)
            if repeat >= warmup:
                times[form].append(elapsed)
    return {form: Measured(times[form], peak_memory(step, device)) for form, step in steps.items()}


def machine(what: str, device: str, threads: int, repeats: int) -> str:
    """What the figures depend on, in one line."""
    where = torch.cuda.get_device_name() if device == 'cuda' else f'{os.cpu_count()} CPU cores'
    return (
        f'{what}, float32, {where}, {threads} thread(s), Python {platform.python_version()}, '
        f'torch {torch.__version__}, median of {repeats}'
    )


def table(title: str, measured: Mapping[str, Measured]) -> Table:
    """Medians, spread, memory, and ratios to the first form."""
    out = Table(title=title)
    for head in ('form', 'ms', 'spread', 'ratio', 'peak MiB', 'ratio'):
        out.add_column(head, justify='left' if head == 'form' else 'right')
    base = next(iter(measured.values()))
    for form, m in measured.items():
        out.add_row(form, f'{m.ms:.1f}', m.spread, f'{m.ms / base.ms:.2f}', f'{m.mib:.1f}', f'{m.mib / base.mib:.2f}')
    return out
