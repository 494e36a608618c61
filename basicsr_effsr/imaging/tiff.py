"""TIFFs of 16 bits per channel as arrays; Pillow rounds their colours to 8 bits, OpenCV passes over what they mean."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffPage

MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS, ORIENTATION, ICC = 258, 274, 34675
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
UNNAMED, PREMULTIPLIED, STRAIGHT = 0, 1, 2
SEPARATE = 2
UNKNOWN_CHANNEL = 'channel of unknown meaning'


@dataclass
class DeepTiff:
    """What a TIFF of 16 bits holds.

    Attributes:
        pixels: (H, W, 1 to 4) uint16: gray, gray with alpha, RGB or RGB with alpha, which is straight; not turned.
        orientation: how to turn it, as in EXIF; any integer.
        icc: colour profile, None without.
        lost: what is left out; empty if nothing.
    """

    pixels: np.ndarray
    orientation: int
    icc: bytes | None
    lost: str


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps tifffile's log of a damaged file off the screen; what matters of it is raised."""
    log = logging.getLogger('tifffile')
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def read_deep_tiff(data: bytes) -> DeepTiff | None:
    """The image of a TIFF, None if it is no TIFF or not of 16 bits.

    Planes may be separate, tiles and every byte order are read, uncompressed, deflate, PackBits and LZMA; LZW where
    planes are together; everything else with the package imagecodecs. An extra channel is alpha if the file says so or
    says nothing of it.

    Raises:
        ValueError: several pages; pixels that are not unsigned; colours that are not gray or RGB.
    """
    if data[:4] not in MAGIC:
        return None
    import tifffile

    with ExitStack() as stack:
        stack.enter_context(_silent())
        try:
            tiff = stack.enter_context(tifffile.TiffFile(io.BytesIO(data)))
            page = tiff.pages.first
            depths = np.atleast_1d(page.tags.valueof(BITS, default=1))
        except Exception:  # of a damaged file; Pillow is stricter with 16 bits and more lenient with 8
            return None
        if depths.max() != 16:
            return None
        if len(tiff.pages) > 1:
            raise ValueError(f'it has {len(tiff.pages)} frames; split it into images')
        _check_kind(page, depths)
        pixels, lost = _meaning(page, _samples(page, data))
        icc = page.tags.valueof(ICC)
        orientation = page.tags.valueof(ORIENTATION, default=1)
    return DeepTiff(pixels, orientation, None if icc is None else bytes(icc), lost)


def _check_kind(page: TiffPage, depths: np.ndarray) -> None:
    if depths.min() != 16:
        raise ValueError(f'its channels differ in their bits, {depths.tolist()}; save it with 16 for each')
    if page.dtype != np.uint16 or page.imagedepth != 1:
        raise ValueError('its pixels are no unsigned integers of a plane; convert it to 8 or 16 bits per channel')
    colours = int(page.photometric)
    wanted = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3}.get(colours)
    if wanted is None or page.samplesperpixel < wanted:
        name = 'CMYK' if colours == CMYK else getattr(page.photometric, 'name', colours)
        raise ValueError(f'its colours are {name} in 16 bits; convert it to gray or RGB')
    if colours == WHITE_IS_ZERO and PREMULTIPLIED in page.extrasamples:
        raise ValueError('its white is zero and premultiplied with alpha; save it with black as zero')


# ---------------------------------------------------------------------- what the file stores


def _samples(page: TiffPage, data: bytes) -> np.ndarray:
    """(H, W, C) as stored."""
    try:
        planes = page.asarray(squeeze=False)  # (C or 1, 1, H, W, 1 or C)
    except (KeyError, ValueError) as error:
        if 'imagecodecs' in str(error):
            return _through_opencv(page, data)
        raise
    return np.moveaxis(planes[:, 0], 0, -2).reshape(*planes.shape[2:4], -1)


def _through_opencv(page: TiffPage, data: bytes) -> np.ndarray:
    """(H, W, C) of compressions that tifffile decodes only beside imagecodecs; OpenCV's libtiff knows LZW."""
    import cv2

    found = None
    count = page.samplesperpixel
    if count == 1 or (count in (3, 4) and page.planarconfig != SEPARATE):  # others it takes for what they are not
        log: Any = getattr(cv2.utils, 'logging', cv2)  # OpenCV 5 and 4
        before = log.setLogLevel(0)
        try:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        finally:
            log.setLogLevel(before)
    if found is None or found.dtype != np.uint16 or found.size != page.size:
        name = getattr(page.compression, 'name', page.compression)
        raise ValueError(
            f'its compression is {name}, damaged or in a layout that only imagecodecs reads; save it with deflate, or '
            'pip install imagecodecs'
        )
    found = found.reshape(*found.shape[:2], -1)
    return found[..., [2, 1, 0, 3][: found.shape[2]]] if found.shape[2] > 1 else found


# ---------------------------------------------------------------------- what it means


def _meaning(page: TiffPage, samples: np.ndarray) -> tuple[np.ndarray, str]:
    """(H, W, 1 to 4) with black as zero and straight alpha, and what is lost."""
    colours = 3 if page.photometric == RGB else 1
    pixels = samples[..., :colours]
    extra = [int(kind) for kind in page.extrasamples]
    extra += [STRAIGHT if not extra else UNNAMED] * (samples.shape[2] - colours - len(extra))
    alpha = next((i for i, kind in enumerate(extra) if kind in (PREMULTIPLIED, STRAIGHT)), None)
    if alpha is not None:
        opacity = samples[..., colours + alpha : colours + alpha + 1]
        if extra[alpha] == PREMULTIPLIED:
            pixels = _straight(pixels, opacity)
    if page.photometric == WHITE_IS_ZERO:
        pixels = 65535 - pixels
    lost = UNKNOWN_CHANNEL if len(extra) > (alpha is not None) else ''
    return (pixels if alpha is None else np.concatenate([pixels, opacity], axis=-1)), lost


def _straight(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours divided by their alpha; where that is zero they stay, as they cannot be known."""
    divisor = alpha.astype(np.uint32)
    divisor[divisor == 0] = 65535
    return np.minimum((pixels.astype(np.uint32) * 65535 + divisor // 2) // divisor, 65535).astype(np.uint16)
