"""Charbonnier loss with its constant under the square, of images and of their edges: fine-tuning of DPARN.

Paper:        Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution", Section 3.4, Eq. 11, eps = 1e-3.
Differences:  Eq. 11 writes one root over the whole image; the code it descends from (MPRNet) takes the mean of
              the roots of all elements, and so do the defaults here. ``root='image'`` is the equation to the letter.
              For edges it says "Laplacian operator" and takes the loss from MPRNet, whose operator is one level of a
              Laplacian pyramid; that is the default. ``operator='laplacian'`` is the plain 3 x 3 one.
"""

from __future__ import annotations

from typing import Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import at_least_float32, check_options, register_in
from basicsr_effsr.losses._inputs import check_above_zero, check_pair, constant

__all__ = ['EdgeLoss', 'EpsCharbonnierLoss', 'laplacian', 'laplacian_pyramid']

BINOMIAL = (0.05, 0.25, 0.4, 0.25, 0.05)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


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
        check_options(type(self), locals())
        check_above_zero(type(self).__name__, eps=eps)
        self.loss_weight = loss_weight
        self.eps = eps
        self.root = root

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Args: output and ground truth, both (N, C, H, W) in [0, 1].  Returns: a scalar, float32 or wider."""
        check_pair(type(self).__name__, pred, target)
        with torch.autocast(pred.device.type, enabled=False):
            square = self.seen(at_least_float32(pred) - at_least_float32(target)).square()
        if self.root == 'image':
            square = square.sum(dim=(1, 2, 3))
        return self.loss_weight * torch.sqrt(square + self.eps**2).mean()

    def seen(self, difference: Tensor) -> Tensor:
        """What is to vanish of a difference of two images, (N, C, H, W) -> same: all of it."""
        return difference


def _filter(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Every channel with the same kernel, borders replicated.  (N, C, H, W) -> (N, C, H / stride, W / stride)."""
    channels, radius = x.shape[1], len(kernel) // 2
    padded = F.pad(x, (radius, radius, radius, radius), mode='replicate')
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), stride=stride, groups=channels)


def laplacian_pyramid(x: Tensor) -> Tensor:
    """What one level of a Laplacian pyramid keeps: x minus its blurred, halved, doubled and blurred self.

    (N, C, H, W), any H, W >= 1 -> same.
    """
    weights = constant(BINOMIAL, x.device, x.dtype)
    kernel = weights[:, None] * weights
    doubled = torch.zeros_like(x)
    doubled[..., ::2, ::2] = 4 * _filter(x, kernel, stride=2)  # four times, for three of four pixels are zero
    return x - _filter(doubled, kernel)


def laplacian(x: Tensor) -> Tensor:
    """Sum of the four neighbours minus four times the pixel, borders replicated.  (N, C, H, W) -> same."""
    return _filter(x, constant(LAPLACIAN, x.device, x.dtype))


OPERATORS = {'pyramid': laplacian_pyramid, 'laplacian': laplacian}


@register_in(LOSS_REGISTRY)
class EdgeLoss(EpsCharbonnierLoss):
    """Mean over all elements of sqrt(e^2 + eps^2), e = Lap(pred) - Lap(target), Eq. 11 of DPARN.

    Computed as Lap(pred - target), which is the same for a linear operator and half the work.

    Args:
        loss_weight: factor on the returned value (Eq. 11: 0.05).
        eps: the constant, in units of the images (Eq. 11: 0.001).
        operator: 'pyramid' (MPRNet) or 'laplacian' (3 x 3).
        root: as for EpsCharbonnierLoss.

    Raises:
        ValueError: an option is out of its range, or the two images differ in shape.
    """

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        eps: float = 1e-3,
        operator: Literal['pyramid', 'laplacian'] = 'pyramid',
        root: Literal['pixel', 'image'] = 'pixel',
    ) -> None:
        super().__init__(loss_weight=loss_weight, eps=eps, root=root)
        check_options(EdgeLoss, locals())
        self.operator = operator

    def seen(self, difference: Tensor) -> Tensor:
        """Its edges."""
        return OPERATORS[self.operator](difference)
