"""Downloads one file over HTTP: resumable, verified, and present only when complete."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from basicsr_effsr.utils.files import WriteError, digest_of, fcntl, read_text, write_bytes

_CHUNK = 2**18
_NO_WAY_ERRORS = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)
_TRIES_TO_REACH = 2  # a name that is not found now may be found in a second, hardly in a minute
PAUSES = (1, 2, 4, 8, 16)  # seconds before each retry in a row that follows an attempt without a new byte


class DownloadError(ValueError):
    """A download that did not succeed; the message says why and what to do."""


class UnreachableError(DownloadError):
    """The server was not reached at all."""


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    pauses: Sequence[float] = PAUSES,
    timeout: float = 30,
    report: Callable[[int, int | None], None] = lambda have, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Downloads an http(s) ``url`` to ``target``, going on where an earlier attempt ended; it appears when verified.

    Args:
        size: bytes it must have, if known.
        checksum: ``sha256:`` or ``md5:`` and the digest in hexadecimal, if known.
        pauses: see ``PAUSES``.
        timeout: seconds without a byte before an attempt counts as failed.
        report: called with the bytes that are there and the total, if known.
        say: called with a sentence before each retry.

    Raises:
        UnreachableError: when the server was not reached in two tries, and nothing has come from it before.
        DownloadError: when the file cannot be had, is not the one that was expected, or another run is at it.
        WriteError: when what arrives cannot be written.
    """
    if target.is_file():
        wrong = _difference(target, size, checksum)
        if wrong:
            raise DownloadError(f'{target}: {wrong}; remove it and run again')
        return
    part = _Part(target, url)
    with part.opened():
        failures, before, reached = 0, part.size, False
        while True:
            try:
                _attempt(url, part, timeout, report)
                break
            except WriteError:
                raise
            except (OSError, HTTPException) as error:
                reason = _words_of(error)
                if isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 429):
                    raise DownloadError(
                        f'{url}: {reason}; the source may have moved: fetch the file by hand, put it at {target} and '
                        'run again'
                    ) from None
                reached = reached or not _is_no_way(error)
                if not reached and failures + 1 >= _TRIES_TO_REACH:
                    raise UnreachableError(
                        f'{url}: its server cannot be reached ({reason}); are you offline? Run the same command again, '
                        f'or put the file at {target} by hand'
                    ) from None
            failures = 0 if part.size > before else failures + 1
            before = part.size
            if failures > len(pauses):
                raise DownloadError(
                    f'{url}: cannot be fetched ({reason}); are you offline? Run the same command again to continue '
                    f'from {before} bytes, or put the file at {target} by hand'
                )
            delay = pauses[max(failures - 1, 0)]
            say(f'{target.name}: {reason}; trying again in {delay:.0f} s')
            time.sleep(delay)
        wrong = _difference(part.path, size, checksum)
        if wrong:
            part.restart()
            raise DownloadError(f'{url}: {wrong}; the file was removed, run again')
        part.finish()


def _words_of(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f'the server answers {error.code} {error.reason}'
    inner = getattr(error, 'reason', error)
    return (inner.strerror if isinstance(inner, OSError) else None) or str(inner) or type(inner).__name__


def _is_no_way(error: Exception) -> bool:
    """Whether an error says that the server cannot be reached, or not safely."""
    inner = getattr(error, 'reason', error)
    proxy = isinstance(inner, OSError) and str(inner).startswith('Tunnel connection failed')
    known = isinstance(inner, (socket.gaierror, ssl.SSLCertVerificationError))
    return proxy or known or getattr(inner, 'errno', None) in _NO_WAY_ERRORS


class _Part:
    """A partial download, in a hidden file beside its target, and what the server said of it, in another."""

    def __init__(self, target: Path, url: str) -> None:
        self.target = target
        self.url = url
        self.path = target.with_name(f'.{target.name}.download')
        self._note = target.with_name(f'.{target.name}.download.json')
        self._handle = -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the file for this process alone; when it is left empty it is removed.

        Raises:
            DownloadError: another process has it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._open():
                os.close(self._handle)
        except OSError as error:
            raise WriteError.of(self.path, error) from error
        try:
            yield
        finally:
            if self.size == 0:
                self.path.unlink(missing_ok=True)
                self._note.unlink(missing_ok=True)
            os.close(self._handle)

    def _open(self) -> bool:
        """False when the run before has given it its name between our opening and our lock."""
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise DownloadError(f'{self.target}: another run is fetching it; wait for that one') from None
        return self.path.exists() and os.path.samestat(os.fstat(self._handle), self.path.stat())

    @property
    def size(self) -> int:
        return os.fstat(self._handle).st_size

    def said(self) -> dict[str, Any]:
        """``total`` and ``validator`` of the answer that the bytes are from; empty if they are of no use."""
        state: Any = None
        with suppress(OSError, ValueError):
            state = json.loads(read_text(self._note))
        return state if isinstance(state, dict) and state.get('url') == self.url else {}

    def begin(self, total: int | None, validator: str | None) -> None:
        """Starts with a new answer of the server."""
        self.restart()  # first, so that the new note never describes old bytes
        write_bytes(self._note, json.dumps({'url': self.url, 'total': total, 'validator': validator}).encode())

    def restart(self) -> None:
        os.ftruncate(self._handle, 0)
        self._note.unlink(missing_ok=True)

    def append(self, chunk: bytes) -> None:
        try:
            os.lseek(self._handle, 0, os.SEEK_END)
            left = memoryview(chunk)
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as error:
            raise WriteError.of(self.path, error) from error

    def finish(self) -> None:
        os.replace(self.path, self.target)
        self._note.unlink(missing_ok=True)


def _attempt(url: str, part: _Part, timeout: float, report: Callable[[int, int | None], None]) -> None:
    """Brings ``part`` nearer to its end; returns when it is complete."""
    said = part.said()
    have = part.size if said else 0
    headers = {'User-Agent': 'basicsr_effsr', 'Accept-Encoding': 'identity'}
    if have:
        headers |= {'Range': f'bytes={have}-'} | ({'If-Range': said['validator']} if said.get('validator') else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416:  # nothing lies behind what we have
            raise
        if have == said.get('total'):
            return
        part.restart()
        raise HTTPException(f'the server has no byte {have}; starting again') from None
    with response:
        if response.status == 206:
            span = response.headers.get('Content-Range', '')
            found = re.fullmatch(r'bytes (\d+)-\d*/(\d+|\*)', span)
            if found is None:
                raise HTTPException(f'the server sends the range {span!r}')
            total = None if found[2] == '*' else int(found[2])
            if int(found[1]) != have or (said.get('total') is not None and total != said['total']):
                part.restart()
                raise HTTPException('the file at the server has changed; starting again')
        else:
            length = response.headers.get('Content-Length')
            total = int(length) if length is not None else None
            etag = response.headers.get('ETag', '')
            part.begin(total, etag if etag.startswith('"') else response.headers.get('Last-Modified'))
        while chunk := response.read(_CHUNK):
            part.append(chunk)
            report(part.size, total)
    if total is not None and part.size < total:
        raise HTTPException(f'the connection ended after {part.size} of {total} bytes')


def _difference(file: Path, size: int | None, checksum: str | None) -> str | None:
    """How a file differs from what the table says of it; None if it does not."""
    found = file.stat().st_size
    if size is not None and found != size:
        return f'has {found} bytes, the table says {size}'
    algorithm, _, expected = (checksum or '').partition(':')
    if algorithm and (digest := digest_of(file, algorithm)) != expected:
        return f'has the {algorithm} {digest}, the table says {expected}'
    return None
