"""Images in files, and stores of them: one way to look at a folder, an LMDB and a pack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.benchmark_sets import images_in
from basicsr_effsr.data.packs import PACK_SUFFIX, Pack, folder_order, from_planes
from basicsr_effsr.imaging.header import SUFFIXES, ImageError, read_header
from basicsr_effsr.imaging.picture import decode_stored
from basicsr_effsr.utils.files import read_regular, write_bytes

LMDB_SUFFIX = '.lmdb'
Compression = Annotated[int, typer.Option(min=0, max=9, help='PNG level.')]
FilenameTmpl = Annotated[
    str,
    typer.Option(help="Stem of LR from that of HR, as in BasicSR's option, with {scale} allowed; DIV2K: {}x{scale}."),
]


def read_image(path: Path) -> np.ndarray:
    """The upright pixels of an image file: (H, W) or (H, W, C), BGR(A) order, uint8 or uint16; see ``decode_stored``.

    Raises:
        ImageError: when the file is damaged, cut off or of other pixels.
    """
    return decode_stored(read_regular(path), str(path))


def image_shape(path: Path) -> tuple[int, int, int]:
    """(height, width, channels) from the header of an image file; a palette counts as its colours.

    Raises:
        ImageError: when the header cannot be read.
    """
    header = read_header(path)
    return header.height, header.width, 4 if header.alpha else 1 if header.gray else 3


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
    """The image files directly in ``folder``, sorted by name; hidden files are skipped.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when there is none in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; check the path')
    if files := images_in(folder):
        return files
    raise ValueError(f'{folder}: holds no image; check the path')


def is_one_line(name: str) -> bool:
    """Whether a name can be written to a text file, in UTF-8 and in one line, however the reader finds line ends."""
    try:
        return name.encode() != b'' and name.splitlines() == [name]
    except UnicodeEncodeError:
        return False


def same_folder(first: Path, second: Path) -> bool:
    """Whether two paths lead to one folder, existing or not; links and ``..`` are followed."""
    try:
        return first.samefile(second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)  # of a link to itself, too


def refuse_image_name(command: str, path: Path) -> None:
    """Keeps a text file from being written over an image or a data set.

    Raises:
        ValueError: when ``path`` has the name of one, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f'{command}: {path}: is a folder; give the name of the text file')
    if path.suffix.lower() in (*SUFFIXES, '.pack', '.mdb'):
        raise ValueError(
            f'{command}: {path}: is the name of an image or a data set, not of a text file; choose another'
        )


@dataclass(frozen=True)
class Store:
    """Images by name; a name has no suffix."""

    names: list[str]  # in the order of the files of a folder
    shape: Callable[[str], tuple[int, int, int]]  # (height, width, channels), without decoding the pixels
    read: Callable[[str], np.ndarray]  # (H, W) or BGR(A) (H, W, C), uint8 or uint16
    file: Callable[[str], Path]  # that holds it
    where: Callable[[str], str]  # what a message calls it
    damaged: Callable[[], Iterable[str]] = tuple  # names of the images that do not match their checksums


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
