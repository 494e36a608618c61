"""Fetching the data sets listed in ``sources.json``: resumed when interrupted, verified, unpacked safely."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from rich.progress import DownloadColumn, TransferSpeedColumn

from basicsr_effsr.imaging.header import SUFFIXES
from basicsr_effsr.utils.console import progress
from basicsr_effsr.utils.files import atomic_path, sweep_parts, write_bytes
from basicsr_effsr.utils.interrupt import sigterm_interrupts
from datasets_prep.archives import extract
from datasets_prep.files import alone
from datasets_prep.jobs import Plan, Summary

SOURCES = Path(__file__).with_name('sources.json')
ARCHIVES = 'archives'
_CHUNK = 2**18
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_NO_WAY_ERRORS = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)
_TRIES_TO_REACH = 2  # a name that is not found now may be found in a second, hardly in a minute


class DownloadError(ValueError):
    """A download that did not succeed; the message says why and what to do."""


class UnreachableError(DownloadError):
    """The server was not reached at all.

    Args:
        url: what was asked for.
        reason: what the system says.
    """

    def __init__(self, url: str, reason: str) -> None:
        self.host = urlsplit(url).netloc
        self.reason = reason
        super().__init__(
            f'{url}: {self.host} cannot be reached ({reason}); are you offline? Run the same command again'
        )


class _StoppedError(Exception):
    """The run was interrupted."""


@dataclass(frozen=True)
class _Archive:
    """An archive with what it should unpack to: folders and their numbers of images."""

    url: str
    size: int | None
    checksum: str | None  # sha256:... or md5:..., in hexadecimal
    into: Path
    folders: tuple[tuple[Path, int | None], ...]

    @property
    def name(self) -> str:
        return unquote(Path(urlsplit(self.url).path).name)

    @property
    def is_done(self) -> bool:
        return all(count is not None and count_images(folder) >= count for folder, count in self.folders)


def read_sources(path: Path = SOURCES) -> dict[str, dict[str, Any]]:
    """The table of data sets.

    Raises:
        ValueError: when it is not such a table.
        FileNotFoundError: when it does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; give a table of sources like {SOURCES.name}')
    try:
        sets = json.loads(path.read_text(encoding='utf-8'))['sets']
        for name, entry in sets.items():
            if not {'files', 'needs', 'manual'} & set(entry):
                raise KeyError(f'{name} has none of files, needs, manual')
        return sets
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: is not a table of sources ({error}); compare it with {SOURCES.name}') from None


def count_images(folder: Path) -> int:
    """Number of image files anywhere below ``folder``."""
    return sum(1 for _ in _images_below(folder))


def _images_below(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))


def download(
    names: list[str],
    root: Path,
    *,
    sources: Path = SOURCES,
    archives: Path | None = None,
    keep_archives: bool = False,
    retries: int = 5,
    timeout: float = 30,
    pause: float = 1,
    plan: Plan | None = None,
) -> Summary:
    """Fetches, verifies and unpacks data sets below ``root``.

    A partial download is kept in a hidden file and resumed by the next run, if the server still has the same
    file. An archive that lies in ``root/archives`` already, put there by hand for instance, is used. An archive is
    removed once its images are unpacked and counted.

    Args:
        names: data sets of the table; those they need are fetched, too.
        root: the folder of all data sets.
        sources: the table.
        archives: folder with the archives of data sets that must be requested by hand.
        keep_archives: do not remove an archive that has been unpacked.
        retries: attempts in a row that bring no new byte before giving up.
        timeout: seconds without a byte before an attempt counts as failed.
        pause: seconds before the first retry; doubled each time.
        plan: workers (here downloads at a time), shard (of the archives), dry run, progress.

    Returns:
        What became of each archive.

    Raises:
        ValueError: for a bad table, or a data set that is not in it.
        FileNotFoundError: when the table or the folder ``archives`` does not exist.
    """
    plan = plan or Plan()
    table = read_sources(sources)
    if archives is not None and not archives.is_dir():
        raise FileNotFoundError(f'download: --archives {archives}: no such folder; give the one with the archives')
    wanted = _with_needs(names, table)
    summary = Summary('download')
    todo = []
    for archive in plan.mine(_archives(wanted, table, root)):
        if archive.is_done:
            summary.skipped += 1
        else:
            todo.append(archive)
    if plan.dry_run:
        summary.planned = len(todo)
        for archive in todo:
            size = 'size not known' if archive.size is None else f'{archive.size} bytes'
            checksum = 'checksum not known' if archive.checksum is None else 'checksum known'
            summary.notes.append(f'would fetch: {archive.url} ({size}, {checksum})')
        unknown = sum(archive.checksum is None for archive in todo)
        if unknown:
            summary.notes.append(
                f'{sources} knows no checksum of {unknown} of {len(todo)} archives: they can only be checked by what '
                'is in them'
            )
    else:
        options = {'retries': retries, 'timeout': timeout, 'pause': pause}
        _fetch_all(todo, root / ARCHIVES, keep_archives, options, plan, summary)
    for name in wanted:
        entry = table[name]
        if 'manual' in entry and not summary.interrupted:
            _from_hand(name, entry, root, archives, plan, summary)
        merges = entry.get('merge', [])
        if not summary.exit_code:
            for merge in merges if isinstance(merges, list) else [merges]:
                _merge(name, merge, root, plan, summary)
    return summary


