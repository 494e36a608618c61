"""What automatic loading costs a process: bare Python, and ``import torch``.

Fresh interpreters, alternating with and without the hook, so that the machine's state hits both alike.
Run:  python benchmarks/startup.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HOOK = """
import time
from importlib.metadata import entry_points
point = next(e for e in entry_points(group='torch.backends') if e.name == 'basicsr_effsr')
start = time.perf_counter()
point.load()()
print((time.perf_counter() - start) * 1e3)
"""
TORCH = """
import time, resource
start = time.perf_counter()
import torch
print((time.perf_counter() - start) * 1e3)
"""
BARE = """
import sys
print(sum(m.startswith('basicsr_effsr') for m in sys.modules))
"""


def measure(code: str, **environment: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(
            [sys.executable, '-c', code],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(out.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=15, help='interpreters per row')
    repeats = parser.parse_args().repeats
    hook, on, off = [], [], []
    for _ in range(repeats):
        hook.append(measure(HOOK))
        on.append(measure(TORCH))
        off.append(measure(TORCH, BASICSR_EFFSR_AUTOLOAD='0'))
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}')
    print(f'bare python: modules of ours loaded     {measure(BARE):.0f}')
    print(f'hook alone, load and call (median)      {statistics.median(hook):.2f} ms   (limit 2 ms)')
    print(f'import torch, hook on / off (medians)   {statistics.median(on):.0f} / {statistics.median(off):.0f} ms')
    if statistics.median(hook) > 2:
        sys.exit('the hook costs more than 2 ms')


if __name__ == '__main__':
    main()
