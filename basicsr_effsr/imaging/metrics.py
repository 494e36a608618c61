"""PSNR and SSIM of BasicSR, to the last digits that are printed, and fast."""

from __future__ import annotations

import cv2
import numpy as np

_KERNEL = cv2.getGaussianKernel(11, 1.5)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(bgr: np.ndarray) -> np.ndarray:
    """(..., 3) float32 BGR in [0, 1] -> (...) float32 luma in [16, 235] / 255, ITU-R BT.601 as MATLAB's ``rgb2ycbcr``.

    As BasicSR computes it, whose own function has had two homes since 1.3.
    """
    return ((np.dot(bgr, [24.966, 128.553, 65.481]) + 16.0) / 255.0).astype(np.float32)


def to_y(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float64 luma in [16, 235], ITU-R BT.601 as MATLAB's ``rgb2ycbcr``.

    In single precision and not rounded, as BasicSR computes it.
    """
    return luma(image[..., ::-1].astype(np.float32) / 255.0).astype(np.float64) * 255.0


def _cropped(image: np.ndarray, border: int) -> np.ndarray:
    return image[border:-border, border:-border] if border else image


def psnr(image: np.ndarray, gt: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB of two (H, W) images in [0, 255]; infinite for equal ones."""
    mse = np.mean((_cropped(image, border) - _cropped(gt, border)) ** 2)
    return float('inf') if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def _blur(image: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(image, cv2.CV_64F, _KERNEL, _KERNEL, borderType=cv2.BORDER_REPLICATE)


def ssim(image: np.ndarray, gt: np.ndarray, border: int = 0, *, whole: bool = False) -> float:
    """Structural similarity (Wang 2004: Gaussian 11 x 11, sigma 1.5) of two (H, W) images in [0, 255].

    Args:
        image, gt: the images.
        border: pixels left out on every side.
        whole: mean over the whole map, the images continued by their last pixels, as MATLAB's ``ssim`` computes it;
            otherwise over the part where the window fits, as Wang's code and BasicSR do.

    Raises:
        ValueError: less than 11 x 11 pixels are left inside the border.
    """
    a, b = (np.ascontiguousarray(_cropped(x, border)) for x in (image, gt))
    if min(a.shape) < 11:
        raise ValueError(
            f'ssim: at least 11 x 11 pixels must be left inside the border, got {a.shape[0]} x {a.shape[1]}'
        )
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    similarity = top / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
    return float(np.mean(similarity if whole else similarity[5:-5, 5:-5]))


def score_y(image: np.ndarray, gt: np.ndarray, border: int, *, whole: bool = False) -> tuple[float, float]:
    """PSNR [dB] and SSIM (``whole``: MATLAB's) on Y of two (H, W, 3) uint8 RGB images of one size.

    Raises:
        ValueError: the sizes differ.
    """
    if image.shape != gt.shape:
        raise ValueError(f'score_y: both images must have one size, got {image.shape} and {gt.shape}')
    a, b = to_y(image), to_y(gt)
    return psnr(a, b, border), ssim(a, b, border, whole=whole)
