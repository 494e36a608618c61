"""Running the real host in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HANGS = 1200  # seconds; only what hangs takes them, on the busiest machine too: no test may pass or fail by the clock


def run(*arguments: str, cwd: Path, timeout: float = HANGS, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter with ``arguments`` in ``cwd``; one thread, nothing of this process on its path."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'BASICSR_EFFSR_AUTOLOAD')}
    env |= {'OMP_NUM_THREADS': '1', 'PYTHONUTF8': '1', **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def succeed(*arguments: str, cwd: Path, timeout: float = HANGS, **environment: str) -> str:
    """As ``run``, and the process must end well; returns its standard output."""
    done = run(*arguments, cwd=cwd, timeout=timeout, **environment)
    assert done.returncode == 0, f'{" ".join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def logged(*arguments: str, cwd: Path, timeout: float = HANGS, **environment: str) -> str:
    """As ``succeed``; returns what the host's logger wrote (standard error) after the output."""
    done = run(*arguments, cwd=cwd, timeout=timeout, **environment)
    assert done.returncode == 0, f'{" ".join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout + done.stderr


_STOPPED = """
import os, runpy, sys
replace = os.replace

def stopped(source, target, **options):
    if os.path.basename(target) == {name!r}:
        os.replace = replace
        os.kill(os.getpid(), {number})
    replace(source, target, **options)

os.replace, sys.argv = stopped, {argv!r}
runpy.run_module({module!r}, run_name='__main__', alter_sys=True)
"""


def stopped_while_writing(name: str, number: signal.Signals, module: str, *argv: str, cwd: Path):
    """As ``run`` of ``-m module``, sent signal ``number`` when file ``name`` is written but has no name yet."""
    return run('-c', _STOPPED.format(name=name, number=int(number), module=module, argv=[module, *argv]), cwd=cwd)
