"""Charbonnier loss with its constant under the square: fine-tuning of DPARN.

Paper:        Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution", Section 3.4, Eq. 11, eps = 1e-3.
Differences:  Eq. 11 writes one root over the whole image; the code it descends from (MPRNet) takes the mean of
              the roots of all elements, and so does the default here. ``root='image'`` is the equation to the letter.
"""

from __future__ import annotations

from typing import Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from basicsr_effsr.archs.effsr_blocks import at_least_float32, check_options, register_in
from basicsr_effsr.losses._inputs import check_above_zero, check_pair

__all__ = ['EpsCharbonnierLoss']


@register_in(LOSS_REGISTRY)
class EpsCharbonnierLoss(nn.Module):
    """Mean over all elements of sqrt(d^2 + eps^2), d = pred - target, Eq. 11 of DPARN.

    Not the host's ``CharbonnierLoss``, which is sqrt(d^2 + 1e-12): near d = 0 that one is L1, this one a parabola
    of width ``eps`` that never falls below ``eps``. Other projects write the name for sqrt(d^2 + 1) - 1.

    Args:
        loss_weight: factor on the returned value (Eq. 11: 1).
        eps: the constant, in units of the images (Eq. 11: 0.001).
        root: 'pixel', a root per element (MPRNet), or 'image', one root of the sum of squares of each image (Eq. 11
            to the letter; mean over the batch, and the value grows with the size of the image).

    Raises:
        ValueError: an option is out of its range, or the two images differ in shape.
    """

    def __init__(
        self, *, loss_weight: float = 1.0, eps: float = 1e-3, root: Literal['pixel', 'image'] = 'pixel'
    ) -> None:
        super().__init__()
        check_options(EpsCharbonnierLoss, locals())
        check_above_zero('EpsCharbonnierLoss', eps=eps)
        self.loss_weight = loss_weight
        self.eps = eps
        self.root = root

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Args: output and ground truth, both (N, C, H, W) in [0, 1].  Returns: a scalar, float32 or wider."""
        check_pair('EpsCharbonnierLoss', pred, target)
        square = (at_least_float32(pred) - at_least_float32(target)).square()
        if self.root == 'image':
            square = square.sum(dim=(1, 2, 3))
        return self.loss_weight * torch.sqrt(square + self.eps**2).mean()
