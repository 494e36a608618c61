"""What an image file announces, whether it is whole, and whether it can be true, before its pixels are decoded."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from basicsr_effsr.imaging import tiff
from basicsr_effsr.imaging.tiff import UnfitError
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import open_regular
from basicsr_effsr.utils.memory import available_memory

SUFFIXES = {  # of files taken from a folder -> format they are written in
    **dict.fromkeys(('.png', '.bmp', '.gif', '.ppm', '.pgm', '.pbm', '.pnm'), 'png'),
    **dict.fromkeys(('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'), 'jpeg'),
    **dict.fromkeys(('.tif', '.tiff'), 'tiff'),
    '.webp': 'webp',
}
ORIENTATION = 0x0112
PNG = b'\x89PNG\r\n\x1a\n'
_EXIF_MARK = b'Exif\0\0'
_SEGMENTS = {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # markers of JPEG with content
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those that announce a size
_GRAY = ('1', 'L', 'LA', 'La', 'I;16', 'I;16B', 'I;16L', 'I', 'F')
_PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type of PNG -> channels
# raw bytes that a byte of the file can stand for at most; None: any number
_DEFLATE, _LZW, _HUFFMAN = 1032, 2731, 512  # a JPEG has at least a bit for every 8 x 8 pixels of a channel
_VP8 = 2400  # a lossy WebP at least 3.4 for every 16 x 16 pixels: their modes, whose probabilities RFC 6386 fixes
_SMALLEST = {'GIF': _LZW, 'PPM': 1, 'BMP': 2**14}  # run lengths of BMP may skip pixels
_SMALLEST_TIFF = {1: 1, 5: _LZW, 7: _HUFFMAN, 8: _DEFLATE, 32946: _DEFLATE, 32773: 64}
_MUCH = 2**28  # bytes that are asked for without looking at what is free
_PPM = re.compile(rb'P([56])' + 3 * rb'(?:\s|#[^\n]*\n)+(\d+)' + rb'\s')


class ImageError(UserError):
    """An image file that cannot be read, or is of a kind that is not taken; the message names it."""


@dataclass(frozen=True)
class Header:
    """What a file announces."""

    kind: str  # format, as Pillow calls it
    height: int  # of the upright image
    width: int
    gray: bool = False
    alpha: bool = False  # it can be transparent: an alpha channel, or a value that is declared transparent
    bits: int = 8  # per channel, 8 or more; palettes and fewer bits count as 8
    orientation: int = 1  # how EXIF asks to turn the stored pixels, 1 to 8

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return self.height, self.width


@contextmanager
def any_size() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, as sizes are judged here, and silences its warnings."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Makes one sentence of whatever a decoder raises within the block; sizes are free there, see ``any_size``.

    Raises:
        ImageError: it was no image, damaged, or unfit.
        MemoryError: the memory ran out.
    """
    try:
        with any_size():
            yield
    except (ImageError, MemoryError, ImportError):
        raise
    except UnfitError as error:
        raise ImageError(f'{name} cannot be read as an image: {error}') from error
    except UnidentifiedImageError as error:
        raise ImageError(f'{name} cannot be read as an image: unknown format; replace it') from error
    except Exception as error:  # decoders raise what they like on damaged files, SyntaxError among them
        raise ImageError(f'{name} cannot be read as an image: it is damaged ({one_line(error)}); replace it') from error


