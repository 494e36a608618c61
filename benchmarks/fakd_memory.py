"""Memory and time of the FAKD loss: block by block against the definition with its matrices in memory.

Run: python benchmarks/fakd_memory.py          (some minutes on one core; --quick: half a minute)

Forward and backward pass of one layer. Memory is the peak above what the features themselves take, each form in a
process of its own: the allocator's count on a GPU, the resident set on a CPU. For time the forms take turns, on one
thread.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

MIB = 2**20
STUDENT, TEACHER = 52, 96  # channels of DPARN and of the teacher in options/train


def definition(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |A_T - A_S| with all three N x HW x HW matrices, as the equation reads."""

    def affinity(x: Tensor) -> Tensor:
        x = x.flatten(2)
        unit = x / (x.norm(dim=1, keepdim=True) + 1e-7)
        return unit.transpose(1, 2) @ unit

    return (affinity(student) - affinity(teacher)).abs().mean()


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def forms() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    from basicsr_effsr.losses.fakd_loss import FAKDLoss

    return {'definition': definition, 'streamed': FAKDLoss()}


def features(side: int, batch: int, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student = torch.randn(batch, STUDENT, side, side, device=device, requires_grad=True)
    return student, torch.randn(batch, TEACHER, side, side, device=device)


def memory(form: str, side: int, batch: int, device: str) -> dict[str, float]:
    """Peak extra MiB of one forward and backward pass, and the value of the loss."""
    loss = forms()[form]
    small = features(2, 1, device)
    loss(*small).backward()  # what is loaded on first use is not the loss's
    student, teacher = features(side, batch, device)
    before = resident()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    value = loss(student, teacher)
    value.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == 'cuda':
        peak = torch.cuda.max_memory_allocated()
    return {'mib': (peak - before) / MIB, 'value': value.item()}


def times(names: str, side: int, batch: int, device: str) -> dict[str, float]:
    """Median seconds of one forward and backward pass; the forms take turns. On a CPU, time of the processor."""
    student, teacher = features(side, batch, device)
    seconds: dict[str, list[float]] = {name: [] for name in names.split(',')}
    clock = time.perf_counter if device == 'cuda' else time.process_time
    rounds = 9 if batch * side**4 <= 2**24 else 3
    for _ in range(rounds):
        for name, found in seconds.items():
            student.grad = None
            if device == 'cuda':
                torch.cuda.synchronize()
            start = clock()
            forms()[name](student, teacher).backward()
            if device == 'cuda':
                torch.cuda.synchronize()
            found.append(clock() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def in_own_process(what: str, names: str, side: int, batch: int, device: str) -> dict[str, float]:
    """``memory`` or ``times`` in a fresh interpreter."""
    arguments = [what, names, str(side), str(batch), device]
    done = subprocess.run(
        [sys.executable, __file__, '--one', *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def expected(side: int, batch: int) -> float:
    """MiB of the definition by arithmetic: four matrices of batch x HW x HW float32 at the peak."""
    return 4 * batch * side**4 * 4 / MIB


def main(
    quick: bool = typer.Option(False, help='Small sizes only.'),
    limit: float = typer.Option(4096, help='MiB up to which the definition is tried.'),
    device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='cpu or cuda.'),
) -> None:
    sizes = [(16, 16), (32, 1), (32, 4), (32, 16), (48, 1), (64, 1), (64, 4), (96, 1), (96, 4), (96, 16)]
    table = Table(title='FAKD, one layer, forward and backward', box=None)
    for heading in ('LR patch', 'batch', 'definition MiB', 'streamed MiB', 'definition s', 'streamed s', 'ratio s'):
        table.add_column(heading, justify='right')
    for side, batch in sizes[:3] if quick else sizes:
        need = expected(side, batch)
        streamed, plain = in_own_process('memory', 'streamed', side, batch, device), None
        if need <= limit:
            plain = in_own_process('memory', 'definition', side, batch, device)
            if abs(plain['value'] - streamed['value']) > 1e-5 * plain['value']:
                raise SystemExit(f'{side}, batch {batch}: {plain["value"]} and {streamed["value"]} differ')
        seconds = in_own_process('times', 'definition,streamed' if plain else 'streamed', side, batch, device)
        table.add_row(
            str(side),
            str(batch),
            f'{plain["mib"]:.0f}' if plain else f'({need:.0f})',
            f'{streamed["mib"]:.0f}',
            f'{seconds["definition"]:.3f}' if plain else '',
            f'{seconds["streamed"]:.3f}',
            f'{seconds["streamed"] / seconds["definition"]:.2f}' if plain else '',
        )
    Console(width=110).print(table)
    name = torch.cuda.get_device_name() if device == 'cuda' else f'{platform.machine()}, 1 thread'
    print(
        f'(in brackets: by arithmetic, not run)   torch {torch.__version__}, {name}, {STUDENT} and {TEACHER} channels'
    )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--one']:
        what, names, side, batch, device = sys.argv[2:]
        torch.set_num_threads(1)
        print(json.dumps({'memory': memory, 'times': times}[what](names, int(side), int(batch), device)))
    else:
        typer.run(main)
