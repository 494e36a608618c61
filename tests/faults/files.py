"""Generators of damaged and lying image files; nothing is collected, everything is made."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

PNG = b'\x89PNG\r\n\x1a\n'
TIFF_CODES = {'raw': None, 'lzw': 'tiff_lzw', 'deflate': 'tiff_adobe_deflate', 'packbits': 'packbits', 'jpeg': 'jpeg'}
FORMATS = (
    *(
        'png',
        'png16',
        'png gray',
        'png palette',
        'png interlaced',
        'png alpha',
        'jpg',
        'jpg progressive',
        'jpg restarts',
    ),
    *('webp', 'bmp', 'pgm', 'ppm', 'ppm16', *(f'tif {code}' for code in TIFF_CODES), 'tif16', 'tif16 deflate'),
)


def picture(height: int = 96, width: int = 120) -> np.ndarray:
    """(H, W, 3) uint8: smooth, so that every compression makes something of it, and nowhere flat."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def suffix_of(kind: str) -> str:
    """The ending of a file of this kind."""
    return kind.split()[0].rstrip('0123456789')


def whole(kind: str, image: np.ndarray) -> bytes:
    """An intact file of one of ``FORMATS``."""
    suffix, _, more = kind.partition(' ')
    if suffix in ('png16', 'ppm16', 'tif16'):
        deep = image[..., ::-1].astype(np.uint16) * 257
        options = [cv2.IMWRITE_TIFF_COMPRESSION, 8 if more else 1] if suffix == 'tif16' else []
        return cv2.imencode(f'.{suffix_of(kind)}', deep, options)[1].tobytes()
    made = Image.fromarray(image)
    if more == 'palette':
        made = made.quantize(64)
    elif more == 'alpha':
        made.putalpha(255)
    elif more == 'gray' or suffix == 'pgm':
        made = made.convert('L')
    elif more == 'interlaced':
        return interlaced(image)
    options = {
        'jpg progressive': {'progressive': True},
        'jpg restarts': {'restart_marker_rows': 1},
        'webp': {'lossless': True},
        **{f'tif {name}': {'compression': code} for name, code in TIFF_CODES.items()},
    }.get(kind, {})
    out = io.BytesIO()
    made.save(out, {'jpg': 'JPEG', 'tif': 'TIFF', 'pgm': 'PPM'}.get(suffix, suffix.upper()), **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def interlaced(image: np.ndarray) -> bytes:
    """A PNG in Adam7."""
    lines = []
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)):
        lines += [b'\0' + line.tobytes() for line in image[top::down, left::right]]
    lines += [b'\0' + line.tobytes() for line in image[1::2]]
    header = struct.pack('>IIBBBBB', image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    pixels = zlib.compress(b''.join(lines))
    parts = [chunk(b'IDAT', pixels[i : i + 4096]) for i in range(0, len(pixels), 4096)]
    return PNG + chunk(b'IHDR', header) + b''.join(parts) + chunk(b'IEND', b'')


def pieces(png: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of the parts of a PNG, its pixels in eight."""
    found, at, pixels = [], 8, b''
    while at < len(png):
        length, kind = struct.unpack('>I4s', png[at : at + 8])
        content = png[at + 8 : at + 8 + length]
        pixels += content if kind == b'IDAT' else b''
        found += [] if kind == b'IDAT' else [(kind, content)]
        at += length + 12
    step = len(pixels) // 8 + 1
    found[-1:-1] = [(b'IDAT', pixels[i : i + step]) for i in range(0, len(pixels), step)]
    return found


def damaged(kind: str, image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """(what was done, content) of files whose pixels are damaged in a way that their format shows."""
    good = whole(kind, image)
    for kept in (0.3, 0.6, 0.95):
        yield f'cut to {kept}', good[: int(kept * len(good))]
    if kind.startswith('png'):
        parts = pieces(good)
        first = next(i for i, (name, _) in enumerate(parts) if name == b'IDAT')
        at = good.index(b'IDAT') + len(good) // 2
        for bit in (0, 5):
            yield f'bit {bit} flipped', good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
        yield 'zeros inside', good[:at] + bytes(40) + good[at + 40 :]
        for lost in (0, 3, 7):
            left = [part for i, part in enumerate(parts) if i != first + lost]
            yield f'part {lost} lost', PNG + b''.join(chunk(*part) for part in left)
        yield (
            'parts exchanged',
            PNG
            + b''.join(
                chunk(*parts[first + 4 if i == first + 2 else first + 2 if i == first + 4 else i])
                for i in range(len(parts))
            ),
        )
        rest = [part for part in parts if part[0] != b'IDAT']
        short = zlib.compress(bytes(500))
        yield 'too few lines', PNG + b''.join(chunk(*part) for part in [*rest[:-1], (b'IDAT', short), rest[-1]])
    elif kind.startswith('jpg'):
        middle = len(good) * 2 // 3
        yield 'a marker inside', good[:middle] + b'\xff\x37' + good[middle + 2 :]
        yield 'an end inside', good[:middle] + b'\xff\xd8' + good[middle + 2 :]
        if kind == 'jpg restarts':
            starts = [i for i in range(len(good) - 1) if good[i] == 255 and 0xD0 <= good[i + 1] <= 0xD7]
            yield 'a stretch lost', good[: starts[1]] + good[starts[3] :]
    elif kind in ('tif lzw', 'tif deflate', 'tif16 deflate'):
        at = len(good) // 3
        yield 'ones inside', good[:at] + b'\xff' * 200 + good[at + 200 :]


def lying(kind: str, height: int, width: int) -> bytes:
    """A small file whose header announces an image of any size; kinds: png, bmp, ppm, jpg, gif, tif, webp."""
    if kind == 'png':
        header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
        return PNG + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
    if kind == 'ppm':
        return b'P6\n%d %d\n255\n' % (width, height) + bytes(24000)
    if kind == 'bmp':
        return b'BM' + struct.pack('<IIIIiiHHIIiiII', 24000, 0, 54, 40, width, height, 1, 24, *[0] * 6) + bytes(24000)
    if kind == 'webp':
        out = io.BytesIO()
        Image.fromarray(picture(16, 16)).save(out, 'WEBP')
        good = bytearray(out.getvalue())
        at = good.index(b'\x9d\x01\x2a') + 3
        good[at : at + 4] = struct.pack('<HH', min(width, 16383), min(height, 16383))
        return bytes(good)
    good = bytearray(whole('jpg' if kind == 'jpg' else 'tif raw', picture(16, 16)) if kind != 'gif' else b'')
    if kind == 'jpg':
        at = good.index(b'\xff\xc0') + 5
        good[at : at + 4] = struct.pack('>HH', min(height, 65535), min(width, 65535))
    elif kind == 'tif':
        for tag, value in ((256, width), (257, height), (278, height)):
            for size in (3, 4):
                at = good.find(struct.pack('<HHI', tag, size, 1))
                if at >= 0:
                    good[at : at + 12] = struct.pack('<HHII', tag, 4, 1, value)
    else:
        out = io.BytesIO()
        Image.fromarray(picture(16, 16)).convert('P').save(out, 'GIF')
        good = bytearray(out.getvalue())
        screen = struct.pack('<HH', min(width, 65535), min(height, 65535))
        good[6:10] = screen
        at = good.index(b'\x2c\0\0\0\0\x10\0\x10\0') + 5
        good[at : at + 4] = screen
    return bytes(good)