def read_header(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Header:
    """The header of an image file, or of what one holds, then with all checksums that the format has.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no regular file.
        ImageError: it is no image, its end is missing, or it is smaller than an image of its size can be.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        magic = stream.read(8)
        stream.seek(0)
        with reading(name or ('the image' if isinstance(source, bytes) else os.fspath(source))):
            if magic == PNG:
                found = _png(stream, isinstance(source, bytes))
            elif magic[:3] == b'\xff\xd8\xff':
                found = _jpeg(stream.read())
            elif magic[:4] in tiff.MAGIC:
                found = _tiff(stream, size)
            else:
                found = _other(stream, size)
    turned = found.orientation > 4
    return replace(found, height=found.width, width=found.height) if turned else found


def check_memory(wanted: int, what: str) -> None:
    """Refuses what the machine has no memory for, before it is asked for.

    Raises:
        UnfitError: less than ``wanted`` bytes are free; the sentence begins with ``what``.
    """
    free = available_memory() if wanted > _MUCH else None
    if free is not None and wanted > free:
        raise UnfitError(f'{what} needs about {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; crop it')


def _check_claim(raw: int, stored: int, ratio: int | None, height: int, width: int) -> None:
    """Compares the bytes of an image when unpacked with those it is packed in."""
    if height < 1 or width < 1:
        raise UnfitError(f'its header says {width}x{height} pixels; replace it')
    if ratio is not None and raw > ratio * stored:
        raise UnfitError(f'its header says {width}x{height} pixels, far more than its {stored} bytes hold; replace it')


def orientation_in(exif: bytes) -> int:
    """The orientation that EXIF asks for; 1 for EXIF that is damaged, which no loader heeds."""
    found: Any = 1
    with suppress(*EXIF_FAULTS):
        content = Image.Exif()
        content.load(_EXIF_MARK + exif.removeprefix(_EXIF_MARK))
        found = content.get(ORIENTATION, 1)
    return _valid(found)


def _valid(orientation: Any) -> int:
    return orientation if orientation in range(1, 9) else 1


# what Pillow raises on damaged EXIF, according to where the damage is
EXIF_FAULTS = (struct.error, SyntaxError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError)


def png_chunks(stream: BinaryIO, whole: bool = True) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of every chunk of a PNG; those of the pixels are empty unless ``whole``.

    Raises:
        UnfitError: a checksum does not fit, or the end is missing.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(len(PNG))
    kind = b''
    while kind != b'IEND':
        begin = stream.read(8)
        length, kind = struct.unpack('>I4s', begin) if len(begin) == 8 else (size, b'')
        if stream.tell() + length + 4 > size:
            raise UnfitError('it is cut off, the end of its PNG is missing; replace it')
        if kind == b'IDAT' and not whole:
            stream.seek(length + 4, os.SEEK_CUR)
            yield kind, b''
            continue
        content = stream.read(length)
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(stream.read(4), 'big'):
            raise UnfitError(
                f'it is damaged, its part {kind.decode("latin-1")!r} does not fit its checksum; replace it'
            )
        yield kind, content


def _png(stream: BinaryIO, whole: bool) -> Header:
    transparent, orientation = False, 1
    width = height = depth = colour = 0
    for kind, content in png_chunks(stream, whole):
        if kind == b'IHDR':
            width, height, depth, colour = struct.unpack('>IIBB', content[:10])
        elif kind == b'eXIf':
            orientation = orientation_in(content)
        elif kind == b'acTL' and int.from_bytes(content[:4], 'big') > 1:
            raise UnfitError(f'it has {int.from_bytes(content[:4], "big")} frames; split it into images')
        transparent = transparent or kind == b'tRNS'
    raw = height * -(-width * depth * _PLANES[colour] // 8)
    _check_claim(raw, stream.tell(), _DEFLATE, height, width)
    return Header('PNG', height, width, colour in (0, 4), transparent or colour in (4, 6), max(depth, 8), orientation)


def _jpeg(content: bytes) -> Header:
    """Follows the markers to the end; what lies between them has no checksum."""
    data = np.frombuffer(content, np.uint8)
    marks = np.flatnonzero((data[:-1] == 0xFF) & (data[1:] != 0) & (data[1:] != 0xFF))
    is_restart = (data[marks + 1] & 0xF8) == 0xD0
    ends, restarts = marks[~is_restart], marks[is_restart]
    found, orientation, at, kind = None, 0, 2, 0
    while True:
        while content[at : at + 2] == b'\xff\xff':
            at += 1
        if at + 4 > len(content) and not content.startswith(b'\xff\xd9', at):
            raise UnfitError('it is cut off, the end of its JPEG is missing; replace it')
        if content[at] != 0xFF or content[at + 1] not in _SEGMENTS | _FRAMES | {0x01, 0xD9}:
            raise UnfitError('it is damaged, its JPEG markers do not follow each other; replace it')
        kind = content[at + 1]
        if kind == 0xD9:
            break
        at += 2
        if kind == 0x01:
            continue
        length = int.from_bytes(content[at : at + 2], 'big')
        segment = content[at + 2 : at + length]
        at += length
        if kind in _FRAMES:
            bits, height, width, planes = struct.unpack('>BHHB', segment[:6])
            found = Header('JPEG', height, width, planes == 1, False, bits)
        elif kind == 0xE1 and segment.startswith(_EXIF_MARK) and not orientation:
            orientation = orientation_in(segment)
        elif kind == 0xDA:
            end = ends[np.searchsorted(ends, at) :][:1].tolist() or [len(content)]
            inside = data[restarts[slice(*np.searchsorted(restarts, [at, end[0]]))] + 1] & 7
            if not np.array_equal(inside, np.arange(len(inside)) % 8):
                raise UnfitError('it is damaged, parts of its JPEG are missing; replace it')
            at = end[0]
    if found is None:
        raise UnfitError('it is damaged, its JPEG has no size; replace it')
    _check_claim(found.height * found.width, len(content), _HUFFMAN, *found.size)
    return replace(found, orientation=orientation or 1)


def _tiff(stream: BinaryIO, size: int) -> Header:
    with tiff.opened(stream) as file:
        page, frames = file.pages.first, len(file.pages)
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        depth = int(np.max(page.tags.valueof(tiff.BITS, default=1)))
        orientation = page.tags.valueof(ORIENTATION, default=1)
        kind, extra = int(page.photometric), page.extrasamples
        strips = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        expected, ratio = math.prod(page.chunked), _SMALLEST_TIFF.get(int(page.compression))
    if any(begin + length > size for begin, length in strips):
        raise UnfitError('it is cut off, the end of its TIFF is missing; replace it')
    if frames > 1:
        raise UnfitError(f'it has {frames} frames; split it into images')
    if len(strips) < expected or not all(length for _, length in strips):
        raise UnfitError('it is damaged, parts of its TIFF are missing; replace it')
    stored = sum(length for _, length in strips)
    _check_claim(height * -(-width * depth * channels // 8), stored, ratio, height, width)
    colours = {tiff.RGB: 3, tiff.CMYK: 4}.get(kind, 1)
    alpha = not {tiff.PREMULTIPLIED, tiff.STRAIGHT}.isdisjoint(extra) or (not extra and channels > colours)
    gray = kind in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO)
    return Header('TIFF', height, width, gray, alpha, max(depth, 8), _valid(orientation))


def _other(stream: BinaryIO, size: int) -> Header:
    with Image.open(stream) as image:
        kind, mode, (width, height) = str(image.format), image.mode, image.size
        frames = getattr(image, 'n_frames', 1)
        if frames > 1:
            raise UnfitError(f'it has {frames} frames; split it into images')
        bits = 16 if mode.startswith('I;16') else 32 if mode in ('I', 'F') else 8
        orientation: Any = 1
        if kind in ('WEBP', 'AVIF'):
            with suppress(*EXIF_FAULTS):
                orientation = image.getexif().get(ORIENTATION, 1)
        alpha = 'transparency' in image.info or mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa')
    stream.seek(0)
    head = stream.read(2**16)
    ratio, depth = _SMALLEST.get(kind), 1 if mode == '1' else 8 * Image.getmodebands(mode)
    if kind == 'PPM':
        layout = ppm_layout(head)
        bits = 8 if layout is None else layout[3]
        depth *= bits // 8
    elif kind == 'WEBP':
        if int.from_bytes(head[4:8], 'little') + 8 > size:
            raise UnfitError('it is cut off, the end of its WEBP is missing; replace it')
        ratio = _VP8 if b'VP8 ' in head and b'VP8L' not in head else None
    _check_claim(height * -(-width * depth // 8), size, ratio, height, width)
    return Header(kind, height, width, mode in _GRAY, alpha, bits, _valid(orientation))


def ppm_layout(content: bytes) -> tuple[int, int, int, int] | None:
    """(where the pixels of a binary PGM or PPM begin, channels, largest value, bits), None for other kinds."""
    found = _PPM.match(content)
    if found is None:
        return None
    largest = int(found[4])
    return found.end(), 1 if found[1] == b'5' else 3, largest, 16 if largest > 255 else 8
