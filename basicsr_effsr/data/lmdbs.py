"""LMDBs, each opened once in a process, however many data sets read it.

LMDB allows no second opening of a file in a process, and no use of one that was opened before a fork.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_open: dict[str, tuple[tuple[int, int], Any]] = {}
_lock = threading.Lock()


def get(path: str | Path, key: str) -> bytes | None:
    """What an LMDB holds under a key, None if nothing; the file is opened when first needed.

    Raises:
        OSError: there is no such LMDB.
        ValueError: it is damaged, or somebody else in this process has opened it.
    """
    with _environment(path).begin() as transaction:
        return transaction.get(key.encode())


def _environment(path: str | Path) -> Any:
    import lmdb

    name = os.path.realpath(path)
    status = os.stat(os.path.join(name, 'data.mdb'))
    state = (status.st_ino, status.st_mtime_ns)  # of an LMDB that was made again the old one must be closed
    with _lock:
        if name in _open and _open[name][0] != state:
            _open.pop(name)[1].close()
        if name not in _open:
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
