"""Options that cannot lie: a key nobody reads is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def refuse_unknown(who: str, section: str, given: Mapping, known: Iterable[str]) -> None:
    """Raises if ``given`` has a key that is not known.

    Args:
        who: the class that reads the section.
        section: its place in the option file, such as ``train``.
        given: the section.
        known: the keys that are read.

    Raises:
        ValueError: names the key and the nearest known one.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f'did you mean {near[0]!r}?' if near else f'known are {known}'
            raise ValueError(f'{who}: {section}.{key} is not an option it reads; {hint}')
