"""Which images are enlarged, into which files, and what became of each."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from basicsr_effsr.imaging.enlarger import Alpha, Enlarger
from basicsr_effsr.imaging.header import SUFFIXES, UnfitError, check_memory
from basicsr_effsr.imaging.picture import DEEP, ENDINGS, check_size, encode, fitting, read
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import write_bytes

if TYPE_CHECKING:
    from basicsr_effsr.imaging.tiling import Progress

LONGEST_NAME = 255  # bytes, of the usual file systems


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


def enlarge_file(enlarge: Enlarger, job: Enlargement, quality: int, progress: Progress | None = None) -> Done:
    """One image from file to file; the result appears under its name only when it is complete.

    Raises:
        UserError: the image cannot be read, the network fails on it, or its result cannot be held by the format or
            the memory.
        WriteError: the result cannot be written.
    """
    picture = read(job.source)
    height, width, channels = picture.pixels.shape
    size = (enlarge.scale * height, enlarge.scale * width)
    try:
        check_size(job.kind, *size)
        if job.kind == 'jpeg' and picture.alpha is not None and enlarge.alpha is not Alpha.drop:
            raise UserError('it is transparent, which jpeg cannot be; give --alpha drop or another --format')
        wanted = 12 * height * width + 2 * size[0] * size[1] * channels * picture.bits // 8
        check_memory(wanted, f'the result of {size[1]}x{size[0]} pixels')
        start = time.perf_counter()
        result, tile = enlarge(picture, deep=job.kind in DEEP, progress=progress)
        seconds = time.perf_counter() - start
    except (UserError, UnfitError) as error:
        raise UserError(f'{job.source} failed: {error}') from error
    write_bytes(job.target, encode(result, job.kind, quality), sync=True)
    return Done(
        str(job.source),
        str(job.target),
        'written',
        input_size=(height, width),
        output_size=size,
        bits=result.bits,
        tile=tile,
        seconds=round(seconds, 4),
        lost=fitting(result, job.kind).lost,
    )
