"""``effsr infer`` killed at random moments, also two in a row: in the end the files of an undisturbed run only."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from files import picture, whole

from basicsr_effsr.archs.hasn_arch import HASN

COMMAND = [sys.executable, '-m', 'basicsr_effsr.cli', *'infer in --weights net.pth --out out --device cpu'.split()]


def infer(cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        COMMAND, cwd=cwd, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_infer_is_taken_up_again_to_the_same_bytes(tmp_path, number, kills):
    (tmp_path / 'in').mkdir()
    for i, kind in enumerate(['png', 'jpg', 'tif deflate', 'png16', 'webp'] * 4):
        (tmp_path / 'in' / f'{i:02d}.{kind[:3]}').write_bytes(whole(kind, picture(60 + i, 80)))
    torch.manual_seed(0)
    torch.save({'params': HASN(num_feat=8, num_block=1, esa_channels=4, upscale=2).state_dict()}, tmp_path / 'net.pth')
    start = time.monotonic()
    assert infer(tmp_path).wait() == 0
    whole_run = time.monotonic() - start
    expected = files_below(tmp_path / 'out')
    draw = random.Random(int(number))
    for _ in range(kills):
        for file in (tmp_path / 'out').iterdir():
            file.unlink()
        for _ in range(draw.choice([1, 2])):
            running = infer(tmp_path)
            time.sleep(draw.uniform(0.3, 1) * whole_run)
            running.send_signal(number)
            _, said = running.communicate()
            assert b'Traceback' not in said or running.returncode == -number  # before our own code has begun
        for name, content in files_below(tmp_path / 'out').items():
            assert name.endswith('.part') or content == expected[name]
        done = infer(tmp_path)
        assert (done.communicate()[1], done.returncode) == (b'', 0)
        assert files_below(tmp_path / 'out') == expected
