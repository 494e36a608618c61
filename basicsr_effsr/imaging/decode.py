"""The pixels of image files: one rule of what is upright, of 16 bits, of transparency and of damage, for all readers.

Images are upright, as their EXIF orientation asks. What trains and validates is 8 bits deep and opaque, as
``cv2.imdecode(..., IMREAD_COLOR)``, BasicSR's own way, gives it; what that would cut or not turn is an error.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from basicsr_effsr.imaging.header import Header, ImageError, read_header
from basicsr_effsr.imaging.picture import picture_of, read
from basicsr_effsr.utils.files import read_regular


def _three(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) -> (H, W, 3) in reverse order, owned."""
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., ::-1])


def decode(content: bytes, name: str) -> np.ndarray:
    """An image to train or validate on: (H, W, 3) uint8 BGR.

    Gray is repeated, palettes become colours, alpha that is opaque everywhere is left out.

    Args:
        content: of the file.
        name: what messages call it.

    Raises:
        ImageError: it is damaged, cut off, deeper than 8 bits or transparent, or OpenCV does not turn it as its EXIF
            asks.
    """
    header = read_header(content, name)
    if header.bits > 8:
        raise ImageError(f'{name} has {header.bits} bits per channel, where 8 are read; convert it to 8')
    picture = picture_of(content, name, header)
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise ImageError(f'{name} is transparent, where opaque images are read; save it without alpha')
    image = _three(picture.pixels)
    if header.orientation != 1:  # BasicSR's own data set would learn turned pairs
        import cv2

        seen = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if seen is None or not np.array_equal(seen, image):
            raise ImageError(
                f'{name}: its EXIF asks to turn it (orientation {header.orientation}), which OpenCV '
                f'{cv2.__version__} does not do for {header.kind}; save it upright'
            )
    return image


def decode_stored(content: bytes, name: str) -> np.ndarray:
    """An image as it is stored, but upright: (H, W) or BGR(A) (H, W, C), uint8 or uint16.

    Palettes come out as colours, gray with alpha as BGRA.

    Raises:
        ImageError: it is damaged, cut off, or its pixels are no integers of 8 or 16 bits.
    """
    picture = picture_of(content, name)
    if picture.alpha is not None:
        return np.dstack([_three(picture.pixels), picture.alpha])
    return picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else _three(picture.pixels)


def size_to_train_on(file: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of what :func:`decode` gives, from the header of a file where that says all.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: :func:`decode` would refuse it, as far as the header shows.
    """
    header = read_header(file)
    if header.bits == 8 and not header.alpha and header.orientation == 1:
        return header.size
    height, width, _ = decode(read_regular(file), os.fspath(file)).shape
    return height, width


def read_rgb(file: Path) -> np.ndarray:
    """An image to score, as (H, W, 3) uint8 RGB: 16 bits are rounded to 8 and alpha is dropped.

    Raises:
        UserError: it cannot be read, or its pixels are not of 8 or 16 bits.
    """
    pixels = read(file).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.require(pixels, requirements='W') if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


__all__ = ['Header', 'ImageError', 'decode', 'decode_stored', 'read_header', 'read_rgb', 'size_to_train_on']
