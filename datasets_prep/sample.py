"""A small paired data set from the photographs in scikit-image's wheel."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from datasets_prep.files import read_image, write_png
from datasets_prep.jobs import ALONE, Job, Overwrite, Schedule, Summary, make_files
from datasets_prep.pack import make_pack

MODULUS = 12  # divisible by every scale, so that all scales have the same photographs and the same HR
PHOTOGRAPHS = {
    'train': (
        *('coffee.png', 'hubble_deep_field.jpg', 'ihc.png', 'motorcycle_left.png', 'motorcycle_right.png'),
        *('retina.jpg', 'rocket.jpg'),
    ),
    'val': ('astronaut.png', 'chelsea.png'),
}


def photograph_folder() -> Path:
    """The folder of images inside the installed scikit-image, which is not imported.

    Raises:
        FileNotFoundError: scikit-image or one of the photographs is absent.
    """
    spec = find_spec('skimage')
    folder = Path(spec.origin if spec and spec.origin else 'skimage/__init__.py').with_name('data')
    missing = [name for names in PHOTOGRAPHS.values() for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'sample: {folder} of scikit-image lacks {", ".join(missing)}; pip install scikit-image'
        )
    return folder


def write_sample(
    out: Annotated[Path, typer.Argument(help='Folder of the data set.')] = Path('datasets/sample'),
    *,
    scales: tuple[int, ...] = (2, 3, 4),
    pack: Annotated[bool, typer.Option('--pack', help='Pack the training photographs, too.')] = False,
    overwrite: Overwrite = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Writes a small paired data set from the photographs inside scikit-image; needs no network.

    OUT/{train,val}/HR and OUT/{train,val}/LR_bicubic/X<scale> have the same names; packs lie beside the folders.
    Photographs that are stored as JPEG are halved first, so that no compression blocks are left in what the networks
    should learn to restore.
    """
    odd = [scale for scale in scales if scale < 1 or MODULUS % scale]
    if odd:
        raise ValueError(f'sample: scales must divide {MODULUS}, got {odd}; make others with the command lr')
    source = photograph_folder()
    folders = {
        split: {1: out / split / 'HR', **{scale: out / split / 'LR_bicubic' / f'X{scale}' for scale in scales}}
        for split in PHOTOGRAPHS
    }
    jobs = []
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            targets = {scale: folder / f'{Path(name).stem}.png' for scale, folder in folders[split].items()}
            jobs.append(Job(name, partial(_make_one, source / name, targets), (), tuple(targets.values())))
    settings: dict[Path, dict] = {folder: {} for split in folders.values() for folder in split.values()}
    summary = make_files('sample', jobs, settings, schedule, overwrite=overwrite)
    packed = list(folders['train'].values()) if pack and not summary.exit_code else []
    if schedule.dry_run:
        summary.notes += [f'would pack: {folder}' for folder in packed]
        packed = []
    for folder in packed:
        its = make_pack(folder, folder.with_suffix('.pack'), overwrite=overwrite, schedule=schedule)
        summary = replace(its, title='sample', done=summary.done + its.done, skipped=summary.skipped + its.skipped)
        if summary.exit_code:
            break
    return summary


def _make_one(source: Path, targets: dict[int, Path]) -> None:
    """``targets`` are by scale; 1 is HR."""
    hr = read_image(source)
    if source.suffix == '.jpg':
        hr = imresize(hr, scale=Fraction(1, 2))
    hr = mod_crop(hr, MODULUS)
    for scale, path in targets.items():
        write_png(path, hr if scale == 1 else imresize(hr, scale=Fraction(1, scale)))
