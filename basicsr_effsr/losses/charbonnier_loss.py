"""Charbonnier loss with its constant under the square: fine-tuning of DPARN.

Paper:        Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution", Section 3.4, Eq. 11, eps = 1e-3.
Differences:  Eq. 11 writes one root over the whole image; the code it descends from (MPRNet) takes the mean of
              the roots of all elements, and so does the default here. ``root='image'`` is the equation to the letter.
"""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.losses._inputs import at_least_float32, check_above_zero, check_choice, check_pair

__all__ = ['EpsCharbonnierLoss', 'charbonnier']

ROOTS = ('pixel', 'image')


def charbonnier(pred: Tensor, target: Tensor, *, eps: float = 1e-3, root: str = 'pixel') -> Tensor:
    """Mean over all elements of sqrt(d^2 + eps^2), d = pred - target.

    Not the host's ``CharbonnierLoss``, which is sqrt(d^2 + 1e-12): near d = 0 that one is L1, this one a parabola
    of width ``eps`` that never falls below ``eps``. Other projects write the name for sqrt(d^2 + 1) - 1.

    Args:
        pred: output of the network, (N, C, H, W), in [0, 1].
        target: ground truth, same shape.
        eps: the constant, in units of the images.
        root: 'pixel', a root per element, or 'image', one root of the sum of squares of each image
            (mean over the batch; the value grows with the size of the image).

    Returns:
        A scalar >= ``eps``, float32 or wider.
    """
    check_pair('EpsCharbonnierLoss', pred, target)
    square = (at_least_float32(pred) - at_least_float32(target)).square()
    if root == 'image':
        square = square.sum(dim=(1, 2, 3))
    return torch.sqrt(square + eps**2).mean()


@register_in(LOSS_REGISTRY)
class EpsCharbonnierLoss(nn.Module):
    """Charbonnier loss with ``eps`` squared under the root, Eq. 11 of DPARN; see ``charbonnier``.

    Args:
        loss_weight: factor on the returned value (Eq. 11: 1).
        eps: the constant (Eq. 11: 0.001).
        root: 'pixel' (MPRNet) or 'image' (Eq. 11 to the letter).

    Raises:
        ValueError: an option is out of its range, or the two images differ in shape.
    """

    def __init__(self, *, loss_weight: float = 1.0, eps: float = 1e-3, root: str = 'pixel') -> None:
        super().__init__()
        check_above_zero('EpsCharbonnierLoss', 'eps', eps)
        check_choice('EpsCharbonnierLoss', 'root', root, ROOTS)
        self.loss_weight = loss_weight
        self.eps = eps
        self.root = root

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Args: output and ground truth, both (N, C, H, W) in [0, 1].  Returns: a scalar."""
        return self.loss_weight * charbonnier(pred, target, eps=self.eps, root=self.root)
