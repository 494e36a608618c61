"""Reading and writing images and files so that a finished file is whole and a killed run leaves no debris."""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from PIL import Image

fcntl: ModuleType | None = None
with suppress(ImportError):  # Windows, where an open file cannot be removed and so needs no lock
    fcntl = import_module('fcntl')

PART_SUFFIX = '.part'
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_EXIF_ORIENTATION = 0x0112
_EXIF_MARK = b'Exif\0\0'
_TURNED = range(2, 9)  # 1 is upright, and no loader heeds another value
_PNG_MARK = b'\x89PNG\r\n\x1a\n'
_NEVER_TURNED = (b'BM', b'P5', b'P6')  # BMP and PPM, which have no place for it


class ImageError(ValueError):
    """An image file that cannot be read, or is of a kind that the command does not take."""


def is_part(path: Path) -> bool:
    """Whether ``path`` is one of our temporary files; their names are hidden, so data sets pass over them."""
    return path.name.startswith('.') and path.name.endswith(PART_SUFFIX)


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path`` and renames it to ``path`` when the block succeeds.

    The temporary file is locked while the block runs, which is how ``sweep_parts`` tells the file of a
    running process from one left by a killed process.

    Args:
        path: the file to be written; its folder is made.
        sync: write the file through to the disk before the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, handle = _locked_part(path)
    try:
        yield part
        if sync:
            os.fsync(handle)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(handle)


def _locked_part(path: Path) -> tuple[Path, int]:
    while True:
        part = path.parent / f'.{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}'
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(handle)
            return part, os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():  # else a sweep came between creation and lock
            return part, handle
        os.close(handle)


