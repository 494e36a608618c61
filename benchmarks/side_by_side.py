"""Forms of one computation measured side by side, in turns within one process, and the rows that come of it."""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_effsr.utils.latency import environment

Step = Callable[[], object]
NETS: dict[str, dict[str, Any]] = {  # a network, and options that make it tiny
    'HASN': {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'squeeze_factor': 2},
    'AGDN': {'num_feat': 12, 'num_block': 1, 'tlc': 12},
    'ASID': {'num_feat': 8, 'num_block': 2},
    'EFRDN': {'num_feat': 16, 'share': (0,), 'distill': 4, 'conv4_out': 8, 'num_heads': 2, 'mlp_hidden': 8},
    'DPARN': {'num_feat': 8, 'num_block': 1, 'esa_channels': 4},
}


@dataclass(frozen=True)
class Row:
    """What the plain form costs and what ours does: ms and MiB, of which less is better, or images/s.

    ``plain`` is None where there is nothing to compare with.
    """

    case: str
    what: str
    plain: float | None
    ours: float
    unit: str = 'ms'
    target: float | None = None
    note: str = ''

    @property
    def ratio(self) -> float | None:
        """How many times better ours is."""
        if self.plain is None:
            return None
        return self.ours / self.plain if self.unit == 'images/s' else self.plain / self.ours

    @property
    def verdict(self) -> str:
        if self.target is None or self.ratio is None:
            return ''
        return 'reached' if self.ratio >= self.target else 'short'

    def cells(self) -> list[str]:
        """Everything but the case, in words."""
        figures = ['' if value is None else f'{value:.2f}' for value in (self.plain, self.ours, self.ratio)]
        target = '' if self.target is None else f'{self.target:g}'
        return [self.what, *figures[:2], self.unit, figures[2], target, self.verdict]


@dataclass(frozen=True)
class Settings:
    """What a run measures; ``quick`` is tiny networks and images, to see that everything runs."""

    nets: Sequence[str] = tuple(NETS)
    quick: bool = False
    device: str = 'cpu'
    seconds: float = 4.0  # about how long the forms of one comparison take turns
    frame: tuple[int, int] = field(default=(72, 104))  # LR rows and columns of an image
    patch: int = 48  # LR side of a training patch
    batch: int = 2

    def build(self, name: str, **options: Any) -> nn.Module:
        """The network with initial weights, the same for the same name and options."""
        from basicsr.utils.registry import ARCH_REGISTRY

        torch.manual_seed(0)
        return ARCH_REGISTRY.get(name)(**(NETS[name] if self.quick else {}), **options).to(self.device)


Case = Callable[[Settings], Iterator[Row]]


def inference_step(net: nn.Module, lq: torch.Tensor) -> Step:
    """One image (N, C, H, W) through the net in eval mode."""
    net.eval()
    return torch.inference_mode()(lambda: net(lq))


def timed(step: Step, device: str, by_clock: bool = False) -> float:
    """Milliseconds of one call: of the processor, over all threads, as other work shares it; on a GPU by the clock."""
    clock = time.perf_counter if by_clock or device == 'cuda' else time.process_time
    if device == 'cuda':
        torch.cuda.synchronize()
    start = clock()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (clock() - start) * 1e3


def measure(
    steps: Mapping[str, Step],
    device: str = 'cpu',
    seconds: float = 4.0,
    least: int = 3,
    most: int = 15,
    by_clock: bool = False,
) -> dict[str, float]:
    """Median milliseconds of every form; they take turns until ``seconds`` are over, after a round that is not counted.

    Args:
        steps: by name.
        least, most: rounds that count.
        by_clock: where threads of different kinds overlap.
    """
    times: dict[str, list[float]] = {form: [] for form in steps}
    for step in steps.values():
        timed(step, device, by_clock)
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for form, step in steps.items():
            times[form].append(timed(step, device, by_clock))
    return {form: statistics.median(found) for form, found in times.items()}


def peak_memory(step: Step, device: str = 'cpu') -> float:
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


def profile(step: Step, device: str = 'cpu', count: int = 6) -> str:
    """Where the time of one call goes: its most expensive operators and their shares."""
    kind = torch.profiler.ProfilerActivity.CUDA if device == 'cuda' else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        step()
    where = f'self_{"device" if device == "cuda" else "cpu"}_time_total'
    spent = {event.key: getattr(event, where) for event in found.key_averages()}
    first = sorted(spent, key=lambda key: -spent[key])[:count]
    total = sum(spent.values()) or 1
    return ', '.join(f'{key.removeprefix("aten::")} {100 * spent[key] / total:.0f} %' for key in first)


def facts(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    found = environment(torch.device(device))
    return {'date': datetime.now(timezone.utc).date().isoformat(), **found, 'Python': platform.python_version()}


def write(rows: Sequence[Row], about: Mapping[str, Any], command: str, out: Path) -> None:
    """The rows as Markdown and JSON, ``out`` with both endings."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = [{**asdict(row), 'ratio': row.ratio, 'verdict': row.verdict} for row in rows]
    out.with_suffix('.json').write_text(json.dumps({'command': command, **about, 'rows': stored}, indent=1) + '\n')
    lines = [f'# `{command}`', '', ', '.join(f'{name} {value}' for name, value in about.items()) + '.', '']
    for case in dict.fromkeys(row.case for row in rows):
        lines += [f'## {case}', '', '| | plain | ours | | ratio | at least | |']
        lines += ['| --- | --: | --: | --- | --: | --: | --- |']
        group = [row for row in rows if row.case == case]
        lines += [f'| {" | ".join(row.cells())} |' for row in group]
        lines += ['', *(f'* {row.what}: {row.note}' for row in group if row.note), '']
    out.with_suffix('.md').write_text('\n'.join(lines).rstrip() + '\n')


def run(cases: Mapping[str, Case], settings: Settings, until: float = math.inf) -> Iterator[Row]:
    """The rows of the cases, printed as they come; what would begin after ``until`` (time.monotonic) is left out."""
    for name, case in cases.items():
        for row in case(settings):
            print(f'{row.case:24}', ' | '.join(row.cells()), row.note, flush=True)
            yield row
            if time.monotonic() > until:
                print(f'no time is left for the rest of {name} and what comes after it')
                return