def _with_needs(names: list[str], table: dict[str, dict[str, Any]]) -> list[str]:
    wanted: list[str] = []
    for name in names:
        if name not in table:
            raise ValueError(f'download: {name!r} is not in the table; known are {", ".join(table)}')
        wanted += [need for need in table[name].get('needs', []) if need not in wanted]
        wanted += [name] if name not in wanted else []
    return wanted


def checksum_of(file: dict[str, Any]) -> str | None:
    """``algorithm:digest`` of a row of the table, the stronger of those that are known; None if none is."""
    return next((f'{name}:{file[name]}' for name in ('sha256', 'md5') if file.get(name)), None)


def _archives(wanted: list[str], table: dict[str, dict[str, Any]], root: Path) -> list[_Archive]:
    """One per URL, although several data sets may lie in one archive."""
    found: dict[str, _Archive] = {}
    for name in wanted:
        for file in table[name].get('files', []):
            url, into = file['url'], root / file['into']
            folder = into / file['folder'] if file.get('folder') else into
            before = found[url].folders if url in found else ()
            found[url] = _Archive(
                url, file.get('size'), checksum_of(file), into, (*before, (folder, file.get('images')))
            )
    return list(found.values())


def _fetch_all(
    todo: list[_Archive], folder: Path, keep: bool, options: dict[str, Any], plan: Plan, summary: Summary
) -> None:
    stop = threading.Event()
    unreachable: dict[str, str] = {}  # host -> reason
    left: list[_Archive] = []

    def one(archive: _Archive) -> list[str]:
        task = bars.add_task(archive.name, total=archive.size)
        target = folder / archive.name
        host = urlsplit(archive.url).netloc
        if host in unreachable and not target.is_file():
            raise UnreachableError(archive.url, unreachable[host])
        try:
            fetch(
                archive.url,
                target,
                size=archive.size,
                checksum=archive.checksum,
                stop=stop,
                report=lambda have, total: bars.update(task, completed=have, total=total),
                tell=bars.console.print,
                **options,
            )
        except UnreachableError as error:
            unreachable.setdefault(error.host, error.reason)
            raise
        bars.update(task, description=f'{archive.name} (unpacking)')
        return _unpack(archive, target, keep)

    with sigterm_interrupts(), progress(DownloadColumn(), TransferSpeedColumn(), shown=plan.progress) as bars:
        pool = ThreadPoolExecutor(max(1, plan.workers))
        try:
            futures = {pool.submit(one, archive): archive for archive in todo}
            for future in as_completed(futures):
                archive = futures[future]
                try:
                    summary.notes += future.result()
                    summary.done += 1
                except UnreachableError:
                    left.append(archive)
                except (ValueError, OSError) as error:
                    summary.failed[archive.name] = str(error)
        except KeyboardInterrupt:
            summary.interrupted = True
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if left:
        reasons = '; '.join(sorted(set(unreachable.values())))
        summary.failed[', '.join(sorted(unreachable))] = (
            f'cannot be reached ({reasons}), so {len(left)} of {len(todo)} archives were not fetched; are you offline? '
            f'Run the same command again, or put them into {folder} by hand'
        )


