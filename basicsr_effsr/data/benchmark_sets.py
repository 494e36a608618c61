"""Finds benchmark images in the common folder layouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr_effsr.imaging.header import SUFFIXES
from basicsr_effsr.utils.errors import UserError

SETS = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')


def canonical(name: str) -> str:
    """The papers' name of a set, whatever the folder is called."""
    known = {each.lower(): each for each in SETS} | {'bsd100': 'B100', 'bsds100': 'B100'}
    return known.get(name.lower(), name)


@dataclass(frozen=True)
class SetImage:
    """HR image of a benchmark set and its LR image; without one the LR image is made by MATLAB's bicubic."""

    name: str
    gt: Path
    lq: Path | None


def hr_of(lq: Path, folder: Path, scale: int) -> Path:
    """The HR image in ``folder`` of an LR image, of the same name or without the ending ``x4``.

    Raises:
        UserError: there is none.
    """
    shelf = _by_stem(folder)
    found = shelf.get(lq.stem) or shelf.get(lq.stem.removesuffix(f'x{scale}'))
    if found is None:
        raise UserError(f'{folder} has no HR image for {lq}')
    return found


def images_in(folder: Path) -> list[Path]:
    """The images of a folder by name, hidden ones left out; none if it is no folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))


def _by_stem(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in reversed(images_in(folder))}


def images_of(folder: Path, scale: int, make_lr: bool = False) -> list[SetImage]:
    """The pairs of one benchmark set.

    Layouts: BasicSR (``GTmod12``, ``LRbicx4``), SwinIR and EDSR (``HR``, ``LR_bicubic/X4``, names with or without
    ``x4``), SelfExSR (``image_SRF_4`` with ``_HR``, ``_LR``), or HR images alone with ``make_lr``.

    Raises:
        UserError: no layout fits, or an HR image has no partner.
    """
    selfex = folder / f'image_SRF_{scale}'
    pairs = []
    if selfex.is_dir():
        for gt in images_in(selfex):
            if re.search(r'_HR$', gt.stem):
                lq = gt.with_name(re.sub(r'_HR$', '_LR', gt.stem) + gt.suffix)
                pairs.append(SetImage(re.sub(rf'_SRF_{scale}_HR$', '', gt.stem), gt, lq if lq.is_file() else None))
    else:
        names_gt = (f'GTmod{scale}', 'GTmod12', 'GTmod24', 'HR', 'GT', 'original', '.')
        names_lq = (f'LRbicx{scale}', f'LR_bicubic/X{scale}', f'LR/X{scale}', f'X{scale}', 'LR_bicubic')
        shelves = [_by_stem(folder / name) for name in names_lq]
        for gt in next(filter(None, (images_in(folder / name) for name in names_gt)), []):
            names = (gt.stem, f'{gt.stem}x{scale}')
            partner = next((shelf[name] for shelf in shelves for name in names if name in shelf), None)
            pairs.append(SetImage(gt.stem, gt, partner))
    if not pairs:
        raise UserError(
            f'{folder} holds no images in a known layout (GTmod12 + LRbicx{scale}, HR + LR_bicubic/X{scale}, '
            f'image_SRF_{scale}, or HR images alone with --make-lr)'
        )
    lonely = [pair for pair in pairs if pair.lq is None]
    if lonely and not make_lr:
        raise UserError(
            f'{lonely[0].gt} has no LR image at x{scale} ({len(lonely)} of {len(pairs)} lack one); prepare them with '
            'python -m datasets_prep lr, or add --make-lr to make them now'
        )
    return pairs


def find_sets(root: Path, wanted: Sequence[str] | None, scale: int) -> dict[str, Path]:
    """Name -> folder of the benchmark sets in ``root``, in the order of the papers.

    ``root`` is their folder; without ``wanted``, or if that names it, a set itself. ``wanted`` are names of sets, or
    ``all``: all known ones, if need be in the folders of ``root``.

    Raises:
        UserError: a set that was asked for is not there, or there is none at all.
    """
    if not root.is_dir():
        raise UserError(f'the folder {root} does not exist; give the one that holds Set5, Set14 ... with --data')
    here = {canonical(p.name): p for p in sorted(root.iterdir()) if p.is_dir()}
    own = canonical(root.resolve().name)
    if wanted is not None and list(wanted) == ['all']:
        here = {canonical(p.name): p for p in sorted(root.glob('*/*')) if canonical(p.name) in SETS} | here
        wanted = [name for name in SETS if name in here] or ([own] if own in SETS else list(SETS))
    if own in map(canonical, wanted or ()) and own not in here:
        here = {own: root}
    if wanted:
        missing = [name for name in wanted if canonical(name) not in here]
        if missing:
            raise UserError(f'{root} has no {" or ".join(missing)}; it has {sorted(here)}')
        return {canonical(name): here[canonical(name)] for name in wanted}
    found = {name: here[name] for name in SETS if name in here}
    if found:
        return found
    images_of(root, scale, make_lr=True)
    return {own: root}
