"""LMDBs and packs that are cut, lie, or change under their reader: an error, where the system would end the process."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from typer.testing import CliRunner

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import Pack, PackError, layout
from basicsr_effsr.data.pairs import list_pairs
from datasets_prep.cli import app
from datasets_prep.files import write_png
from datasets_prep.lmdb_maker import make_lmdb
from datasets_prep.pack import make_pack


@pytest.fixture
def root(tmp_path):
    """Eight pairs at x2 as folders, LMDBs and packs, of some 30 pages each."""
    for kind, side in (('HR', 96), ('LR', 48)):
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_png(tmp_path / kind / f'{i}.png', pixels)
        make_lmdb(tmp_path / kind, tmp_path / f'{kind}.lmdb')
        make_pack(tmp_path / kind, tmp_path / f'{kind}.pack')
    return tmp_path


def pages_lost(data: bytes) -> dict[str, bytes]:
    """Contents of a file that was not written to its end, or never."""
    cut = {f'{part} of 4': data[: len(data) * part // 4] for part in (0, 1, 2, 3)}
    return cut | {'last byte': data[:-1], 'random': os.urandom(len(data)), 'zeros': bytes(len(data))}


CASES = ['0 of 4', '1 of 4', '2 of 4', '3 of 4', 'last byte', 'random', 'zeros']


@pytest.mark.parametrize('case', CASES)
def test_a_damaged_lmdb_is_refused_before_it_is_mapped(root, case):
    file = root / 'HR.lmdb' / 'data.mdb'
    file.write_bytes(pages_lost(file.read_bytes())[case])
    with pytest.raises(ValueError, match=r'data\.mdb'):
        lmdbs.get(root / 'HR.lmdb', '0')
    data = {'type': 'EffSRPairedDataset', 'io_backend': {'type': 'lmdb'}}
    data |= {'dataroot_gt': root / 'HR.lmdb', 'dataroot_lq': root / 'LR.lmdb'}
    with pytest.raises(ValueError, match=r'^datasets\.val\.dataroot_gt: .*data\.mdb'):
        list_pairs('datasets.val', data)
    done = CliRunner().invoke(app, ['verify', str(root / 'HR.lmdb'), str(root / 'LR.lmdb')])
    assert done.exit_code == 2
    assert 'data.mdb' in done.output


def mutants(data: bytes, page: int = 4096) -> Iterator[bytes]:
    """LMDBs of the right length one page of whose tree is garbage."""
    kinds = [struct.unpack_from('<H', data, at + 10)[0] for at in range(0, len(data), page)]
    tree = [i for i, kind in enumerate(kinds) if i > 1 and kind in (1, 2)]
    assert {kinds[i] for i in tree} == {1, 2}, 'branches and leaves'
    draw = random.Random(0)
    for number in range(150):
        at = page * draw.choice(tree)
        good = bytearray(data[at : at + page])
        if number % 3 == 0:
            good[:] = draw.choice([draw.randbytes(page), bytes(page), data[page * draw.choice(tree) :][:page]])
        for _ in range(number % 3):  # a pointer, or the head of a node
            where = draw.choice([8, 10, 12, 14, 16 + 2 * draw.randrange(20), struct.unpack_from('<H', good, 16)[0]])
            good[where] = draw.randrange(256)
        yield data[:at] + good + data[at + page :]


def test_garbage_inside_an_lmdb_is_an_error_or_harmless(tmp_path):
    keys = [f'{i:0101d}' for i in range(200)]
    with lmdb.open(str(tmp_path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i, key in enumerate(keys):
            transaction.put(key.encode(), bytes(3000 if i % 2 else 50))
    data, child = (tmp_path / 'data.mdb').read_bytes(), os.fork()
    if child == 0:
        refused = 0
        try:
            for i, mutant in enumerate(mutants(data)):
                (tmp_path / str(i)).mkdir()
                (tmp_path / str(i) / 'data.mdb').write_bytes(mutant)
                try:
                    [lmdbs.get(tmp_path / str(i), key) for key in keys]
                except ValueError:
                    refused += 1
        finally:
            os._exit(0 if refused > 100 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, 'a signal has ended the process, or all was taken'


READING = """
import os, sys
from pathlib import Path
from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import Pack
form, path, way = sys.argv[1:]
file = Path(path, 'data.mdb') if form == 'lmdb' else Path(path)
read = (lambda i: lmdbs.get(path, str(i))) if form == 'lmdb' else Pack(path).image
assert len(read(0))
if way == 'cut':
    os.truncate(file, file.stat().st_size // 8)
else:
    with open(file, 'r+b') as stream:
        stream.truncate(5000)
        stream.write(b'other')
try:
    print([len(read(i).tobytes() if form == 'pack' else read(i)) for i in range(8)])
except ValueError as error:
    print('refused', error)
"""


@pytest.mark.parametrize('form', ['lmdb', 'pack'])
@pytest.mark.parametrize('way', ['cut', 'overwritten'])
def test_a_file_that_changes_under_its_reader_is_an_error_at_the_next_read(root, form, way):
    done = subprocess.run(
        [sys.executable, '-c', READING, form, str(root / f'HR.{form}'), way],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('refused')
    assert str(root / f'HR.{form}') in done.stdout


def rewritten(data: bytes, change) -> bytes:
    """A pack whose index was changed, with the checksum that belongs to it."""
    head = list(struct.unpack('<8sIIQQQQI12x', data[:64]))
    tail = bytearray(data[head[4] :])
    change(np.frombuffer(tail, layout([(1, 1, 1)]).dtype, head[3]))
    head[7] = zlib.crc32(tail)
    return struct.pack('<8sIIQQQQI12x', *head) + data[64 : head[4]] + tail


@pytest.mark.parametrize(
    ('field', 'value'),
    [('offset', 2**63), ('offset', 0), ('height', 2**32 - 1), ('width', 0), ('channels', 4), ('channels', 2**32 - 1)],
)
def test_records_that_lead_out_of_a_pack_are_refused_whatever_the_checksum(root, field, value):
    def change(records):
        records[field][3] = value

    (root / 'HR.pack').write_bytes(rewritten((root / 'HR.pack').read_bytes(), change))
    with pytest.raises(PackError, match=r'HR\.pack'):
        Pack(root / 'HR.pack')


def test_names_that_are_fewer_than_the_records_are_refused(root):
    data = (root / 'HR.pack').read_bytes()
    head = list(struct.unpack('<8sIIQQQQI12x', data[:64]))
    tail = data[head[4] : -2]
    head[6], head[7] = head[6] - 2, zlib.crc32(tail)
    (root / 'HR.pack').write_bytes(struct.pack('<8sIIQQQQI12x', *head) + data[64 : head[4]] + tail)
    with pytest.raises(PackError, match=r'HR\.pack'):
        Pack(Path(root / 'HR.pack'))