def _unpack(archive: _Archive, target: Path, keep: bool) -> list[str]:
    sweep_parts(archive.into)
    extract(target, archive.into)
    for folder, count in archive.folders:
        found = count_images(folder)
        if count is not None and found < count:
            raise DownloadError(
                f'{folder} holds {found} images after unpacking {archive.name}, {count} were expected; '
                f'remove {target} and run again, or correct the table'
            )
    if not keep:
        target.unlink()
    return [f'{archive.name}: checksum not known, so not verified'] if archive.checksum is None else []


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    retries: int = 5,
    timeout: float = 30,
    pause: float = 1,
    stop: threading.Event | None = None,
    report: Callable[[int, int | None], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Downloads ``url`` to ``target``, going on where an earlier attempt ended, and verifies it.

    Args:
        url: http or https.
        target: the file; it appears only when it is complete and verified.
        size: bytes it must have, if known.
        checksum: ``sha256:`` or ``md5:`` and the digest in hexadecimal, if known.
        retries: attempts in a row that bring no new byte before giving up.
        timeout: seconds without a byte before an attempt counts as failed.
        pause: seconds before the first retry; doubled each time.
        stop: set from another thread to give up; what has arrived is kept.
        report: called with the bytes that are there and the total, if known.
        tell: called with a sentence before each retry.

    Raises:
        UnreachableError: when the server was not reached in two tries, and nothing has come from it before.
        DownloadError: when the file cannot be had, or is not the one that was expected.
    """
    stop = stop or threading.Event()
    if urlsplit(url).scheme not in ('http', 'https'):
        raise DownloadError(f'{url}: must begin with http:// or https://')
    if target.is_file():
        _check(target, url, size, checksum)
        return
    part = target.with_name(f'.{target.name}.download')
    with alone(target.with_name(f'.{target.name}.lock'), target):
        failures, before, reached = 0, _bytes_of(part), False
        while True:
            try:
                _attempt(url, part, timeout, stop, report or (lambda have, total: None))
                break
            except _StoppedError:
                raise DownloadError(f'{url}: interrupted; run the same command again to go on') from None
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise DownloadError(
                        f'{url}: the server answers {error.code} {error.reason}; the source may have moved: fetch '
                        f'the file by hand, put it at {target} and run again'
                    ) from None
                reached, reason = True, f'the server answers {error.code} {error.reason}'
            except (OSError, HTTPException, _IncompleteError) as error:
                if getattr(error, 'errno', None) in _LOCAL_ERRORS:
                    raise
                reason = _words_of(error)
                reached = reached or not _is_no_way(error)
                if not reached and failures + 1 >= _TRIES_TO_REACH:
                    raise UnreachableError(url, reason) from None
            failures = 0 if _bytes_of(part) > before else failures + 1
            before = _bytes_of(part)
            if failures > retries:
                raise DownloadError(
                    f'{url}: cannot be fetched ({reason}); are you offline? Run the same command again to go on '
                    f'from {before} bytes, or put the file at {target} by hand'
                )
            delay = min(pause * 2 ** max(failures - 1, 0), 60)
            if tell is not None:
                tell(f'{target.name}: {reason}; trying again in {delay:.0f} s')
            stop.wait(delay)
        _check(part, url, size, checksum)
        os.replace(part, target)
        _state_of(part).unlink(missing_ok=True)


def _words_of(error: Exception) -> str:
    inner = getattr(error, 'reason', error)
    return (inner.strerror if isinstance(inner, OSError) else None) or str(inner) or type(inner).__name__


def _is_no_way(error: Exception) -> bool:
    """Whether an error says that there is no way to the server, or none that is safe: no name, nobody who answers."""
    inner = getattr(error, 'reason', error)
    proxy = isinstance(inner, OSError) and str(inner).startswith('Tunnel connection failed')
    return (
        proxy
        or isinstance(inner, (socket.gaierror, ssl.SSLCertVerificationError))
        or getattr(inner, 'errno', None) in _NO_WAY_ERRORS
    )


class _IncompleteError(Exception):
    """The connection ended before the file did."""


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state_of(part: Path) -> Path:
    return part.with_name(part.name + '.json')


def _attempt(
    url: str, part: Path, timeout: float, stop: threading.Event, report: Callable[[int, int | None], None]
) -> None:
    """Brings ``part`` nearer to its end; returns when it is complete."""
    state: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        state = json.loads(_state_of(part).read_text(encoding='utf-8'))
    have = _bytes_of(part) if state.get('url') == url else 0
    headers = {'User-Agent': 'basicsr_effsr datasets_prep', 'Accept-Encoding': 'identity'}
    if have:
        headers['Range'] = f'bytes={have}-'
        if state.get('validator'):
            headers['If-Range'] = state['validator']
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416:  # nothing lies behind what we have
            raise
        if have == state.get('total'):
            return
        _restart(part)
        raise _IncompleteError(f'the server has no byte {have}; starting again') from None
    with response:
        if response.status == 206:
            begin, total = _content_range(response.headers.get('Content-Range', ''))
            if begin != have or (state.get('total') is not None and total != state['total']):
                _restart(part)
                raise _IncompleteError('the file at the server has changed; starting again')
        else:
            have = 0
            length = response.headers.get('Content-Length')
            total = int(length) if length is not None else None
            etag = response.headers.get('ETag', '')
            validator = etag if etag.startswith('"') else response.headers.get('Last-Modified')
            part.unlink(missing_ok=True)  # first, so that the new note never describes old bytes
            write_bytes(_state_of(part), json.dumps({'url': url, 'total': total, 'validator': validator}).encode())
        with part.open('r+b' if have else 'wb') as file:
            file.seek(have)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
                if stop.is_set():
                    raise _StoppedError
    if total is not None and have < total:
        raise _IncompleteError(f'the connection ended after {have} of {total} bytes')


def _restart(part: Path) -> None:
    _state_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _content_range(text: str) -> tuple[int, int | None]:
    """``'bytes 5-9/10'`` -> (5, 10)."""
    try:
        span, total = text.removeprefix('bytes ').split('/')
        return int(span.split('-')[0]), None if total == '*' else int(total)
    except ValueError:
        raise _IncompleteError(f'the server sends the range {text!r}') from None


def _check(file: Path, url: str, size: int | None, checksum: str | None) -> None:
    found = str(file.stat().st_size)
    if size is not None and found != str(size):
        _refuse(file, url, f'{found} bytes', f'{size} bytes')
    if checksum is not None:
        algorithm, _, expected = checksum.partition(':')
        with file.open('rb') as stream:
            digest = hashlib.new(algorithm, usedforsecurity=algorithm != 'md5')
            while chunk := stream.read(2**20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            _refuse(file, url, f'the {algorithm} {digest.hexdigest()}', f'the {algorithm} {expected}')


def _refuse(file: Path, url: str, found: str, expected: str) -> NoReturn:
    if file.name.startswith('.'):  # our own partial download; what a user has put there is left alone
        _restart(file)
        raise DownloadError(f'{url}: has {found}, the table says {expected}; the file was removed, run again')
    raise DownloadError(f'{file}: has {found}, the table says {expected}; remove it and run again')


def _from_hand(
    name: str, entry: dict[str, Any], root: Path, archives: Path | None, plan: Plan, summary: Summary
) -> None:
    folder = root / entry['folder']
    if count_images(folder) >= entry['images']:
        summary.skipped += 1
        return
    if archives is None:
        summary.failed[name] = entry['manual']
        return
    found = sorted(p for p in archives.iterdir() if p.is_file() and fnmatch(p.name, entry['archives']))
    if not found:
        summary.failed[name] = f'{archives} holds no file {entry["archives"]}. {entry["manual"]}'
        return
    if plan.dry_run:
        summary.planned += len(found)
        summary.notes += [f'would unpack: {archive} (checksum not known)' for archive in found]
        return
    left = entry.get('first')
    for archive in found:
        try:
            written, there = extract(archive, root / entry['into'], first=left)
        except (ValueError, OSError) as error:
            summary.failed[archive.name] = str(error)
            continue
        summary.done += 1
        if left is not None:
            left -= written + there
            if left <= 0:
                break
    images = count_images(folder)
    if images < entry['images']:
        summary.failed[name] = f'{folder} holds {images} images, {entry["images"]} were expected; are archives missing?'


def _merge(name: str, merge: dict[str, Any], root: Path, plan: Plan, summary: Summary) -> None:
    """Puts the images of several folders side by side, without a second copy where the disk allows."""
    target = root / merge['into']
    found = {folder: sorted(_images_below(root / folder)) for folder in merge['folders']}
    files = [file for images in found.values() for file in images]
    missing = [file for file in files if not (target / file.name).is_file()]
    if plan.dry_run:
        summary.planned += bool(missing) or not files
        return
    if plan.shard != (1, 1) and len(files) < merge['images']:
        note = f'{name}: follows when the other shards are done: run once more without --shard'
        summary.notes += [note] if note not in summary.notes else []
        return
    target.mkdir(parents=True, exist_ok=True)
    sweep_parts(target)
    for file in missing:
        try:
            os.link(file, target / file.name)
        except OSError:
            with atomic_path(target / file.name) as part:
                shutil.copyfile(file, part)
    names = {file.name for file in files}
    if len(names) < merge['images']:
        counts = ', '.join(f'{len(images)} in {root / folder}' for folder, images in found.items())
        summary.failed[str(target)] = (
            f'gets {len(names)} images, {merge["images"]} were expected ({counts}); download what is missing again, '
            'or make LR images from the HR images with the command lr'
        )
    elif missing:
        summary.done += 1
    else:
        summary.skipped += 1
