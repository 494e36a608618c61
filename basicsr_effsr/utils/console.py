"""What commands print and how they end: names as they are, control characters escaped, one sentence for an error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import rich.console
import typer
from rich.progress import BarColumn, Progress, ProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from basicsr_effsr._version import __version__
from basicsr_effsr.utils.errors import one_line, printable
from basicsr_effsr.utils.memory import out_of_memory

BAD_INPUT, INTERNAL = 2, 70  # exit codes; the second is that of sysexits.h for a fault of the program itself


class Console(rich.console.Console):
    """A console that shows what it is given: no markup, no emoji, no colours by guess, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and 'COLUMNS' not in os.environ:
            self.width = 140  # a file or a pipe has no width to fit in

    def render_str(self, text: str, **how: Any) -> Text:
        """Every string that is printed, alone or in a table."""
        return super().render_str(
            printable(text).encode(self.encoding, 'backslashreplace').decode(self.encoding), **how
        )

    def table(self, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table whose cells are wrapped and never cut, since a name that is cut cannot be copied."""
        cells = list(rows)
        table = Table(title=title, title_justify='left', show_header=bool(head))
        for name in head or [''] * len(cells[0] if cells else ()):
            table.add_column(name, overflow='fold')
        for row in cells:
            table.add_row(*row)
        self.print(table)


def say(line: str, *, err: bool = False, style: str | None = None) -> None:
    """Prints one line to the standard output, or to that of errors."""
    Console(stderr=err).print(line, style=style)


def _version(asked: bool) -> None:
    if asked:
        say(f'basicsr_effsr {__version__}')
        raise typer.Exit


Version = Annotated[bool, typer.Option('--version', callback=_version, is_eager=True, help='Print the version.')]


class _Name(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(printable(task.description))


@contextmanager
def progress(*columns: ProgressColumn, shown: bool, transient: bool = False) -> Iterator[Progress]:
    """A bar per task, behind the task's name and before ``columns`` and the time that is left."""
    bar = (_Name(), BarColumn(), *columns, TimeRemainingColumn())
    bars = Progress(*bar, console=Console(stderr=True), disable=not shown, transient=transient)
    with bars if shown else nullcontext():  # rich ends also a bar that is not shown with an empty line
        yield bars


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within this block SIGTERM, which torchrun and schedulers send, raises KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_command(name: str, function: Callable[..., Any]) -> Any:
    """A function as one command of a group."""
    holder = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    holder.command(name=name)(function)
    return typer.main.get_command(holder)


class Commands(TyperGroup):
    """A group of commands each of which ends with an exit code and, if it cannot do its work, one sentence.

    Bad input, a full disk, a missing file or too little memory exits with 2. Any other exception is a bug: 70, with
    its traceback if the environment variable EFFSR_TRACEBACK is set. Warnings of libraries are not shown, unless Python
    is asked for them (-W, PYTHONWARNINGS).
    """

    running = ''  # the name of the command, behind a space

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command and exits, or gives its exit code where this is not to stand alone."""
        alone = options.pop('standalone_mode', True)
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter('ignore')
            try:
                code = super().main(*args, **{**options, 'standalone_mode': False})
                sys.stdout.flush()
            except Exception as error:
                code, reason = self.reason(error)
                if reason:
                    say(f'{self.name}{self.running}: {reason}', err=True)
                try:
                    sys.stdout.flush()
                except OSError:  # what could not be printed stays in its buffer, for Python to fail with at the end
                    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
        if alone:
            sys.exit(code or 0)
        return code or 0

    def reason(self, error: Exception) -> tuple[int, str]:
        """Exit code and sentence for an error."""
        if isinstance(error, typer.Abort):
            return 1, 'stopped'
        if type(error).__name__ == 'NoArgsIsHelpError':
            error.show()  # type: ignore[attr-defined]
            return BAD_INPUT, ''
        if hasattr(error, 'format_message'):  # of typer, which has had two homes for it
            return BAD_INPUT, f'{one_line(error.format_message())} (--help shows every option)'
        if isinstance(error, OSError | ValueError | KeyError):
            return BAD_INPUT, one_line(error)
        if out_of_memory(error):
            return BAD_INPUT, 'out of memory'
        if os.environ.get('EFFSR_TRACEBACK'):
            traceback.print_exception(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        return INTERNAL, (
            f'internal error, {type(error).__name__}: {one_line(error)} ({os.path.basename(place.filename)}, '
            f'line {place.lineno}); please report it with what EFFSR_TRACEBACK=1 shows'
        )
