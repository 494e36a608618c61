"""What BasicSR reads beside folders: meta-info files, one line ``name.png (h,w,c)`` per image, and LMDBs.

An LMDB is ``data.mdb``, ``lock.mdb`` and ``meta_info.txt`` in a folder ``*.lmdb``. The keys are the file names without
suffix, the values PNG files. BasicSR cuts its keys at the first dot, so names with a dot are refused.
"""

from __future__ import annotations

import os
import secrets
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import folder_order
from basicsr_effsr.utils.files import WriteError, atomic_path, read_regular, read_text, write_bytes
from datasets_prep.files import (
    Compression,
    image_shape,
    is_one_line,
    list_images,
    read_image,
    refuse_image_name,
    write_png,
)
from datasets_prep.jobs import ALONE, Job, Overwrite, Schedule, Summary, build, run_jobs, staging_folder

_FILES = ('data.mdb', 'lock.mdb', 'meta_info.txt')
_PAGE = 4096
_COMMIT_EVERY = 500  # images; keeps the memory of a transaction below a few hundred MB


def make_lmdb(
    folder: Annotated[Path, typer.Argument(help='Folder of (sub-)images.')],
    out: Annotated[Path, typer.Argument(help='The LMDB, ending in .lmdb.')],
    *,
    compression: Compression = 1,
    strip: Annotated[
        str, typer.Option(help='Suffix dropped from the keys, so that HR and LR agree: x4 of DIV2K.')
    ] = '',
    overwrite: Overwrite = False,
    schedule: Schedule = ALONE,
) -> Summary:
    """Builds an LMDB in BasicSR's format.

    With shards, several machines that share the disk encode; the run that finds all encoded puts them into the LMDB in
    the order of their names, so that equal images give an equal file.
    """
    if out.suffix != '.lmdb':
        raise ValueError(f'lmdb: the output must end in .lmdb, got {out.name!r}')
    files = _by_key(folder, strip)
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - {*_FILES})):  # it will be replaced
        raise ValueError(f'{out}: holds {others[0]!r}, so it is not an LMDB to be replaced; choose another name')
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out}: is a file, an LMDB of BasicSR is a folder; choose another name')
    staging = staging_folder(out, os.path.realpath(folder), list(files), compression, strip)
    staged = {key: staging / f'{key}.png' for key in files}
    jobs = [
        Job(str(f), partial(_encode, f, staged[key], compression), (f,), (staged[key],)) for key, f in files.items()
    ]
    return build(
        'lmdb',
        out,
        staging,
        jobs,
        lambda: _put_together(staging / secrets.token_hex(4), staged, compression),
        lambda changed: _is_whole(out, list(files), compression, changed),
        schedule,
        overwrite=overwrite,
    )


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
    return {key: files[key] for key in sorted(files, key=folder_order)}


def _is_whole(out: Path, keys: list[str], compression: int, changed: int) -> bool:
    try:
        names = lmdbs.shapes(out)
        levels = {line.rsplit(' ', 1)[1] for line in read_text(out / 'meta_info.txt').splitlines()}
        fresh = (out / 'data.mdb').stat().st_mtime_ns >= changed
    except (OSError, ValueError):
        return False
    return fresh and sorted(names) == sorted(keys) and levels == {str(compression)}


def _encode(source: Path, target: Path, compression: int) -> None:
    write_png(target, read_image(source), compression=compression)


def _put_together(ready: Path, staged: dict[str, Path], compression: int) -> Path:
    import lmdb

    pages = sum(file.stat().st_size // _PAGE + 2 for file in staged.values())
    lines = []
    with atomic_path(ready / 'data.mdb') as part:
        try:
            # twice the pages of one transaction are in use while it commits
            env = lmdb.open(str(part), subdir=False, lock=False, map_size=(pages * 5 // 4 + 4096) * _PAGE)
            with env:
                for begin in range(0, len(staged), _COMMIT_EVERY):
                    with env.begin(write=True) as transaction:
                        for key, file in islice(staged.items(), begin, begin + _COMMIT_EVERY):
                            transaction.put(key.encode('ascii'), file.read_bytes())
                            height, width, channels = image_shape(file)
                            lines.append(f'{key}.png ({height},{width},{channels}) {compression}\n')
                env.sync(True)
        except lmdb.Error as error:
            raise WriteError(f'{ready / "data.mdb"}: cannot be written ({error}); free some space there') from error
    write_bytes(ready / 'lock.mdb', b'')  # LMDB fills it when opened; it would hold our process ids
    write_bytes(ready / 'meta_info.txt', ''.join(lines).encode())
    return ready


def make_meta_info(
    folder: Annotated[Path, typer.Argument(help='Folder of HR (sub-)images.')],
    out: Annotated[Path, typer.Argument(help='The text file.')],
    *,
    schedule: Schedule = ALONE,
) -> Summary:
    """Writes BasicSR's meta_info_file: the name and shape of every image, from its header.

    Nothing is written when an image cannot be read.
    """
    if schedule.shard != (1, 1):
        raise ValueError('meta-info: writes one small file from headers only; run it without --shard')
    refuse_image_name('meta-info', out)
    files = list_images(folder)
    for file in files:
        if not is_one_line(file.name) or file.name.split(' ')[0] != file.name:
            raise ValueError(
                f'meta-info: {file}: its name must be one word in UTF-8, as BasicSR reads up to the first space; '
                'rename it, or train without meta_info_file'
            )
    summary = run_jobs('meta-info', [Job(str(file), partial(image_shape, file)) for file in files], schedule)
    if schedule.dry_run or summary.exit_code:
        return summary
    lines = []
    for file in files:
        height, width, channels = summary.results[str(file)]
        lines.append(f'{file.name} ({height},{width},{channels})\n')
    text = ''.join(lines).encode()
    if not out.is_file() or read_regular(out) != text:
        write_bytes(out, text)
    return summary
