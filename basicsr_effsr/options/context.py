"""What the rules of the check see: the options, and what has been learnt from them so far."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from basicsr_effsr._registration import lookup
from basicsr_effsr.options.problem import Problem, plain
from basicsr_effsr.options.signatures import options_of
from basicsr_effsr.options.spec import PAIRED, Section
from basicsr_effsr.options.validate import validate
from basicsr_effsr.utils.errors import near


@dataclass
class Images:
    """What a data set was found to hold; sizes are (height, width)."""

    count: int = 0
    smallest_lq: tuple[int, int] | None = None


@dataclass
class Context:
    """A copy of the options from which ill-typed entries have been taken out, and what the rules have learnt.

    Attributes:
        opt: the options.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on.
        model: the class of ``model_type``, None if there is none of that name.
        nets: the networks on the meta device by key, None for those that could not be built.
        images: of the data sets by phase, as far as they could be listed.
        found: the problems so far.
    """

    opt: dict[str, Any]
    is_train: bool
    every_image: bool = False
    model: Any = None
    nets: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Images] = field(default_factory=dict)
    found: list[Problem] = field(default_factory=list)

    def section(self, *names: str) -> dict[str, Any]:
        """A section by its path, empty if there is none."""
        value: Any = self.opt
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def fine(self, *where: str) -> bool:
        """True if nothing fatal has been found at these places or below them."""
        bad = [problem.where for problem in self.found if problem.fatal]
        return not any(place == w or place.startswith(f'{w}.') for place in bad for w in where)

    def run(self, rules: tuple[Callable[[Context], Iterator[Problem]], ...]) -> None:
        """Collects what the rules find, each seeing what was found before."""
        for rule in rules:
            for problem in rule(self):
                self.found.append(problem)

    @property
    def about_to_run(self) -> bool:
        """True if BasicSR has parsed the options on the machine that is to follow them."""
        return 'rank' in self.opt

    @property
    def gpus_of_one_process(self) -> int:
        """By so many BasicSR multiplies the batch of a loader: num_gpu, but not if a launcher starts the processes."""
        number = self.opt.get('num_gpu')
        if self.opt.get('dist'):
            return 1
        if number == 'auto':
            import torch

            number = torch.cuda.device_count()
        return max(number, 1) if isinstance(number, int) else 1

    @property
    def without_gpu(self) -> bool:
        """True if it is known that the run will have no GPU."""
        import torch

        return self.opt.get('num_gpu') == 0 or (self.about_to_run and not torch.cuda.is_available())


def is_paired(data: Any) -> bool:
    """True for the data sets whose options are known."""
    return isinstance(data, Mapping) and str(data.get('type')).removesuffix('_effsr') in PAIRED


def built_from(
    where: str, registry: str, option: Any, *, beside: type[Section] = Section, skip: tuple[str, ...] = ()
) -> tuple[Any, list[Problem]]:
    """The class or function of a section {type: ..., options}, None if there is none; and what is wrong with it."""
    if not isinstance(option, dict) or not isinstance(option.get('type'), str):
        got = plain(option['type']) if isinstance(option, dict) and 'type' in option else plain(option)
        return None, [Problem(where, f'must be a section with a type, got {got}')]
    target, known = lookup(registry, option['type'])
    if target is None:
        message = f'there is no {registry.lower()} {option["type"]!r}; {near(option["type"], known)}'
        return None, [Problem(f'{where}.type', message)]
    section, open_ended = options_of(target, beside=beside, skip=skip)
    return target, validate(where, option, section, strict=not open_ended, open_ended=open_ended)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what torch writes about networks that cannot do without memory."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.disabled = before
