"""One writer: a full disk, a limit, a folder that is gone are one sentence, and nothing is left."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from basicsr_effsr.utils.files import WriteError, atomic_path, sweep_parts, write_bytes
from basicsr_effsr.weights.checkpoint import save_atomic


@contextmanager
def limited(size: int):
    """No file may grow beyond ``size`` bytes, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def by_torch(part):
    torch.save({'w': torch.zeros(4096)}, part)


def by_pillow(part):
    from PIL import Image

    Image.frombytes('RGB', (64, 64), os.urandom(64 * 64 * 3)).save(part, format='png')


@pytest.mark.parametrize('write', [lambda part: part.write_bytes(bytes(9000)), by_torch, by_pillow])
def test_a_write_that_fails_names_the_file_and_leaves_what_was_there(tmp_path, write):
    file = tmp_path / 'x.bin'
    write_bytes(file, b'before')
    with pytest.raises(WriteError) as caught, limited(4096), atomic_path(file) as part:
        write(part)
    assert str(file) in str(caught.value)
    assert file.read_bytes() == b'before'
    assert os.listdir(tmp_path) == ['x.bin']


def test_a_checkpoint_that_does_not_fit_on_the_disk(tmp_path):
    with pytest.raises(WriteError, match=r'net\.pth'), limited(4096):
        save_atomic({'w': torch.zeros(4096)}, tmp_path / 'net.pth')
    assert not os.listdir(tmp_path)


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match='source'), atomic_path(tmp_path / 'x') as part:
        part.write_bytes((tmp_path / 'source').read_bytes())
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / 'x'):
        _ = 1 / 0
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_is_swept_by_the_next_and_a_running_one_keeps_its_own(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from basicsr_effsr.utils.files import atomic_path
with atomic_path(Path({str(tmp_path)!r}) / 'x') as part:
    part.write_bytes(b'half')
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, '-c', script], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_path(tmp_path / 'slow') as running:
        assert [p for p in tmp_path.iterdir() if p != running] == []
        another = 'import sys; from pathlib import Path; from basicsr_effsr.utils.files import write_bytes as write; '
        another += 'write(Path(sys.argv[1]), b"y")'
        subprocess.run([sys.executable, '-c', another, str(tmp_path / 'y')], check=True)
        assert sweep_parts(tmp_path) == 0
        running.write_bytes(b'whole')
    assert sorted(os.listdir(tmp_path)) == ['slow', 'y']


def test_a_relative_folder_is_swept_wherever_the_process_works(tmp_path, monkeypatch):
    for place in (tmp_path / 'a', tmp_path / 'b'):
        (place / 'out').mkdir(parents=True)
        (place / 'out' / '.x.12345678.part').write_bytes(b'half')
        monkeypatch.chdir(place)
        write_bytes(Path('out/x'), b'whole')
        assert os.listdir('out') == ['x']


@pytest.mark.skipif(os.geteuid() != 0, reason='mounts a file system')
def test_a_full_disk(tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', disk], check=False).returncode:
        pytest.skip('no right to mount')
    try:
        with pytest.raises(WriteError, match='No space left'):
            save_atomic({'w': torch.zeros(2**16)}, disk / 'net.pth')
        assert not os.listdir(disk)
    finally:
        subprocess.run(['umount', disk], check=True)
