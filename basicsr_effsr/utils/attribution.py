"""Local attribution maps (LAM): which LR pixels a network used for a patch.

Paper: J. Gu, C. Dong, Interpreting Super-Resolution Networks with Local Attribution Maps, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor, nn


def gradient_detector(sr: Tensor, patch: tuple[int, int, int, int]) -> Tensor:
    """D of the paper: the sum of gradient magnitudes over a patch (x, y, width, height) of (1, C, H, W); a scalar."""
    x, y, width, height = patch
    inside = sr[..., y : y + height, x : x + width]
    down, right = inside[..., 1:, :-1] - inside[..., :-1, :-1], inside[..., :-1, 1:] - inside[..., :-1, :-1]
    return (down**2 + right**2 + 1e-12).sqrt().sum()  # the root has no derivative at 0


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """An (H, W, C) float image under a Gaussian of ``sigma`` pixels; 0 gives the image."""
    if sigma <= 0:
        return image
    side = 2 * min(int(np.ceil(4 * sigma)), *(length - 1 for length in image.shape[:2])) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def local_attribution(
    net: nn.Module,
    lq: np.ndarray,
    patch: tuple[int, int, int, int],
    *,
    steps: int,
    sigma: float,
    report: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """The integral of the gradient of D(net(.)) along the path from the blurred to the sharp LR image.

    The path is gamma(t) = Gaussian of (1 - t) sigma over the image. The integral is a sum over ``steps`` pieces of it,
    the gradient taken in the middle of each; over all values it adds up to D(net(image)) - D(net(blurred image)).

    Args:
        net: network in eval mode, on its device.
        lq: (H, W, 3) float32 in [0, 1].
        patch: x, y, width, height in SR pixels.
        steps: pieces of the path.
        sigma: of the blur at its start, in LR pixels.
        report: called after every piece.

    Returns:
        (H, W, 3): what each value of the LR image has contributed.
    """
    total = np.zeros(lq.shape, np.float64)
    weights = next(net.parameters())
    for k in range(steps):
        start, middle, end = (blurred(lq, sigma * (1 - (k + part) / steps)) for part in (0.0, 0.5, 1.0))
        batch = torch.from_numpy(middle.transpose(2, 0, 1)[None].copy()).to(weights).requires_grad_()
        (gradient,) = torch.autograd.grad(gradient_detector(net(batch), patch), batch)
        total += gradient[0].permute(1, 2, 0).cpu().double().numpy() * (end - start)
        report()
    return total


def diffusion_index(attribution: np.ndarray) -> float:
    """(1 - Gini coefficient of the pixels' contributions) * 100: the higher, the more pixels had a part, evenly.

    Args:
        attribution: (H, W, C), not all zero; a pixel's contribution is the absolute sum of its channels.
    """
    values = np.sort(np.abs(attribution.sum(axis=2)).ravel())
    rank = 2 * np.arange(1, values.size + 1) - values.size - 1  # the sum of |a - b| over all pairs, sorted
    return float(100 * (1 - (rank * values).sum() / (values.size * values.sum())))
