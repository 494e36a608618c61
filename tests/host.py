"""Running commands in processes of their own."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

HANGS = 1200  # seconds; only what hangs takes them, on the busiest machine too: no test may pass or fail by the clock
AT_THE_START = ('PYTHON', 'LD_', 'OMP_', 'TORCH_DEVICE_BACKEND_AUTOLOAD', 'BASICSR_EFFSR_AUTOLOAD')  # who reads these


@cache
def nursery() -> tuple[socket.socket, dict[str, str]]:
    """The connection to ``nursery.py``, which ends with this process, and the environment that it was started in."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = surroundings()
    subprocess.Popen([sys.executable, str(Path(__file__).parent / 'nursery.py')], stdin=there, env=environment)
    there.close()
    return here, at_the_start(environment)


def surroundings(**changes: str) -> dict[str, str]:
    """The environment of a command: one thread, nothing of this process on its path."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'BASICSR_EFFSR_AUTOLOAD')}
    return env | {'OMP_NUM_THREADS': '1', 'PYTHONUTF8': '1'} | changes


def at_the_start(environment: dict[str, str]) -> dict[str, str]:
    """What of an environment acts before the first line of ours."""
    return {key: value for key, value in environment.items() if key.startswith(AT_THE_START)}


class Command:
    """A running command, in a session of its own; to be used in a ``with``, which kills what is left of it."""

    def __init__(self, *arguments: str, cwd: Path, **environment: str) -> None:
        """Starts this interpreter with ``arguments`` in ``cwd``, from the nursery; never where the start is tested."""
        connection, start = nursery()
        env = surroundings(**environment)
        assert at_the_start(env) == start, 'this environment needs an interpreter of its own'
        self.arguments = [sys.executable, *arguments]
        self.open = ExitStack()
        self.out = self.open.enter_context(tempfile.TemporaryFile('w+'))  # noqa: SIM115
        self.err = self.open.enter_context(tempfile.TemporaryFile('w+'))  # noqa: SIM115
        reader, writer = os.pipe()
        self.answer = self.open.enter_context(os.fdopen(reader, 'rb', 0))
        message = json.dumps({'arguments': arguments, 'cwd': str(cwd), 'environment': env}).encode()
        socket.send_fds(connection, [message], [self.out.fileno(), self.err.fileno(), writer])
        os.close(writer)
        self.pid = int(self.answer.readline())

    def wait(self, timeout: float = HANGS) -> subprocess.CompletedProcess[str]:
        """How it ended.

        Raises:
            subprocess.TimeoutExpired: it is still running after ``timeout`` seconds, and goes on.
        """
        if not select.select([self.answer], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        said = []
        for stream in (self.out, self.err):
            stream.seek(0)
            said.append(stream.read())
        return subprocess.CompletedProcess(self.arguments, int(self.answer.readline()), *said)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        with self.open, suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run(*arguments: str, cwd: Path, timeout: float = HANGS, fresh: bool = False, **environment: str):
    """Runs this interpreter with ``arguments`` in ``cwd``; one thread, nothing of this process on its path.

    Args:
        fresh: a new interpreter although none is needed; for tests of the start itself.

    Returns:
        subprocess.CompletedProcess[str]
    """
    env = surroundings(**environment)
    ready = arguments[0] in ('-m', '-c') or not arguments[0].startswith('-')
    if not fresh and ready and at_the_start(env) == at_the_start(surroundings()):
        with Command(*arguments, cwd=cwd, **environment) as command:
            return command.wait(timeout)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def succeed(*arguments: str, **how) -> str:
    """As ``run``, and the process must end well; returns its standard output."""
    done = run(*arguments, **how)
    assert done.returncode == 0, f'{" ".join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def logged(*arguments: str, **how) -> str:
    """As ``succeed``; returns what the host's logger wrote (standard error) after the output."""
    done = run(*arguments, **how)
    assert done.returncode == 0, f'{" ".join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout + done.stderr


_STOPPED = """
import os, runpy, sys
replace = os.replace

def stopped(source, target, **options):
    if os.path.basename(target) == {name!r}:
        os.replace = replace
        for _ in range({times}):
            os.kill(os.getpid(), {number})
    replace(source, target, **options)

os.replace, sys.argv = stopped, {argv!r}
runpy.run_module({module!r}, run_name='__main__', alter_sys=True)
"""


def stopped_while_writing(name: str, number: signal.Signals, module: str, *argv: str, cwd: Path, times: int = 1):
    """As ``run`` of ``-m module``, sent signal ``number`` when file ``name`` is written but has no name yet."""
    code = _STOPPED.format(name=name, number=int(number), times=times, module=module, argv=[module, *argv])
    return run('-c', code, cwd=cwd)
