"""What is random about a training sample, drawn so that it can be drawn again."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np


class SampleIndex(int):
    """Index of an image that also knows which sample of the run it is.

    An ``int`` for everybody else; our data sets draw crop and flips from (seed, epoch, position), so the
    draws depend neither on workers nor on what was drawn before.
    """

    seed: int  # manual_seed of the run
    epoch: int
    position: int  # in the epoch, over all ranks
    gt_size: int | None  # side of the HR patch in this stage of the run; None leaves it to the data set

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


def draw(index: int, lq_size: tuple[int, int], lq_patch: int, use_hflip: bool, use_rot: bool) -> Draw:
    """Draws a sample in the distribution of BasicSR: uniform corner, every allowed symmetry with chance 1/2.

    Args:
        index: the sample; of an ``int`` without history the draw is fresh, from Python's generator.
        lq_size: H, W of the LR image.
        lq_patch: side of the LR patch, at most H and W.
        use_hflip: allow horizontal flips.
        use_rot: allow vertical flips and transpositions.
    """
    seed = [index.seed, index.epoch, index.position] if isinstance(index, SampleIndex) else random.getrandbits(64)
    generator = np.random.default_rng(seed)
    top = int(generator.integers(lq_size[0] - lq_patch + 1))
    left = int(generator.integers(lq_size[1] - lq_patch + 1))
    hflip, vflip, transpose = (bool(value) for value in generator.integers(2, size=3))
    return Draw(top, left, hflip and use_hflip, vflip and use_rot, transpose and use_rot)


def cut(image: np.ndarray, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of an (H, W, C) image, turned as drawn; a view, the image is untouched.

    ``drawn`` and ``patch``, the side, are in LR pixels; ``scale`` is 1 for the LR image, the factor for the HR image.
    """
    top, left, side = drawn.top * scale, drawn.left * scale, patch * scale
    out = image[top : top + side, left : left + side]
    if drawn.hflip:
        out = out[:, ::-1]
    if drawn.vflip:
        out = out[::-1]
    return out.transpose(1, 0, 2) if drawn.transpose else out
