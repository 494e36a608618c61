"""Errors that a user can fix, each one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class UserError(ValueError):
    """An error that the user can fix; printed as one sentence, exit code 2."""


def printable(text: str) -> str:
    """``text`` with every invisible character (line ends, escapes, half of a surrogate) escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def one_line(error: BaseException | str) -> str:
    """The message of an error, printable and on one line; its type if it has none."""
    text: Any = error
    if isinstance(error, KeyError) and error.args:
        text = error.args[0]  # its own text has quotes
    elif isinstance(error, OSError) and error.filename is not None:
        text = f'{error.filename}: {error.strerror or "cannot be used"}'
    shown = isinstance(error, ValueError | OSError)  # line ends, which may be of names
    words = [str(text)] if shown else str(text).split()
    return ' '.join(map(printable, words)) or type(error).__name__


def nearest(name: Any, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that is most like ``name``, whose case counts for nothing; None if none is."""
    names = [str(k) for k in known]
    likely = {n.lower(): n for n in reversed(names)}  # a slip of the case is the likeliest of all
    match = get_close_matches(str(name).lower(), likely, 1, likeness)
    return likely[match[0]] if match else None


def near(name: Any, known: Iterable[str]) -> str:
    """'did you mean ...?', or the known names if none is near."""
    names = [str(k) for k in known]
    likely = nearest(name, names)
    if likely is not None:
        return f'did you mean {likely!r}?'
    shown = sorted(n for n in names if n.removesuffix('_effsr') not in {*names} - {n})
    return f'known are {", ".join(shown[:12])}{" ..." if len(shown) > 12 else ""}'


def needs(module: str, extra: str = 'export') -> Any:
    """A module of an extra of this package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module.partition('.')[0]}: pip install 'basicsr_effsr[{extra}]'") from error
