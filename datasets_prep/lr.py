"""Low-resolution images as MATLAB's bicubic ``imresize`` makes them."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from math import lcm
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.data.pairs import check_file_template, check_folder_template
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from datasets_prep.files import FilenameTmpl, ImageError, list_images, read_image, write_png
from datasets_prep.jobs import ALONE, Job, Overwrite, Schedule, Summary, make_files


def make_lr(
    hr: Annotated[Path, typer.Argument(help='Folder of HR images.')],
    out: Annotated[Path, typer.Argument(help='Folder for the folders of LR images.')],
    *,
    scales: Annotated[tuple[int, ...], typer.Option(help='Scales, with commas between.')] = (2, 3, 4),
    modulus: Annotated[
        int | None, typer.Option(help='HR sides are cropped to multiples of it; by default the LCM of the scales.')
    ] = None,
    hr_out: Annotated[Path | None, typer.Option(help='Folder for the cropped HR images, as PNG.')] = None,
    folder_tmpl: Annotated[
        str, typer.Option(help='Name of the folder of a scale; of test sets of BasicSR LRbicx{scale}.')
    ] = 'X{scale}',
    filename_tmpl: FilenameTmpl = '{}',
    alpha: Annotated[str, typer.Option(help='What to do with transparency: refuse or drop.')] = 'refuse',
    overwrite: Overwrite = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Makes LR images with MATLAB's bicubic, bit for bit: OUT/X<scale>/<name>.png.

    HR images are cropped (top left) to a multiple of the modulus, so that the sets of all scales hold the same images
    and cut into equally many sub-images. 8 and 16 bit, gray and colour images keep their kind; palettes become colours.

    Without --hr-out an image that would lose pixels is an error, as it would not fit its LR images, and so is a file
    that is not .png, as BasicSR looks for its LR image under its own suffix.
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
        jobs.append(Job(str(source), partial(_make_one, source, target, lr, modulus, alpha), (source,), outputs))
    others = [job.name for job in jobs if job.sources[0].suffix != '.png']
    if hr_out is None and others:
        raise ValueError(
            f'lr: {others[0]}: BasicSR looks for the LR image of an HR file under the same suffix, which is .png for '
            f'all LR images; give --hr-out for PNG copies of the HR images ({len(others)} are not .png)'
        )
    common = {'modulus': modulus, 'alpha': alpha}
    settings = {path: {**common, 'filename_tmpl': filename_tmpl, 'scale': scale} for scale, path in folders.items()}
    if hr_out is not None:
        settings[hr_out] = common
    return make_files('lr', jobs, settings, schedule, names=('filename_tmpl',), overwrite=overwrite)


def _make_one(source: Path, hr_target: Path | None, lr_targets: dict[int, Path], modulus: int, alpha: str) -> None:
    img = read_image(source)
    if img.ndim == 3 and img.shape[2] == 4:
        if alpha == 'refuse':
            raise ImageError(f'{source}: has an alpha channel; give --alpha drop to ignore it')
        img = img[:, :, :3]
    cropped = mod_crop(img, modulus)
    if hr_target is not None:
        write_png(hr_target, cropped)
    elif cropped.shape != img.shape:
        raise ImageError(
            f'{source}: {img.shape[0]}x{img.shape[1]} is not a multiple of {modulus}; '
            'give --hr-out to write the cropped HR image that fits the LR images'
        )
    for scale, path in lr_targets.items():
        write_png(path, imresize(cropped, scale=Fraction(1, scale)))
