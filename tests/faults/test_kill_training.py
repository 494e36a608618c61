"""Trainings that are killed at random moments end, after the same command again, with the bytes of one that was not.

``--kills 20`` kills each kind of training so often; the suite kills twice in all.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import cv2
import pytest
import torch
from basicsr.archs import build_network
from host import HANGS, Command
from runs import TINY_HASN, short_run, write

pytestmark = pytest.mark.slow
KINDS = ('distillation', 'progressive', 'finetune', 'plain')
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COSINE = {'type': 'CosineAnnealingRestartLR', 'periods': [10], 'restart_weights': [1]}


def options(kind: str, photos: Path, folder: Path) -> dict:
    """Ten iterations in epochs of four, a loader process, checkpoints and validations between each other."""
    opt = short_run(photos, TINY_HASN, scale=2, iters=10)
    opt['network_g'] = {'type': 'DPARNTeacher', 'num_feat': 8, 'num_block': 2, 'num_heads': 2, 'num_grow_ch': 4}
    opt['network_g'] |= {'window_size': 4, 'upscale': 2, 'drop_path_rate': 0.5}
    opt['datasets']['train'] |= {'gt_size': 48, 'dataset_enlarge_ratio': 2, 'num_worker_per_gpu': 1}
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    (folder / 'one.txt').write_text('0.png (192,192,3)\n')
    opt['datasets']['val']['meta_info_file'] = str(folder / 'one.txt')
    opt['val'] |= {'val_freq': 3, 'save_img': True}
    other = {**TINY_HASN, 'upscale': 2} if kind == 'distillation' else opt['network_g']
    torch.manual_seed(1)
    torch.save({'params': build_network(dict(other)).state_dict()}, folder / 'other.pth')
    if kind == 'distillation':
        del opt['train']['pixel_opt']
        pairs = {'layers.0': 'block_1', 'layers.1': 'block_1'}
        loss = {'type': 'FAKDLoss', 'adapter': 'conv1x1'}
        opt |= {'model_type': 'DistillationModel', 'network_t': other}
        opt['train'] |= {'distill': {'gamma': 1.0, 'feature_pairs': pairs, 'feature_loss': loss}, 'scheduler': COSINE}
        opt['path']['pretrain_network_t'] = str(folder / 'other.pth')
    elif kind == 'progressive':
        opt['train'] |= {'progressive': {'gt_size': [32, 48], 'iters': [5, 5], 'batch': [2, 1]}, 'warmup_iter': 4}
    elif kind == 'finetune':
        opt['path']['pretrain_network_g'] = str(folder / 'other.pth')
        opt['train'] |= {'losses': {'l_edge': {'type': 'EdgeLoss'}}, 'grad_clip': 0.1}
    return opt


def surprised(stderr: str) -> bool:
    """A traceback other than Python's for Ctrl-C before it is known whether the run is one of ours."""
    ours = 'in _take_over' in stderr or ('in parse_options' not in stderr and 'in train_pipeline' in stderr)
    return 'Traceback' in stderr and (ours or not stderr.rstrip().endswith('KeyboardInterrupt'))


def started(file: str, folder: Path) -> Command:
    folder.mkdir(exist_ok=True)
    return Command('-m', 'basicsr.train', '-opt', file, '--auto_resume', cwd=folder)


def results(folder: Path) -> dict[str, bytes]:
    """All files of the run, its logs apart; images by their pixels' file, whole too."""
    run = folder / 'experiments' / 'short'
    kept = (file for file in run.rglob('*') if file.is_file() and file.suffix not in ('.log', '.yml'))
    return {str(file.relative_to(run)): file.read_bytes() for file in kept}


@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_a_random_moment(kind, photos, tmp_path, kills):
    kills = kills if kills > 2 else int(KINDS.index(kind) < kills)
    if not kills:
        pytest.skip('the suite kills two kinds of training once; --kills 20 kills each so often')
    file = write(options(kind, photos, tmp_path), tmp_path / 'short.yml')
    begun = time.monotonic()
    with started(file, tmp_path / 'straight') as straight:
        done = straight.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    length, expected = time.monotonic() - begun, results(tmp_path / 'straight')
    assert {'models/net_g_latest.pth', 'training_states/10.state', 'training_states/10.effsr'} <= expected.keys()
    draw, signals = random.Random(kind), 0
    for number in range(kills):
        folder = tmp_path / f'killed{number}'
        left = 1 + number % 2  # every second one twice in a row
        while left:
            moment, how, begun = draw.uniform(0, length), draw.choice(SIGNALS), time.monotonic()
            with started(file, folder) as run:
                try:
                    done = run.wait(moment)
                except subprocess.TimeoutExpired:
                    with suppress(ProcessLookupError):
                        run.send_signal(how)
                    killed = run.wait(HANGS)
                    assert not surprised(killed.stderr), killed.stderr[-3000:]
                    left, signals = left - 1, signals + 1
                    continue
            assert done.returncode == 0, done.stderr[-3000:]  # the machine has become quicker
            if left == 1 + number % 2:
                length = min(length, time.monotonic() - begun)
            shutil.rmtree(folder)
            left = 1 + number % 2
        with started(file, folder) as run:
            done = run.wait()
        assert done.returncode == 0, done.stderr[-3000:]
        found = results(folder)  # and what a signal has saved between checkpoints
        assert {name: found.get(name) for name in expected} == expected, (
            f'kill {number}: {how.name} after {moment:.2f} of {length:.2f} s'
        )
        assert all(cv2.imread(str(image)) is not None for image in folder.rglob('*.png'))
        assert not list((folder / 'experiments').rglob('.*'))
    print(f'\n{kind}: {signals} signals')
