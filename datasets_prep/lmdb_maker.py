"""LMDBs in BasicSR's format: ``data.mdb``, ``lock.mdb`` and ``meta_info.txt`` in a folder ``*.lmdb``.

The keys are the file names without suffix, the values PNG files. BasicSR cuts its keys at the first dot,
so names with a dot are refused.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from basicsr_effsr.data.packs import folder_order
from basicsr_effsr.utils.files import sweep_parts, write_bytes
from datasets_prep.files import BusyError, alone, encode_png, image_shape, is_one_line, list_images, newest, read_image
from datasets_prep.jobs import Job, Plan, Summary, claim_folder, run_jobs
from datasets_prep.stores import LMDB_SUFFIX, LmdbStore

_FILES = ('data.mdb', 'lock.mdb', 'meta_info.txt')
_PAGE = 4096
_COMMIT_EVERY = 500  # images; keeps the memory of a transaction below a few hundred MB


@dataclass(frozen=True)
class _Task:
    source: Path
    target: Path
    compression: int


def make_lmdb(
    folder: Path,
    out: Path,
    *,
    compression: int = 1,
    strip: str = '',
    overwrite: bool = False,
    plan: Plan | None = None,
) -> Summary:
    """Writes the images of ``folder`` into the LMDB ``out``.

    The images are encoded in several processes (and, with shards, on several machines that share the disk)
    into a hidden folder beside ``out``; the run without shard, or the one that finds everything encoded,
    then puts them into the LMDB in the order of their names, so that equal images give an equal file. The
    LMDB appears under its name only when it is whole. Until then up to twice its size is needed on the disk.

    Args:
        folder: the images.
        out: the LMDB, ending in ``.lmdb``.
        compression: PNG level, 0 to 9; BasicSR's is 1.
        strip: an ending that is left out of the keys, such as ``x4`` for DIV2K's LR images; HR and LR
            must have the same keys.
        overwrite: make the LMDB again although it is there.
        plan: workers, shard, dry run, progress.

    Returns:
        What became of each image.

    Raises:
        ValueError: for an impossible option or name, an empty folder, or when ``out`` is there and holds
            anything but an LMDB.
        FileNotFoundError: when the folder does not exist.
    """
    plan = plan or Plan()
    if out.suffix != LMDB_SUFFIX or not 0 <= compression <= 9:
        raise ValueError(
            f'lmdb: the output must end in {LMDB_SUFFIX} and compression be 0 to 9, got {out.name!r}, {compression}'
        )
    files = _by_key(folder, strip)
    _refuse_other_content(out)
    changed = newest(file.stat().st_mtime_ns for file in files.values())
    staging, lock = (out.with_name(f'.{out.name}.{end}') for end in ('staging', 'lock'))
    if not overwrite and _is_whole(out, files, compression, changed):
        if not plan.dry_run:
            with suppress(BusyError), alone(lock, out):
                shutil.rmtree(staging, ignore_errors=True)  # a run killed in its last moment leaves it
        return Summary('lmdb', skipped=len(plan.mine(list(files))))

    jobs = []
    for key, file in files.items():
        target = staging / f'{key}.png'
        jobs.append(Job(str(file), _Task(file, target, compression), (file,), (target,)))
    if not plan.dry_run:
        settings = {'compression': compression, 'strip': strip}
        try:
            claim_folder(staging, settings)
        except ValueError:  # left by a run with other options
            shutil.rmtree(staging)
            claim_folder(staging, settings)
        sweep_parts(staging)
    summary = run_jobs('lmdb', jobs, _encode, plan)
    if plan.dry_run or summary.exit_code:
        return summary
    try:
        if all(job.is_done for job in jobs):
            with alone(lock, out):
                if all(job.is_done for job in jobs):  # else another shard was quicker
                    _assemble(out, {key: staging / f'{key}.png' for key in files}, compression)
                    shutil.rmtree(staging)
        elif not _is_whole(out, files, compression, changed):
            summary.notes.append(f'lmdb: {out} follows when the other shards are done: run once more without --shard')
    except BusyError:
        summary.notes.append(f'lmdb: another run is putting {out} together')
    return summary


def _by_key(folder: Path, strip: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in list_images(folder):
        key = file.stem.removesuffix(strip)
        if '.' in key or not key.isascii() or not is_one_line(key):
            raise ValueError(
                f'{file}: its name must be ASCII without dots or line ends, as BasicSR cuts LMDB keys there; rename it'
            )
        if len(key) > 511:
            raise ValueError(f'{file}: its name must have at most 511 characters as an LMDB key, got {len(key)}')
        if key in files:
            raise ValueError(f'{files[key]} and {file} would have the key {key!r}; rename one of them')
        files[key] = file
    if not files:
        raise ValueError(f'lmdb: {folder} holds no image; give the folder of the sub-images')
    return {key: files[key] for key in sorted(files, key=folder_order)}


def _refuse_other_content(out: Path) -> None:
    """What has the name of the LMDB is going to be removed, so it must be nothing else."""
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir() if path.name not in _FILES)
        if others:
            raise ValueError(f'{out}: holds {others[0]!r}, so it is not an LMDB to be replaced; choose another name')
    elif out.exists():
        raise ValueError(f'{out}: is a file, an LMDB of BasicSR is a folder; choose another name')


def _is_whole(out: Path, files: dict[str, Path], compression: int, changed: int) -> bool:
    try:
        store = LmdbStore(out)
    except (FileNotFoundError, ValueError):
        return False
    levels = {line.rsplit(' ', 1)[1] for line in (out / 'meta_info.txt').read_text().splitlines()}
    fresh = (out / 'data.mdb').stat().st_mtime_ns >= changed
    return fresh and store.names == list(files) and levels == {str(compression)}


def _encode(task: _Task) -> None:
    write_bytes(task.target, encode_png(read_image(task.source), compression=task.compression))


def _assemble(out: Path, encoded: dict[str, Path], compression: int) -> None:
    import lmdb

    building = out.with_name(f'.{out.name}.building')
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    pages = sum(file.stat().st_size // _PAGE + 2 for file in encoded.values())
    # twice the pages of one transaction are in use while it commits
    env = lmdb.open(str(building), map_size=(pages * 5 // 4 + 4096) * _PAGE)
    lines = []
    transaction = env.begin(write=True)
    for number, (key, file) in enumerate(encoded.items(), start=1):
        transaction.put(key.encode('ascii'), file.read_bytes())
        height, width, channels = image_shape(file)
        lines.append(f'{key}.png ({height},{width},{channels}) {compression}\n')
        if number % _COMMIT_EVERY == 0:
            transaction.commit()
            transaction = env.begin(write=True)
    transaction.commit()
    env.sync(True)
    env.close()
    (building / 'lock.mdb').write_bytes(b'')  # LMDB fills it anew when opened; it would hold our process ids
    write_bytes(building / 'meta_info.txt', ''.join(lines).encode())
    if out.exists():
        shutil.rmtree(out)
    os.replace(building, out)
