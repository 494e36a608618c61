"""Bicubic resizing that gives MATLAB's ``imresize`` pixel for pixel; needs numpy only.

Super-resolution benchmarks take their low-resolution images from MATLAB: a separable cubic kernel
(Keys, a = -0.5), widened by the scale when shrinking, mirrored borders, the dimension with the smaller
scale first (rows when equal), and for integer images a rounding, half away from zero, after each of the
two passes.

For a scale that is a small ratio (2, 1/2, 1/3, 1/4, 1/8, 3/4 ...) all weights are multiples of a common
fraction. For integer images they are then kept as integers, so that every sum is exact in floating point: the
result does not depend on the order of summation, on the BLAS library or on the processor, and ties round as
they should. A few ratios (23 of those up to 16/16 for 8 bits, 5/12 and 7/16 among them) have too large a common
denominator for that; they are added up tap after tap, in double precision, as is every other scale.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil, lcm

import numpy as np

_SUPPORT = 2  # the cubic kernel is zero outside [-2, 2]
_MAX_PERIOD = 16  # ratios with a larger numerator or denominator take the general path
_CACHED_VALUES = 2**19  # converted to floating point at a time, so that they stay in the processor's cache
_ROWS_PER_BLOCK = 4  # output rows per matrix product: fastest of 4, 8, 16, 32 at 2040 x 1356, x4


def imresize(
    img: np.ndarray,
    *,
    scale: float | Fraction | None = None,
    size: tuple[int, int] | None = None,
    antialiasing: bool = True,
) -> np.ndarray:
    """Resizes an image as MATLAB's ``imresize(img, ...)`` with its default method, bicubic.

    Args:
        img: (H, W) or (H, W, C) image. ``uint8`` and ``uint16`` are rounded half away from zero and
            clipped after each of the two passes, as MATLAB does; ``float32`` and ``float64`` are neither
            rounded nor clipped and come back as ``float64``.
        scale: output size over input size, for both dimensions; the output has ceil(scale * H) rows.
        size: (rows, columns) of the output, instead of ``scale``.
        antialiasing: widen the kernel when shrinking, as MATLAB does by default.

    Returns:
        The resized image, of the dtype of ``img`` for integers and ``float64`` for floats.

    Raises:
        ValueError: for an empty or ill-shaped image, or unless exactly one of ``scale``, ``size`` is given.
        TypeError: for any other dtype.
    """
    img = np.asarray(img)
    if img.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise TypeError(f'imresize: the image must be uint8, uint16, float32 or float64, got {img.dtype}; convert it')
    if img.ndim not in (2, 3) or not img.size:
        raise ValueError(f'imresize: the image must have shape (H, W) or (H, W, C) without a zero, got {img.shape}')
    ratios, out_size = _geometry(img.shape[:2], scale, size)

    out = img if img.dtype.kind == 'u' else img.astype(np.float64)
    for axis in sorted((0, 1), key=lambda axis: float(ratios[axis])):
        turned = np.ascontiguousarray(out.swapaxes(0, axis))
        rows = _resize_rows(turned.reshape(len(turned), -1), ratios[axis], out_size[axis], antialiasing)
        out = np.ascontiguousarray(rows.reshape(out_size[axis], *turned.shape[1:]).swapaxes(0, axis))
    return out


def mod_crop(img: np.ndarray, modulus: int) -> np.ndarray:
    """The top left part of an (H, W[, C]) image whose two sides are multiples of ``modulus``, as a view.

    Raises:
        ValueError: when a side is smaller than ``modulus``, so that nothing would be left.
    """
    height, width = (side - side % modulus for side in img.shape[:2])
    if not height or not width:
        raise ValueError(f'mod_crop: both sides must be at least {modulus} pixels, got {img.shape[0]}x{img.shape[1]}')
    return img[:height, :width]


def _geometry(
    shape: tuple[int, ...], scale: float | Fraction | None, size: tuple[int, int] | None
) -> tuple[list[float | Fraction], list[int]]:
    if size is not None and scale is None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f'imresize: size must be two positive numbers of pixels, got {size!r}')
        return [Fraction(int(out), side) for out, side in zip(size, shape, strict=True)], [int(side) for side in size]
    if scale is None or size is not None:
        raise ValueError(f'imresize: give exactly one of scale and size, got scale={scale!r}, size={size!r}')
    if not 0 < float(scale) < float('inf'):
        raise ValueError(f'imresize: scale must be positive and finite, got {scale!r}')
    small = Fraction(scale).limit_denominator(_MAX_PERIOD)
    ratio = small if abs(float(small) - float(scale)) <= 1e-12 * float(scale) else float(scale)
    return [ratio, ratio], [ceil(ratio * side) for side in shape]


def _cubic(x):
    """Keys' kernel with a = -0.5 (1981, eq. 15) at |x|; exact for Fractions."""
    x = abs(x)
    if x <= 1:
        return (3 * x**3 - 5 * x**2 + 2) / 2
    return (-(x**3) + 5 * x**2 - 8 * x + 4) / 2 if x < _SUPPORT else 0 * x


