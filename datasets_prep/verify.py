"""Verifies a data set: pairs, sizes, decodability, and that LR is the bicubic of HR."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from basicsr_effsr.data.pairs import check_file_template, check_sizes, match
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.utils.files import write_bytes
from datasets_prep.files import FilenameTmpl, ImageError, open_store, refuse_image_name, worker_store
from datasets_prep.jobs import ALONE, Job, Schedule, Summary, run_jobs

_CUT_BORDER = 2  # the widened kernel reaches two LR pixels to either side


def verify(
    hr: Annotated[Path, typer.Argument(help='HR images: a folder, an .lmdb or a .pack.')],
    lr: Annotated[Path | None, typer.Argument(help='LR images, likewise; without them only HR is checked.')] = None,
    *,
    scale: Annotated[int, typer.Option(min=1, help='Size of HR divided by size of LR.')] = 1,
    filename_tmpl: FilenameTmpl = '{}',
    bicubic: Annotated[bool, typer.Option(help='Compare LR with the bicubic of HR.')] = True,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help='Allowed fraction of differing values.')] = 0.0,
    border: Annotated[int, typer.Option(min=0, help='Border in LR pixels that is not compared; 2 for sub-images.')] = 0,
    report: Annotated[Path | None, typer.Option(help='Write every finding to this JSON file.')] = None,
    schedule: Schedule = ALONE,
) -> Summary:
    """Checks pairs, sizes, decodability, the checksums of packs, and that LR is the bicubic of HR.

    The images of a pair have the same suffix, depth and channels. Sub-images were cut after the resizing and so have
    neighbours that the bicubic of the HR sub-image does not see.

    Returns:
        Failures under the name of the offending file; the fraction of differing values of each pair in
        ``results``.
    """
    if report is not None:
        refuse_image_name('verify', report)
    check_file_template('verify: --filename-tmpl', filename_tmpl, scale=True)
    worker_store.cache_clear()
    hr_store = open_store(hr)
    lr_store = open_store(lr) if lr is not None else None

    failed: dict[str, str] = {}
    pairs = [(name, name) for name in hr_store.names]
    if lr_store is not None:
        found = match(hr_store.names, lr_store.names, lambda name: filename_tmpl.format(name, scale=scale))
        pairs = found.pairs
        for name in found.surplus:
            failed[lr_store.where(name)] = f'has no HR image in {hr}'
        for name, lr_name in found.lonely:
            failed[hr_store.where(name)] = f'has no LR image {lr_name!r} in {lr}'
    compare = partial(_compare, hr, lr, scale=scale, tolerance=tolerance if bicubic else None, border=border)
    jobs = [Job(hr_store.where(name), partial(compare, name, lr_name)) for name, lr_name in pairs]
    if not schedule.dry_run:
        for store in filter(None, (hr_store, lr_store)):
            failed |= dict.fromkeys(map(store.where, store.damaged()), 'does not match its checksum')
    compared = run_jobs('verify', jobs, schedule)
    compared.failed |= failed
    if lr is not None and bicubic and compared.results:
        worst = max(compared.results.values())
        compared.notes.append(f'verify: pixels that differ from the bicubic of HR: {worst:.4%} in the worst good pair')
    if report is not None and not compared.interrupted and not schedule.dry_run:
        findings = {'failed': compared.failed, 'differing': compared.results}
        write_bytes(report, json.dumps(findings, indent=1, sort_keys=True).encode())
    return compared


def _compare(
    hr_path: Path, lr_path: Path | None, name: str, lr_name: str, *, scale: int, tolerance: float | None, border: int
) -> float:
    hr_store = worker_store(hr_path)
    hr = hr_store.read(name)
    if hr.shape[:2] != hr_store.shape(name)[:2]:
        raise ImageError(f'is {hr.shape[0]}x{hr.shape[1]}, announced as {hr_store.shape(name)[:2]}')
    if lr_path is None:
        return 0.0
    lr_store = worker_store(lr_path)
    where = lr_store.where(lr_name)
    suffixes = {store.file(name).suffix for store, name in ((hr_store, name), (lr_store, lr_name))}
    if len(suffixes - {'.pack', '.mdb'}) > 1:
        raise ImageError(
            f'has another suffix than its LR image {where}, but BasicSR looks for both under one; make PNG files of '
            'the HR images (lr --hr-out does)'
        )
    lr = lr_store.read(lr_name)
    if hr.dtype != lr.dtype or hr.shape[2:] != lr.shape[2:]:
        channels = [np.atleast_3d(image).shape[2] for image in (hr, lr)]
        raise ImageError(
            f'is {hr.dtype} with {channels[0]} channels, but {where} is {lr.dtype} with {channels[1]}; make the LR '
            'images again'
        )
    check_sizes(hr_store.where(name), where, hr.shape[:2], lr.shape[:2], scale, training=True)
    if tolerance is None:
        return 0.0
    different = imresize(hr, scale=Fraction(1, scale)) != lr
    fraction = _inside(different, border)
    if fraction is None:
        raise ImageError(
            f'a border of {border} leaves nothing of the {lr.shape[0]}x{lr.shape[1]} pixels of {where} to be '
            'compared; give a smaller --border'
        )
    if fraction > tolerance:
        hint = ''
        inside = _inside(different, _CUT_BORDER)
        if border < _CUT_BORDER and inside is not None and inside <= tolerance:
            hint = f', but only along its border, as in sub-images: if these are, give --border {_CUT_BORDER}'
        raise ImageError(f'{fraction:.4%} of the values of {where} differ from the bicubic of HR{hint}')
    return fraction


def _inside(different: np.ndarray, border: int) -> float | None:
    """Fraction of differing values among those not within ``border`` pixels of a side; None if there are none."""
    if 2 * border >= min(different.shape[:2]):
        return None
    return float(different[border : len(different) - border, border : different.shape[1] - border].mean())
