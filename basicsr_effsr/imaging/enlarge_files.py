"""Which images are enlarged, into which files, and what became of each."""

from __future__ import annotations

import glob
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.imaging.enlarger import Alpha, Enlarger
from basicsr_effsr.imaging.header import SUFFIXES, Header, check_memory, read_header
from basicsr_effsr.imaging.picture import DEEP, ENDINGS, Picture, check_size, encode, fitting, read
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import WriteError, sweep_parts, write_bytes
from basicsr_effsr.utils.memory import out_of_memory

if TYPE_CHECKING:
    from basicsr_effsr.imaging.tiling import Progress

LONGEST_NAME = 255  # bytes, of the usual file systems
MOST = 2**26  # bytes of the images that are read ahead or wait to be written
AHEAD = 32  # images
WRITERS = 2  # threads that compress and wait for the disk


class Format(str, Enum):
    """File format of the results."""

    same = 'same'
    png = 'png'
    jpeg = 'jpeg'
    webp = 'webp'
    tiff = 'tiff'


@dataclass(frozen=True)
class Enlargement:
    """An image to enlarge, the file to write, and its format."""

    source: Path
    target: Path
    kind: str


@dataclass
class Done:
    """What became of an image; sizes are (height, width), ``tile`` 0 for a whole image, seconds those of the network.

    ``status`` is written, skipped (it was there) or failed (``error`` says why); ``lost`` is what of the input the
    output does not carry.
    """

    input: str
    output: str
    status: str
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    bits: int | None = None
    tile: int | None = None
    seconds: float | None = None
    error: str | None = None
    lost: str = ''


def _expand(text: str, recursive: bool, out: Path) -> list[tuple[Path, Path]]:
    """(image, its path below the folder or glob it came from) of one argument."""
    given = Path(text).expanduser()
    if given.exists() and not given.is_dir():
        return [(given, Path(given.name))]
    if given.is_dir():
        base, found = given, sorted(given.rglob('*') if recursive else given.iterdir())
        found = [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith('.')]
        what = f'{text} holds no images ({", ".join(SUFFIXES)})' + ('' if recursive else '; --recursive looks below it')
    elif glob.has_magic(text):
        parts = given.parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:fixed])
        found = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
        what = f'{text} matches no file'
    else:
        raise UserError(f'{text} does not exist; give a file, a folder or a pattern in quotes')
    found = [path for path in found if not path.is_dir()]  # what is no file either is named when it is read
    home = out.resolve()
    if home != base.resolve() and home.is_relative_to(base.resolve()):
        found = [path for path in found if not path.resolve().is_relative_to(home)]
    elif any(path.parent.resolve() == home for path in found):
        raise UserError(f'--out {out} is where the images of {text} are; give another folder')
    if not found:
        raise UserError(what)
    return [(path, path.relative_to(base)) for path in found]


def plan(
    inputs: Iterable[str], out: Path, *, suffix: str, kind: Format = Format.same, recursive: bool = False
) -> list[Enlargement]:
    """The images and where their results go.

    Args:
        inputs: files, folders, globs; an image named twice is taken once.
        out: folder for the results, which keeps the folders below an input folder; or, with the ending of an image,
            the file for the only input.

    Raises:
        UserError: nothing is there; two results would have one name, or a result would be an input.
    """
    one_file = out.suffix.lower() in SUFFIXES and not out.is_dir()
    if not one_file and out.exists() and not out.is_dir():
        raise UserError(f'--out {out} is a file; give a folder, or a name that ends as an image')
    found: dict[str, tuple[Path, Path]] = {}
    for text in inputs:
        for path, below in _expand(text, recursive, out.parent / '.no folder' if one_file else out):
            found.setdefault(os.path.abspath(path), (path, below))
    jobs = []
    for path, below in found.values():
        if one_file:
            wanted = SUFFIXES[out.suffix.lower()]
            if len(found) > 1:
                raise UserError(f'--out {out} is one file for {len(found)} images; give a folder')
            if kind is not Format.same and kind.value != wanted:
                raise UserError(f'--out {out} and --format {kind.value} contradict each other; give one of the two')
            if wanted == 'png' and out.suffix.lower() != '.png':
                raise UserError(f'--out {out} is of a format that is only read; let it end in .png')
            jobs.append(Enlargement(path, out, wanted))
            continue
        chosen = SUFFIXES.get(path.suffix.lower(), 'png') if kind is Format.same else kind.value
        kept = chosen != 'png' and SUFFIXES.get(path.suffix.lower()) == chosen and path.suffix.lower() != '.mpo'
        ending = path.suffix if kept else ENDINGS[chosen]
        jobs.append(Enlargement(path, out / below.with_name(f'{below.stem}{suffix}{ending}'), chosen))
    _check_targets(jobs)
    return jobs


def lr_pixels(jobs: Iterable[Enlargement]) -> int:
    """Pixels of all images together, as their files announce them; those that cannot be read count for nothing."""
    total = 0
    for job in jobs:
        with suppress(OSError, ValueError):
            header = read_header(job.source)
            total += header.height * header.width
    return total


