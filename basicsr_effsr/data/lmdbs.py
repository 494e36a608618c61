"""LMDBs in BasicSR's format, each opened once in a process, however many data sets read it.

LMDB allows no second opening of a file in a process, and no use of one that was opened before a fork. It maps the file
into memory and believes what the file says of itself, so that is compared with the file first: reading behind the end
of a mapped file ends the process.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from basicsr_effsr.utils.files import open_regular

_META = struct.Struct('=16xIIQQ96xQQ')  # header of the page, magic, version, address, size of the map, two trees, ...
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_open: dict[str, tuple[tuple[int, int, int], Any]] = {}
_lock = threading.Lock()


def get(path: str | Path, key: str) -> bytes | None:
    """What an LMDB holds under a key, None if nothing; the file is opened when first needed.

    Raises:
        OSError: there is no such LMDB.
        ValueError: it is damaged, was cut while it is read, or somebody else in this process has opened it.
    """
    with _environment(path).begin() as transaction:
        return transaction.get(key.encode())


def shapes(path: Path) -> dict[str, tuple[int, int, int]]:
    """(height, width, channels) of every image of an LMDB, by its key, in the order of its meta_info.txt.

    Raises:
        FileNotFoundError: there is no LMDB of BasicSR.
        ValueError: a line is none, or the LMDB is damaged; the message names the line or the file.
    """
    file = path / 'meta_info.txt'
    if not file.is_file() or not (path / 'data.mdb').is_file():
        raise FileNotFoundError(f'{path} must hold data.mdb and meta_info.txt; see effsr prepare lmdb')
    check_length(path / 'data.mdb')
    found: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(file.read_text(encoding='utf-8-sig').splitlines(), 1):
        parts = re.fullmatch(r'([^.]+)\S* \((\d+), ?(\d+)(?:, ?(\d+))?\).*', line)
        if parts is None or not int(parts[2]) * int(parts[3]):
            raise ValueError(
                f'line {number} of {file} must be like 0001.png (480,480,3) 1, got {line!r}; make the LMDB again'
            )
        found[parts[1]] = (int(parts[2]), int(parts[3]), int(parts[4] or 1))
    return found


def check_length(file: Path) -> None:
    """Compares the length of a data.mdb with what its newer meta page says.

    Raises:
        ValueError: it is shorter, or no LMDB.
    """
    with open_regular(file) as stream:
        size, pages = os.fstat(stream.fileno()).st_size, []
        page_size = int.from_bytes(stream.read(44)[40:], sys.byteorder)
        for at in (0, page_size):
            stream.seek(at)
            page = stream.read(_META.size).ljust(_META.size, b'\0')
            magic, version, _, _, last, transaction = _META.unpack(page)
            pages += [(transaction, last)] if (magic, version) == (_MAGIC, _VERSION) else []
    if len(pages) < 2:
        raise ValueError(f'{file} is damaged, it does not begin as an LMDB; make the LMDB again')
    needed = (max(pages)[1] + 1) * page_size
    if size < needed:
        raise ValueError(f'{file} is cut off: it holds {size} of {needed} bytes; make the LMDB again')


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
            check_length(Path(name, 'data.mdb'))
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
