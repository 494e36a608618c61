"""One way to look at images, whether they lie in a folder, in an LMDB or in a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import PACK_SUFFIX, Pack, folder_order, from_planes
from basicsr_effsr.imaging.header import ImageError
from basicsr_effsr.imaging.picture import decode_stored
from datasets_prep.files import image_shape, list_images, read_image

LMDB_SUFFIX = '.lmdb'


@dataclass(frozen=True)
class Store:
    """Images by name; a name has no suffix.

    Attributes:
        names: in the order of the files of a folder.
        shape: (height, width, channels) of an image, without decoding its pixels.
        read: its pixels, (H, W) or BGR(A) (H, W, C), uint8 or uint16.
        file: the file that holds it.
        where: what a message calls it.
        damaged: names of the images that do not match their checksums.
    """

    names: list[str]
    shape: Callable[[str], tuple[int, int, int]]
    read: Callable[[str], np.ndarray]
    file: Callable[[str], Path]
    where: Callable[[str], str]
    damaged: Callable[[], Iterable[str]] = tuple


def open_store(path: Path) -> Store:
    """Opens a folder of images, a ``.lmdb`` folder or a ``.pack`` file.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it cannot be read as what its name says, or is empty.
    """
    store = {PACK_SUFFIX: _pack, LMDB_SUFFIX: _lmdb}.get(path.suffix, _folder)(path)
    if not store.names:
        raise ValueError(f'{path}: holds no image; check the path')
    return store


@lru_cache(maxsize=4)
def worker_store(path: Path) -> Store:
    """``open_store``, once per worker process; clear the cache before using it in a process that goes on."""
    return open_store(path)


def _folder(path: Path) -> Store:
    files: dict[str, Path] = {}
    for file in list_images(path):
        if file.stem in files:
            raise ValueError(f'{path}: {files[file.stem].name} and {file.name} share a name; rename one')
        files[file.stem] = file
    return Store(
        sorted(files, key=folder_order),
        lambda name: image_shape(files[name]),
        lambda name: read_image(files[name]),
        files.__getitem__,
        lambda name: str(files[name]),
    )


def _lmdb(path: Path) -> Store:
    """In BasicSR's format."""
    shapes = lmdbs.shapes(path)

    def read(name: str) -> np.ndarray:
        data = lmdbs.get(path, name)
        if data is None:
            raise ImageError(f'{path}:{name}: is missing; make the LMDB again')
        return decode_stored(data, f'{path}:{name}')

    names = sorted(shapes, key=folder_order)
    return Store(names, shapes.__getitem__, read, lambda name: path / 'data.mdb', lambda name: f'{path}:{name}')


def _pack(path: Path) -> Store:
    pack = Pack(path)
    index = {name: i for i, name in enumerate(pack.names)}

    def shape(name: str) -> tuple[int, int, int]:
        channels, height, width = pack.shape(index[name])
        return height, width, channels

    return Store(
        pack.names,
        shape,
        lambda name: from_planes(pack.image(index[name])),
        lambda name: path,
        lambda name: f'{path}:{name}',
        pack.damaged,
    )
