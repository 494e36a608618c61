"""Faults that a training meets: a folder that another run writes, full disks, vanished folders, NaN, missing files."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from host import Command, logged, run, stopped_while_writing
from runs import TINY_HASN, short_run, training_that_meets, twin_of, write
from test_disk import mounted, remount

pytestmark = pytest.mark.slow
TRAIN = ('-m', 'basicsr.train', '-opt')


@pytest.fixture
def opt(photos):
    """Six iterations, a checkpoint after every second."""
    opt = short_run(photos, TINY_HASN, scale=2, iters=6)
    opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 2}
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    return opt


def after(name: str, action: str, file: str, *flags: str) -> tuple[str, str]:
    return '-c', training_that_meets(name, action, '-opt', file, *flags)


def files(folder: Path) -> dict[str, bytes]:
    """Everything a run saves, its log apart."""
    found = [file for kind in ('models', 'training_states') for file in (folder / kind).rglob('*')]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def in_a_sentence(done, *words: str, code: int = 1) -> None:
    """That a run ended by itself, and said so in a line that holds ``words``."""
    assert done.returncode == code, done.stderr[-3000:]
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('basicsr_effsr: ')
    for word in words:
        assert word in last


LIMIT = 'resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))'
FULL_LOG = (
    "[os.dup2(os.open('/dev/full', os.O_WRONLY), handler.stream.fileno()) "
    "for handler in __import__('logging').getLogger('basicsr').handlers if hasattr(handler, 'baseFilename')]"
)
FAULTS = {  # what happens after the first checkpoint -> what is named
    'full, networks': ({'num_feat': 48}, {}, LIMIT.format(size=60_000), 'net_g_4.pth'),
    'full, log': ({}, {}, FULL_LOG, '.log'),
    'full, images': ({}, {'val_freq': 3, 'save_img': True}, LIMIT.format(size=30_000), '.png'),
    'models vanish': ({}, {}, "shutil.rmtree('experiments/short/models')", 'models'),
    'states vanish': ({}, {}, "shutil.rmtree('experiments/short/training_states')", 'training_states'),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_what_cannot_be_written_ends_the_run_and_leaves_the_checkpoint_before(opt, tmp_path, kind):
    net, val, action, named = FAULTS[kind]
    opt['network_g'] |= net
    opt['val'] |= val
    file, folder = write(opt, tmp_path / 'short.yml'), tmp_path / 'experiments' / 'short'
    done = run(*after('2.state', action, file), cwd=tmp_path)
    in_a_sentence(done, named)
    left = files(folder)
    assert not [name for name in left if name.endswith('.part') or '4.state' in name]
    if kind.startswith('full'):
        assert {'models/net_g_2.pth', 'training_states/2.state', 'training_states/2.effsr'} <= left.keys()
        logged(*TRAIN, file, '--auto_resume', cwd=tmp_path)
        other = tmp_path / 'other'
        other.mkdir()
        logged(*TRAIN, file, cwd=other)
        assert files(folder) == files(other / 'experiments' / 'short')


def test_an_image_that_a_thread_of_the_host_cannot_read(opt, tmp_path):
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'prefetch_mode': 'cpu', 'num_prefetch_queue': 1}
    refuse = "lambda *_, **__: (_ for _ in ()).throw(OSError('0.png: is gone'))"
    action = (
        f"setattr(__import__('basicsr.data.paired_image_dataset').data.paired_image_dataset, 'imfrombytes', {refuse})"
    )
    in_a_sentence(run(*after('2.state', action, write(opt, tmp_path / 'short.yml')), cwd=tmp_path), '0.png: is gone')


def test_a_disk_without_room_for_tensorboard(opt, tmp_path):
    opt['logger']['use_tb_logger'] = True
    full = "[(os.remove(f), os.symlink('/dev/full', f)) for f in __import__('glob').glob('tb_logger/short/*')]"
    in_a_sentence(run(*after('2.state', full, write(opt, tmp_path / 'short.yml')), cwd=tmp_path), 'tb_logger', 'space')


def test_a_read_only_disk(opt, tmp_path):
    file = write(opt, tmp_path / 'short.yml')
    with mounted(tmp_path / 'disk', 2**24):
        remount(tmp_path / 'disk', 'ro')
        in_a_sentence(run(*TRAIN, file, cwd=tmp_path / 'disk'), str(tmp_path / 'disk'), 'Read-only')
        assert not list((tmp_path / 'disk').iterdir())


def test_images_of_a_test_on_a_full_disk(opt, tmp_path):
    torch.save({'params': build_network(dict(opt['network_g'])).state_dict()}, tmp_path / 'net.pth')
    file = write(twin_of(opt, tmp_path / 'net.pth'), tmp_path / 'test.yml')
    code = training_that_meets('', 'pass', '-opt', file).replace('basicsr.train', 'basicsr.test')
    done = run('-c', f'import resource\n{LIMIT.format(size=30_000)}\n{code}', cwd=tmp_path)
    in_a_sentence(done, str(tmp_path / 'results'), '.png')
    assert not list(tmp_path.rglob('*.png')) + list(tmp_path.rglob('*.part'))


def test_a_folder_has_one_writer(opt, tmp_path):
    """A second run of its name ends at once; killed, the first blocks nobody, loader processes or not."""
    opt['datasets']['train']['num_worker_per_gpu'] = 2
    file, folder = write(opt, tmp_path / 'short.yml'), tmp_path / 'experiments' / 'short'
    with Command(*after('2.state', 'time.sleep(1200)', file), cwd=tmp_path) as first:
        while not (folder / 'training_states' / '2.state').is_file():
            time.sleep(0.1)
        before = files(folder)
        for flags in ((), ('--auto_resume',)):
            second = run(*TRAIN, file, *flags, cwd=tmp_path)
            in_a_sentence(second, 'name: ', str(folder), str(first.pid))
        assert files(folder) == before
        assert run('-m', 'basicsr_effsr.cli', 'check', '-opt', file, cwd=tmp_path).returncode == 0, 'reading is free'
        first.send_signal(signal.SIGKILL)
        first.wait()
        logged(*TRAIN, file, '--auto_resume', cwd=tmp_path)
    assert [entry.name for entry in (tmp_path / 'experiments').iterdir()] == ['short']


def test_a_folder_of_results_has_one_writer(opt, tmp_path):
    """A second test of its name, which BasicSR would let move the first one's images away, ends at once."""
    torch.save({'params': build_network(dict(opt['network_g'])).state_dict()}, tmp_path / 'net.pth')
    file = write(twin_of(opt, tmp_path / 'net.pth'), tmp_path / 'test.yml')
    code = training_that_meets('0_short.png', 'time.sleep(1200)', '-opt', file).replace('basicsr.train', 'basicsr.test')
    with Command('-c', code, cwd=tmp_path) as first:
        while not list(tmp_path.rglob('0_short.png')):
            assert first.pid
            time.sleep(0.1)
        second = run('-m', 'basicsr.test', '-opt', file, cwd=tmp_path)
        in_a_sentence(second, 'name: ', str(tmp_path / 'results' / 'short'), str(first.pid))
        assert [entry.name for entry in (tmp_path / 'results').iterdir() if entry.name[0] != '.'] == ['short']
        first.send_signal(signal.SIGKILL)
        first.wait()
    logged('-m', 'basicsr.test', '-opt', file, cwd=tmp_path)
    assert not list((tmp_path / 'results').glob('.*'))


