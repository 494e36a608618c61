"""What is no text where one is read: another encoding, zeros, endless files, pipes. A sentence that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.pairs import list_pairs
from basicsr_effsr.options.file import read_option_file
from basicsr_effsr.tools.evaluate_report import Means
from basicsr_effsr.tools.plots import read_report
from basicsr_effsr.utils.files import read_text
from datasets_prep.download import read_sources
from datasets_prep.files import write_png
from datasets_prep.jobs import SETTINGS_FILE
from datasets_prep.lmdb_maker import make_lmdb
from datasets_prep.lr import make_lr

TEXT = 'a.png (8,8,3) 1\nb.png (8,8,3) 1\n'


def sparse(path: Path) -> None:
    with path.open('wb') as file:
        file.truncate(2**40)


STRANGE = {
    'UTF-16': lambda path: path.write_bytes(TEXT.encode('utf-16')),
    'UTF-16 without a mark': lambda path: path.write_bytes(TEXT.encode('utf-16-le')),
    'UTF-32': lambda path: path.write_bytes(TEXT.encode('utf-32-be')),
    'Latin-1': lambda path: path.write_bytes(b'\xe9' + TEXT.encode()),
    'Shift JIS': lambda path: path.write_bytes('画像.png\n'.encode('shift-jis') + TEXT.encode()),
    'zeros': lambda path: path.write_bytes(bytes(1000)),
    'a zero at the end': lambda path: path.write_bytes(TEXT.encode() + b'\0'),
    'a terabyte': sparse,
    'a pipe': os.mkfifo,
    'a device': lambda path: path.symlink_to('/dev/zero'),
    'a folder': Path.mkdir,
    'a link to itself': lambda path: path.symlink_to(path),
}


def pairs(root: Path, kind: str, **more: str) -> None:
    data = {'type': 'EffSRPairedDataset', 'scale': 1, 'io_backend': {'type': kind}}
    roots = {f'dataroot_{key}': str(root / ('a.lmdb' if kind == 'lmdb' else 'a')) for key in ('gt', 'lq')}
    list_pairs('datasets.val', {**data, **roots, **more})


READERS = {
    'an option file': ('a.yml', lambda root: read_option_file(root / 'a.yml')),
    'meta_info_file': ('meta.txt', lambda root: pairs(root, 'disk', meta_info_file=str(root / 'meta.txt'))),
    'meta_info_file, LMDB': ('meta.txt', lambda root: pairs(root, 'lmdb', meta_info_file=str(root / 'meta.txt'))),
    'meta_info.txt': ('a.lmdb/meta_info.txt', lambda root: pairs(root, 'lmdb')),
    'a table of sources': ('sources.json', lambda root: read_sources(root / 'sources.json')),
    'scores': ('report.json', lambda root: Means.read(root / 'report.json')),
    'what plot is given': ('report.json', lambda root: read_report(root / 'report.json')),
    'settings of a folder': (f'out/X2/{SETTINGS_FILE}', lambda root: make_lr(root / 'a', root / 'out', scales=(2,))),
}


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('texts')
    for name in 'ab':
        write_png(root / 'a' / f'{name}.png', np.zeros((8, 8, 3), np.uint8))
    make_lmdb(root / 'a', root / 'a.lmdb')
    (root / 'out' / 'X2').mkdir(parents=True)
    return root


@pytest.mark.parametrize('strange', STRANGE)
@pytest.mark.parametrize('reader', READERS)
def test_what_is_no_text_is_a_sentence_that_names_it(root, reader, strange):
    name, read = READERS[reader]
    file = root / name
    before = file.read_bytes() if file.is_file() else None
    file.unlink(missing_ok=True)
    STRANGE[strange](file)
    try:
        with pytest.raises((ValueError, OSError)) as refused:
            read(root)
    finally:
        file.rmdir() if file.is_dir() else file.unlink()
        if before is not None:
            file.write_bytes(before)
    assert not isinstance(refused.value, UnicodeError)
    shown = str(refused.value)
    assert file.name in shown or str(file.parent) in shown
    assert '\n' not in shown


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (f'\ufeff{TEXT}', 'line 1 '),
        (TEXT.replace(' (', '\t('), 'line 1 '),
        (TEXT + TEXT, 'line 3 .* unique name'),
        (TEXT.replace('8', '8' * 5000), 'line 1 '),
        ('', 'line 1 '),
    ],
    ids=['byte-order mark', 'tabs', 'twice', 'long numbers', 'empty'],
)
def test_a_line_of_an_lmdb_that_it_does_not_have_is_named(root, text, words):
    file = root / 'a.lmdb' / 'meta_info.txt'
    before = file.read_bytes()
    file.write_text(text, encoding='utf-8')
    try:
        with pytest.raises(ValueError, match=words):
            lmdbs.shapes(root / 'a.lmdb')
    finally:
        file.write_bytes(before)


def test_a_text_of_windows_is_read_as_any_other(tmp_path):
    (tmp_path / 'a.txt').write_bytes('ä\r\nb\rc\n'.encode())
    assert read_text(tmp_path / 'a.txt') == 'ä\nb\nc\n'
