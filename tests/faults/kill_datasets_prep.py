"""Kills every data preparation command at random moments, and demands the data set of an undisturbed run.

Run: python tests/faults/kill_datasets_prep.py --kills 20

After every kill nothing of the killed run may be alive, and every visible file must be whole. When a run comes
to its end before it is killed, the data set is compared, removed, and begun anew. In the end it must be equal to
that of the undisturbed run in every byte of every file, hidden ones included.

The commands with "+overwrite" begin with a data set of other settings: --overwrite is killed, and what follows runs
with or without the word. A run that ends well must have left nothing of the old settings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from basicsr_effsr.imaging.bicubic import imresize
from datasets_prep.files import write_png

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OVERWRITE = '+overwrite'
OTHERWISE = {  # other settings than those of command_line
    'lr': ['--modulus', 24],
    'subimages': ['--crop', 144, '--step', 96],
    'lmdb': ['--compression', 3],
}
COMMANDS = (
    'lr',
    'subimages',
    'meta-info',
    'lmdb',
    'pack',
    'verify',
    'sample',
    'download',
    *(name + OVERWRITE for name in OTHERWISE),
)
HANGS = 1200  # seconds that only a process that hangs takes
REFUSED = 2


def command_line(command: str, images: Path, out: Path) -> list[str]:
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
    }[command.removesuffix(OVERWRITE)]
    if command.endswith(OVERWRITE):
        command = command.removesuffix(OVERWRITE)
        words = [*words, *OTHERWISE[command]]
    return [sys.executable, '-m', 'datasets_prep', command, *map(str, words)]


def make_images(folder: Path, count: int, side: int) -> None:
    """Smooth noise, so that files have the size of photographs; never a multiple of 12."""
    for i in range(count):
        small = np.random.default_rng(i).integers(0, 256, (side // 8, side // 6, 3), dtype=np.uint8)
        write_png(folder / f'{i:04d}.png', imresize(small, size=(side + 1, side + 2)))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def hidden(name: str) -> bool:
    """Whether data sets pass over a file."""
    return any(part.startswith('.') for part in Path(name).parts)


def alive(group: int) -> bool:
    """Whether a process of the group is still running."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def torture(command: str, images: Path, folder: Path, kills: int, rng: random.Random) -> dict[str, float]:
    """Runs and kills one command.

    Raises:
        AssertionError: when a process survives, a visible file is not whole, or the end differs.
    """
    expected_at, out, old_at = (folder / f'{command}-{name}' for name in ('expected', 'killed', 'old'))
    begin = time.monotonic()
    subprocess.run(command_line(command, images, expected_at), check=True, capture_output=True)
    duration = time.monotonic() - begin
    expected = tree(expected_at)
    assert expected, f'{command} wrote nothing'
    remakes = command.endswith(OVERWRITE)
    if remakes:
        line = command_line(command.removesuffix(OVERWRITE), images, old_at)
        subprocess.run(line, check=True, capture_output=True)
        shutil.copytree(old_at, out)
    old = tree(old_at)
    assert not remakes or any(old.get(name) != data for name, data in expected.items()), f'{command}: equal to the old'

    killed = completed = refused = 0
    while killed < kills:
        started = time.monotonic()
        # what was not begun with the word is refused without it
        word = ['--overwrite'] if remakes and (tree(out) == old or rng.random() < 0.5) else []
        process = subprocess.Popen(
            command_line(command, images, out) + word,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            code = process.wait(timeout=rng.uniform(0.1, 1.0) * duration)
            if remakes and not word and code == REFUSED:
                refused += 1
                continue
            duration = min(duration, time.monotonic() - started)  # the machine may have become quicker
            assert code == 0, f'{command}: an undisturbed run ends with {code}'
            assert tree(out) == expected, f'{command}: a completed run differs'
            completed += 1
            shutil.rmtree(out)
            if remakes:
                shutil.copytree(old_at, out)
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice(SIGNALS))
            process.wait(timeout=HANGS)
            killed += 1
        deadline = time.monotonic() + HANGS
        while alive(process.pid):
            assert time.monotonic() < deadline, f'{command}: processes outlive their parent'
            time.sleep(0.01)
        for name, data in tree(out).items() if out.exists() else ():
            assert hidden(name) or data in (expected.get(name), old.get(name)), (
                f'{command}: {name} is not whole after a kill'
            )
    last = subprocess.run(command_line(command, images, out), capture_output=True)
    if remakes and last.returncode == REFUSED:
        last = subprocess.run([*command_line(command, images, out), '--overwrite'], capture_output=True)
    assert last.returncode == 0, f'{command}: the last run ends with {last.returncode}: {last.stderr!r}'
    found = tree(out)
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    assert not differing, f'{command}: differs in {differing}'
    return {
        'kills': killed,
        'completed meanwhile': completed,
        'refused meanwhile': refused,
        'files': len(found),
        'seconds of a run': duration,
    }


def serve(archive: Path, table: Path) -> ThreadingHTTPServer:
    """Serves ``archive`` slowly, with ranges, and writes the table of sources that names it."""
    data = archive.read_bytes()

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
    with zipfile.ZipFile(archive) as z:
        count = len(z.namelist())
    url = f'http://127.0.0.1:{server.server_port}/mini.zip'
    file = {'url': url, 'size': len(data), 'sha256': None, 'into': 'Mini', 'folder': 'HR', 'images': count}
    table.write_text(json.dumps({'sets': {'Mini': {'about': '', 'licence': '', 'files': [file]}}}))
    return server


def prepare(folder: Path, count: int, side: int) -> tuple[Path, ThreadingHTTPServer]:
    """The images that the commands read, and the server that download reads."""
    images = folder / 'images'
    make_images(images, count, side)
    with zipfile.ZipFile(folder / 'mini.zip', 'w') as archive:
        for file in sorted(images.iterdir()):
            archive.write(file, f'HR/{file.name}')
    return images, serve(folder / 'mini.zip', folder / 'sources.json')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='kills per command')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--images', type=int, default=40)
    parser.add_argument('--side', type=int, default=480, help='pixels of an image')
    parser.add_argument('commands', nargs='*', default=COMMANDS, metavar='command')
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        images, server = prepare(Path(name), args.images, args.side)
        for command in args.commands:
            result = torture(command, images, Path(name), args.kills, rng)
            print(f'{command:10}', ', '.join(f'{key} {value:.4g}' for key, value in result.items()), flush=True)
        server.shutdown()
    print('every data set is equal to that of an undisturbed run, byte for byte')


if __name__ == '__main__':
    main()
