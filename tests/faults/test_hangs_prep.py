"""No data preparation command waits for what never comes: a pipe, a device, a socket, a folder named like a file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from host import run

from datasets_prep.files import write_png
from datasets_prep.lmdb_maker import make_lmdb

pytestmark = pytest.mark.slow

WORDS = [  # {p} stands for the odd path, {d} for a folder of good images, {m} for one with the odd path as an image
    'lr {p} out', 'lr {d} {p}', 'lr {d} out --hr-out {p}', 'lr {m} out --hr-out hr', 'subimages {p} out',
    'subimages {d} {p} --crop 8 --step 8', 'subimages {m} out --crop 8 --step 8', 'meta-info {p} out',
    'meta-info {m} out', 'lmdb {p} out.lmdb', 'lmdb {m} out.lmdb', 'pack {p} out.pack', 'pack {m} out.pack',
    'pack {p}.pack out.pack', 'pack {p}.lmdb out.pack', 'verify {p}', 'verify {m}', 'verify {d} {m}',
    'verify {p}.pack', 'verify {p}.lmdb', 'verify odd.lmdb', 'verify {d} odd.lmdb', 'sample {p}',
    'download --sources {p}', 'download Set5 --root {p}', 'download LSDIR --root out --archives {p}',
    'download Manga109 --root out --archives {m}',
]  # fmt: skip
KINDS: dict[str, Callable[[Path], None]] = {
    'pipe': os.mkfifo,
    'device': lambda path: path.symlink_to('/dev/zero'),
    'socket': lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    'folder': Path.mkdir,
    'link to itself': lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_command_ends_at_once_where_its_path_is_a(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket has a short name
    good, mixed, odd = tmp_path / 'good', tmp_path / 'mixed', tmp_path / 'odd.lmdb'
    for folder in (good, mixed):
        write_png(folder / 'a.png', np.zeros((24, 24, 3), np.uint8))
    make_lmdb(good, odd)
    (odd / 'data.mdb').unlink()
    for path in (Path('mixed/b.png'), Path('mixed/Manga109.zip'), Path('odd.lmdb/data.mdb')):
        KINDS[kind](path)
    for suffix in ('', '.pack', '.lmdb'):
        KINDS[kind](Path(f'p{suffix}'))
    script = 'from datasets_prep.cli import app\n'
    for i, words in enumerate(WORDS):
        line = words.format(p=tmp_path / 'p', d=good, m=mixed).replace(' out', f' {tmp_path}/{i}').split()
        workers = [] if line[0] in ('meta-info', 'sample', 'download') else ['-j', '0']
        script += f'print("begin", {words!r}, app({line + workers!r}, standalone_mode=False), flush=True)\n'
    done = run('-c', script, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert 'Traceback' not in said
    assert 'a fault of this program' not in said
    ended = [line for line in done.stdout.splitlines() if line.startswith('begin')]
    assert len(ended) == len(WORDS)
    codes = {words: int(line.rpartition(' ')[2]) for words, line in zip(WORDS, ended, strict=True)}
    assert kind == 'folder' or not [words for words, code in codes.items() if code == 0]