def test_equal_runs_give_equal_bytes(opt, tmp_path):
    for name in ('one', 'other'):
        (tmp_path / name).mkdir()
        logged(*TRAIN, write(opt, tmp_path / name / 'short.yml'), cwd=tmp_path / name)
    one, other = (files(tmp_path / name / 'experiments' / 'short') for name in ('one', 'other'))
    assert len(one) == 3 * 3 + 1
    assert one == other


NOT_WHOLE = {  # -> what is named
    'missing network': 'net_g_6.pth',
    'cut side file': '6.effsr',
    'side file of another kind': '6.effsr',
    'NaN in the optimizer': '6.state',
}


@pytest.mark.parametrize('resume', ['--auto_resume', 'by name'])
@pytest.mark.parametrize('fault', NOT_WHOLE)
def test_a_checkpoint_that_is_not_whole(opt, tmp_path, fault, resume):
    """By --auto_resume the one before it counts, by its name it is refused."""
    file, folder = write(opt, tmp_path / 'short.yml'), tmp_path / 'experiments' / 'short'
    logged(*TRAIN, file, cwd=tmp_path)
    whole, side = files(folder), folder / 'training_states' / '6.effsr'
    if fault == 'missing network':
        (folder / 'models' / 'net_g_6.pth').unlink()
    elif fault == 'cut side file':
        side.write_bytes(side.read_bytes()[:-100])
    elif fault == 'NaN in the optimizer':
        state = torch.load(side.with_suffix('.state'), weights_only=True)
        state['optimizers'][0]['state'][3]['exp_avg_sq'].view(-1)[1] = torch.nan
        torch.save(state, side.with_suffix('.state'))
    else:
        torch.save({'random': 1, 'sampling': 5}, side)
    if resume == '--auto_resume':
        said = logged(*TRAIN, file, resume, cwd=tmp_path)
        assert 'iter: 4.' in said  # where BasicSR says that it resumes
        assert files(folder) == whole
    else:
        opt['path']['resume_state'] = str(folder / 'training_states' / '6.state')
        done = run(*TRAIN, write(opt, tmp_path / 'named.yml'), cwd=tmp_path)
        in_a_sentence(done, 'path.resume_state', NOT_WHOLE[fault])


