"""Getting the data sets of ``sources.json``: fetched, verified, unpacked and counted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator
from rich.progress import DownloadColumn, TransferSpeedColumn

from basicsr_effsr.imaging.header import SUFFIXES
from basicsr_effsr.utils.console import Console, progress
from basicsr_effsr.utils.download import PAUSES, DownloadError, UnreachableError, fetch
from basicsr_effsr.utils.files import WriteError, atomic_path, read_text, sweep_parts
from datasets_prep.archives import extract
from datasets_prep.jobs import ALONE, Job, Schedule, Summary, run_jobs

SOURCES = Path(__file__).with_name('sources.json')


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or '..' in PurePosixPath(path).parts or '\\' in path or '\0' in path:
        raise ValueError('must be a path below the folder of all data sets')
    return path


def _address(url: str) -> str:
    if urlsplit(url).scheme not in ('http', 'https') or _below(name_in(url)) in ('', '.') or '/' in name_in(url):
        raise ValueError('must begin with http:// or https:// and end in the name of a file')
    return url


def name_in(url: str) -> str:
    """The name of the file at an address."""
    return unquote(PurePosixPath(urlsplit(url).path).name)


Below = Annotated[str, AfterValidator(_below)]


class _Row(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True)


class Source(_Row):
    """An archive, and a folder that it unpacks to; ``images`` counts the image files in there."""

    url: Annotated[str, AfterValidator(_address)]
    size: NonNegativeInt | None = None
    sha256: str | None = Field(None, pattern='^[0-9a-f]{64}$')
    md5: str | None = Field(None, pattern='^[0-9a-f]{32}$')
    into: Below = ''
    folder: Below = ''
    images: NonNegativeInt | None = None

    @property
    def checksum(self) -> str | None:
        """``algorithm:digest``, the stronger of those that are known; None if none is."""
        return f'sha256:{self.sha256}' if self.sha256 else f'md5:{self.md5}' if self.md5 else None


class Merge(_Row):
    """Folders whose images are put side by side."""

    into: Below
    folders: list[Below]
    images: NonNegativeInt


class DataSet(_Row):
    """A data set: archives to fetch, others that it needs, or (``manual``) how to request it.

    Of a requested one the files like ``archives`` are unpacked, the ``first`` images or all.
    """

    about: str = ''
    licence: str = ''
    files: list[Source] = []
    needs: list[str] = []
    merge: list[Merge] = []
    manual: str | None = None
    archives: str = '*'
    into: Below = ''
    folder: Below = ''
    first: NonNegativeInt | None = None
    images: NonNegativeInt = 1

    @model_validator(mode='after')
    def _has_a_source(self) -> DataSet:
        if not (self.files or self.needs or self.manual):
            raise ValueError('must have one of files, needs, manual')
        return self


class _Table(_Row):
    note: str = ''
    sets: dict[str, DataSet]


def read_sources(path: Path | None = None) -> dict[str, DataSet]:
    """The table of data sets, by default ours.

    Raises:
        ValueError: when it is not such a table.
        FileNotFoundError: when it does not exist.
    """
    path = path or SOURCES
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; give a table of sources like {SOURCES.name}')
    try:
        return _Table.model_validate_json(read_text(path)).sets
    except ValidationError as error:
        first = error.errors()[0]
        why = f'{".".join(map(str, first["loc"]))}: {first["msg"]}'
        raise ValueError(f'{path}: is not a table of sources ({why}); compare it with {SOURCES.name}') from None


def with_needs(names: list[str], table: dict[str, DataSet]) -> list[str]:
    """The data sets with those that they need, these first.

    Raises:
        ValueError: one is not in the table.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name not in table:
            raise ValueError(f'download: {name!r} is not in the table; known are {", ".join(table)}')
        if name not in wanted:
            rest = {other: its for other, its in table.items() if other != name}  # so that a circle ends
            wanted |= dict.fromkeys(with_needs(table[name].needs, rest)) | {name: None}
    return list(wanted)


def _images_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and p.name[0] != '.' and p.is_file()]


def count_images(folder: Path) -> int:
    """Number of image files anywhere below ``folder``."""
    return len(_images_below(folder))


