"""Building packs (``data.packs``) in several processes."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from basicsr_effsr.data.packs import PACK_SUFFIX, RECORD, Pack, PackError, end_of_images, header_and_tail, layout
from basicsr_effsr.data.packs import to_planes as planes_of
from basicsr_effsr.utils.files import WriteError, atomic_path, write_bytes
from datasets_prep.files import ImageError, is_one_line, open_store, worker_store
from datasets_prep.jobs import ALONE, Job, Overwrite, Schedule, Summary, build, staging_folder


def make_pack(
    source: Annotated[Path, typer.Argument(help='Folder of images, or an LMDB.')],
    out: Annotated[Path, typer.Argument(help='The pack, ending in .pack.')],
    *,
    overwrite: Overwrite = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Packs images of 8 bits, gray or colour, uncompressed, for PackedPairedImageDataset.

    The pack appears under its name only when every image is in it. With a shard i/n it is called
    <stem>-<i>-of-<n>.pack and holds every n-th image; the data set reads a folder of such packs as one.
    """
    if out.suffix != PACK_SUFFIX:
        raise ValueError(f'pack: the output must end in {PACK_SUFFIX}, got {out.name!r}')
    if source.suffix == PACK_SUFFIX:
        raise ValueError(f'pack: {source}: is a pack already; give a folder of images or an LMDB')
    if out.is_dir():
        raise ValueError(f'pack: {out}: is a folder, a pack is a file; choose another name')
    store = open_store(source)
    worker_store.cache_clear()
    names, (index, count) = schedule.mine(store.names), schedule.shard
    if not names:
        raise ValueError(f'pack: {source} holds no image for shard {index}/{count}')
    if count > 1:
        out = out.with_name(f'{out.stem}-{index:0{len(str(count))}d}-of-{count}{PACK_SUFFIX}')

    shapes, bad = [], {}
    for name in names:
        try:
            if not is_one_line(name):
                raise ImageError('its name must be one line in UTF-8, as a pack lists names line by line; rename it')
            shapes.append(store.shape(name))
            if shapes[-1][2] not in (1, 3):
                raise ImageError(f'a pack holds gray or colour images, got {shapes[-1][2]} channels; drop alpha')
        except ValueError as error:
            bad[store.where(name)] = str(error).removeprefix(f'{store.where(name)}: ')
    if bad:
        return Summary('pack', failed=bad, notes=['pack: nothing was written'])
    records = layout(shapes)
    staging = staging_folder(out, os.path.realpath(source), names, shapes)
    staged = [staging / f'{i}.planes' for i in range(len(names))]
    jobs = [
        Job(store.where(name), partial(_stage, source, name, shape, target), (store.file(name),), (target,))
        for name, shape, target in zip(names, shapes, staged, strict=True)
    ]
    return build(
        'pack',
        out,
        staging,
        jobs,
        lambda: _put_together(staging / 'ready', staged, records, names),
        lambda changed: _is_whole(out, names, records, changed),
        replace(schedule, shard=(1, 1)),
        overwrite=overwrite,
    )


def _is_whole(out: Path, names: list[str], records: np.ndarray, changed: int) -> bool:
    try:
        pack = Pack(out)
    except (OSError, PackError):
        return False
    same = all(np.array_equal(pack.records[field], records[field]) for field in RECORD.names[:4])  # type: ignore[index]
    return pack.names == names and same and out.stat().st_mtime_ns >= changed


def _stage(source: Path, name: str, shape: tuple[int, int, int], target: Path) -> None:
    store = worker_store(source)
    img = store.read(name)
    if img.dtype != np.uint8:
        raise ImageError(f'{store.where(name)}: a pack holds 8 bit images, got {img.dtype}; convert it')
    planes = planes_of(img)
    if planes.shape != (shape[2], *shape[:2]):
        raise ImageError(f'{store.where(name)}: the pixels {planes.shape} contradict the header {shape}')
    write_bytes(target, planes.data)


def _put_together(ready: Path, staged: list[Path], records: np.ndarray, names: list[str]) -> Path:
    with atomic_path(ready, sync=True) as part, part.open('wb') as file:
        for i, (planes, record) in enumerate(zip(staged, records, strict=True)):
            data = planes.read_bytes()
            if len(data) != int(record['height']) * int(record['width']) * int(record['channels']):
                planes.unlink()
                raise WriteError(f'{planes}: is cut off, as after a loss of power; run the same command again')
            records['crc32'][i] = zlib.crc32(data)
            file.seek(int(record['offset']))
            file.write(data)
        header, tail = header_and_tail(records, names)
        file.seek(end_of_images(records))
        file.write(tail)
        file.seek(0)
        file.write(header)
    return ready
