"""A pack: many images in one file, uncompressed, so that a crop can be read without decoding anything.

Layout, all numbers little-endian, so that a pack opens on any machine::

    header   64 bytes: magic, version, size of a record, count, offsets, size of the file, CRC-32 of the index
    images   uint8 planes (C, H, W), RGB or gray, each image beginning at a multiple of 64
    index    one record per image: offset, height, width, channels, CRC-32 of the pixels
    names    UTF-8, one per line, in the order of the index; sorted as the files of a folder are (``folder_order``)

Needs numpy only.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from basicsr_effsr.utils.files import open_regular

MAGIC = b'EFFSRPAK'
VERSION = 1
ALIGNMENT = 64
PACK_SUFFIX = '.pack'
RECORD = np.dtype(
    [('offset', '<u8'), ('height', '<u4'), ('width', '<u4'), ('channels', '<u4'), ('crc32', '<u4')], align=False
)
_HEADER = struct.Struct('<8sIIQQQQI12x')  # 64 bytes
DROP_AFTER = 256 * 2**20


class PackError(ValueError):
    """The file is not a complete pack; the message says why."""


def folder_order(name: str) -> str:
    """The key by which names without suffix sort as BasicSR sorts the PNG files of a folder: ``a-b`` before ``a``."""
    return f'{name}.png'


def layout(shapes: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """The index, with CRCs of zero, of images with the given (height, width, channels)."""
    records = np.array([(0, *shape, 0) for shape in shapes], dtype=RECORD)
    sizes = records['height'].astype(np.uint64) * records['width'] * records['channels']
    slots = (sizes + np.uint64(ALIGNMENT - 1)) // np.uint64(ALIGNMENT) * np.uint64(ALIGNMENT)
    records['offset'] = ALIGNMENT + np.cumsum(slots) - slots
    return records


def end_of_images(records: np.ndarray) -> int:
    """First byte after the images."""
    if not len(records):
        return ALIGNMENT
    offset, height, width, channels, _ = records[-1].tolist()
    return -(-(offset + height * width * channels) // ALIGNMENT) * ALIGNMENT


def header_and_tail(records: np.ndarray, names: list[str]) -> tuple[bytes, bytes]:
    """The bytes before and behind the images.

    Raises:
        ValueError: unless the names are as many as the records, in ``folder_order``, different and without line ends.
    """
    if len(names) != len(records) or any(a >= b for a, b in pairwise(map(folder_order, names))):
        raise ValueError('pack: needs one unique name per image, in the order of a folder')
    if any('\n' in name for name in names):
        raise ValueError('pack: a name must not contain a line break')
    tail = records.tobytes() + '\n'.join(names).encode()
    index = end_of_images(records)
    ends = (index, index + records.nbytes, index + len(tail))
    return _HEADER.pack(MAGIC, VERSION, RECORD.itemsize, len(records), *ends, zlib.crc32(tail)), tail


def to_planes(img: np.ndarray) -> np.ndarray:
    """(H, W) or BGR (H, W, 3) -> RGB or gray planes (C, H, W), contiguous."""
    return np.ascontiguousarray(img[None] if img.ndim == 2 else img[:, :, ::-1].transpose(2, 0, 1))


def from_planes(planes: np.ndarray) -> np.ndarray:
    """The inverse of ``to_planes``."""
    return planes[0].copy() if len(planes) == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0)[:, :, ::-1])


class Pack:
    """A pack opened for reading.

    Only the index is held in memory; pixels are pages of the file that the system may drop at any time. The pages that
    this process has touched are given back every 256 MiB, so that its resident memory stays bounded.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: it is no pack, was cut off, is damaged in its index, or is of a newer version; and at the next
            read when it was changed in place since it was opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f'{path}: no such pack; make it with: python -m datasets_prep pack')
        size = self.path.stat().st_size
        with open_regular(self.path) as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:8] != MAGIC:
                raise PackError(f'{path}: is not a pack (it does not begin with {MAGIC!r}); check the path')
            _, version, record_size, count, index, names, end, crc = _HEADER.unpack(head)
            if version != VERSION or record_size != RECORD.itemsize:
                raise PackError(f'{path}: has pack version {version}, this code reads {VERSION}; make the pack again')
            if size != end:
                raise PackError(
                    f'{path}: holds {size} bytes where its header says {end}; it is truncated, copy it again'
                )
            if not ALIGNMENT <= index <= names <= end or names - index != count * RECORD.itemsize:
                raise PackError(f'{path}: the header contradicts itself; the file is damaged, copy it again')
            file.seek(index)
            tail = file.read()
            if zlib.crc32(tail) != crc:
                raise PackError(f'{path}: the index does not match its checksum; the file is damaged, copy it again')
            self.records = np.frombuffer(tail, dtype=RECORD, count=count)
            self.names = tail[names - index :].decode(errors='replace').split('\n') if count else []
            self._check_records(index)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = os.dup(file.fileno())
            self._state = self._stat()
        if hasattr(mmap, 'MADV_RANDOM'):
            self._map.madvise(mmap.MADV_RANDOM)  # crops touch few pages; reading ahead would only waste the disk
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._offsets = self.records['offset'].tolist()
        self._shapes = [*zip(*(self.records[key].tolist() for key in ('channels', 'height', 'width')), strict=True)]
        self._touched = 0

    def __del__(self) -> None:
        if hasattr(self, '_file'):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self.records)

    def _check_records(self, end: int) -> None:
        """Refuses records that point outside the images; a checksum reveals only accidental damage."""
        sides = [self.records[key].astype(np.float64) for key in ('height', 'width', 'channels')]  # cannot overflow
        begin = self.records['offset'].astype(np.float64)
        inside = (begin >= ALIGNMENT) & (begin + sides[0] * sides[1] * sides[2] <= end) & (sides[0] * sides[1] > 0)
        if len(self.names) != len(self) or not (inside & np.isin(self.records['channels'], (1, 3))).all():
            raise PackError(f'{self.path}: its index points outside its images; make the pack again')

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def shape(self, i: int) -> tuple[int, int, int]:
        """(channels, height, width) of the i-th image."""
        return self._shapes[i]

    def image(self, i: int) -> np.ndarray:
        """The i-th image, (C, H, W) uint8, RGB or gray, as a read-only view of the file."""
        planes = self._planes(i)
        self._count(planes.nbytes)
        return planes

    def crop(self, i: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A part of the i-th image, (C, height, width), as a read-only view of the file."""
        planes = self._planes(i)
        self._count(len(planes) * height * max(width, mmap.PAGESIZE // 2))
        return planes[:, top : top + height, left : left + width]

    def _planes(self, i: int) -> np.ndarray:
        if self._stat() != self._state:  # to read behind its new end would end the process
            raise PackError(f'{self.path}: was overwritten while being read; start again')
        channels, height, width = self._shapes[i]
        offset = self._offsets[i]
        return self._bytes[offset : offset + channels * height * width].reshape(channels, height, width)

    def damaged(self) -> Iterator[str]:
        """Names of the images whose pixels do not match their checksum; reads the whole file."""
        for i, name in enumerate(self.names):
            if zlib.crc32(self.image(i).data) != self.records[i]['crc32']:
                yield name

    def _count(self, touched: int) -> None:
        self._touched += touched
        if self._touched > DROP_AFTER and hasattr(mmap, 'MADV_DONTNEED'):
            self._map.madvise(mmap.MADV_DONTNEED)  # the pages stay in the system's cache, not in this process
            self._touched = 0


class PackSet:
    """The images of a ``.pack`` file, or of all of a folder, by name; the files are opened when first needed.

    A set can be sent to another process, which opens the files for itself.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when one is not a whole pack, or two hold an image of the same name.
    """

    def __init__(self, root: str | Path) -> None:
        path = Path(root)
        self.files = sorted(path.glob(f'*{PACK_SUFFIX}')) if path.is_dir() else [path]
        if not self.files:
            raise FileNotFoundError(f'{root}: holds no {PACK_SUFFIX} file; make one with: python -m datasets_prep pack')
        self.where: dict[str, tuple[int, int]] = {}
        for number, pack in enumerate(self.packs):
            for i, name in enumerate(pack.names):
                if name in self.where:
                    other = self.files[self.where[name][0]]
                    raise ValueError(f'{other} and {pack.path} both hold {name!r}; remove one of them from {root}')
                self.where[name] = (number, i)

    def __getstate__(self) -> dict[str, Any]:
        return {key: its for key, its in self.__dict__.items() if key != 'packs'}

    @cached_property
    def packs(self) -> list[Pack]:
        """The opened files."""
        return [Pack(file) for file in self.files]

    def find(self, name: str) -> tuple[Pack, int]:
        """The pack that holds the image, and its number in there."""
        number, i = self.where[name]
        return self.packs[number], i

    def size(self, name: str) -> tuple[int, int]:
        """(H, W) of an image."""
        pack, i = self.find(name)
        return pack.shape(i)[1:]

    def called(self, name: str) -> str:
        """Name of an image in messages."""
        return f'{name!r} of {self.files[self.where[name][0]]}'
