"""Errors that a user can mend, each said in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """Something the user can mend; printed as one sentence, exit code 2."""


def one_line(error: Exception) -> str:
    """What an error says, without line ends; its type if it says nothing."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # whose own text has quotes
    return ' '.join(str(text).split()) or type(error).__name__


def near(name: Any, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or the known names if none is near."""
    names = [str(k) for k in known]
    likely = {n.lower(): n for n in reversed(names)}  # a slip of the case is the likeliest of all
    match = get_close_matches(str(name).lower(), likely, 1)
    if match:
        return f'did you mean {likely[match[0]]!r}?'
    shown = sorted(n for n in names if not n.endswith('_effsr'))
    return f'known are {", ".join(shown[:12])}{" ..." if len(shown) > 12 else ""}'
