"""Every data preparation command, killed at random moments, ends with the data set of an undisturbed run.

At length: make faults, or pytest tests/faults/test_kill_prep.py --kills 20.

After every kill no process of the run may be alive, and every visible file must be whole. When a run comes to its end
before it is killed, the data set is compared, removed, and begun again. In the end it must be equal to that of the
undisturbed run in every byte of every file, hidden ones included. The commands with ``+overwrite`` begin with a data
set of other settings.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from host import HANGS

from basicsr_effsr.imaging.bicubic import imresize
from datasets_prep.files import write_png

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OTHERWISE = {'lr': ['--modulus', 24], 'subimages': ['--crop', 144, '--step', 96], 'lmdb': ['--compression', 3]}
COMMANDS = ('lr', 'subimages', 'meta-info', 'lmdb', 'pack', 'verify', 'sample', 'download')
REFUSED = 2


def command_line(command: str, images: Path, out: Path, *more: object) -> list[str]:
    """The command under test, reading ``images`` (for download a table beside it) and writing below ``out``."""
    words = {
        'lr': [images, out / 'LR', '--hr-out', out / 'HR', '-j', 2],
        'subimages': [images, out / 'sub', '--crop', 96, '--step', 48, '-j', 2],
        'meta-info': [images, out / 'meta.txt'],
        'lmdb': [images, out / 'images.lmdb', '-j', 2],
        'pack': [images, out / 'images.pack', '-j', 2],
        'verify': [images, '-j', 2, '--report', out / 'report.json'],
        'sample': [out / 'sample', '--pack'],
        'download': ['Mini', '--root', out, '--sources', images.parent / 'sources.json'],
    }[command]
    return [sys.executable, '-m', 'datasets_prep', command, *map(str, (*words, *more))]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def alive(group: int) -> bool:
    """Whether a process of the group is still running."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope='module')
def images(tmp_path_factory, kills):
    """Smooth noise, so that files have the size of photographs; and a slow server of an archive of them."""
    root = tmp_path_factory.mktemp('kill')
    with zipfile.ZipFile(root / 'mini.zip', 'w') as archive:
        for i in range(6 if kills < 5 else 30):
            small = np.random.default_rng(i).integers(0, 256, (25, 33, 3), dtype=np.uint8)
            write_png(root / 'images' / f'{i:04d}.png', imresize(small, size=(201, 202)))  # no multiple of 12
            archive.write(root / 'images' / f'{i:04d}.png', f'HR/{i:04d}.png')
    data = (root / 'mini.zip').read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            begin = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').rstrip('-'))
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header('Content-Range', f'bytes {begin}-{len(data) - 1}/{len(data)}')
            self.send_header('Content-Length', str(len(data) - begin))
            self.send_header('ETag', '"1"')
            self.end_headers()
            step = len(data) // 100 + 1
            for at in range(begin, len(data), step):
                try:
                    self.wfile.write(data[at : at + step])
                except OSError:  # the client was killed
                    return
                time.sleep(0.01)

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/mini.zip'
    file = {'url': url, 'size': len(data), 'into': 'Mini', 'folder': 'HR', 'images': len(os.listdir(root / 'images'))}
    (root / 'sources.json').write_text(json.dumps({'sets': {'Mini': {'files': [file]}}}))
    yield root / 'images'
    server.shutdown()


def kill(process: subprocess.Popen, rng: random.Random) -> None:
    """Sends one signal, or two in a row, and waits until nothing of the run is alive."""
    for _ in range(rng.choice((1, 2))):
        process.send_signal(rng.choice(SIGNALS))
        time.sleep(rng.choice((0, 0.01)))
    process.wait(timeout=HANGS)
    deadline = time.monotonic() + HANGS
    while alive(process.pid):
        assert time.monotonic() < deadline, 'processes outlive their parent'
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize('command', [*COMMANDS, *(f'{name}+overwrite' for name in OTHERWISE)])
def test_a_killed_command_ends_with_the_same_bytes(command, images, tmp_path, kills):
    rng = random.Random(command)
    command, _, word = command.partition('+')
    expected_at, out, old_at = (tmp_path / name for name in ('expected', 'killed', 'old'))
    line = command_line(command, images, out, *(OTHERWISE[command] if word else ()))
    begin = time.monotonic()
    subprocess.run([w.replace(str(out), str(expected_at)) for w in line], check=True, capture_output=True)
    duration = time.monotonic() - begin
    expected = tree(expected_at)
    old_at.mkdir()
    if word:
        subprocess.run(command_line(command, images, old_at), check=True, capture_output=True)
    old, archive = tree(old_at), (images.parent / 'mini.zip').read_bytes()  # which is there until it is unpacked
    shutil.copytree(old_at, out)

    def end(words: list[str]) -> int:
        """Runs to the end; settings of before are refused without the word."""
        code = subprocess.run(words, capture_output=True).returncode
        return (
            subprocess.run([*words, '--overwrite'], capture_output=True).returncode
            if word and code == REFUSED
            else code
        )

    killed = 0
    while killed < kills:
        again = ['--overwrite'] if word and (tree(out) == old or rng.random() < 0.3) else []
        process = subprocess.Popen(
            [*line, *again], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(timeout=rng.uniform(0.1, 1.0) * duration)
        except subprocess.TimeoutExpired:
            kill(process, rng)
            killed += 1
            for name, data in tree(out).items():
                hidden = any(part.startswith('.') for part in Path(name).parts)
                whole = (expected.get(name), old.get(name), archive)
                assert hidden or data in whole, f'{name} is not whole after a kill'
            continue
        if not (word and not again and code == REFUSED):
            duration *= 0.9  # the machine may have become quicker
            assert code == 0
            assert tree(out) == expected, 'a completed run differs'
            shutil.rmtree(out)
            shutil.copytree(old_at, out)
    assert end(line) == 0
    found = tree(out)
    assert sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)) == []
