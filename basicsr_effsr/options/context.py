"""What the rules of the check see: the options, and what has been learnt from them so far."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from basicsr_effsr.options.problem import Problem
from basicsr_effsr.options.spec import PAIRED


@dataclass
class Images:
    """What a data set was found to hold: how many pairs, and the name and size (H, W) of the smallest LR image."""

    count: int = 0
    smallest: tuple[str, tuple[int, int]] | None = None


@dataclass
class Context:
    """A copy of the options from which ill-typed entries have been taken out, and what the rules have learnt.

    Attributes:
        opt: the options; counts are integers.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on.
        model: the class of ``model_type``, None if there is none of that name.
        nets: the networks on the meta device by key, None for those that could not be built so.
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
        bad = [f'{problem.where}.' for problem in self.found if problem.fatal]
        return not any(place.startswith(f'{w}.') for place in bad for w in where)

    @property
    def scale(self) -> int | None:
        """The scale factor, if there is a sound one."""
        return self.opt.get('scale')

    @property
    def validated(self) -> list[str]:
        """The phases that are not trained on."""
        return [str(phase) for phase in self.section('datasets') if not str(phase).startswith('train')]

    @property
    def about_to_run(self) -> bool:
        """True if BasicSR has parsed the options on the machine that is to follow them."""
        return 'rank' in self.opt

    @property
    def gpus_of_one_process(self) -> int:
        """By so many BasicSR multiplies the batch of a loader: num_gpu, but not if a launcher starts the processes."""
        import torch

        number = torch.cuda.device_count() if self.opt.get('num_gpu') == 'auto' else self.opt.get('num_gpu')
        return 1 if self.opt.get('dist') else max(number or 1, 1)


def is_paired(data: Any) -> bool:
    """True for the data sets whose options are known."""
    return isinstance(data, Mapping) and str(data.get('type')).removesuffix('_effsr') in PAIRED


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
