"""Overlapping sub-images of large images, cut and named as BasicSR's data sets expect them.

BasicSR's convention for DIV2K: HR 480/240 (crop/step), and the same divided by the scale for LR; the
sub-images of ``0001.png`` are ``0001_s001.png``, ``0001_s002.png``, ... row by row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datasets_prep.files import ImageError, image_size, list_images, read_image, write_png
from datasets_prep.jobs import Job, OutputFolders, Plan, Summary, protect_sources, run_jobs

_NAME = re.compile(r'(?P<stem>.+)_s(?P<number>[0-9]{3,})\.png')


@dataclass(frozen=True)
class _Task:
    source: Path
    out: Path
    stem: str
    crop: int
    step: int
    thresh: int
    compression: int


def positions(length: int, crop: int, step: int, thresh: int = 0) -> list[int]:
    """First pixels of the crops along one side; the last crop is flush with the end.

    Args:
        length: pixels of the side.
        crop: pixels of a crop.
        step: pixels between two crops.
        thresh: a rest of at most this many pixels at the end gets no crop of its own.

    Raises:
        ValueError: when the side is shorter than a crop.
    """
    if length < crop:
        raise ValueError(f'subimages: a side must be at least the crop size {crop}, got {length}')
    starts = list(range(0, length - crop + 1, step))
    if length - (starts[-1] + crop) > thresh:
        starts.append(length - crop)
    return starts


def make_subimages(
    folder: Path,
    out: Path,
    *,
    scale: int = 1,
    crop: int = 480,
    step: int = 240,
    thresh: int = 0,
    compression: int = 3,
    overwrite: bool = False,
    plan: Plan | None = None,
) -> Summary:
    """Cuts every image of ``folder`` into overlapping PNG sub-images in ``out``.

    Args:
        folder: the images.
        out: folder of the sub-images.
        scale: 1 for HR; for LR the scale by which ``crop``, ``step`` and ``thresh``, all given in HR pixels,
            are divided, so that the n-th LR sub-image belongs to the n-th HR sub-image. An ending
            ``x<scale>`` of the LR file names (DIV2K's way) is left out of the names of the sub-images.
        crop: side of a sub-image in HR pixels.
        step: distance of two sub-images in HR pixels.
        thresh: a rest of at most this many HR pixels at the end gets no sub-image of its own.
        compression: PNG level, 0 to 9.
        overwrite: make again what exists; sub-images of an earlier cut that the new one has not are removed.
        plan: workers, shard, dry run, progress.

    Returns:
        What became of each image.

    Raises:
        ValueError: for impossible options, two files with the same sub-image names, or ``out`` being ``folder``.
        FileNotFoundError: when ``folder`` does not exist.
    """
    plan = plan or Plan()
    if scale < 1 or crop < 1 or step < 1 or thresh < 0 or not 0 <= compression <= 9:
        raise ValueError(
            'subimages: scale, crop and step must be positive, thresh not negative, compression 0 to 9; '
            f'got {scale}, {crop}, {step}, {thresh}, {compression}'
        )
    if any(pixels % scale for pixels in (crop, step, thresh)):
        raise ValueError(
            f'subimages: crop, step and thresh are in HR pixels and must be multiples of the scale {scale}, '
            f'got {crop}, {step}, {thresh}'
        )
    jobs: list[Job] = []
    owners: dict[str, Path] = {}
    for source in list_images(folder):
        stem = source.stem.removesuffix(f'x{scale}') if scale > 1 else source.stem
        if stem in owners:
            raise ValueError(f'{owners[stem]} and {source} would have sub-images of one name; rename one of them')
        owners[stem] = source
        task = _Task(source, out, stem, crop // scale, step // scale, thresh // scale, compression)
        jobs.append(Job(str(source), task, (source,), _outputs(task)))
    if not jobs:
        raise ValueError(f'subimages: {folder} holds no image; give the folder of the images to cut')
    protect_sources('subimages', jobs, [out])
    names = ('scale', 'crop', 'step', 'thresh', 'compression')
    settings = dict(zip(names, (scale, crop, step, thresh, compression), strict=True))
    claimed = OutputFolders(
        {out: {'command': 'subimages', **settings}}, overwrite=overwrite, dry_run=plan.dry_run, names=('scale',)
    )
    stale = _stale(out, jobs, [job for job in plan.mine(jobs) if not claimed.is_done(job)])
    if not plan.dry_run:
        for path in stale:
            path.unlink(missing_ok=True)
    summary = run_jobs('subimages', jobs, _cut, plan, is_done=claimed.is_done)
    if plan.dry_run:
        summary.notes += [f'would remove {len(stale)} sub-images that the new cut has not'] if stale else []
    else:
        claimed.settle(jobs, summary)
    return summary


def _stale(out: Path, jobs: list[Job], todo: list[Job]) -> list[Path]:
    """The sub-images, by their names, that an earlier cut of the sources in ``todo`` has left and no source has now.

    Those of a source that cannot be read now stay.
    """
    if not out.is_dir():
        return []
    planned = {path.name for job in jobs for path in job.outputs}
    stems = {job.task.stem for job in todo if job.outputs or _is_readable(job.task.source)}
    found = []
    for path in out.iterdir():
        name = _NAME.fullmatch(path.name)
        if name and name['stem'] in stems and path.name not in planned and path.name == _name(*name.group(1, 2)):
            found.append(path)
    return found


def _is_readable(source: Path) -> bool:
    try:
        return bool(image_size(source))
    except ImageError:
        return False


def _name(stem: str, number: int | str) -> str:
    return f'{stem}_s{int(number):03d}.png'


def _outputs(task: _Task) -> tuple[Path, ...]:
    """The files that a source will be cut into; none when it cannot be, which the job then reports."""
    try:
        height, width = image_size(task.source)
        count = len(positions(height, task.crop, task.step, task.thresh))
        count *= len(positions(width, task.crop, task.step, task.thresh))
    except ValueError:
        return ()
    return tuple(task.out / _name(task.stem, i) for i in range(1, count + 1))


def _cut(task: _Task) -> int:
    img = read_image(task.source)
    if min(img.shape[:2]) < task.crop:
        raise ImageError(
            f'{task.source}: both sides must be at least the crop size {task.crop}, '
            f'got {img.shape[0]}x{img.shape[1]}; leave the image out or cut smaller'
        )
    number = 0
    for top in positions(img.shape[0], task.crop, task.step, task.thresh):
        for left in positions(img.shape[1], task.crop, task.step, task.thresh):
            number += 1
            part = img[top : top + task.crop, left : left + task.crop]
            write_png(task.out / _name(task.stem, number), part, compression=task.compression)
    return number