def download(
    names: Annotated[list[str] | None, typer.Argument(help='Data sets; without any, the table is shown.')] = None,
    root: Annotated[Path, typer.Option(help='Folder of all data sets.')] = Path('datasets'),
    *,
    sources: Annotated[Path | None, typer.Option(help='Another table of sources, for a mirror.')] = None,
    archives: Annotated[
        Path | None, typer.Option(help='Folder with archives that had to be requested by hand.')
    ] = None,
    keep_archives: Annotated[bool, typer.Option('--keep-archives', help='Keep archives after unpacking.')] = False,
    pauses: Sequence[float] = PAUSES,
    timeout: float = 30,
    schedule: Schedule = ALONE,
) -> Summary:
    """Fetches, verifies and unpacks data sets (DIV2K, Flickr2K, DF2K, LSDIR, Set5, ...) and those that they need.

    A partial download is resumed by the next run, if the server still has the same file. An archive that lies in
    ROOT/archives already, put there by hand for instance, is used. An archive is removed once its images are unpacked
    and counted. For pauses and timeout see ``fetch``.
    """
    table = read_sources(sources)
    if not names:
        return _show(table)
    if archives is not None and not archives.is_dir():
        raise FileNotFoundError(f'download: --archives {archives}: no such folder; give the one with the archives')
    wanted = with_needs(names, table)
    unreachable: set[str] = set()

    def get(rows: list[Source]) -> None:
        archive = rows[-1]
        target, host = root / 'archives' / name_in(archive.url), urlsplit(archive.url).netloc
        if host in unreachable and not target.is_file():
            raise DownloadError(f'{host} cannot be reached; run the same command again, or put it at {target} by hand')
        task = bars.add_task(target.name, total=archive.size)
        try:
            fetch(
                archive.url,
                target,
                size=archive.size,
                checksum=archive.checksum,
                pauses=pauses,
                timeout=timeout,
                report=lambda have, total: bars.update(task, completed=have, total=total),
                say=bars.console.print,
            )
        except UnreachableError:
            unreachable.add(host)
            raise
        bars.update(task, description=f'{target.name} (unpacking)')
        _unpack(rows, target, root)
        if not keep_archives:
            target.unlink()

    by_url: dict[str, list[Source]] = {}  # several data sets may lie in one archive
    for row in (row for name in wanted for row in table[name].files):
        by_url.setdefault(row.url, []).append(row)
    mine = schedule.mine([*by_url.items()])
    todo = {name_in(url): rows for url, rows in mine if not all(_is_there(row, root) for row in rows)}
    jobs = [Job(name, partial(get, its)) for name, its in todo.items()]
    with progress(DownloadColumn(), TransferSpeedColumn(), shown=schedule.progress) as bars:
        summary = run_jobs('download', jobs, replace(ALONE, dry_run=schedule.dry_run))
    summary.skipped = len(mine) - len(todo)
    for name in todo if schedule.dry_run else summary.results:
        if todo[name][-1].checksum is None:
            summary.notes.append(f'{name}: checksum not known, so only what is in it can be checked')
    for name in wanted:
        if table[name].manual and not summary.interrupted:
            _from_hand(name, table[name], root, archives, schedule, summary)
        if not summary.exit_code:
            for merge in table[name].merge:
                _merge(name, merge, root, schedule, summary)
    return summary


def _show(table: dict[str, DataSet]) -> Summary:
    rows = []
    for name, entry in table.items():
        how = f'needs {", ".join(entry.needs)}' if entry.needs else f'{len(entry.files)} archives'
        rows.append((name, entry.about, entry.licence, 'by hand' if entry.manual else how))
    Console().table('', ('data set', 'what', 'licence', 'how'), rows)
    checksums = {file.url: file.checksum for entry in table.values() for file in entry.files}
    known = sum(checksum is not None for checksum in checksums.values())
    return Summary('download', notes=[f'checksums known: {known} of {len(checksums)} archives'])


def _is_there(row: Source, root: Path) -> bool:
    return row.images is not None and count_images(root / row.into / row.folder) >= row.images


def _unpack(rows: list[Source], target: Path, root: Path) -> None:
    into = root / rows[-1].into
    sweep_parts(into)
    extract(target, into)
    for row in rows:
        if row.images is not None and not _is_there(row, root):
            folder = root / row.into / row.folder
            raise DownloadError(
                f'{folder} holds {count_images(folder)} images after unpacking {target.name}, {row.images} were '
                f'expected; remove {target} and run again, or correct the table'
            )


def _from_hand(
    name: str, entry: DataSet, root: Path, archives: Path | None, schedule: Schedule, summary: Summary
) -> None:
    folder = root / entry.folder
    if count_images(folder) >= entry.images:
        summary.skipped += 1
        return
    found = sorted(p for p in archives.iterdir() if p.is_file() and fnmatch(p.name, entry.archives)) if archives else []
    if not found:
        missing = f'{archives} holds no file {entry.archives}. ' if archives else ''
        summary.failed[name] = f'{missing}{entry.manual}'
        return
    if schedule.dry_run:
        summary.planned += len(found)
        summary.notes += [f'would unpack: {archive} (checksum not known)' for archive in found]
        return
    left = entry.first
    for archive in found:
        if left == 0:
            break
        try:
            written, there = extract(archive, root / entry.into, first=left)
        except (ValueError, OSError) as error:
            summary.failed[archive.name] = str(error)
            if isinstance(error, WriteError):
                return
            continue
        summary.done += 1
        left = None if left is None else left - written - there
    images = count_images(folder)
    if images < entry.images:
        summary.failed[name] = f'{folder} holds {images} images, {entry.images} were expected; are archives missing?'


def _merge(name: str, merge: Merge, root: Path, schedule: Schedule, summary: Summary) -> None:
    """Puts the images of several folders side by side, without a second copy where the disk allows."""
    target = root / merge.into
    found = {folder: sorted(_images_below(root / folder)) for folder in merge.folders}
    files = {file.name: file for images in found.values() for file in images}
    missing = [file for file in files.values() if not (target / file.name).is_file()]
    if schedule.dry_run:
        summary.planned += bool(missing) or not files
        return
    if schedule.shard != (1, 1) and len(files) < merge.images:
        note = f'{name}: follows when the other shards are done: run once more without --shard'
        summary.notes += [note] if note not in summary.notes else []
        return
    sweep_parts(target)
    for file in missing:
        with atomic_path(target / file.name) as part:
            part.unlink()
            try:
                os.link(file, part)
            except OSError:
                shutil.copyfile(file, part)
    if len(files) < merge.images:
        counts = ', '.join(f'{len(images)} in {root / folder}' for folder, images in found.items())
        summary.failed[str(target)] = (
            f'gets {len(files)} images, {merge.images} were expected ({counts}); download what is missing again, '
            'or make LR images from the HR images with the command lr'
        )
    else:
        summary.done += bool(missing)
        summary.skipped += not missing
