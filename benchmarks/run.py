"""The speed of the package on a CPU: every network against the plain form of its authors' structure, with targets.

The forms take turns within one process with a thread for each core; a figure is the median of the processor's time over
all threads, a ratio says how many times better ours is. Prints the table, writes it as Markdown and JSON, exits 0
whether targets are reached or not.

Run: OMP_WAIT_POLICY=PASSIVE python -m benchmarks.run [training inference ...] [--net HASN ...] [--threads 1] [--quick]
     (passive: threads that wait for each other take no time)
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from benchmarks import deploy, speed
from benchmarks.side_by_side import NETS, Case, Row, Settings, facts, run, write

MINUTES = 13  # after which nothing new begins
CASES: dict[str, Case] = {  # a case yields the rows that it has measured
    'training': speed.training,
    'checkpointing': speed.checkpointing,
    'inference': speed.inference,
    'windows': speed.windows,
    'model': speed.model,
    'distillation': speed.distillation,
    'engines': deploy.engines,
    'folder': deploy.folder,
    'allocator': speed.allocator,
    'compile': deploy.compiled,
}


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('case', nargs='*', default=list(CASES), help=f'of {", ".join(CASES)}; default: all')
    parser.add_argument('--net', nargs='+', choices=NETS, default=list(NETS))
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='default: one for each core')
    parser.add_argument('--quick', action='store_true', help='tiny networks and images, to see that it runs')
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/cpu'), help='without its ending')
    args = parser.parse_args(argv)
    if unknown := set(args.case) - set(CASES):
        parser.error(f'there is no case {" ".join(sorted(unknown))}; there are {", ".join(CASES)}')
    torch.set_num_threads(args.threads)
    settings = Settings(tuple(args.net), args.quick)
    if args.quick:
        settings = Settings(tuple(args.net), True, seconds=0, frame=(20, 26), patch=18, batch=1)
    about = facts('cpu')
    rows: list[Row] = []
    try:
        for row in run({name: CASES[name] for name in args.case}, settings, until=time.monotonic() + 60 * MINUTES):
            rows.append(row)
    finally:  # also of a run that was stopped
        write(rows, about, 'python -m benchmarks.run', args.out)
    return rows


if __name__ == '__main__':
    main()
