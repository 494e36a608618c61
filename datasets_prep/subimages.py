"""Overlapping sub-images of large images; those of ``0001.png`` are ``0001_s001.png``, ``0001_s002.png``, row by row.

BasicSR's convention for DIV2K is HR 480/240 (crop/step), and the same divided by the scale for LR.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from datasets_prep.files import Compression, image_shape, list_images, read_image, write_png
from datasets_prep.jobs import ALONE, Job, Overwrite, Schedule, Summary, make_files


def positions(length: int, crop: int, step: int, thresh: int = 0) -> list[int]:
    """First pixels of the crops along a side; the last is flush with the end, unless the rest is at most ``thresh``.

    Raises:
        ValueError: the side is shorter than a crop.
    """
    if length < crop:
        raise ValueError(
            f'each side must be at least the crop size {crop}, got {length}; leave the image out or cut smaller'
        )
    starts = list(range(0, length - crop + 1, step))
    if length - (starts[-1] + crop) > thresh:
        starts.append(length - crop)
    return starts


def make_subimages(
    folder: Annotated[Path, typer.Argument(help='Folder of images.')],
    out: Annotated[Path, typer.Argument(help='Folder for the sub-images.')],
    *,
    scale: Annotated[int, typer.Option(min=1, help='1 for HR; for LR its scale, a divisor of crop, step, thresh.')] = 1,
    crop: Annotated[int, typer.Option(min=1, help='Side of a sub-image in HR pixels.')] = 480,
    step: Annotated[int, typer.Option(min=1, help='Distance of two sub-images in HR pixels.')] = 240,
    thresh: Annotated[int, typer.Option(min=0, help='A remainder of up to this many HR pixels gets no sub-image.')] = 0,
    compression: Compression = 3,
    overwrite: Overwrite = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Cuts images into overlapping PNG sub-images, named as BasicSR names them.

    The n-th LR sub-image belongs to the n-th HR sub-image. An ending x<scale> of the names of LR files (DIV2K's way) is
    left out of the names of their sub-images.
    """
    if any(pixels % scale for pixels in (crop, step, thresh)):
        raise ValueError(
            f'subimages: crop, step and thresh are in HR pixels and must be multiples of the scale {scale}, '
            f'got {crop}, {step}, {thresh}'
        )
    lengths = (crop // scale, step // scale, thresh // scale)
    jobs: list[Job] = []
    for source in list_images(folder):
        stem = source.stem.removesuffix(f'x{scale}') if scale > 1 else source.stem
        try:
            number = len(_corners(image_shape(source), *lengths))
        except (OSError, ValueError):  # which the job then reports
            number = 0
        outputs = tuple(_file(out, stem, i) for i in range(1, number + 1))
        jobs.append(Job(str(source), partial(_cut, source, out, stem, lengths, compression), (source,), outputs))
    settings = {out: {'scale': scale, 'crop': crop, 'step': step, 'thresh': thresh, 'compression': compression}}
    return make_files('subimages', jobs, settings, schedule, names=('scale',), overwrite=overwrite)


def _file(out: Path, stem: str, number: int) -> Path:
    return out / f'{stem}_s{number:03d}.png'


def _corners(shape: Sequence[int], crop: int, step: int, thresh: int) -> list[tuple[int, int]]:
    rows, columns = (positions(side, crop, step, thresh) for side in shape[:2])
    return [(top, left) for top in rows for left in columns]


def _cut(source: Path, out: Path, stem: str, lengths: tuple[int, int, int], compression: int) -> int:
    img, crop = read_image(source), lengths[0]
    corners = _corners(img.shape, *lengths)
    for surplus in count(len(corners) + 1):  # of an earlier cut; first, so that a killed run leaves none
        try:
            _file(out, stem, surplus).unlink()
        except FileNotFoundError:
            break
    for number, (top, left) in enumerate(corners, start=1):
        write_png(_file(out, stem, number), img[top : top + crop, left : left + crop], compression=compression)
    return len(corners)
