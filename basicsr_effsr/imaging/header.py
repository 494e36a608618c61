"""What the header of an image file announces, and whether the file is whole, without decoding its pixels."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from basicsr_effsr.utils.errors import UserError, one_line

SUFFIXES = {  # of files taken from a folder -> format they are written in
    **dict.fromkeys(('.png', '.bmp', '.gif', '.ppm', '.pgm'), 'png'),
    **dict.fromkeys(('.jpg', '.jpeg', '.jpe', '.jfif'), 'jpeg'),
    **dict.fromkeys(('.tif', '.tiff'), 'tiff'),
    '.webp': 'webp',
}
ORIENTATION = 0x0112
TAIL = 2**16  # bytes at the end of a file, where its end is looked for
_EXIF_MARK = b'Exif\0\0'
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of JPEG that announce a size
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers of JPEG without content
_GRAY = ('1', 'L', 'LA', 'La', 'I;16', 'I;16B', 'I;16L', 'I', 'F')


class ImageError(UserError):
    """An image file that cannot be read, or is of a kind that is not taken; the message names it."""


@dataclass(frozen=True)
class Header:
    """What a file announces.

    Attributes:
        kind: format, as Pillow calls it.
        height: of the upright image.
        width: of the upright image.
        gray: it has no colours.
        alpha: it can be transparent: an alpha channel, or a value that is declared transparent.
        bits: per channel, 8 or more; palettes and fewer bits count as 8.
        orientation: how EXIF asks to turn the stored pixels, 1 to 8.
    """

    kind: str
    height: int
    width: int
    gray: bool = False
    alpha: bool = False
    bits: int = 8
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return self.height, self.width


@contextmanager
def any_size() -> Iterator[None]:
    """Lifts Pillow's limit of pixels: the images are the user's own."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_header(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Header:
    """The header of an image.

    Args:
        source: a file, or what it holds.
        name: what messages call it.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it is no image, or its end is missing.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), len(source), name or 'the image')
    with open(source, 'rb') as stream:
        return _read(stream, os.fstat(stream.fileno()).st_size, name or os.fspath(source))


def _read(stream: BinaryIO, size: int, name: str) -> Header:
    try:
        magic = stream.read(8)
        stream.seek(0)
        if magic == b'\x89PNG\r\n\x1a\n':
            found, whole = _png(stream, size)
        elif magic[:3] == b'\xff\xd8\xff':
            found, whole = _jpeg(stream, size)
        else:
            found, whole = _other(stream, size)
    except UnidentifiedImageError as error:
        raise ImageError(f'{name} cannot be read as an image: it is of no known kind; replace it') from error
    except Exception as error:  # decoders raise what they like on damaged headers, SyntaxError among them
        raise ImageError(f'{name} cannot be read as an image ({one_line(error)}); replace it') from error
    if not whole:
        raise ImageError(f'{name} is cut off: the end of its {found.kind} is missing; replace it')
    turned = found.orientation > 4
    return replace(found, height=found.width, width=found.height) if turned else found


def _orientation(exif: bytes) -> int:
    """1 for EXIF that is damaged, which no loader heeds."""
    told: Any = 1
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        content = Image.Exif()
        content.load(_EXIF_MARK + exif.removeprefix(_EXIF_MARK))
        told = content.get(ORIENTATION, 1)
    return told if told in range(1, 9) else 1


def _png(stream: BinaryIO, size: int) -> tuple[Header, bool]:
    stream.seek(8)
    kind, alpha, orientation = b'', False, 1
    width = height = depth = colour = 0
    while kind != b'IDAT':
        begin = stream.read(8)
        if len(begin) < 8:
            raise ValueError('it ends before its pixels')
        length, kind = struct.unpack('>I4s', begin)
        if kind in (b'IHDR', b'eXIf'):
            content = stream.read(length)
            if kind == b'IHDR':
                width, height, depth, colour = struct.unpack('>IIBB', content[:10])
            else:
                orientation = _orientation(content)
            stream.seek(4, os.SEEK_CUR)
        elif kind != b'IDAT':
            alpha = alpha or kind == b'tRNS'
            stream.seek(length + 4, os.SEEK_CUR)
    end = _rest(stream, size, b'IEND\xaeB`\x82')
    behind = end.rfind(b'eXIf')  # some programs put it behind the pixels
    if behind >= 4:
        length = int.from_bytes(end[behind - 4 : behind], 'big')
        chunk = end[behind : behind + 4 + length]
        if zlib.crc32(chunk).to_bytes(4, 'big') == end[behind + 4 + length : behind + 8 + length]:
            orientation = _orientation(chunk[4:])
    alpha = alpha or colour in (4, 6)
    return Header('PNG', height, width, colour in (0, 4), alpha, max(depth, 8), orientation), bool(end)


def _jpeg(stream: BinaryIO, size: int) -> tuple[Header, bool]:
    stream.seek(2)
    found, orientation = None, 0
    while True:
        marker = stream.read(2)
        while marker[1:] == b'\xff':
            marker = b'\xff' + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            raise ValueError('its markers are damaged')
        kind = marker[1]
        if kind in _ALONE:
            continue
        (length,) = struct.unpack('>H', stream.read(2))
        if kind in _FRAMES or kind == 0xE1:
            content = stream.read(length - 2)
            if kind == 0xE1:
                if content.startswith(_EXIF_MARK) and not orientation:
                    orientation = _orientation(content)
            else:
                bits, height, width, planes = struct.unpack('>BHHB', content[:6])
                found = Header('JPEG', height, width, planes == 1, False, bits)
        else:
            stream.seek(length - 2, os.SEEK_CUR)
        if kind == 0xDA:
            break
    if found is None or not found.height * found.width:
        raise ValueError('its header is damaged')
    return replace(found, orientation=orientation or 1), bool(_rest(stream, size, b'\xff\xd9'))


def _other(stream: BinaryIO, size: int) -> tuple[Header, bool]:
    with any_size(), warnings.catch_warnings(), Image.open(stream) as image:
        warnings.simplefilter('ignore')
        kind, mode = str(image.format), image.mode
        frames = getattr(image, 'n_frames', 1)
        if frames > 1:
            raise ValueError(f'it has {frames} frames; split it into images')
        alpha = 'transparency' in image.info or mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa')
        bits = 16 if mode.startswith('I;16') else 32 if mode in ('I', 'F') else 8
        width, height = image.size
        orientation: Any = 1
        if kind == 'TIFF':
            tags = image.tag_v2  # type: ignore[attr-defined]
            bits = max(tags.get(258, (1,))) if bits == 8 else bits
            width, height = tags.get(256, width), tags.get(257, height)  # Pillow turns the size in some versions
        if kind in ('TIFF', 'WEBP', 'AVIF', 'MPO'):
            with suppress(Exception):
                orientation = image.getexif().get(ORIENTATION, 1)
        whole = True
        if kind == 'WEBP':
            stream.seek(4)
            whole = int.from_bytes(stream.read(4), 'little') + 8 <= size
    orientation = orientation if orientation in range(1, 9) else 1
    return Header(kind, height, width, mode in _GRAY, alpha, max(bits, 8), orientation), whole


def _rest(stream: BinaryIO, size: int, end: bytes) -> bytes:
    """What stands at the end of a file, behind where the stream is now; nothing where ``end`` does not stand there."""
    start = stream.tell()
    for first in dict.fromkeys((max(size - TAIL, start), start)):
        stream.seek(first)
        rest = stream.read()
        if rest.endswith(end) or end in rest:
            return rest
    return b''
