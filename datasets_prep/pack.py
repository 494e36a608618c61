"""Building packs (``data.packs``) in several processes, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basicsr_effsr.data.packs import PACK_SUFFIX, RECORD, Pack, PackError, end_of_images, header_and_tail, layout
from basicsr_effsr.data.packs import to_planes as planes_of
from datasets_prep.files import BusyError, ImageError, alone, is_one_line, newest
from datasets_prep.jobs import Job, Plan, Summary, run_jobs
from datasets_prep.stores import Store, open_store, worker_store


@dataclass(frozen=True)
class _Task:
    source: Path
    name: str
    shape: tuple[int, int, int]
    building: Path
    offset: int


def shard_path(out: Path, shard: tuple[int, int]) -> Path:
    """``DIV2K.pack`` -> ``DIV2K-02-of-04.pack`` for shard (2, 4)."""
    index, count = shard
    digits = len(str(count))
    return out if count == 1 else out.with_name(f'{out.stem}-{index:0{digits}d}-of-{count}{PACK_SUFFIX}')


def make_pack(source: Path, out: Path, *, overwrite: bool = False, plan: Plan | None = None) -> Summary:
    """Writes the images of a folder or an LMDB into one pack.

    The pack appears under its name only when every image is in it. Until then the work lies in two hidden
    files beside it, from which an interrupted run goes on; what they hold is checked before it is trusted.

    Args:
        source: folder of images, or ``.lmdb`` folder; 8 bit, gray or colour, without alpha.
        out: the file, ending in ``.pack``. With a shard i/n the file is ``<stem>-<i>-of-<n>.pack`` and holds
            every n-th image; the data set reads a folder of such packs as one.
        overwrite: make the pack again although it is there.
        plan: workers, shard, dry run, progress.

    Returns:
        What became of each image.

    Raises:
        ValueError: when ``out`` has another ending, the source is empty or not readable as what it seems.
        FileNotFoundError: when the source does not exist.
    """
    plan = plan or Plan()
    if out.suffix != PACK_SUFFIX:
        raise ValueError(f'pack: the output must end in {PACK_SUFFIX}, got {out.name!r}')
    if source.suffix == PACK_SUFFIX:
        raise ValueError(f'pack: {source}: is a pack already; give a folder of images or an LMDB')
    if out.is_dir():
        raise ValueError(f'pack: {out}: is a folder, a pack is a file; choose another name')
    store = open_store(source)
    worker_store.cache_clear()
    names = plan.mine(store.names)
    if not names:
        raise ValueError(f'pack: {source} holds no image for shard {plan.shard[0]}/{plan.shard[1]}; check the folder')
    out = shard_path(out, plan.shard)
    plan = Plan(plan.workers, (1, 1), plan.dry_run, plan.progress)

    shapes, bad = [], {}
    for name in names:
        try:
            shapes.append(_checked_shape(store, name))
        except ValueError as error:
            bad[store.where(name)] = str(error).removeprefix(f'{store.where(name)}: ')
    if bad:
        return Summary('pack', failed=bad, notes=['pack: nothing was written'])
    records = layout(shapes)
    stamps = [_stamp(store, name) for name in names]
    building, journal, lock = (out.with_name(f'.{out.name}.{end}') for end in ('building', 'journal', 'lock'))
    if not overwrite and _is_whole(out, names, records, newest(stamps)):
        if not plan.dry_run:
            with suppress(BusyError), alone(lock, out):
                journal.unlink(missing_ok=True)  # of a run killed in its last moment
        return Summary('pack', skipped=len(names))

    jobs = [
        Job(store.where(name), _Task(source, name, shape, building, int(record['offset'])))
        for name, shape, record in zip(names, shapes, records, strict=True)
    ]
    if plan.dry_run:
        return run_jobs('pack', jobs, _store_one, plan)

    out.parent.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps([str(source), names, shapes]).encode()).hexdigest()
    with alone(lock, out):
        if not overwrite and _is_whole(out, names, records, newest(stamps)):  # by a run that ended meanwhile
            journal.unlink(missing_ok=True)
            return Summary('pack', skipped=len(names))
        crcs = {} if overwrite else _resume(building, journal, key, records, stamps)
        if not crcs:
            building.write_bytes(b'')
            journal.write_text(key + '\n', encoding='utf-8')
        os.truncate(building, end_of_images(records))
        index = {job.name: i for i, job in enumerate(jobs)}
        with journal.open('a', encoding='utf-8') as log:

            def note(job: Job, crc: int) -> None:
                i = index[job.name]
                log.write(f'{i} {crc} {stamps[i]}\n')
                log.flush()
                crcs[i] = crc

            summary = run_jobs(
                'pack', jobs, _store_one, plan, is_done=lambda job: index[job.name] in crcs, on_result=note
            )
        if summary.exit_code == 0:
            records['crc32'] = [crcs[i] for i in range(len(jobs))]
            _finish(building, out, records, names)
            journal.unlink()
    return summary


def _checked_shape(store: Store, name: str) -> tuple[int, int, int]:
    if not is_one_line(name):
        raise ImageError(
            f'{store.where(name)}: its name must be one line in UTF-8, as a pack lists names line by line; rename it'
        )
    shape = store.shape(name)
    if shape[2] not in (1, 3):
        raise ImageError(
            f'{store.where(name)}: a pack holds gray or colour images, got {shape[2]} channels; drop alpha'
        )
    return shape


def _stamp(store: Store, name: str) -> int:
    files = getattr(store, 'files', None)
    return (files[name] if files else store.path / 'data.mdb').stat().st_mtime_ns


def _is_whole(out: Path, names: list[str], records: np.ndarray, changed: int) -> bool:
    try:
        pack = Pack(out)
    except (FileNotFoundError, PackError):
        return False
    same = all(np.array_equal(pack.records[field], records[field]) for field in RECORD.names[:4])  # type: ignore[index]
    return pack.names == names and same and out.stat().st_mtime_ns >= changed


def _resume(building: Path, journal: Path, key: str, records: np.ndarray, stamps: list[int]) -> dict[int, int]:
    """Position and CRC of the images that an earlier run has stored, if intact and not changed since."""
    if not (building.is_file() and journal.is_file()):
        return {}
    lines = journal.read_text(encoding='utf-8').split('\n')
    if lines[0] != key:
        return {}
    crcs = {}
    with building.open('rb') as file:
        for line in lines[1:-1]:  # what follows the last line end was cut off
            position, crc, stamp = (int(word) for word in line.split())
            if stamp != stamps[position]:
                continue
            record = records[position]
            file.seek(int(record['offset']))
            data = file.read(int(record['height']) * int(record['width']) * int(record['channels']))
            if zlib.crc32(data) == crc:
                crcs[position] = crc
    return crcs


def _store_one(task: _Task) -> int:
    store = worker_store(task.source)
    img = store.read(task.name)
    if img.dtype != np.uint8:
        raise ImageError(f'{store.where(task.name)}: a pack holds 8 bit images, got {img.dtype}; convert it')
    planes = planes_of(img)
    height, width, channels = task.shape
    if planes.shape != (channels, height, width):
        raise ImageError(f'{store.where(task.name)}: the pixels {planes.shape} contradict the header {task.shape}')
    with task.building.open('r+b') as file:
        file.seek(task.offset)
        file.write(planes.data)
    return zlib.crc32(planes.data)


def _finish(building: Path, out: Path, records: np.ndarray, names: list[str]) -> None:
    header, tail = header_and_tail(records, names)
    with building.open('r+b') as file:
        file.write(header)
        file.seek(end_of_images(records))
        file.write(tail)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, out)
