"""Two processes over gloo, without a launcher that would end one for the other: each ends by itself, in a sentence."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from host import Command, logged
from runs import TINY_HASN, short_run, training_that_meets, write

pytestmark = pytest.mark.slow
MINUTE = 60  # within which every process of a run has ended
RANK = """
import os
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

@LOSS_REGISTRY.register()
class NaNOnRankOne(nn.Module):
    def forward(self, output, target):
        return (output - target).mean() * float('nan' if os.environ['RANK'] == '1' else 1)
"""


@pytest.fixture
def opt(photos):
    opt = short_run(photos, TINY_HASN, scale=2, iters=6)
    opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 4}
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    return opt


def both(opt: dict, folder: Path, name: str = '', action: str = 'pass'):
    """Two ranks of a run, how each ended; ``action`` is done by the one that has written file ``name``."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    place = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    argv = ('-opt', write(opt, folder / 'short.yml'), '--launcher', 'pytorch', '--auto_resume')
    code = RANK + training_that_meets(name, action, *argv)
    with ExitStack() as running:
        ranks = [
            running.enter_context(Command('-c', code, cwd=folder, RANK=rank, LOCAL_RANK=rank, **place)) for rank in '01'
        ]
        first = ranks[1 if 'rank1' in name else 0].wait()
        other = ranks[0 if 'rank1' in name else 1].wait(MINUTE)
    return (other, first) if 'rank1' in name else (first, other)


def sentence(done) -> str:
    assert done.returncode == 1, done.stderr[-3000:]
    assert 'Traceback' not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize('rank', [0, 1])
def test_one_is_killed(opt, tmp_path, rank):
    ended = both(opt, tmp_path, f'2.{"rank1." if rank else ""}effsr', 'os.kill(os.getpid(), signal.SIGKILL)')
    assert ended[rank].returncode == -9
    assert 'another process of this run has ended' in sentence(ended[1 - rank])
    assert all(done.returncode == 0 for done in both(opt, tmp_path))


@pytest.mark.parametrize('rank', [0, 1])
def test_one_is_asked_to_end(opt, tmp_path, rank):
    """Both end after the same iteration; the run goes on from there bit for bit."""
    opt['val'] |= {'val_freq': 3, 'save_img': True}  # the images are shared in turns
    run = tmp_path / 'experiments/short'
    for done in both(opt, tmp_path, f'{rank}_3.png', 'os.kill(os.getpid(), signal.SIGTERM)'):
        assert done.returncode == 143, done.stderr[-3000:]
        assert 'Traceback' not in done.stderr
    assert {'3.state', '3.effsr', '3.rank1.effsr'} <= set(os.listdir(run / 'training_states'))
    assert not list(run.rglob('4.*'))
    assert all(done.returncode == 0 for done in both(opt, tmp_path))
    (tmp_path / 'straight').mkdir()
    assert all(done.returncode == 0 for done in both(opt, tmp_path / 'straight'))
    for file in (tmp_path / 'straight/experiments/short').glob('[mt]*/*.*'):
        assert (run / file.parent.name / file.name).read_bytes() == file.read_bytes(), file.name


def test_one_has_nan(opt, tmp_path):
    opt['train'] |= {'losses': {'l_bad': {'type': 'NaNOnRankOne'}}, 'max_nonfinite': 3}
    for done in both(opt, tmp_path):
        assert 'iteration 3: l_bad not finite' in sentence(done)


@pytest.mark.parametrize('rank', [0, 1])
def test_the_disk_of_one_is_full(opt, tmp_path, rank):
    opt['network_g']['num_feat'] = 24
    action = 'resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))'
    ended = both(opt, tmp_path, '2.rank1.effsr' if rank else '2.state', action)
    named = '4.rank1.effsr' if rank else 'net_g_4.pth'
    assert named in sentence(ended[rank])
    assert 'another process of this run has ended' in sentence(ended[1 - rank])
    assert not (tmp_path / 'experiments/short/training_states/4.state').exists()
    assert all(done.returncode == 0 for done in both(opt, tmp_path))


def test_a_run_goes_on_with_another_number_of_processes(opt, tmp_path):
    opt['train']['total_iter'] = 4
    assert all(done.returncode == 0 for done in both(opt, tmp_path))
    opt['train']['total_iter'] = 6
    said = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'one.yml'), '--auto_resume', cwd=tmp_path)
    assert 'iter: 4.' in said
    assert "'world_size': 2" in said
    opt['train']['total_iter'] = 8
    ended = both(opt, tmp_path)
    assert all(done.returncode == 0 for done in ended)
    folder = tmp_path / 'experiments' / 'short'
    assert {'8.state', '8.effsr', '8.rank1.effsr'} <= set(os.listdir(folder / 'training_states'))
    state = torch.load(folder / 'models' / 'net_g_latest.pth', weights_only=True)['params']
    assert all(torch.isfinite(value).all() for value in state.values())


def test_one_of_two_writers_is_refused_on_both_ranks(opt, tmp_path):
    """The folder is taken by a run on one process; both ranks of the other end."""
    code = RANK + training_that_meets(
        '2.state', 'time.sleep(1200)', '-opt', write(opt, tmp_path / 'one.yml'), '--auto_resume'
    )
    with Command('-c', code, cwd=tmp_path, RANK='0') as holder:
        while not (tmp_path / 'experiments/short/training_states/2.state').is_file():
            assert holder.pid
        for done in both(opt, tmp_path):
            assert 'name: ' in sentence(done)
            assert str(holder.pid) in sentence(done)
