"""What is wrong with an option file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something wrong in an option file.

    Attributes:
        where: the option, dotted.
        message: what must hold, what was found, the fix.
        fatal: the run would fail, end early or compute something else than the file says.
    """

    where: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f'{self.where}: {self.message}'
