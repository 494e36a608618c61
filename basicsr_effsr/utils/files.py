"""Files: only regular ones are read, writes are atomic, temporary files of killed processes are removed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from basicsr_effsr.utils.errors import UserError

fcntl: ModuleType | None = None
with suppress(ImportError):  # Windows, where an open file cannot be removed and so needs no lock
    fcntl = import_module('fcntl')

PART_SUFFIX = '.part'
SCRATCH = '.effsr_'
MOST_TEXT = 1 << 28  # bytes, the names of millions of images
_swept: set[Path] = set()
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), 'free some space there'),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), 'choose a writable folder'),
    errno.ENOENT: 'is its folder still there?',
    errno.ENOTDIR: 'a file is in the place of its folder',
}


class WriteError(UserError, OSError):
    """A file that cannot be written: the disk is full or read-only, the folder is gone; the message names it."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> WriteError:
        """What the system says of ``path``, and what to do about it."""
        remedy = _REMEDIES.get(error.errno or 0, 'check the disk')
        return cls(f'{path}: cannot be written ({error.strerror or error}); {remedy}')


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read it, and nothing that would block or never end: no pipe, device, socket or folder.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is no regular file, or cannot be opened; the message names it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f'{os.fspath(path)} is a folder, pipe or device; give a regular file')
    return open(path, 'rb', opener=lambda *_: handle)  # which knows its name, unlike what os.fdopen gives


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """What a file holds; see ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def digest_of(path: str | os.PathLike[str], algorithm: str = 'sha256') -> str:
    """A checksum of a file, in hexadecimal; see ``open_regular``."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != 'md5')
    with open_regular(path) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """What a text file in UTF-8 holds, its lines ended by ``\\n``; see ``open_regular``.

    Raises:
        OSError: as ``open_regular``.
        UserError: it has more than ``most`` bytes, or is no text in UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f'{os.fspath(path)} must be a text of at most {most // 1024} KiB, and is larger')
    try:
        wrong, text = content.find(0), content.decode('utf-8')  # what most other encodings have in every second place
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise UserError(f'{os.fspath(path)} must be saved as UTF-8, byte {wrong} is of another encoding')
    return text.replace('\r\n', '\n').replace('\r', '\n')


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path`` and renames it to ``path`` when the block succeeds.

    The temporary file is locked while the block runs, which is how ``sweep_parts`` tells the file of a
    running process from one left by a killed process.

    Args:
        path: the file to be written; its folder is made, and swept before this process writes into it first.
        sync: write the file through to the disk before the rename.

    Raises:
        WriteError: the system refuses to write; what lies at ``path`` is as before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.parent.absolute()  # what a relative path names changes with the working folder
        if folder not in _swept:
            _swept.add(folder)
            sweep_parts(folder, '')
        part, handle = _locked_part(path)
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        yield part
        if sync:
            os.fsync(handle)
        os.replace(part, path)
    except BaseException as error:
        code = getattr(error, 'errno', None)
        # libraries that write themselves have errors of their own, which do not say why
        plain = code or isinstance(error, ValueError) or not isinstance(error, Exception)
        refused = None if plain else _refused(handle)
        with suppress(OSError):
            part.unlink()
        # of a write to an open file the system names none, of what the block reads it does
        named = getattr(error, 'filename', None)
        if isinstance(error, OSError) and code and named in (None, part, str(part)):
            raise WriteError.of(path, error) from error
        if refused is not None:
            raise WriteError.of(path, refused) from error
        raise
    finally:
        os.close(handle)


def _refused(handle: int) -> OSError | None:
    """What the system says to one more block; None if it takes it."""
    if fcntl is None:
        return None
    try:
        end = os.fstat(handle).st_size
        for _ in range(2):  # the first may be cut short
            end += os.pwrite(handle, bytes(2**16), end)
    except OSError as error:
        return error
    return None


def _locked_part(path: Path) -> tuple[Path, int]:
    # no longer than a long final name, which may be as long as the file system allows
    longest = max(len(os.fsencode(path.name)), 48) - len(f'..12345678{PART_SUFFIX}')
    stem = os.fsencode(path.name)[:longest].decode('utf-8', 'ignore')
    while True:
        part = path.parent / f'.{stem}.{secrets.token_hex(4)}{PART_SUFFIX}'
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(handle)
            return part, os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if part.exists():  # else a sweep came between creation and lock
            return part, handle
        os.close(handle)


def sweep_parts(folder: Path, pattern: str = '**/') -> int:
    """Removes the temporary files that killed processes left below ``folder``, or in it alone for a ``pattern`` of ''.

    Returns:
        how many.
    """
    swept, found = 0, list[Path]()
    with suppress(FileNotFoundError):  # a folder that another process removes meanwhile
        found += folder.glob(f'{pattern}.*{PART_SUFFIX}')
    for part in found:
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


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, locked while the block runs; first those are removed that killed processes left."""
    _sweep_scratch()
    folder, handle = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=PART_SUFFIX))
        if fcntl is None:
            return folder, os.open(os.devnull, os.O_RDONLY)
        with suppress(FileNotFoundError):  # a sweep came between creation and lock
            handle = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                return folder, handle
            os.close(handle)


def _sweep_scratch() -> None:
    if fcntl is None:
        return
    for left in Path(tempfile.gettempdir()).glob(f'{SCRATCH}*{PART_SUFFIX}'):
        with suppress(OSError):  # no folder, a link, or another user's
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_uid == os.geteuid():
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One process at a time, as far as the file system has locks; the lock is the folder's, so that no file is left."""
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Writes ``data`` to ``path``, whole or not at all; see ``atomic_path``."""
    with atomic_path(path, sync=sync) as part:
        part.write_bytes(data)
