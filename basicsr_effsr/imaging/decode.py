"""The pixels of image files: one rule of what is upright, of 16 bits, of transparency and of damage, for all readers.

Images are upright, as their EXIF orientation asks. What trains and validates is 8 bits deep and opaque, as
``cv2.imdecode(..., IMREAD_COLOR)``, BasicSR's own way, gives it; what that would cut or not turn is an error.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from basicsr_effsr.imaging.header import Header, ImageError, any_size, read_header
from basicsr_effsr.imaging.picture import picture_of, upright
from basicsr_effsr.imaging.tiff import MAGIC
from basicsr_effsr.utils.errors import one_line

_SURE = ('PNG', 'JPEG', 'WEBP')  # formats whose damage the header or OpenCV shows


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
    import cv2

    header = read_header(content, name)
    if header.bits > 8:
        raise ImageError(f'{name} has {header.bits} bits per channel, where 8 are read; convert it to 8')
    if header.kind not in _SURE:
        _refuse_damage(content, name)
    buffer = np.frombuffer(content, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    if image is None or (header.orientation == 1 and image.shape[:2] != header.size):
        raise ImageError(f'{name} cannot be decoded as an image; replace it')
    if header.orientation != 1:
        expected = _stored_upright(content, name, header)
        if expected.ndim == 2:
            expected = expected[..., None].repeat(3, axis=2)
        if not np.array_equal(expected[..., :3], image):
            raise ImageError(
                f'{name}: its EXIF asks to turn it (orientation {header.orientation}), which OpenCV '
                f'{cv2.__version__} does not do for {header.kind}; save it upright'
            )
    if header.alpha:
        alpha = picture_of(content, name).alpha
        if alpha is not None and alpha.min() < 255:
            raise ImageError(f'{name} is transparent, where opaque images are read; save it without alpha')
    return image


def decode_stored(content: bytes, name: str) -> np.ndarray:
    """An image as it is stored, but upright: (H, W) or BGR(A) (H, W, C), uint8 or uint16.

    Palettes come out as colours, gray with one transparent value (tRNS of PNG) as BGRA, as gray with alpha does.

    Raises:
        ImageError: it is damaged, cut off, or its pixels are no integers of 8 or 16 bits.
    """
    header = read_header(content, name)
    if header.kind not in _SURE and header.bits == 8:
        _refuse_damage(content, name)
    image = _stored_upright(content, name, header)
    if header.alpha and image.ndim == 2:  # OpenCV leaves out the transparency of gray
        alpha = picture_of(content, name).alpha
        return image if alpha is None else np.dstack((image, image, image, alpha))
    return image


def _stored_upright(content: bytes, name: str, header: Header) -> np.ndarray:
    """Pixels with the channels of the file, turned by us."""
    import cv2

    if header.kind == 'TIFF' and header.orientation != 1:  # OpenCV turns it whatever it is asked to do
        picture = picture_of(content, name)
        planes = [picture.pixels[..., ::-1]] + ([] if picture.alpha is None else [picture.alpha])
        return np.dstack(planes) if picture.pixels.shape[2] == 3 else picture.pixels[..., 0]
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ImageError(f'{name} cannot be decoded as an image; replace it')
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f'{name}: pixels must be 8 or 16 bit integers, got {image.dtype}; convert the file')
    return upright(image, header.orientation)


def _refuse_damage(content: bytes, name: str) -> None:
    """Lets Pillow decode what OpenCV fills with something where it is damaged."""
    try:
        with any_size(), warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter('ignore')
            image.load()
    except Exception as error:  # decoders raise what they like
        raise ImageError(f'{name} cannot be decoded as an image ({one_line(error)}); replace it') from error


def size_to_train_on(file: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of what :func:`decode` gives, from the header of a file where that says all.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: :func:`decode` would refuse it, as far as the header shows.
    """
    header = read_header(file)
    if header.bits == 8 and not header.alpha and header.orientation == 1:
        return header.size
    height, width, _ = decode(Path(file).read_bytes(), os.fspath(file)).shape
    return height, width


def read_rgb(file: Path) -> np.ndarray:
    """An image to score, as (H, W, 3) uint8 RGB: as :func:`decode`, but 16 bits are rounded to 8 and alpha is dropped.

    Raises:
        UserError: it cannot be read, or its pixels are not of 8 or 16 bits.
    """
    content = file.read_bytes()
    if content[:4] not in MAGIC:  # of TIFFs of 16 bits some headers are beyond Pillow
        header = read_header(content, str(file))
        if header.bits == 8 and not header.alpha and header.orientation == 1:
            return np.ascontiguousarray(decode(content, str(file))[..., ::-1])
    pixels = picture_of(content, str(file)).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


__all__ = ['Header', 'ImageError', 'decode', 'decode_stored', 'read_header', 'read_rgb', 'size_to_train_on']
