"""What cannot be written stops a command with a sentence that names file and cause, and the next run mends it.

Rows of ``COMMANDS`` are commands that write below a folder; every test runs all of them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from commands import call

from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.utils.download import fetch
from basicsr_effsr.utils.files import WriteError, write_bytes
from datasets_prep.files import write_png

# name -> the words for a folder of inputs and a folder of outputs
COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    'lr': lambda inp, out: ['lr', inp / 'HR', out / 'LR', '--hr-out', out / 'GT', '-j', 1],
    'subimages': lambda inp, out: ['subimages', inp / 'HR', out, '--crop', 96, '--step', 96, '-j', 0],
    'meta-info': lambda inp, out: ['meta-info', inp / 'HR', out / 'meta.txt'],
    'lmdb': lambda inp, out: ['lmdb', inp / 'HR', out / 'HR.lmdb', '-j', 0],
    'pack': lambda inp, out: ['pack', inp / 'HR', out / 'HR.pack', '-j', 0],
    'verify': lambda inp, out: ['verify', inp / 'HR', '--report', out / 'report.json', '-j', 0],
    'download': lambda inp, out: [
        'download',
        'Mini',
        '--root',
        out,
        '--sources',
        inp / 't.json',
        '--archives',
        inp / 'zips',
    ],
}
every_command = pytest.mark.parametrize('name', COMMANDS)
pytestmark = pytest.mark.slow


def limited(most: int) -> None:
    """No file may be larger from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def removing(out: Path, number: int) -> None:
    """From now on the folder ``out`` is removed before the file of that number gets its name."""
    replace, calls = os.replace, []

    def removed(source: Path, target: Path, **options: Any) -> None:
        calls.append(target)
        if len(calls) == number:
            shutil.rmtree(out)
        replace(source, target, **options)

    os.replace = removed


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


class Ended(NamedTuple):
    """How a command has ended."""

    returncode: int | None
    said: str


@pytest.fixture(scope='module')
def inputs(tmp_path_factory) -> Path:
    """Images of some 100 kB each, and an archive of them."""
    folder = tmp_path_factory.mktemp('inputs')
    (folder / 'zips').mkdir()
    with zipfile.ZipFile(folder / 'zips' / 'mini.zip', 'w') as archive:
        for i in range(5):
            small = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            write_png(folder / 'HR' / f'{i}.png', imresize(small, size=(192, 192)))
            archive.write(folder / 'HR' / f'{i}.png', f'HR/{i}.png')
    (folder / 't.json').write_text(json.dumps({'sets': {'Mini': {'manual': 'ask', 'folder': 'HR', 'images': 5}}}))
    return folder


@pytest.fixture(scope='module')
def expected(inputs, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """What a command writes when nothing disturbs it."""

    @cache
    def of(name: str) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp('expected')
        assert start(name, inputs, out).returncode == 0
        return tree(out)

    return of


def start(name: str, inputs: Path, out: Path, before: Callable[[], None] = lambda: None) -> Ended:
    """Runs a command, after ``before``."""
    return Ended(*call(['prepare', *map(str, COMMANDS[name](inputs, out))], inputs, before))


def refused(done: Ended, out: Path) -> None:
    """Asserts that a command ended with a sentence that names a file of ``out``, and has left no half of a file."""
    said = done.said
    assert done.returncode in (1, 2), said
    assert 'Traceback' not in said
    causes = ('cannot be written', 'are free')  # the second of archives, whose size is known before
    assert any(str(out) in line and any(cause in line for cause in causes) for line in said.splitlines()), said
    assert not list(out.rglob('*.part'))


@every_command
@pytest.mark.parametrize('most', [2_000, 150_000])
def test_a_limit_on_the_size_of_files(name, most, inputs, expected, tmp_path):
    whole = expected(name)
    out = tmp_path / 'out'
    out.mkdir()
    done = start(name, inputs, out, partial(limited, most))
    if done.returncode != 0:
        refused(done, out)
        assert start(name, inputs, out).returncode == 0
    else:
        assert max(map(len, whole.values())) <= most
    assert tree(out) == whole


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own, of so many bytes."""
    folder.mkdir()
    words = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    if not shutil.which('mount') or subprocess.run(words, capture_output=True).returncode:
        pytest.skip('this user cannot mount a file system')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(['mount', '-o', f'remount,{option}', str(folder)], check=True)


@every_command
def test_a_full_disk(name, inputs, expected, tmp_path):
    whole = expected(name)
    size = max(4096, int(0.6 * sum(len(data) for data in whole.values())))
    with mounted(tmp_path / 'disk', size):
        done = start(name, inputs, tmp_path / 'disk')
        if done.returncode != 0:
            refused(done, tmp_path / 'disk')
            remount(tmp_path / 'disk', 'size=256m')
            assert start(name, inputs, tmp_path / 'disk').returncode == 0
        assert tree(tmp_path / 'disk') == whole


@every_command
def test_a_read_only_disk(name, inputs, expected, tmp_path):
    whole = expected(name)
    with mounted(tmp_path / 'disk', 2**28):
        remount(tmp_path / 'disk', 'ro')
        refused(start(name, inputs, tmp_path / 'disk'), tmp_path / 'disk')
        remount(tmp_path / 'disk', 'rw')
        assert start(name, inputs, tmp_path / 'disk').returncode == 0
        assert tree(tmp_path / 'disk') == whole
        remount(tmp_path / 'disk', 'ro')
        if name != 'verify':  # which writes its report in any case
            assert start(name, inputs, tmp_path / 'disk').returncode == 0  # there is nothing to be done


@every_command
def test_a_folder_that_is_a_file(name, inputs, expected, tmp_path):
    (tmp_path / 'out').write_text('mine')
    done = start(name, inputs, tmp_path / 'out')
    assert done.returncode == 2 or (name == 'download' and done.returncode == 1)
    assert str(tmp_path / 'out') in done.said
    assert 'Traceback' not in done.said
    assert tree(tmp_path) == {'out': b'mine'}


@every_command
def test_a_folder_that_vanishes(name, inputs, expected, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    done = start(name, inputs, out, partial(removing, out, 1 if len(expected(name)) == 1 else 3))
    said = done.said
    assert 'Traceback' not in said
    if done.returncode != 0:
        assert done.returncode in (1, 2)
        assert str(out) in said or 'is gone' in said
        assert start(name, inputs, out).returncode == 0
    assert tree(out) == expected(name)


def test_a_download_stops_at_once_and_goes_on(tmp_path):
    data, asked = np.random.default_rng(0).bytes(100_000), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            begin = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').rstrip('-'))
            asked.append(begin)
            self.send_response(206 if begin else 200)
            self.send_header('Content-Range', f'bytes {begin}-{len(data) - 1}/{len(data)}')
            self.send_header('Content-Length', str(len(data) - begin))
            self.send_header('ETag', '"1"')
            self.end_headers()
            self.wfile.write(data[begin:])

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/a.zip'
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(WriteError, match=str(tmp_path)):
            fetch(url, tmp_path / 'a.zip')
        with pytest.raises(WriteError, match=str(tmp_path)):
            write_bytes(tmp_path / 'b', data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(url, tmp_path / 'a.zip')
    server.shutdown()
    assert asked == [0, 30_000]
    assert tree(tmp_path) == {'a.zip': data}
