"""One way to look at images, whether they lie in a folder, in an LMDB or in a pack."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import PACK_SUFFIX, Pack, folder_order, from_planes
from basicsr_effsr.imaging.decode import ImageError, decode_stored
from datasets_prep.files import image_shape, list_images, read_image

LMDB_SUFFIX = '.lmdb'


class Store(Protocol):
    """Images by name; a name has no suffix. The names are in the order of the files of a folder."""

    path: Path
    names: list[str]

    def shape(self, name: str) -> tuple[int, int, int]:
        """(height, width, channels) without decoding the pixels."""

    def read(self, name: str) -> np.ndarray:
        """(H, W) or BGR(A) (H, W, C), uint8 or uint16."""

    def where(self, name: str) -> str:
        """What a message calls the image."""


def open_store(path: Path) -> Store:
    """Opens a folder of images, a ``.lmdb`` folder or a ``.pack`` file.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it cannot be read as what its name says.
    """
    if path.suffix == PACK_SUFFIX:
        return PackStore(path)
    if path.suffix == LMDB_SUFFIX:
        return LmdbStore(path)
    return FolderStore(path)


@lru_cache(maxsize=4)
def worker_store(path: Path) -> Store:
    """``open_store``, once per worker process; clear the cache before using it in a process that goes on."""
    return open_store(path)


class FolderStore:
    """The images directly in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Path] = {}
        for file in list_images(path):
            if file.stem in self.files:
                raise ValueError(f'{path}: {self.files[file.stem].name} and {file.name} share a name; rename one')
            self.files[file.stem] = file
        self.names = sorted(self.files, key=folder_order)

    def shape(self, name: str) -> tuple[int, int, int]:
        return image_shape(self.files[name])

    def read(self, name: str) -> np.ndarray:
        return read_image(self.files[name])

    def where(self, name: str) -> str:
        return str(self.files[name])


class LmdbStore:
    """An LMDB in BasicSR's format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shapes = lmdbs.shapes(path)
        self.names = sorted(self._shapes, key=folder_order)

    def shape(self, name: str) -> tuple[int, int, int]:
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        data = lmdbs.get(self.path, name)
        if data is None:
            raise ImageError(f'{self.where(name)}: is missing; make the LMDB again')
        return decode_stored(data, self.where(name))

    def where(self, name: str) -> str:
        return f'{self.path}:{name}'


class PackStore:
    """A pack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pack = Pack(path)
        self.names = self.pack.names
        self._index = {name: i for i, name in enumerate(self.names)}

    def shape(self, name: str) -> tuple[int, int, int]:
        channels, height, width = self.pack.shape(self._index[name])
        return height, width, channels

    def read(self, name: str) -> np.ndarray:
        return from_planes(self.pack.image(self._index[name]))

    def where(self, name: str) -> str:
        return f'{self.path}:{name}'
