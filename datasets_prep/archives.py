"""Unpacking archives that may be damaged or hostile: nothing outside the target, no links, no bombs."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from basicsr_effsr.imaging.header import SUFFIXES
from basicsr_effsr.utils.files import atomic_path

MAX_RATIO = 50  # photographs do not shrink; a zip bomb does by hundreds
_SLACK = 64 * 2**20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, NotImplementedError)


class ArchiveError(ValueError):
    """An archive that is damaged, or that must not be unpacked; the message says why."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    inner: zipfile.ZipInfo | tarfile.TarInfo


def extract(archive: Path, into: Path, *, first: int | None = None) -> tuple[int, int]:
    """Unpacks the files of a ``.zip`` or (compressed) ``.tar`` archive below ``into``.

    The whole list of members is judged before the first one is written. A file that is there already, whole,
    is kept, so an interrupted run goes on.

    Args:
        archive: the archive.
        into: folder to unpack into; it is made.
        first: only the first so many images, in the order of their names, and nothing else.

    Returns:
        How many files were written and how many were there already.

    Raises:
        ArchiveError: when a member would leave ``into``, is a link or a device, when the members are
            unreasonably large, or when the archive is damaged or of an unknown kind.
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
    except ArchiveError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = str(error).partition('\n')[0].rstrip(':')  # tarfile adds what each kind of compression says
        raise ArchiveError(f'{archive}: is damaged or no archive ({why}); remove it and download it again') from None
    return written, len(members) - written


_Stream = Callable[[_Member], IO[bytes]]


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[_Member], _Stream]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for info in z.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(
                        f'{archive}: {info.filename!r} is a link or a device; the archive is not to be trusted'
                    )
                if info.flag_bits & 1:
                    raise ArchiveError(f'{archive}: {info.filename!r} is encrypted; unpack it by hand')
            yield (
                [_Member(i.filename, i.file_size, i) for i in z.infolist() if not i.is_dir()],
                lambda member: z.open(member.inner),  # type: ignore[arg-type]
            )
        return
    with tarfile.open(archive) as t:
        members = []
        for entry in t:
            if not (entry.isreg() or entry.isdir()):
                raise ArchiveError(f'{archive}: {entry.name!r} is a link or a device; the archive is not to be trusted')
            if entry.isreg():
                members.append(_Member(entry.name, entry.size, entry))

        def stream(member: _Member) -> IO[bytes]:
            file = t.extractfile(member.inner)  # type: ignore[arg-type]
            if file is None:
                raise ArchiveError(f'{archive}: {member.name!r} is no file')
            return file

        yield members, stream


def _judge(archive: Path, members: list[_Member], into: Path) -> None:
    seen: dict[str, str] = {}
    for member in members:
        path = PurePosixPath(member.name)
        bad = path.is_absolute() or '..' in path.parts or '\\' in member.name or ':' in member.name or not path.parts
        if bad or any(ord(letter) < 32 for letter in member.name):
            raise ArchiveError(f'{archive}: {member.name!r} would be written outside {into}; it is not to be trusted')
        folded = str(path).casefold()
        if folded in seen:
            raise ArchiveError(f'{archive}: {seen[folded]!r} and {member.name!r} are one file on some systems')
        seen[folded] = member.name
    if not members:
        raise ArchiveError(f'{archive}: is empty')
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if total > MAX_RATIO * packed + _SLACK:
        raise ArchiveError(f'{archive}: {packed} bytes claim to hold {total}; that is no set of photographs')
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    there = sum(member.size for member in members if (into / member.name).is_file())
    if total - there > free:
        raise ArchiveError(f'{into}: {total - there} bytes are needed to unpack {archive.name}, {free} are free')
