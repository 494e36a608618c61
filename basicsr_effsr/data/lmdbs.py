"""LMDBs in BasicSR's format, each opened once in a process, however many data sets read it.

LMDB does not allow a process to open a file twice, or to use one that was opened before a fork. It maps the file into
memory and trusts every pointer in it, so the pointers are checked first: reading past the end of a mapped file kills
the process. The decoder checks the images.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from basicsr_effsr.utils.files import open_regular, read_text

# behind the header of the page: magic, version; kind, depth and root of the tree of images; last page, transaction
_META = struct.Struct('=16xII68xHH32xQQQ')
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE = struct.Struct('=QHHHH')  # number, nothing, 1 for a branch and 2 for a leaf, end of the pointers, first node
_NODE, _DEEPEST = 8, 32  # bytes of a node before its key; levels that LMDB can follow
_open: dict[str, tuple[tuple[int, int, int], Any]] = {}
_lock = threading.Lock()


def get(path: str | Path, key: str) -> bytes | None:
    """What an LMDB holds under a key, None if nothing; the file is opened when first needed.

    Raises:
        OSError: there is no such LMDB.
        ValueError: it is damaged, was truncated while being read, or is opened elsewhere in this process.
    """
    import lmdb

    try:
        with _environment(path).begin() as transaction:
            return transaction.get(key.encode())
    except lmdb.Error as error:
        raise ValueError(f'{path} is damaged ({error}); make the LMDB again') from error


def shapes(path: Path) -> dict[str, tuple[int, int, int]]:
    """(height, width, channels) of every image of an LMDB, by its key, in the order of its meta_info.txt.

    Raises:
        FileNotFoundError: there is no LMDB of BasicSR.
        ValueError: a line is none, or the LMDB is damaged; the message names the line or the file.
    """
    file = path / 'meta_info.txt'
    if not file.is_file() or not (path / 'data.mdb').is_file():
        raise FileNotFoundError(f'{path} must hold data.mdb and meta_info.txt; see effsr prepare lmdb')
    check_whole(path / 'data.mdb')
    found: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(read_text(file).removesuffix('\n').split('\n'), 1):
        # a byte-order mark would be a part of the first key
        parts = re.fullmatch(r'([^.\ufeff]+)\S* \((\d{1,9}), ?(\d{1,9})(?:, ?(\d))?\).*', line)
        if parts is None or not int(parts[2]) * int(parts[3]) or parts[1] in found:
            twice = ', with a unique name,' if parts and parts[1] in found else ''
            raise ValueError(
                f'line {number} of {file} must be like 0001.png (480,480,3) 1{twice} got {line[:80]!r}; make the LMDB '
                'again'
            )
        found[parts[1]] = (int(parts[2]), int(parts[3]), int(parts[4] or 1))
    return found


def check_whole(file: Path) -> None:
    """Compares the length of a data.mdb with what its newer meta page says, and follows its tree down to the images.

    Raises:
        ValueError: it is shorter, damaged, or no LMDB.
    """
    with open_regular(file) as stream:
        size, metas = os.fstat(stream.fileno()).st_size, []
        page_size = int.from_bytes(stream.read(44)[40:], sys.byteorder)
        for at in (0, page_size):
            stream.seek(at)
            page = stream.read(_META.size).ljust(_META.size, b'\0')
            magic, version, *tree, last, transaction = _META.unpack(page)
            metas += [(transaction, last, tree)] if (magic, version) == (_MAGIC, _VERSION) else []
        if len(metas) < 2:
            raise ValueError(f'{file} is not an LMDB, or is damaged at its start; make the LMDB again')
        _, last, tree = max(metas)
        needed = (last + 1) * page_size
        if size < needed:
            raise ValueError(f'{file} is truncated: it has {size} of {needed} bytes; make the LMDB again')
        if not _tree_is_whole(stream, page_size, last, *tree):
            raise ValueError(f'{file} is damaged; make the LMDB again')


def _tree_is_whole(stream: BinaryIO, page_size: int, last: int, kind: int, depth: int, root: int) -> bool:
    """Whether every pointer on the way from the root to the values stays inside its page and the file's ``last``."""
    level = np.array([root] if depth else [], np.uint64)
    if kind or depth > _DEEPEST:
        return False
    for height in range(depth, 0, -1):
        below = [level[:0]]
        if len(np.unique(level)) < len(level) or ((level < 2) | (level > last)).any():
            return False
        for number in level.tolist():
            stream.seek(number * page_size)
            page = np.frombuffer(stream.read(page_size), np.uint8)
            its, _, leaf, end, begin = _PAGE.unpack_from(page.data)
            count = (end - _PAGE.size) // 2
            if (its, leaf) != (number, 1 + (height == 1)) or count < 1 + (height > 1) or not end <= begin <= page_size:
                return False
            at = page[_PAGE.size : _PAGE.size + 2 * count].view(np.uint16).astype(np.int64)
            if (at < begin).any() or (at > page_size - _NODE).any() or (at % 2).any():
                return False
            low, high, flags, key = page.view(np.uint16)[at[:, None] // 2 + range(4)].astype(np.uint64).T
            content, length = at + _NODE + key.astype(np.int64), low | high << np.uint64(16)
            if height > 1:
                below.append(length | flags << np.uint64(32))
                length = length * 0
            elif (flags > 1).any():
                return False
            far = flags == 1 if height == 1 else flags < 0
            if (content + np.where(far, 8, length.astype(np.int64)) > page_size).any():
                return False
            pages = page[content[far][:, None] + range(8)].copy().view(np.uint64)[:, 0]
            most = (last + np.uint64(1) - pages) * np.uint64(page_size)
            if (pages < 2).any() or (pages > last).any() or (length[far] + np.uint64(_PAGE.size) > most).any():
                return False
        level = np.concatenate(below)
    return True


def _environment(path: str | Path) -> Any:
    import lmdb

    name = os.path.realpath(path)
    status = os.stat(os.path.join(name, 'data.mdb'))
    # of an LMDB that was made again the old one must be closed
    state = (status.st_ino, status.st_mtime_ns, status.st_size)
    with _lock:
        if name in _open and _open[name][0] != state:
            _open.pop(name)[1].close()
        if name not in _open:
            check_whole(Path(name, 'data.mdb'))
            try:
                opened = lmdb.open(name, readonly=True, lock=False, readahead=False, meminit=False)
            except lmdb.Error as error:
                raise ValueError(
                    f'{path} cannot be opened ({error}); if a data set of BasicSR reads it, too, use '
                    'EffSRPairedDataset there, otherwise make the LMDB again'
                ) from error
            _open[name] = (state, opened)
        return _open[name][1]


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    for _, opened in _open.values():
        with suppress(Exception):
            opened.close()  # in the child only
    _open.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)
