"""Two processes over gloo, without a launcher that would end one for the other: each ends by itself, in a sentence."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

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


ASKING = """
import os, signal, time
from pathlib import Path
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import get_worker_info
from basicsr_effsr.data.paired_dataset import EffSRPairedDataset

@DATASET_REGISTRY.register()
class Asking(EffSRPairedDataset):
    def __getitem__(self, index):
        if get_worker_info() and index.position == 12 and not Path('asked').exists():
            Path('asked').touch()
            os.killpg(0, signal.SIGTERM)  # this loader process, and the one that will wait for it
            time.sleep(1)
        return super().__getitem__(index)
"""


BY_NAME = 'import os, sys; sys.path.insert(0, os.getcwd()); import asking\n'  # loader processes find it there, too


def options(photos: Path) -> dict:
    opt = short_run(photos, TINY_HASN, scale=2, iters=6)
    opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 4}
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    opt['val'] |= {'val_freq': 3, 'save_img': True}  # the images are shared in turns
    return opt


@pytest.fixture
def opt(photos):
    return options(photos)


@pytest.fixture(scope='module')
def straight(photos, tmp_path_factory) -> Path:
    """Where two ranks ran that nothing disturbed."""
    folder = tmp_path_factory.mktemp('straight')
    assert all(done.returncode == 0 for done in both(options(photos), folder))
    return folder


def saved(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob('experiments/short/[mt]*/*.*')}


def free_port() -> int:
    """A port that no connection of this machine is given by chance before the run takes it."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(('127.0.0.1', port))
            return port


def both(opt: dict, folder: Path, name: str = '', action: str = 'pass', code: str = RANK, other: Any = None):
    """Two ranks of a run, how each ended; ``action`` is done by the one that has written file ``name``.

    ``other`` are options and folder of the second, if they are not those of the first.
    """
    place = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    code += training_that_meets(name, action, '-opt', 'short.yml', '--launcher', 'pytorch', '--auto_resume')
    with ExitStack() as running:
        ranks = []
        for rank, (own, cwd) in enumerate(((opt, folder), other or (opt, folder))):
            write(own, cwd / 'short.yml')
            where = {'RANK': str(rank), 'LOCAL_RANK': str(rank), **place}
            ranks.append(running.enter_context(Command('-c', code, cwd=cwd, **where)))
        first = ranks[1 if 'rank1' in name else 0].wait()
        try:
            second = ranks[0 if 'rank1' in name else 1].wait(MINUTE)
        except subprocess.TimeoutExpired:
            pytest.fail(f'one still runs a minute after the other has ended with {first.returncode}: {first.stderr}')
    return (second, first) if 'rank1' in name else (first, second)


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
def test_one_is_asked_to_end(opt, straight, tmp_path, rank):
    """Both end after the same iteration; the run goes on from there bit for bit."""
    run = tmp_path / 'experiments/short'
    for done in both(opt, tmp_path, f'{rank}_3.png', 'os.kill(os.getpid(), signal.SIGTERM)'):
        assert done.returncode == 143, done.stderr[-3000:]
        assert 'Traceback' not in done.stderr
    assert {'3.state', '3.effsr', '3.rank1.effsr'} <= set(os.listdir(run / 'training_states'))
    assert not list(run.rglob('4.*'))
    assert all(done.returncode == 0 for done in both(opt, tmp_path))
    expected, found = saved(straight), saved(tmp_path)
    assert {name: found[name] for name in expected} == expected


def test_one_is_asked_to_end_while_it_waits_for_a_loader_process_that_is_asked_too(opt, straight, tmp_path):
    """As torchrun and Slurm do, which signal every process."""
    opt['datasets']['train'] |= {'type': 'Asking', 'num_worker_per_gpu': 1}
    (tmp_path / 'asking.py').write_text(ASKING)
    for done in both(opt, tmp_path, code=BY_NAME):
        assert done.returncode == 143, done.stderr[-3000:]
        assert 'Traceback' not in done.stderr
    assert (tmp_path / 'asked').exists()
    assert all(done.returncode == 0 for done in both(opt, tmp_path, code=BY_NAME))
    expected, found = saved(straight), saved(tmp_path)
    assert not [n for n in expected if not n.endswith('.effsr') and found[n] != expected[n]]


UNEQUAL = {  # -> what both ranks name
    'fewer images': 'datasets.train: number of images is 3 on rank 0 and 2 on rank 1',
    'other images': 'datasets.val: checksum of their names',
    'no images': 'datasets.train.meta_info_file',
    'no state': 'path.resume_state: iteration is 6 on rank 0 and None on rank 1',
}


@pytest.mark.parametrize('what', UNEQUAL)
def test_one_sees_other_data(opt, straight, tmp_path, what):
    """As two machines with folders of their own do."""
    other, there = copy.deepcopy(opt), tmp_path / 'other'
    there.mkdir()
    for folder, names in ((tmp_path, '012'), (there, {'fewer images': '01', 'other images': '013'}.get(what, '012'))):
        (folder / 'names.txt').write_text(''.join(f'{name}.png (192,192,3)\n' for name in names))
    if what == 'no state':
        shutil.copytree(straight / 'experiments', tmp_path / 'experiments')
    else:
        for each in (opt, other):
            each['datasets']['val' if what == 'other images' else 'train']['meta_info_file'] = 'names.txt'
    if what == 'no images':
        (there / 'names.txt').unlink()
    for done in both(opt, tmp_path, other=(other, there)):
        assert UNEQUAL[what] in sentence(done)


def test_one_has_nan(opt, tmp_path):
    opt['train'] |= {'losses': {'l_bad': {'type': 'NaNOnRankOne'}}, 'max_nonfinite': 3}
    for done in both(opt, tmp_path):
        assert 'iteration 3: l_bad not finite' in sentence(done)


@pytest.mark.parametrize('rank', [0, 1])
def test_the_disk_of_one_is_full(opt, tmp_path, rank):
    opt['network_g']['num_feat'] = 24
    opt['val']['save_img'] = False  # whose size the network decides
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
