"""Kullback-Leibler divergence between the pixels of two images: second stage of HASN.

Paper:        W. Cao et al., "HASN: Hybrid Attention Separable Network for Efficient Image
              Super-Resolution", 2024, Section 3.3, Eq. 5.
Differences:  the equation does not say over what the distribution runs. The default is what the authors' code
              computes: a softmax over the three colours of each pixel, mean over all elements. Options give the
              other readings. The log of the softmax is computed as one function; the authors' floor of 1e-8
              under the log is ``eps``, off by default (it is immaterial: no softmax of [0, 1] comes near it).
"""

from __future__ import annotations

from typing import Literal

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from basicsr_effsr.archs.effsr_blocks import at_least_float32, check_options, register_in
from basicsr_effsr.losses._inputs import check_above_zero, check_pair

__all__ = ['PixelKLLoss']

AXES = {'channel': (1,), 'spatial': (2, 3), 'all': (1, 2, 3)}


@register_in(LOSS_REGISTRY)
class PixelKLLoss(nn.Module):
    """KL(q || p) = sum q (log q - log p), q = softmax(target / T), p = softmax(pred / T), times T^2: Eq. 5 of HASN.

    There is no teacher: the target is the high-resolution image. Added to L1 with weight 1 (Eq. 5) it contributes
    about 0.5 % of L1's gradient. T^2 keeps the size of the gradient when T changes. With ``axis='channel'`` the value
    is blind to any grey error: the same number added to the three colours of a pixel leaves its softmax as it was, so
    this loss alone cannot improve the luminance.

    Args:
        loss_weight: factor on the returned value (Eq. 5: 1).
        axis: what one distribution runs over: 'channel' (the colours of a pixel; the authors' code), 'spatial' (the
            positions of a channel; the value then depends on the patch size) or 'all' (colours and positions).
        reduction: 'mean' (the authors' code) divides the sum by N*C*H*W, 'pixelmean' by the number of distributions
            (N*H*W, N*C or N), 'batchmean' (Eq. 5 to the letter) by N.
        temperature: T, divides both images before the softmax.
        eps: added to p under the logarithm (the authors' code: 1e-8).

    Raises:
        ValueError: an option is out of its range, or the two images differ in shape.
    """

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        axis: Literal['channel', 'spatial', 'all'] = 'channel',
        reduction: Literal['mean', 'pixelmean', 'batchmean'] = 'mean',
        temperature: float = 1.0,
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(PixelKLLoss, locals())
        check_above_zero('PixelKLLoss', temperature=temperature)
        if eps < 0:
            raise ValueError(f'PixelKLLoss: eps must not be negative, got {eps!r}')
        self.loss_weight = loss_weight
        self.axis = axis
        self.reduction = reduction
        self.temperature = temperature
        self.eps = eps

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Args: output and ground truth, both (N, C, H, W) in [0, 1].  Returns: a scalar >= 0, float32 or wider."""
        check_pair('PixelKLLoss', pred, target)
        dims = AXES[self.axis]
        count = len(pred) if self.reduction == 'batchmean' else pred.numel()
        if self.reduction == 'pixelmean':
            for dim in dims:
                count //= pred.shape[dim]
        first = dims[0]
        log_p = (at_least_float32(pred) / self.temperature).flatten(first, dims[-1]).log_softmax(first)
        log_q = (at_least_float32(target.detach()) / self.temperature).flatten(first, dims[-1]).log_softmax(first)
        if self.eps > 0:
            log_p = (log_p.exp() + self.eps).log()
        return self.loss_weight * ((log_q.exp() * (log_q - log_p)).sum() * (self.temperature**2 / count))
