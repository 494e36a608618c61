"""A small paired data set out of the photographs inside scikit-image's wheel; needs no network.

Run: python -m datasets_prep sample
"""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from basicsr_effsr.utils.files import sweep_parts
from datasets_prep.files import read_image, write_png
from datasets_prep.pack import make_pack

SCALES = (2, 3, 4)
MODULUS = 12  # divisible by every scale, so that all scales have the same photographs and the same HR
PHOTOGRAPHS = {
    'train': (
        'coffee.png',
        'hubble_deep_field.jpg',
        'ihc.png',
        'motorcycle_left.png',
        'motorcycle_right.png',
        'retina.jpg',
        'rocket.jpg',
    ),
    'val': ('astronaut.png', 'chelsea.png'),
}


def photograph_folder() -> Path:
    """The folder of images inside the installed scikit-image, which is not imported.

    Raises:
        FileNotFoundError: when scikit-image or one of the photographs is absent.
    """
    spec = find_spec('skimage')
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError('sample: scikit-image, whose photographs are used, is absent; pip install scikit-image')
    folder = Path(spec.submodule_search_locations[0]) / 'data'
    missing = [name for names in PHOTOGRAPHS.values() for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'sample: {folder} lacks {", ".join(missing)}; install the scikit-image wheel (pip install scikit-image)'
        )
    return folder


def write_sample(
    out: Path, *, scales: tuple[int, ...] = SCALES, pack: bool = False, overwrite: bool = False
) -> dict[str, int]:
    """Writes ``out/{train,val}/HR`` and ``out/{train,val}/LR_bicubic/X<scale>``, the same names in each.

    Photographs that are stored as JPEG are halved first, so that no compression blocks are left in what
    the networks should learn to restore. Files that exist are kept.

    Args:
        out: folder of the data set; it is made.
        scales: scales of the low-resolution images; each must divide 12.
        pack: write ``out/train/HR.pack`` and ``out/train/LR_bicubic/X<scale>.pack``, too.
        overwrite: write again what exists.

    Returns:
        Number of photographs in each of ``train`` and ``val``.

    Raises:
        ValueError: for a scale that does not divide 12.
        FileNotFoundError: when the photographs are not installed.
    """
    _check_scales(scales)
    folder = photograph_folder()
    out.mkdir(parents=True, exist_ok=True)
    sweep_parts(out)
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            targets = _targets(out / split, name, scales)
            wanted = {scale: path for scale, path in targets.items() if overwrite or not path.is_file()}
            if not wanted:
                continue
            hr = read_image(folder / name)
            if name.endswith('.jpg'):
                hr = imresize(hr, scale=Fraction(1, 2))
            hr = mod_crop(hr, MODULUS)
            for scale, path in wanted.items():
                write_png(path, hr if scale == 1 else imresize(hr, scale=Fraction(1, scale)))
    if pack:
        for file in _packs(out, scales):
            make_pack(file.with_suffix(''), file, overwrite=overwrite)
    return {split: len(names) for split, names in PHOTOGRAPHS.items()}


def sample_files(out: Path, *, scales: tuple[int, ...] = SCALES, pack: bool = False) -> list[Path]:
    """The files that ``write_sample`` writes, whether they are there or not.

    Raises:
        ValueError: for a scale that does not divide 12.
        FileNotFoundError: when the photographs are not installed.
    """
    _check_scales(scales)
    photograph_folder()
    images = [
        file
        for split, names in PHOTOGRAPHS.items()
        for name in names
        for file in _targets(out / split, name, scales).values()
    ]
    return [*images, *(_packs(out, scales) if pack else [])]


def _check_scales(scales: tuple[int, ...]) -> None:
    odd = [scale for scale in scales if scale < 1 or MODULUS % scale]
    if odd:
        raise ValueError(f'sample: scales must divide {MODULUS}, got {odd}; make others with the command lr')


def _targets(folder: Path, name: str, scales: tuple[int, ...]) -> dict[int, Path]:
    """The files of a photograph by their scale; 1 is HR."""
    png = Path(name).stem + '.png'
    return {scale: folder / 'LR_bicubic' / f'X{scale}' / png for scale in scales} | {1: folder / 'HR' / png}


def _packs(out: Path, scales: tuple[int, ...]) -> list[Path]:
    lr = out / 'train' / 'LR_bicubic'
    return [out / 'train' / 'HR.pack', *(lr / f'X{scale}.pack' for scale in scales)]
