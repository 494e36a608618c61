"""Checks of the two arguments, common to all losses."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def check_pair(who: str, pred: Tensor, target: Tensor) -> None:
    """Refuses shapes that torch would broadcast silently; ``who`` is the name of the loss.

    Raises:
        ValueError: the shapes differ, or are not those of a batch of images.
    """
    if pred.shape != target.shape or pred.ndim != 4:
        raise ValueError(
            f'{who}: pred and target must both be (N, C, H, W) and of the same shape, got {tuple(pred.shape)} and '
            f'{tuple(target.shape)}; check that scale, network_g.upscale and the data set agree'
        )


def check_above_zero(who: str, **options: float) -> None:
    """Refuses options that are not above zero.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f'{who}: {name} must be above 0, got {value!r}')


@lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The tensor of ``values``, made once per device and type: a copy in every iteration would wait for the GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)
