"""Unpacking archives that may be damaged or hostile: nothing outside the target, no links, no bombs."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from unicodedata import normalize

from basicsr_effsr.imaging.header import SUFFIXES
from basicsr_effsr.utils.files import WriteError, atomic_path, open_regular

MAX_RATIO = 50  # photographs do not shrink; a zip bomb does by hundreds
MAX_HEADER = 64 * 2**20  # bytes that are held in memory at once: of a list of members, or of the header of one
MAX_MEMBERS = 200_000  # LSDIR has 84,991 in all
_SLACK = 64 * 2**20
_STREAMS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b'\x1f\x8b': lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item, return-value]
    b'BZ': bz2.BZ2File,
    b'\xfd7': lzma.LZMAFile,
}
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, ValueError),
)


class ArchiveError(ValueError):
    """An archive that is damaged, or that must not be unpacked; the message says why."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    inner: zipfile.ZipInfo | tarfile.TarInfo


def extract(archive: Path, into: Path, *, first: int | None = None) -> tuple[int, int]:
    """Unpacks a ``.zip`` or (compressed) ``.tar`` archive below ``into``, or only its ``first`` images by name.

    The whole list of members is judged before the first one is written. A file that is there already, whole,
    is kept, so an interrupted run goes on.

    Returns:
        How many files were written and how many were there already.

    Raises:
        ArchiveError: when a member would leave ``into``, is a link or a device, when the members are
            unreasonably large or many, or when the archive is damaged or of an unknown kind.
        WriteError: when a file cannot be written.
    """
    try:
        with _opened(archive) as (members, stream):
            _judge(archive, members, into)
            if first is not None:
                images = [m for m in members if PurePosixPath(m.name).suffix.lower() in SUFFIXES]
                members = sorted(images, key=lambda m: m.name)[:first]
                members.sort(key=lambda m: getattr(m.inner, 'offset', getattr(m.inner, 'header_offset', 0)))
            written = 0
            for member in members:
                target = into / member.name
                if target.is_file() and target.stat().st_size == member.size:
                    continue
                with atomic_path(target) as part, stream(member) as source, part.open('wb') as out:
                    shutil.copyfileobj(source, out, 2**20)
                    if out.tell() != member.size:
                        raise ArchiveError(f'{archive}: {member.name} is cut off; the archive is damaged')
                written += 1
    except (ArchiveError, WriteError):
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a place before the start
            raise
        why = str(error).partition('\n')[0].rstrip(':')  # tarfile adds what each kind of compression says
        raise ArchiveError(f'{archive}: is damaged or no archive ({why}); remove it and download it again') from None
    return written, len(members) - written


class _Bounded(io.RawIOBase):
    """A file of which neither much is read at once nor much in all: what an archive claims may exceed all memory."""

    def __init__(self, archive: Path, file: IO[bytes], length: int) -> None:
        self._archive = archive
        self._file = file
        self._length = length

    def read(self, size: int = -1) -> bytes:
        if size > MAX_HEADER or self._file.tell() > self._length:
            raise ArchiveError(f'{self._archive}: is unreasonably large when unpacked; not a set of photographs')
        return self._file.read(size if size >= 0 else MAX_HEADER)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self._length:
            raise ArchiveError(f'{self._archive}: is unreasonably large when unpacked; not a set of photographs')
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[_Member], Callable[[_Member], IO[bytes]]]]:
    with open_regular(archive) as file:
        length = MAX_RATIO * archive.stat().st_size + _SLACK
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(_Bounded(archive, file, length)) as z:
                for info in z.infolist():
                    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                        raise _untrusted(archive, info.filename)
                    if info.flag_bits & 1:
                        raise ArchiveError(f'{archive}: {info.filename!r} is encrypted; unpack it by hand')
                yield (
                    [_Member(i.filename, i.file_size, i) for i in z.infolist() if not i.is_dir()],
                    lambda member: z.open(member.inner),  # type: ignore[arg-type]
                )
            return
        file.seek(0)
        stream = _STREAMS.get(file.read(2), lambda file: file)
        file.seek(0)
        bounded = _Bounded(archive, stream(file), length)
        with tarfile.open(fileobj=bounded, mode='r:') as t:
            members: list[_Member] = []
            for entry in t:
                if len(members) == MAX_MEMBERS:
                    raise ArchiveError(f'{archive}: holds more than {MAX_MEMBERS} files; not a set of photographs')
                if not (entry.isreg() or entry.isdir()) or entry.issparse():
                    raise _untrusted(archive, entry.name)
                if entry.isreg():
                    members.append(_Member(entry.name, entry.size, entry))
            while bounded.read(2**20):  # to where the checksum stands
                pass
            yield members, lambda member: t.extractfile(member.inner)  # type: ignore[arg-type, return-value, misc]


def _untrusted(archive: Path, name: str) -> ArchiveError:
    return ArchiveError(f'{archive}: {name!r} is a link, a device or a sparse file; refused as unsafe')


def _judge(archive: Path, members: list[_Member], into: Path) -> None:
    seen: dict[str, str] = {}
    for member in members:
        path = PurePosixPath(member.name)
        bad = path.is_absolute() or '..' in path.parts or '\\' in member.name or ':' in member.name or not path.parts
        if bad or not member.name.isprintable() or any(len(part.encode(errors='replace')) > 255 for part in path.parts):
            raise ArchiveError(f'{archive}: {member.name!r} is not a file name inside {into}; refused as unsafe')
        folded = '/'.join(part.rstrip('. ') for part in PurePosixPath(normalize('NFC', member.name).casefold()).parts)
        if folded in seen:
            raise ArchiveError(f'{archive}: {seen[folded]!r} and {member.name!r} are one file on some systems')
        seen[folded] = member.name
    for folded, name in seen.items():
        folder = next((str(parent) for parent in PurePosixPath(folded).parents if str(parent) in seen), None)
        if folder is not None:
            raise ArchiveError(f'{archive}: {seen[folder]!r} is a file, and the folder of {name!r}; it is damaged')
    if not members:
        raise ArchiveError(f'{archive}: is empty')
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if total > MAX_RATIO * packed + _SLACK:
        raise ArchiveError(f'{archive}: {packed} bytes claim to hold {total}; not a set of photographs')
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    there = sum(member.size for member in members if (into / member.name).is_file())
    if total - there > free:
        raise ArchiveError(f'{into}: {total - there} bytes are needed to unpack {archive.name}, {free} are free')
