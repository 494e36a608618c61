"""Low-resolution images as MATLAB's bicubic ``imresize`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path

from basicsr_effsr.data.templates import check_file_template, check_folder_template
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from datasets_prep.files import ImageError, list_images, read_image, write_png
from datasets_prep.jobs import ALONE, Job, Schedule, Summary, make_files


@dataclass(frozen=True)
class _Task:
    source: Path
    hr_target: Path | None
    lr_targets: dict[int, Path]
    modulus: int
    alpha: str


def make_lr(
    hr: Path,
    out: Path,
    *,
    scales: tuple[int, ...] = (2, 3, 4),
    modulus: int | None = None,
    hr_out: Path | None = None,
    folder_tmpl: str = 'X{scale}',
    filename_tmpl: str = '{}',
    alpha: str = 'refuse',
    overwrite: bool = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Writes ``out/X<scale>/<name>.png`` for every image of ``hr`` and every scale.

    Every HR image is cropped (top left) to a multiple of ``modulus``, by default the least common multiple
    of the scales, so that the sets of all scales hold the same images and cut into equally many sub-images.
    8 and 16 bit, gray and colour images keep their kind; colour palettes become colours.

    Args:
        hr: folder of HR images.
        out: folder for the LR folders.
        scales: the scales.
        modulus: both sides of HR are cropped to multiples of it; every scale must divide it.
        hr_out: folder for the cropped HR images, as PNG. Without it an image that would lose pixels is an error,
            because it would not fit its LR images, and so is a file that is not ``.png``, because BasicSR
            would look for its LR image under its own suffix.
        folder_tmpl: name of the folder of a scale; ``LRbicx{scale}`` is BasicSR's for test sets.
        filename_tmpl: stem of an LR file from the stem of its HR file, as in BasicSR's option of this
            name, where ``{scale}`` may be used too; DIV2K's own names are ``{}x{scale}``.
        alpha: ``'refuse'`` images with transparency, or ``'drop'`` it.
        overwrite: make again what exists.
        schedule: workers, shard, dry run, progress.

    Returns:
        What became of each HR image.

    Raises:
        ValueError: for impossible options, two HR files of one stem, HR files other than ``.png`` without
            ``hr_out``, or outputs among the originals.
        FileNotFoundError: when ``hr`` does not exist.
    """
    if not scales or min(scales) < 1:
        raise ValueError(f'lr: scales must be positive integers, got {scales}')
    modulus = lcm(*scales) if modulus is None else modulus
    if modulus < 1 or any(modulus % scale for scale in scales):
        raise ValueError(f'lr: modulus must be a multiple of every scale of {scales}, got {modulus}')
    if alpha not in ('refuse', 'drop'):
        raise ValueError(f"lr: alpha must be 'refuse' or 'drop', got {alpha!r}")
    if len(set(scales)) < len(scales):
        raise ValueError(f'lr: scales must be different, got {", ".join(map(str, scales))}')
    check_folder_template('lr: --folder-tmpl', folder_tmpl, several=len(scales) > 1)
    check_file_template('lr: --filename-tmpl', filename_tmpl, scale=True)

    folders = {scale: out / folder_tmpl.format(scale=scale) for scale in scales}
    jobs = []
    for source in list_images(hr):
        lr = {s: folder / f'{filename_tmpl.format(source.stem, scale=s)}.png' for s, folder in folders.items()}
        target = hr_out / f'{source.stem}.png' if hr_out is not None else None
        outputs = (*lr.values(), *([target] if target else []))
        jobs.append(Job(str(source), _Task(source, target, lr, modulus, alpha), (source,), outputs))
    if hr_out is None:
        _refuse_other_suffixes(jobs)
    common = {'modulus': modulus, 'alpha': alpha}
    settings = {path: {**common, 'filename_tmpl': filename_tmpl, 'scale': scale} for scale, path in folders.items()}
    if hr_out is not None:
        settings[hr_out] = common
    return make_files('lr', jobs, _make_one, settings, schedule, names=('filename_tmpl',), overwrite=overwrite)


def _refuse_other_suffixes(jobs: list[Job]) -> None:
    others = [job for job in jobs if job.sources[0].suffix != '.png']
    if others:
        raise ValueError(
            f'lr: {others[0].name}: BasicSR looks for the LR image of an HR file under the same suffix, which is '
            f'.png for all LR images; give --hr-out for PNG copies of the HR images ({len(others)} are not .png)'
        )


def _make_one(task: _Task) -> None:
    img = read_image(task.source)
    if img.ndim == 3 and img.shape[2] == 4:
        if task.alpha == 'refuse':
            raise ImageError(f'{task.source}: has an alpha channel; give --alpha drop to ignore it')
        img = img[:, :, :3]
    if min(img.shape[:2]) < task.modulus:
        raise ImageError(
            f'{task.source}: both sides must be at least {task.modulus} pixels, got {img.shape[0]}x{img.shape[1]}'
        )
    cropped = mod_crop(img, task.modulus)
    if task.hr_target is not None:
        write_png(task.hr_target, cropped)
    elif cropped.shape != img.shape:
        raise ImageError(
            f'{task.source}: {img.shape[0]}x{img.shape[1]} is not a multiple of {task.modulus}; '
            'give --hr-out to write the cropped HR image that fits the LR images'
        )
    for scale, path in task.lr_targets.items():
        write_png(path, imresize(cropped, scale=Fraction(1, scale)))
