"""TIFFs of 16 bits per channel as arrays; Pillow rounds their colours to 8 bits, OpenCV ignores what they mean."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffPage

MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS, ICC = 258, 34675
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
UNNAMED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # what an extra channel is
SEPARATE = 2
UNKNOWN_CHANNEL = 'channel of unknown meaning'


_screen = threading.Lock()


class UnfitError(ValueError):
    """What is wrong with an image, and what to do; ``header.reading`` puts the name before it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps libtiff, in Pillow or in OpenCV, from printing what it thinks of a damaged file; damage is raised."""
    with _screen, open(os.devnull, 'wb') as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def opened(stream: BinaryIO) -> Iterator[Any]:
    """tifffile's view of a file, with its log of damage kept off the screen; what matters of it is raised."""
    import tifffile

    log = logging.getLogger('tifffile')
    before, log.disabled = log.disabled, True
    try:
        with tifffile.TiffFile(stream) as file:
            yield file
    finally:
        log.disabled = before


def read_deep_tiff(data: bytes) -> tuple[np.ndarray, bytes | None, str]:
    """A TIFF of 16 bits: (H, W, 1 to 4) uint16, not turned, with straight alpha; its colour profile; what is lost.

    Planes may be separate, tiles and every byte order are read, uncompressed, deflate, PackBits and LZMA; LZW where
    planes are together; everything else with the package imagecodecs. An extra channel is alpha if the file says so or
    says nothing of it.

    Raises:
        ValueError: pixels that are not unsigned; colours that are not gray or RGB; what tifffile raises on damage.
    """
    with opened(io.BytesIO(data)) as file:
        page = file.pages.first
        _check_kind(page)
        try:
            planes = page.asarray(squeeze=False)  # (C or 1, 1, H, W, 1 or C)
            samples = np.moveaxis(planes[:, 0], 0, -2).reshape(*planes.shape[2:4], -1)
        except (KeyError, ValueError) as error:
            if 'imagecodecs' not in str(error):
                raise
            samples = _through_opencv(page, data)
        pixels, lost = _meaning(page, samples)
        icc = page.tags.valueof(ICC)
    return pixels, None if icc is None else bytes(icc), lost


def _check_kind(page: TiffPage) -> None:
    depths = np.atleast_1d(page.tags.valueof(BITS, default=1))
    if depths.min() != 16:
        raise UnfitError(f'its channels differ in their bits, {depths.tolist()}; save it with 16 for each')
    if page.dtype != np.uint16 or page.imagedepth != 1:
        raise UnfitError('its pixels are no unsigned integers of a plane; convert it to 8 or 16 bits per channel')
    colours = int(page.photometric)
    wanted = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3}.get(colours)
    if wanted is None or page.samplesperpixel < wanted:
        name = 'CMYK' if colours == CMYK else getattr(page.photometric, 'name', colours)
        raise UnfitError(f'its colours are {name} in 16 bits; convert it to gray or RGB')
    if colours == WHITE_IS_ZERO and PREMULTIPLIED in page.extrasamples:
        raise UnfitError('its white is zero and premultiplied with alpha; save it with black as zero')


def _through_opencv(page: TiffPage, data: bytes) -> np.ndarray:
    """(H, W, C) of compressions that tifffile decodes only beside imagecodecs; OpenCV's libtiff knows LZW."""
    found = None
    count = page.samplesperpixel
    if count == 1 or (count in (3, 4) and page.planarconfig != SEPARATE):  # others it takes for what they are not
        with quiet():
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.size != page.size:
        name = getattr(page.compression, 'name', page.compression)
        raise UnfitError(
            f'its compression is {name}, damaged or in a layout that only imagecodecs reads; save it with deflate, or '
            'pip install imagecodecs'
        )
    found = found.reshape(*found.shape[:2], -1)
    return found[..., [2, 1, 0, 3][: found.shape[2]]] if found.shape[2] > 1 else found


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