def sweep_parts(folder: Path) -> int:
    """Removes the temporary files that killed processes left anywhere below ``folder``; returns how many."""
    swept = 0
    for part in folder.rglob(f'.*{PART_SUFFIX}'):
        with suppress(OSError):
            handle = os.open(part, os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()
            finally:
                os.close(handle)
            part.unlink(missing_ok=True)
            swept += 1
    return swept


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as part:
        part.write_bytes(data)


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file as stored: (H, W) or (H, W, C), BGR(A) order, uint8 or uint16.

    Colour palettes come out as colours, and gray with one transparent value (tRNS of PNG) as BGRA, as gray with
    an alpha channel does.

    Raises:
        ImageError: when the file cannot be decoded, or asks to be shown turned (EXIF orientation), which
            some loaders heed and others do not.
    """
    data = np.fromfile(path, dtype=np.uint8)  # not cv2.imread, which fails on some names on Windows
    img = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if img is None:
        raise ImageError(f'{path}: cannot be decoded as an image ({data.size} bytes); replace or remove the file')
    if img.dtype not in (np.uint8, np.uint16):
        raise ImageError(f'{path}: pixels must be 8 or 16 bit integers, got {img.dtype}; convert the file')
    turned, transparent = _announced(path, data.data)
    if turned in _TURNED:
        raise ImageError(f'{path}: has the EXIF orientation {turned}; save it upright')
    if transparent is not None and img.ndim == 2:  # OpenCV leaves out the transparency of gray
        opaque = np.where(img == transparent, 0, 255 if img.dtype == np.uint8 else 65535).astype(img.dtype)
        return np.dstack((img, img, img, opaque))
    return img


def _announced(path: Path, data: memoryview) -> tuple[int, int | None]:
    """The EXIF orientation that a file asks for (1 if none) and the gray value that a PNG declares transparent.

    The value is that of the decoded pixels. Nothing is decoded for either.
    """
    if bytes(data[:2]) in _NEVER_TURNED:
        return 1, None
    if data[:8] != _PNG_MARK:
        try:
            with Image.open(path) as header:
                return header.getexif().get(_EXIF_ORIENTATION, 1), None
        except _PILLOW_ERRORS as error:
            raise _unreadable(path, error) from None
    turned, transparent, depth = 1, None, 8
    for kind, content in _png_chunks(data):
        if kind == b'IHDR' and len(content) == 13:
            depth = content[8]
        elif kind == b'tRNS' and len(content) == 2:  # of gray only: colours have six bytes
            value = int.from_bytes(content, 'big') & (2**depth - 1)
            transparent = value * 255 // (2**depth - 1) if depth < 8 else value
        elif kind == b'eXIf' and turned not in _TURNED:
            exif = Image.Exif()
            with suppress(SyntaxError):  # damaged, which loaders pass over
                exif.load(_EXIF_MARK + bytes(content).removeprefix(_EXIF_MARK))
            turned = exif.get(_EXIF_ORIENTATION, 1)
    return turned, transparent


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of the chunks of a PNG; those behind the pixels, too, to which Pillow decodes its way."""
    at = len(_PNG_MARK)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += length + 12


def _unreadable(path: Path, error: Exception) -> ImageError:
    return ImageError(f'{path}: cannot be read as an image ({error}); replace or remove the file')


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header of an image file.

    Raises:
        ImageError: when the header cannot be read.
    """
    return image_shape(path)[:2]


def image_shape(path: Path) -> tuple[int, int, int]:
    """(height, width, channels) from the header of an image file; a palette counts as its colours.

    Raises:
        ImageError: when the header cannot be read.
    """
    try:
        with Image.open(path) as header:
            mode, (width, height) = header.mode, header.size
            transparent = 'transparency' in header.info
    except _PILLOW_ERRORS as error:
        raise _unreadable(path, error) from None
    channels = 4 if transparent else {'1': 1, 'L': 1, 'I;16': 1, 'I': 1, 'LA': 4, 'RGBA': 4, 'PA': 4}.get(mode, 3)
    return height, width, channels


def encode_png(img: np.ndarray, *, compression: int = 3) -> bytes:
    """PNG bytes of an image as ``read_image`` gives it."""
    done, data = cv2.imencode('.png', img, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    if not done:
        raise ImageError(f'an image of shape {img.shape} and dtype {img.dtype} cannot be written as PNG')
    return data.tobytes()


def write_png(path: Path, img: np.ndarray, *, compression: int = 3) -> None:
    """Writes a PNG file, whole or not at all."""
    write_bytes(path, encode_png(img, compression=compression))


def list_images(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, sorted by name; hidden files are passed over.

    Raises:
        FileNotFoundError: when the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; check the path')
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith('.'))


def is_one_line(name: str) -> bool:
    """Whether a name can stand in a text file, in UTF-8 and in one line, however the reader finds line ends."""
    try:
        return name.encode() != b'' and name.splitlines() == [name]
    except UnicodeEncodeError:
        return False


def same_folder(first: Path, second: Path) -> bool:
    """Whether two paths lead to one folder, existing or not; links and ``..`` are followed."""
    try:
        return first.samefile(second)
    except OSError:
        return first.resolve() == second.resolve()


def refuse_image_name(command: str, path: Path) -> None:
    """Keeps a text file from being written over an image or a data set.

    Raises:
        ValueError: when ``path`` has the name of one, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f'{command}: {path}: is a folder; give the name of the text file')
    if path.suffix.lower() in (*IMAGE_SUFFIXES, '.pack', '.mdb'):
        raise ValueError(
            f'{command}: {path}: is the name of an image or a data set, not of a text file; choose another'
        )


def newest(stamps: Iterable[int]) -> int:
    """The latest of the modification times (ns) that do not lie in the future, which tell nothing."""
    now = time.time_ns()
    return max((stamp for stamp in stamps if stamp <= now), default=0)


class BusyError(ValueError):
    """Another run is writing what this one was to write."""


@contextmanager
def alone(lock: Path, out: Path) -> Iterator[None]:
    """Keeps a second run from writing ``out`` within the block; the system frees the lock when a process dies.

    Raises:
        BusyError: when another process is at it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open('w')
    try:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(f'{out}: another run is writing it; wait for that one') from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    break
            file.close()  # the run before has removed it between our open and our lock
            file = lock.open('w')
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
    finally:
        file.close()