@pytest.mark.parametrize('model', ['EffSRModel', 'SRModel'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_a_run_after_its_iteration(opt, tmp_path, number, model):
    """As Ctrl-C in a terminal; it comes while an image of the third iteration's validation is written."""
    opt['model_type'] = model
    opt['datasets']['train']['num_worker_per_gpu'] = 2
    opt['val'] |= {'val_freq': 3, 'save_img': True, 'suffix': None}
    opt['logger']['use_tb_logger'] = True
    file, folder = write(opt, tmp_path / 'short.yml'), Path('experiments') / 'short'
    done = run(*after('1_3.png', f'os.killpg(0, {int(number)})', file), cwd=tmp_path)
    assert done.returncode == 128 + number, done.stderr[-3000:]
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('basicsr_effsr: ')
    assert '--auto_resume' in last
    assert last.removeprefix('basicsr_effsr: ') in next((tmp_path / folder).glob('*.log')).read_text()
    stopped = files(tmp_path / folder)
    assert {'models/net_g_3.pth', 'training_states/3.state'} <= stopped.keys()
    assert len(list((tmp_path / folder / 'visualization').rglob('*_3.png'))) == 4
    logged(*TRAIN, file, '--auto_resume', cwd=tmp_path)
    other = tmp_path / 'other'
    other.mkdir()
    logged(*TRAIN, file, cwd=other)
    straight, resumed = files(other / folder), files(tmp_path / folder)
    assert {name: resumed[name] for name in straight} == straight
    assert resumed.keys() - straight.keys() == {name for name in stopped if '3.' in name}


def test_an_interrupt_while_the_options_are_checked(opt, tmp_path):
    """The step that is tried first ends with the run, in a sentence; what a killed one left goes with the next."""
    places = {'cwd': tmp_path, 'TMPDIR': str(tmp_path / 'tmp')}
    (tmp_path / 'tmp').mkdir()
    file = write(opt, tmp_path / 'short.yml')
    in_a_sentence(run(*after('1.state', 'raise KeyboardInterrupt', file), **places), 'interrupted', code=-signal.SIGINT)
    assert not list((tmp_path / 'tmp').iterdir())
    assert run(*after('1.state', f'os.kill(os.getpid(), {int(signal.SIGKILL)})', file), **places).returncode < 0
    assert list((tmp_path / 'tmp').iterdir())
    opt['train']['total_iter'] = 1
    logged(*TRAIN, write(opt, tmp_path / 'short.yml'), **places)
    assert not list((tmp_path / 'tmp').iterdir())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_run_at_once_and_the_next_start_sweeps(opt, tmp_path, number):
    file, folder = write(opt, tmp_path / 'short.yml'), tmp_path / 'experiments' / 'short'
    done = stopped_while_writing('4.state', number, 'basicsr.train', '-opt', file, cwd=tmp_path, times=2)
    assert done.returncode == -number
    assert not (folder / 'training_states' / '4.state').exists()
    assert 'Traceback' not in done.stderr
    logged(*TRAIN, file, '--auto_resume', cwd=tmp_path)
    assert not [name for name in files(folder) if name.endswith('.part')]


MEETING = {'RANK': '0', 'WORLD_SIZE': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}


@pytest.mark.parametrize(
    ('flags', 'environment', 'named'),
    [
        ('slurm', {}, 'SLURM_PROCID'),
        ('slurm', {'SLURM_PROCID': '0', 'SLURM_NTASKS': '1', 'SLURM_NODELIST': 'here'}, 'GPU'),
        ('pytorch', {}, 'torchrun'),
        ('pytorch', {'RANK': '0'}, 'MASTER_ADDR'),
        ('pytorch', MEETING | {'RANK': 'x'}, 'RANK'),
        ('pytorch', MEETING | {'RANK': '1'}, 'RANK'),
        ('pytorch', MEETING | {'RANK': '-1'}, 'RANK'),
        ('pytorch', MEETING | {'WORLD_SIZE': '0'}, 'WORLD_SIZE'),
        ('pytorch', MEETING | {'WORLD_SIZE': '1e3'}, 'WORLD_SIZE'),
        ('pytorch', MEETING | {'MASTER_PORT': '99999'}, 'MASTER_PORT'),
        ('pytorch', MEETING | {'MASTER_PORT': 'port'}, 'MASTER_PORT'),
        ('pytorch', MEETING, 'do not meet at 127.0.0.1:'),  # where somebody else listens
        ('slurm', {'SLURM_PROCID': 'x', 'SLURM_NTASKS': '1', 'SLURM_NODELIST': 'here'}, 'SLURM_PROCID'),
    ],
)
def test_a_launcher_that_is_not_there_is_named(opt, tmp_path, flags, environment, named):
    if named == 'GPU' and torch.cuda.is_available():
        pytest.skip('with a GPU it starts')
    file = write(opt, tmp_path / 'short.yml')
    with socket.socket() as busy:
        if environment is MEETING:
            busy.bind(('127.0.0.1', 0))
            busy.listen()
            environment = MEETING | {'MASTER_PORT': str(busy.getsockname()[1])}
        done = run(*TRAIN, file, '--launcher', flags, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert named in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ['short.yml']


def test_a_run_of_nan_ends_and_what_was_good_stays(opt, tmp_path):
    """The rate explodes after four iterations; the weights that were saved before are the last."""
    opt['train'] |= {'total_iter': 40, 'optim_g': {'type': 'SGD', 'lr': 1e-2}, 'ema_decay': 0}
    opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 1e30}
    folder = tmp_path / 'experiments' / 'short'
    done = run(*TRAIN, write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    in_a_sentence(done, 'iteration ')
    for saved in (folder / 'models').iterdir():
        for state in torch.load(saved, weights_only=True).values():
            assert all(torch.isfinite(value).all() for value in state.values()), saved
    assert 'net_g_2.pth' in os.listdir(folder / 'models')
    assert 'net_g_latest.pth' not in os.listdir(folder / 'models')
