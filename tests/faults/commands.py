"""Every command of ``effsr`` with the paths that it takes, found by walking; and calls that cannot hang a test."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import typer
from typer.testing import CliRunner

from basicsr_effsr.cli import COMMANDS, app

HANGS = 300  # seconds; only what hangs takes them, on the busiest machine too
MORE = (
    3 * 2**30
)  # bytes that a command may ask for beside what this process has: an endless file must not fill the machine


def commands() -> Iterator[tuple[tuple[str, ...], Callable]]:
    """(words, function) of every command, those of groups too."""
    for name, (module, attribute, _) in COMMANDS.items():
        target = getattr(import_module(module), attribute)
        if isinstance(target, typer.Typer):
            for each in target.registered_commands:
                yield (name, each.name or each.callback.__name__.replace('_', '-')), each.callback
        else:
            yield (name,), target


def parameters(function: Callable) -> dict[str, str]:
    """Parameter that takes a path -> its option with dashes, or '' for an argument, in order."""
    found = {}
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if 'Path' not in str(hint) and name != 'inputs':
            continue
        (how,) = (each for each in typing.get_args(hint) if hasattr(each, 'param_decls'))
        long = [word for word in how.param_decls or () if word.startswith('--')]
        option = type(how).__name__ == 'OptionInfo'
        found[name] = (long or [f'--{name.replace("_", "-")}'])[0] if option else ''
    return found


def words_of(words: Sequence[str], function: Callable, paths: Mapping[str, Path], extra: Sequence[str]) -> list[str]:
    """The command line with these paths, arguments last."""
    known = parameters(function)
    options = [word for name, path in paths.items() if known[name] for word in (known[name], str(path))]
    return [*words, *options, *extra, *(str(paths[name]) for name in known if not known[name] and name in paths)]


def call(words: Sequence[str], cwd: Path, before: Callable[[], None] = lambda: None) -> tuple[int | None, str]:
    """Exit code and output of ``effsr`` in a fork of this process; None if it did not end.

    ``before`` runs there first. A signal's number is negative.
    """
    with tempfile.NamedTemporaryFile('r+') as told:
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(cwd)
                pages = int(Path('/proc/self/statm').read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE,) * 2)
                before()
                done = CliRunner().invoke(app, list(words))
                Path(told.name).write_text(json.dumps([done.exit_code, done.output]))
            finally:
                os._exit(0)
        end = time.monotonic() + HANGS
        while time.monotonic() < end:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                break
            time.sleep(0.01)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, ''
        code = os.waitstatus_to_exitcode(status)
        return json.load(told) if code == 0 else (code, 'ended by a signal')
