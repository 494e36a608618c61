"""Problems of an option file, and the facts that the rules have found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A problem in an option file."""

    where: str  # the option, dotted
    message: str  # what must hold, what was found, the fix
    fatal: bool = True  # the run would fail, end early or compute something else than the file says
    line: int | None = None  # of the option, or of the section that lacks it; None if there is no file

    def __str__(self) -> str:
        return f'line {self.line}: ' * bool(self.line) + f'{self.where}: {self.message}'


def warning(where: str, message: str) -> Problem:
    """A problem that is not fatal."""
    return Problem(where, message, fatal=False)


@dataclass
class Context:
    """A copy of the options from which ill-typed entries have been taken out, and what the rules have learnt."""

    opt: dict[str, Any]  # counts are integers
    is_train: bool  # for training; False for testing
    every_image: bool = False  # read the header of every image to train on
    model: Any = None  # the class of model_type, None if there is none of that name
    nets: dict[str, Any] = field(default_factory=dict)  # by key, on the meta device; None if it cannot be built there
    images: dict[str, int] = field(default_factory=dict)  # pairs of a data set, by phase, if they could be listed
    # name and size (H, W) of the smallest LR image of a data set, by phase
    smallest: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    found: list[Problem] = field(default_factory=list)  # so far

    def section(self, *names: str) -> dict[str, Any]:
        """A section by its path, empty if there is none."""
        value: Any = self.opt
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def fine(self, *where: str) -> bool:
        """True if nothing fatal has been found at these places, below them, or at a section that they are in."""
        bad, asked = [f'{problem.where}.' for problem in self.found if problem.fatal], [f'{w}.' for w in where]
        return not any(place.startswith(w) or w.startswith(place) for place in bad for w in asked)

    @property
    def scale(self) -> int | None:
        """The scale factor, if there is a sound one."""
        return self.opt.get('scale')

    @property
    def gpus_of_one_process(self) -> int:
        """Factor of BasicSR on the batch of a loader: num_gpu, but 1 if a launcher starts the processes."""
        import torch

        number = torch.cuda.device_count() if self.opt.get('num_gpu') == 'auto' else self.opt.get('num_gpu')
        return 1 if self.opt.get('dist') else max(number or 1, 1)


def plain(value: Any) -> str:
    """A value as an option file has it."""
    if isinstance(value, Mapping):
        return 'a section'
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(plain, value))}]'
    return {'None': 'null', 'True': 'true', 'False': 'false'}.get(repr(value), repr(value))


def copied(value: Any) -> Any:
    """Sections and lists copied, so that entries can be taken out; a ``dict`` for every mapping."""
    if isinstance(value, Mapping):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list | tuple) else value


def adopt(given: Any, counted: Any) -> None:
    """Puts the integer where ``given`` has a whole float (2e4) and the file where it has zoo://NAME."""
    for key, value in counted.items() if isinstance(counted, Mapping) else enumerate(counted):
        if (type(value) is int and type(given[key]) is float) or (isinstance(value, str) and value != given[key]):
            given[key] = value
        elif isinstance(value, Mapping | list):
            adopt(given[key], value)
