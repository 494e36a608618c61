"""What is random about a training sample, drawn so that it can be drawn again."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np


class SampleIndex(int):
    """Index of an image that also knows which sample of the run it is.

    An ``int`` for everybody else; our data sets draw crop and flips from (seed, epoch, position), so the
    draws depend neither on workers nor on what was drawn before.

    Attributes:
        seed: ``manual_seed`` of the run.
        epoch: number of the epoch.
        position: place of the sample in the epoch, over all ranks.
        gt_size: side of the HR patch in this stage of the run; None leaves it to the data set.
    """

    seed: int
    epoch: int
    position: int
    gt_size: int | None

    def __new__(cls, index: int, seed: int, epoch: int, position: int, gt_size: int | None = None) -> SampleIndex:
        self = super().__new__(cls, index)
        self.seed, self.epoch, self.position, self.gt_size = seed, epoch, position, gt_size
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed, self.epoch, self.position, self.gt_size)


class Draw(NamedTuple):
    """Crop and symmetry of one sample: the LR corner, then flips and the transposition, in this order."""

    top: int
    left: int
    hflip: bool
    vflip: bool
    transpose: bool


def generator_for(index: int) -> np.random.Generator:
    """The random stream of a sample; of an ``int`` without history a fresh one, from Python's generator."""
    if isinstance(index, SampleIndex):
        return np.random.default_rng([index.seed, index.epoch, index.position])
    return np.random.default_rng(random.getrandbits(64))


def draw(index: int, lq_size: tuple[int, int], lq_patch: int, use_hflip: bool, use_rot: bool) -> Draw:
    """Draws a sample in the distribution of BasicSR: uniform corner, every allowed symmetry with chance 1/2.

    Args:
        index: the sample, see ``generator_for``.
        lq_size: H, W of the LR image.
        lq_patch: side of the LR patch, at most H and W.
        use_hflip: allow horizontal flips.
        use_rot: allow vertical flips and transpositions.
    """
    generator = generator_for(index)
    top = int(generator.integers(lq_size[0] - lq_patch + 1))
    left = int(generator.integers(lq_size[1] - lq_patch + 1))
    hflip, vflip, transpose = (bool(value) for value in generator.integers(2, size=3))
    return Draw(top, left, hflip and use_hflip, vflip and use_rot, transpose and use_rot)


def cut(image: np.ndarray, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of an (H, W, C) image, turned as drawn; a view, the image is untouched.

    Args:
        image: (H, W, C).
        drawn: as ``draw`` gave it, in LR pixels.
        patch: side of the LR patch.
        scale: 1 for the LR image, the scale factor for the HR image.
    """
    top, left, side = drawn.top * scale, drawn.left * scale, patch * scale
    out = image[top : top + side, left : left + side]
    if drawn.hflip:
        out = out[:, ::-1]
    if drawn.vflip:
        out = out[::-1]
    return out.transpose(1, 0, 2) if drawn.transpose else out
