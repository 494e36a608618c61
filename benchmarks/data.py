"""Data preparation and loading against BasicSR's: resizing, building, crops per second.

Run: python benchmarks/data.py [--photos FOLDER]

The photographs are cut to 480 x 480 sub-images (smaller ones are joined in pairs first). Everything runs on one
thread; competitors take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset

import basicsr_effsr
from basicsr_effsr.imaging.bicubic import imresize
from datasets_prep.files import list_images, read_image, write_png
from datasets_prep.jobs import Schedule
from datasets_prep.lmdb_maker import make_lmdb
from datasets_prep.lr import make_lr
from datasets_prep.pack import make_pack
from datasets_prep.sample import write_sample
from datasets_prep.subimages import make_subimages

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get('EFFSR_REFERENCE', ROOT.parent / 'shared' / 'reference'))
SCALE, PATCH, SIDE = 4, 192, 480


def take_turns(rounds: int, **actions) -> dict[str, list[float]]:
    """Seconds of every action in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def landscape(path: Path) -> np.ndarray:
    img = read_image(path)
    return img if img.shape[1] >= img.shape[0] else img.transpose(1, 0, 2)


def large_images(photos: list[Path], out: Path) -> None:
    """Photographs of at least 480 pixels as they are, smaller ones joined in pairs, one above the other."""
    small = []
    for path in photos:
        img = landscape(path)
        if min(img.shape[:2]) >= SIDE:
            write_png(out / f'{path.stem}.png', img[: img.shape[0] // 12 * 12, : img.shape[1] // 12 * 12])
        elif img.shape[0] >= SIDE // 2 and img.shape[1] >= SIDE:
            small.append((path.stem, img))
    for (name, upper), (_, lower) in zip(small[::2], small[1::2], strict=False):
        width = min(upper.shape[1], lower.shape[1]) // 12 * 12
        joined = np.vstack([upper[:, :width], lower[:, :width]])
        write_png(out / f'{name}.png', joined[: joined.shape[0] // 12 * 12])


def compare_resizing(photos: list[Path], rounds: int) -> Table:
    from basicsr.utils.matlab_functions import imresize as basicsr_imresize

    tiles = [cv2.resize(landscape(path), (510, 339)) for path in photos[:16]]
    tiles = (tiles * 16)[:16]
    img = np.vstack([np.hstack(tiles[i : i + 4]) for i in range(0, 16, 4)])
    as_float = img.astype(np.float32) / 255
    seconds = take_turns(
        rounds,
        basicsr=lambda: basicsr_imresize(as_float, 1 / SCALE),
        ours=lambda: imresize(img, scale=1 / SCALE),
        ours_float=lambda: imresize(as_float, scale=1 / SCALE),
    )
    table = Table(
        'function', 'ms', 'spread', 'Mpixel/s', 'ratio', title=f'Resizing {img.shape[1]} x {img.shape[0]}, x4'
    )
    names = {
        'basicsr': 'basicsr.utils.matlab_functions.imresize, float32',
        'ours': 'basicsr_effsr.imaging.bicubic.imresize, uint8, MATLAB-exact',
        'ours_float': 'basicsr_effsr.imaging.bicubic.imresize, float64',
    }
    base = statistics.median(seconds['basicsr'])
    for name, values in seconds.items():
        ms = statistics.median(values)
        pixels = img.shape[0] * img.shape[1] / 1e6 / ms
        spread = f'{min(values) * 1e3:.1f} .. {max(values) * 1e3:.1f}'
        table.add_row(names[name], f'{ms * 1e3:.1f}', spread, f'{pixels:.1f}', f'{base / ms:.1f}')
    return table


def build(photos: list[Path], work: Path, workers: int) -> Table:
    large_images(photos, work / 'large')
    plan = Schedule(workers)
    steps = [
        ('sub-images of HR (PNG)', lambda: make_subimages(work / 'large', work / 'HR', schedule=plan)),
        ('LR x4 of the sub-images (PNG)', lambda: make_lr(work / 'HR', work, scales=(SCALE,), schedule=plan)),
        ('LMDB of HR', lambda: make_lmdb(work / 'HR', work / 'HR.lmdb', schedule=plan)),
        ('LMDB of LR', lambda: make_lmdb(work / 'X4', work / 'X4.lmdb', schedule=plan)),
        ('pack of HR', lambda: make_pack(work / 'HR', work / 'HR.pack', schedule=plan)),
        ('pack of LR', lambda: make_pack(work / 'X4', work / 'X4.pack', schedule=plan)),
    ]
    outputs = ['HR', 'X4', 'HR.lmdb', 'X4.lmdb', 'HR.pack', 'X4.pack']
    table = Table('step', 'seconds', 'images', 'MB', title=f'Building, {workers} worker process(es)')
    for (name, step), output in zip(steps, outputs, strict=True):
        begin = time.perf_counter()
        summary = step()
        seconds = time.perf_counter() - begin
        if summary.exit_code:
            raise SystemExit('\n'.join(summary.lines()))
        path = work / output
        size = path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())
        table.add_row(name, f'{seconds:.1f}', str(len(list_images(work / 'HR'))), f'{size / 1e6:.0f}')
    return table


def data_sets(work: Path) -> dict[str, torch.utils.data.Dataset]:
    from basicsr.utils.registry import DATASET_REGISTRY

    basicsr_effsr.register()
    common = {'name': 'b', 'phase': 'train', 'scale': SCALE, 'gt_size': PATCH, 'use_hflip': True, 'use_rot': True}

    def made(kind: str, gt: str, lq: str, **more):
        return DATASET_REGISTRY.get(kind)(
            {**common, 'dataroot_gt': str(work / gt), 'dataroot_lq': str(work / lq), **more}
        )

    disk, lmdb = {'type': 'disk'}, {'type': 'lmdb'}
    return {
        'PairedImageDataset, folder': made('PairedImageDataset', 'HR', 'X4', io_backend=disk),
        'PairedImageDataset, LMDB': made('PairedImageDataset', 'HR.lmdb', 'X4.lmdb', io_backend=lmdb),
        'EffSRPairedDataset, folder': made('EffSRPairedDataset', 'HR', 'X4', io_backend=disk),
        'PackedPairedImageDataset': made('PackedPairedImageDataset', 'HR.pack', 'X4.pack'),
        'PackedPairedImageDataset, uint8': made('PackedPairedImageDataset', 'HR.pack', 'X4.pack', uint8=True),
    }


def compare_crops(work: Path, rounds: int) -> Table:
    """Crops per second of ``dataset[i]`` in this process."""
    sets = data_sets(work)
    rng = random.Random(0)

    def read(dataset, count):
        for _ in range(count):
            dataset[rng.randrange(len(dataset))]

    counts = {name: 2000 if 'Packed' in name else 100 for name in sets}
    seconds = take_turns(rounds, **{name: lambda n=name: read(sets[n], counts[n]) for name in sets})
    rates = {name: [counts[name] / s for s in values] for name, values in seconds.items()}
    title = f'Crops per second and worker, {PATCH} x {PATCH} HR, x4, augmentation and tensor included'
    return rate_table(rates, title)


def compare_loaders(work: Path, rounds: int) -> Table:
    """Crops per second that arrive through a DataLoader with one worker, batches of 16."""
    sets = data_sets(work)
    rng = random.Random(0)
    counts = {name: 4096 if 'Packed' in name else 192 for name in sets}
    rates: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(rounds):
        for name, dataset in sets.items():
            order = [rng.randrange(len(dataset)) for _ in range(counts[name])]
            batches = iter(DataLoader(Subset(dataset, order), batch_size=16, num_workers=1))
            next(batches)  # the start of the worker is not counted
            begin = time.perf_counter()
            for _ in batches:
                pass
            rates[name].append((counts[name] - 16) / (time.perf_counter() - begin))
    return rate_table(rates, 'Crops per second through a DataLoader with one worker, batches of 16')


def rate_table(rates: dict[str, list[float]], title: str) -> Table:
    table = Table('data set', 'crops/s', 'spread', 'x folder', 'x LMDB', title=title)
    folder = statistics.median(rates['PairedImageDataset, folder'])
    lmdb = statistics.median(rates['PairedImageDataset, LMDB'])
    for name, values in rates.items():
        rate = statistics.median(values)
        spread = f'{min(values):.0f} .. {max(values):.0f}'
        table.add_row(name, f'{rate:.0f}', spread, f'{rate / folder:.1f}', f'{rate / lmdb:.1f}')
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos', type=Path, help='folder of photographs; by default the reference or sample set')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--workers', type=int, default=1, help='processes of the builders')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = args.photos or REFERENCE / 'photos'
        if not folder.is_dir():
            write_sample(work / 'sample')
            folder = work / 'sample' / 'train' / 'HR'
        photos = list_images(folder)
        console.print(
            f'{len(photos)} photographs, {os.cpu_count()} CPU cores, 1 thread, Python {platform.python_version()}, '
            f'torch {torch.__version__}, numpy {np.__version__}, OpenCV {cv2.__version__}, files in the page cache'
        )
        console.print(compare_resizing(photos, args.rounds))
        console.print(build(photos, work, args.workers))
        console.print(compare_crops(work, args.rounds))
        console.print(compare_loaders(work, max(1, args.rounds - 2)))


if __name__ == '__main__':
    main()