@lru_cache(maxsize=64)
def _exact_taps(ratio: Fraction, antialiasing: bool) -> tuple[np.ndarray, list[list[int]], int]:
    """One period of the weights as integers, of any size.

    Returns:
        For each of the q outputs of a period (ratio q / p): its first input, relative to the first input
        of the period, (q,); its integer weights, q rows of as many taps; and their common sum, which is even.
    """
    shrink = ratio if antialiasing and ratio < 1 else Fraction(1)
    taps = ceil(2 * _SUPPORT / shrink) + 1
    first, rows = [], []
    for i in range(ratio.numerator):
        centre = (i + Fraction(1, 2)) / ratio - Fraction(1, 2)
        left = ceil(centre - _SUPPORT / shrink)
        row = [_cubic((centre - left - k) * shrink) for k in range(taps)]
        total = sum(row)
        first.append(left)
        rows.append([weight / total for weight in row])
    if all(row[-1] == 0 for row in rows):
        rows = [row[:-1] for row in rows]
    denominator = lcm(2, *(weight.denominator for row in rows for weight in row))  # even: half of it is added, too
    return np.array(first), [[int(weight * denominator) for weight in row] for row in rows], denominator


def _exact_dtype(weights: list[list[int]], denominator: int, dtype: np.dtype) -> np.dtype | None:
    """The narrowest floating-point type that holds every sum over an image of ``dtype`` exactly, None without one."""
    largest = max(sum(map(abs, row)) for row in weights) * int(np.iinfo(dtype).max) + denominator // 2
    return np.dtype(np.float32) if largest < 2**24 else np.dtype(np.float64) if largest < 2**53 else None


def _general_taps(ratio: float, out_length: int, antialiasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """First input (out_length,) and float64 weights (out_length, taps) of every output, for any ratio."""
    shrink = ratio if antialiasing and ratio < 1 else 1.0
    centre = (np.arange(out_length) + 0.5) / ratio - 0.5
    first = np.floor(centre - _SUPPORT / shrink).astype(np.int64)
    position = first[:, None] + np.arange(ceil(2 * _SUPPORT / shrink) + 2)
    x = np.abs((centre[:, None] - position) * shrink)
    weights = np.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights[x >= _SUPPORT] = 0
    return first, weights / weights.sum(axis=1, keepdims=True)


def _mirrored(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of the endlessly mirrored image (the border row is repeated)."""
    length = len(rows)
    if start >= 0 and stop <= length:
        return rows[start:stop]
    index = np.arange(start, stop) % (2 * length)
    return rows[np.where(index < length, index, 2 * length - 1 - index)]


def _resize_rows(rows: np.ndarray, ratio: float | Fraction, out_length: int, antialiasing: bool) -> np.ndarray:
    """(in, N) -> (out_length, N), resized along the first axis and rounded when integer."""
    if isinstance(ratio, Fraction) and max(ratio.numerator, ratio.denominator) <= _MAX_PERIOD:
        taps = _exact_taps(ratio, antialiasing)
        dtype = np.dtype(np.float64) if rows.dtype.kind == 'f' else _exact_dtype(*taps[1:], rows.dtype)
        if dtype is not None:
            return _resize_rows_by_period(rows, ratio, out_length, *taps, dtype)
    first, weights = _general_taps(float(ratio), out_length, antialiasing)
    start = int(first.min())
    padded = _mirrored(rows, start, int(first.max()) + weights.shape[1])
    out = np.zeros((out_length, rows.shape[1]))
    for k in range(weights.shape[1]):  # a fixed order of summation: the same result everywhere
        out += weights[:, k, None] * padded[first - start + k]
    return out if rows.dtype.kind == 'f' else _rounded(out, 1, rows.dtype)


def _resize_rows_by_period(
    rows: np.ndarray,
    ratio: Fraction,
    out_length: int,
    first: np.ndarray,
    weights: list[list[int]],
    denominator: int,
    dtype: np.dtype,
) -> np.ndarray:
    """As banded matrix products over a few periods at a time, in ``dtype``; integer images exactly."""
    taps = len(weights[0])
    period_out, period_in = ratio.numerator, ratio.denominator
    per_block = max(1, _ROWS_PER_BLOCK // period_out)
    block_out, block_in = per_block * period_out, per_block * period_in
    blocks = ceil(out_length / block_out)
    start = int(first.min())
    window = (per_block - 1) * period_in + int(first.max()) - start + taps

    unit = denominator if rows.dtype.kind == 'f' else 1
    values = [[weight / unit for weight in row] for row in weights]  # of Python integers: rounded once
    band = np.zeros((block_out, window), dtype=dtype)
    for i in range(block_out):
        left = i // period_out * period_in + int(first[i % period_out]) - start
        band[i, left : left + taps] = values[i % period_out]

    padded = _mirrored(rows, start, start + (blocks - 1) * block_in + window)
    out = np.empty((out_length, rows.shape[1]), dtype=rows.dtype)
    columns = max(1, _CACHED_VALUES // len(padded))
    for left in range(0, rows.shape[1], columns):
        part = padded[:, left : left + columns].astype(dtype)
        windows = np.lib.stride_tricks.as_strided(
            part, (blocks, window, part.shape[1]), (part.strides[0] * block_in, *part.strides), writeable=False
        )
        total = np.matmul(band, windows).reshape(blocks * block_out, -1)[:out_length]
        out[:, left : left + columns] = total if rows.dtype.kind == 'f' else _rounded(total, denominator, rows.dtype)
    return out


def _rounded(total: np.ndarray, denominator: int, dtype: np.dtype) -> np.ndarray:
    """``total / denominator`` rounded half away from zero and clipped to the range of ``dtype``; reuses ``total``."""
    total += denominator / 2
    total /= denominator
    np.clip(total, 0, np.iinfo(dtype).max, out=total)  # what is negative rounds to something not positive, hence to 0
    return total.astype(dtype)