def _identity(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = file.stat()
        return status.st_dev, status.st_ino
    return None


def _check_targets(jobs: list[Enlargement]) -> None:
    taken: dict[str, Path] = {}
    sources = {_identity(job.source): job.source for job in jobs}
    for job in jobs:
        key = os.path.normcase(os.path.abspath(job.target))
        if key in taken:
            raise UserError(
                f'{taken[key]} and {job.source} would both become {job.target}; rename one or enlarge them separately'
            )
        taken[key] = job.source
        same = _identity(job.target)
        if same is not None and same in sources:
            raise UserError(f'{job.target} would overwrite the input {sources[same]}; give another --out or --suffix')
        if job.target.is_dir():
            raise UserError(f'{job.target} is a folder; give another --out or --suffix')
        if len(os.fsencode(job.target.name)) > LONGEST_NAME:
            raise UserError(f'the name of {job.target} is longer than {LONGEST_NAME} bytes; give another --suffix')


class _Held:
    """How much of the images between file and file is in memory: at most ``MOST`` bytes, or one image."""

    def __init__(self) -> None:
        self.changed, self.bytes, self.stopped = threading.Condition(), 0, False

    def add(self, amount: int) -> None:
        """Waits until there is room; a negative amount makes it."""
        with self.changed:
            if amount > 0:
                self.changed.wait_for(lambda: self.stopped or not self.bytes or self.bytes + amount <= MOST)
            self.bytes += amount
            self.changed.notify_all()

    def stop(self) -> None:
        """Nobody waits any more."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


@dataclass
class _Loaded:
    """An image that has been read, and what it holds of the memory until its result is written."""

    job: Enlargement
    picture: Picture
    size: tuple[int, int]  # of the result
    held: int


def _load(enlarge: Enlarger, job: Enlargement, held: _Held) -> _Loaded:
    try:
        header = read_header(job.source)
    except (OSError, ValueError):  # said in the words of the reader below
        header = Header('', 0, 0)
    amount = (2 + enlarge.scale**2) * 4 * header.height * header.width * header.bits // 8
    held.add(amount)
    try:
        picture = read(job.source)
        height, width, channels = picture.pixels.shape
        size = (enlarge.scale * height, enlarge.scale * width)
        check_size(job.kind, *size)
        if job.kind == 'jpeg' and picture.alpha is not None and enlarge.alpha is not Alpha.drop:
            raise UserError('it is transparent, which JPEG does not support; give --alpha drop or another --format')
        wanted = 12 * height * width + 2 * size[0] * size[1] * channels * picture.bits // 8
        check_memory(wanted, f'the result of {size[1]}x{size[0]} pixels')
        return _Loaded(job, picture, size, amount)
    except BaseException:
        held.add(-amount)
        raise


def _store(loaded: _Loaded, made: tuple[Picture, int], seconds: float, quality: int, held: _Held) -> Done:
    job, (result, tile) = loaded.job, made
    try:
        write_bytes(job.target, encode(result, job.kind, quality), sync=True)
    finally:
        held.add(-loaded.held)
    height, width = loaded.picture.pixels.shape[:2]
    return Done(
        str(job.source),
        str(job.target),
        'written',
        input_size=(height, width),
        output_size=loaded.size,
        bits=result.bits,
        tile=tile,
        seconds=round(seconds, 4),
        lost=fitting(result, job.kind).lost,
    )


def _finished(job: Enlargement, result: Callable[[], Any]) -> Any:
    """``result``, or a failed :class:`Done` where only this image is at fault."""
    try:
        return result()
    except Exception as error:
        full = out_of_memory(error)
        if isinstance(error, WriteError) or not (full or isinstance(error, OSError | ValueError)):
            raise
        reason = 'the memory is too small for the image and its result' if full else str(error)
        if not reason.startswith(str(job.source)):  # as those of the reader do
            reason = f'{job.source} failed: {reason}'
        return Done(str(job.source), str(job.target), 'failed', error=reason)


def enlarge_files(
    enlarge: Enlarger, jobs: list[Enlargement], *, quality: int, overwrite: bool, progress: Progress | None = None
) -> Generator[Done, None, None]:
    """Works through the jobs; existing results are kept, and a failed image does not stop the others.

    Images are read in one thread and written in others while the network works in this one; what waits for either is
    bounded, so that large images go one by one. A result appears under its name only when it is complete.

    Yields:
        what became of each image, in the order of the jobs.

    Raises:
        WriteError: a result cannot be written, so that it is of no use to compute the others.
    """
    for folder in {job.target.parent for job in jobs}:
        sweep_parts(folder, '')  # of killed runs
    held, reader, writers = _Held(), ThreadPoolExecutor(1), ThreadPoolExecutor(WRITERS)
    results: deque[tuple[Enlargement, Future[Done] | Done]] = deque()
    coming = iter(jobs)
    ahead: deque[tuple[Enlargement, Future[_Loaded] | Done]] = deque()

    def look_ahead() -> None:
        for job in islice(coming, AHEAD - len(ahead)):
            there = job.target.exists() and not overwrite
            skipped = Done(str(job.source), str(job.target), 'skipped')
            ahead.append((job, skipped if there else reader.submit(_load, enlarge, job, held)))

    def ready(most: int) -> Iterator[Done]:
        while results and (len(results) > most or not isinstance(results[0][1], Future) or results[0][1].done()):
            job, result = results.popleft()
            yield _finished(job, result.result) if isinstance(result, Future) else result

    try:
        look_ahead()
        while ahead:
            job, read_ = ahead.popleft()
            look_ahead()
            loaded = _finished(job, read_.result) if isinstance(read_, Future) else read_
            yield from ready(AHEAD)
            result: Future[Done] | Done = loaded
            if isinstance(loaded, _Loaded):
                start = time.perf_counter()
                work = partial(enlarge, loaded.picture, deep=job.kind in DEEP, progress=progress)
                made = _finished(job, work)
                seconds = time.perf_counter() - start
                if isinstance(made, Done):
                    held.add(-loaded.held)
                    result = made
                else:
                    result = writers.submit(_store, loaded, made, seconds, quality, held)
            results.append((job, result))
            del loaded
            yield from ready(AHEAD)
        yield from ready(0)
    finally:  # what is being written is finished, nothing else is begun
        held.stop()
        reader.shutdown(wait=False, cancel_futures=True)
        writers.shutdown(cancel_futures=True)
