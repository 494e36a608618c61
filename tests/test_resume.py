"""Killed and resumed runs end with the bits of an uninterrupted one; through the host's own loop."""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import basicsr.train as host_loop
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import DATASET_REGISTRY
from runs import TINY_HASN, short_run, write

from basicsr_effsr.data.course import StagePlan, enlarge_ratio_for, iterations_that_run
from basicsr_effsr.host import dry_run
from basicsr_effsr.host.adapt import uses_our_classes
from basicsr_effsr.host.loop import load_resume_state, replacements
from basicsr_effsr.models.effsr_model import EffSRModel
from basicsr_effsr.models.run_state import RunState
from basicsr_effsr.utils.stored import CheckpointError
from datasets_prep.pack import make_pack

TEACHER = {'type': 'DPARNTeacher', 'num_feat': 8, 'num_block': 1, 'num_heads': 2, 'num_grow_ch': 4, 'window_size': 4}


class Killed(BaseException):
    """Stands for SIGKILL where a test stays in one process: nothing in the package catches it."""


def distillation(photos: Path, folder: Path, iters: int = 10) -> dict:
    """Everything that has a state: a student that draws numbers, EMA, adapters, stages, short epochs, scores."""
    opt = short_run(photos, TEACHER, scale=2, iters=iters, model_type='DistillationModel')
    opt['network_g'] |= {'num_block': 2, 'drop_path_rate': 0.5}
    opt['network_t'] = {**TINY_HASN, 'upscale': 2}
    torch.manual_seed(1)
    torch.save({'params': build_network(opt['network_t']).state_dict()}, folder / 'teacher.pth')
    opt['path']['pretrain_network_t'] = str(folder / 'teacher.pth')
    del opt['train']['pixel_opt']
    opt['train'] |= {
        'distill': {
            'gamma': 1.0,
            'feature_pairs': {'layers.0': 'block_1', 'layers.1': 'block_1'},
            'feature_loss': {'type': 'FAKDLoss', 'adapter': 'conv1x1'},
        },
        'progressive': {'gt_size': [32, 48], 'iters': [5, 5], 'batch': [2, 1]},
        'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [iters], 'restart_weights': [1]},
        'warmup_iter': 3,
    }
    opt['datasets']['train'] |= {'gt_size': 48, 'dataset_enlarge_ratio': 2}  # epochs of four, six and eight iterations
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    (folder / 'one.txt').write_text('0.png (192,192,3)\n')
    opt['datasets']['val']['meta_info_file'] = str(folder / 'one.txt')
    return opt


def small(photos: Path, iters: int, **changes) -> dict:
    """Nothing but a network, with a moving average; two iterations an epoch, a checkpoint every second."""
    opt = short_run(photos, TINY_HASN, scale=2, iters=iters, **changes)
    opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 1}
    opt['logger'] |= {'save_checkpoint_freq': 2, 'use_tb_logger': False}
    return opt


class Images(torch.utils.data.Dataset):
    """Counts as one of ours."""

    def __init__(self, length: int = 100) -> None:
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return int(index)


Images.__module__ = 'basicsr_effsr.data'


@pytest.fixture(autouse=True, scope='module')
def _without_dry_step():
    """Tests kill runs at the n-th of their actions, which a dry step would take, too; test_ready.py is about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, 'dry_step', lambda *_: [])
        yield


def train_in(folder: Path, opt: dict, *flags: str) -> dict:
    """Runs the host's ``train_pipeline`` in this process and returns the final weights."""
    names = dict(vars(host_loop))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', ['train', '-opt', write(opt, folder / 'short.yml'), *flags])
        try:
            host_loop.train_pipeline(str(folder))
        finally:
            vars(host_loop).update(names)
    models = folder / 'experiments' / opt['name'] / 'models'
    return {file.name: torch.load(file, weights_only=True) for file in models.glob('net_?_latest.pth')}


def kill_in(folder: Path, iteration: int, opt: dict, *flags: str) -> None:
    """The same, killed when the given iteration begins."""
    original = EffSRModel.optimize_parameters

    def optimize(self, current_iter):
        if current_iter == iteration:
            raise Killed
        original(self, current_iter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EffSRModel, 'optimize_parameters', optimize)
        with pytest.raises(Killed):
            train_in(folder, opt, *flags)


@pytest.fixture
def train(tmp_path):
    return partial(train_in, tmp_path)


@pytest.fixture
def killed_at(tmp_path):
    return partial(kill_in, tmp_path)


def same(one: dict, other: dict) -> bool:
    flat = [
        {(f, k, n): v for f, file in x.items() for k, p in file.items() for n, v in p.items()} for x in (one, other)
    ]
    return flat[0].keys() == flat[1].keys() and all(torch.equal(v, flat[1][key]) for key, v in flat[0].items())


class TestExactly:
    def test_killed_before_any_iteration(self, photos, tmp_path, train, killed_at):
        """At several iterations of one run, each time resumed with another number of workers."""
        opt = distillation(photos, tmp_path)
        straight = train({**opt, 'name': 'straight'})
        assert set(straight) == {'net_g_latest.pth', 'net_a_latest.pth'}
        for workers, iteration in ((0, 2), (1, 5), (0, 6), (2, 9)):
            opt['datasets']['train']['num_worker_per_gpu'] = workers
            killed_at(iteration, opt, '--auto_resume')
        again = train(opt, '--auto_resume')
        assert same(straight, again)
        assert not same(straight, train({**opt, 'name': 'other', 'manual_seed': 1})), (
            'the comparison must be able to fail'
        )

    def test_killed_while_it_reads_packs(self, photos, tmp_path, train, killed_at):
        """A pack gives the weights of the folder that it was made from, straight and resumed."""
        opt = distillation(photos, tmp_path)
        folder = train({**opt, 'name': 'folder'})
        data = opt['datasets']['train']
        data |= {'type': 'PackedPairedImageDataset', 'num_worker_per_gpu': 1}
        for key in ('dataroot_gt', 'dataroot_lq'):
            source = Path(data[key])
            data[key] = str(tmp_path / f'{source.name}.pack')
            make_pack(source, Path(data[key]))
        killed_at(5, opt, '--auto_resume')
        killed_at(7, opt, '--auto_resume')
        assert same(folder, train(opt, '--auto_resume'))

    @pytest.mark.parametrize('write_number', [1, 2, 4])  # adapters, network, state
    def test_killed_between_the_files_of_a_checkpoint(self, photos, tmp_path, train, monkeypatch, write_number):
        """Whichever file is missing, the checkpoint before it counts."""
        opt = distillation(photos, tmp_path, iters=4)
        straight = train({**opt, 'name': 'straight'})
        replace, count = os.replace, [0]

        def killed(source, target):
            count[0] += 1
            if count[0] == 4 + write_number:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', killed)
            with pytest.raises(Killed):
                train(opt)
        names = {f.name for f in (tmp_path / 'experiments' / 'short' / 'training_states').iterdir()}
        assert '2.state' in names
        assert '4.state' not in names
        assert same(straight, train(opt, '--auto_resume'))

    def test_without_a_seed_in_the_options(self, photos, tmp_path, train, killed_at):
        """The host then draws one at every start; the run goes on with its first."""
        opt = distillation(photos, tmp_path, iters=6)
        opt['manual_seed'] = None
        killed_at(4, opt)
        side = torch.load(tmp_path / 'experiments/short/training_states/2.effsr', weights_only=True)
        resumed = train(opt, '--auto_resume')
        assert same(resumed, train({**opt, 'name': 'straight', 'manual_seed': side['seed']}))

    def test_killed_in_the_validation_that_follows_a_checkpoint(self, photos, tmp_path, train, monkeypatch):
        """The run that goes on validates there first: images, scores and side files are as without the kill."""
        opt = distillation(photos, tmp_path, iters=5)
        opt['val'] |= {'val_freq': 2, 'save_img': True}
        straight = train({**opt, 'name': 'straight'})

        def killed(self, *_):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(EffSRModel, 'test', killed)
            with pytest.raises(Killed):
                train(opt)
        assert (tmp_path / 'experiments/short/training_states/2.state').is_file()
        assert same(straight, train(opt, '--auto_resume'))
        expected, found = (
            {file.name: file.read_bytes() for kind in ('*.effsr', '*.png') for file in folder.rglob(kind)}
            for folder in (tmp_path / 'experiments' / name for name in ('straight', 'short'))
        )
        assert len(expected) == 2 + 3
        assert sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)) == []

    def test_best_scores_come_back(self, photos, tmp_path, train, killed_at):
        opt = distillation(photos, tmp_path, iters=4)
        opt['val']['val_freq'] = 2
        train({**opt, 'name': 'straight'})
        killed_at(3, opt)
        train(opt, '--auto_resume')
        straight, again = (
            torch.load(tmp_path / f'experiments/{name}/training_states/4.effsr', weights_only=True)['best']
            for name in ('straight', 'short')
        )
        assert straight['photos']['psnr']['iter'] > 0
        assert again == straight


class TestWhatIsReadAgain:
    @pytest.mark.parametrize('key', [None, 'params-ema'])
    def test_the_weights_that_were_trained_whatever_was_asked_of_the_first_file(
        self, photos, tmp_path, train, killed_at, key
    ):
        """Not the moving average, which stands beside them in every checkpoint of the run."""
        opt = small(photos, 6)
        torch.manual_seed(3)
        weights = build_network({**TINY_HASN, 'upscale': 2}).state_dict()
        torch.save({key: weights} if key else weights, tmp_path / 'first.pth')
        opt['path'] |= {'pretrain_network_g': str(tmp_path / 'first.pth'), 'param_key_g': key}
        straight = train({**copy.deepcopy(opt), 'name': 'straight'})
        killed_at(5, copy.deepcopy(opt))
        assert same(straight, train(opt, '--auto_resume'))

    def test_a_network_that_is_not_resumed_keeps_its_key(self, photos, tmp_path, killed_at):
        opt = small(photos, 4)
        killed_at(3, copy.deepcopy(opt))
        asked = {'param_key_g': None, 'param_key_other': 'params_ema'}
        opt['path'] |= {**asked, 'ignore_resume_networks': ['network_other']}
        experiment = tmp_path / 'experiments' / 'short'
        opt['path'] |= {name: str(experiment / name) for name in ('models', 'training_states')}
        load_resume_state(opt | {'auto_resume': True})
        assert {key: opt['path'][key] for key in asked} == {'param_key_g': 'params', 'param_key_other': 'params_ema'}

    def test_a_copy_that_the_user_made_is_no_state_of_the_run(self, photos, tmp_path, train, killed_at):
        opt = small(photos, 4)
        killed_at(3, opt)
        states = tmp_path / 'experiments/short/training_states'
        for name in ('good_2.state', '1e9.state', 'inf.state'):
            (states / name).write_bytes((states / '2.state').read_bytes())
        assert train(opt, '--auto_resume')

    def test_a_metric_that_was_added(self, photos, tmp_path, train, killed_at):
        opt = small(photos, 6)
        opt['val']['val_freq'] = 2
        killed_at(5, copy.deepcopy(opt))
        first = torch.load(tmp_path / 'experiments/short/training_states/4.effsr', weights_only=True)['best']['photos']
        assert set(first) == {'psnr'}
        opt['val']['metrics']['ssim'] = {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}
        train(opt, '--auto_resume')
        best = torch.load(tmp_path / 'experiments/short/training_states/6.effsr', weights_only=True)['best']['photos']
        assert 0 < best['ssim']['val'] <= 1
        assert best['ssim']['iter'] == 6
        assert best['psnr']['val'] >= first['psnr']['val'], 'the score before the resume must still count'

    def test_a_cosine_run_that_is_extended_is_refused_in_words(self, photos, train):
        opt = small(photos, 4)
        opt['train']['scheduler'] = {'type': 'CosineAnnealingRestartLR', 'periods': [4], 'restart_weights': [1]}
        train(copy.deepcopy(opt))
        opt['train'] |= {'total_iter': 8}
        opt['train']['scheduler']['periods'] = [8]
        with pytest.raises((ValueError, SystemExit), match=r'train\.scheduler\.periods'):
            train(opt, '--auto_resume')

    def test_a_schedule_that_is_overruled_by_the_state_is_named(self, photos, train, killed_at, monkeypatch):
        opt = small(photos, 4)
        killed_at(3, copy.deepcopy(opt))
        opt['train']['optim_g']['lr'] = 5e-4
        opt['train']['scheduler']['milestones'] = [3]
        said: list[str] = []
        monkeypatch.setattr(logging.getLogger('basicsr'), 'warning', said.append)
        train(opt, '--auto_resume')
        assert [re.findall(r'^[\w.]+|(?<= )[\d.]+|\[\d+\]', line) for line in said] == [
            ['train.optim_g.lr', '0.001', '0.0005'],
            ['train.scheduler.milestones', '[1000]', '[3]'],
        ]


class TestOtherEpochs:
    @pytest.mark.parametrize('dataset', ['EffSRPairedDataset', 'PairedImageDataset'])
    @pytest.mark.parametrize(
        ('before', 'after'),
        [
            ({'dataset_enlarge_ratio': 1}, {'dataset_enlarge_ratio': 30}),
            ({'dataset_enlarge_ratio': 4, 'batch_size_per_gpu': 8}, {'batch_size_per_gpu': 1}),
        ],
    )
    def test_longer_ones_do_not_end_the_run(self, photos, tmp_path, train, killed_at, before, after, dataset):
        """The state was in epoch 8, the new run has two; from there on it is exact again."""
        opt = small(photos, 22)
        opt['datasets']['train'] |= {'type': dataset, **before}
        killed_at(18, opt)
        opt['datasets']['train'] |= after
        changed = train(opt, '--auto_resume')
        states = tmp_path / 'experiments/short/training_states'
        assert (states / '22.state').is_file()
        if dataset == 'EffSRPairedDataset':
            for left in (*states.glob('22.*'), *states.glob('20.*')):
                assert torch.load(states / '20.state', weights_only=True)['epoch'] <= 1
                if left.name.startswith('22'):
                    left.unlink()
            assert same(changed, train(opt, '--auto_resume'))

    @pytest.mark.parametrize(
        ('before', 'after'),
        [
            ({'world_size': 2}, {}),
            ({}, {'world_size': 2}),
            ({'images': 10}, {'images': 1000}),
            ({'images': 1000}, {'images': 10}),
            ({'batch': 10}, {'batch': 1}),
            ({}, {'batch': 4, 'progressive': {'gt_size': [64, 96], 'iters': [20, 20], 'batch': [1, 4]}}),
            ({'batch': 4, 'progressive': {'gt_size': [64, 96], 'iters': [20, 20], 'batch': [1, 4]}}, {}),
        ],
    )
    @pytest.mark.parametrize('killed', [1, 29, 55])
    def test_the_hosts_loop_reaches_the_end(self, before, after, killed):
        """Its arithmetic with our sampler and loader, no network: on to 60 after ``killed`` iterations."""

        def start(images=20, batch=2, world_size=1, progressive=None, state=None, sampling=None):
            data = {'phase': 'train', 'batch_size_per_gpu': batch, 'num_worker_per_gpu': 0, 'dataset_enlarge_ratio': 1}
            opt = {'train': {'progressive': progressive, 'total_iter': 60}, 'manual_seed': 0}
            ours = replacements(opt)
            if state:
                opt['run_state'] = RunState(sampling=sampling, resumed=state)
            sampler = ours['EnlargedSampler'](Images(images), world_size, 0)
            dist = world_size > 1
            loader = ours['build_dataloader'](Images(images), data, num_gpu=0, dist=dist, sampler=sampler, seed=0)
            last = math.ceil(60 / math.ceil(images / (batch * world_size)))
            return loader, sampler, last, opt['run_state'].sampling

        def run(loader, sampler, last, epoch=0, done=0, to=60):
            for epoch in range(epoch, last + 1):  # noqa: B020
                sampler.set_epoch(epoch)
                for _ in loader:
                    if done == to:
                        return epoch, done
                    done += 1
            return epoch, done

        *parts, sampling = start(**before)
        epoch, done = run(*parts, to=killed)
        assert done == killed
        state = {'epoch': epoch, 'iter': done}
        *parts, again = start(**after, state=state, sampling=sampling)
        assert again['anchor'] == [state['epoch'], killed]
        assert run(*parts, state['epoch'], killed)[1] == 60
        assert state['epoch'] <= parts[-1]


class OwnPairs(DATASET_REGISTRY.get('EffSRPairedDataset')):
    """What a user derives from our data set."""


class TestDerivedDataSet:
    @pytest.fixture(autouse=True)
    def _registered(self):
        if 'OwnPairs' not in DATASET_REGISTRY:
            DATASET_REGISTRY.register(OwnPairs)

    def test_it_is_resumed_exactly_and_knows_stages(self, photos, train, killed_at):
        opt = small(photos, 6)
        opt['datasets']['train'] |= {'type': 'OwnPairs', 'dataset_enlarge_ratio': 2}
        opt['train']['progressive'] = {'gt_size': [32, 48], 'iters': [3, 3]}
        straight = train({**copy.deepcopy(opt), 'name': 'straight'})
        killed_at(4, copy.deepcopy(opt))
        assert same(straight, train(opt, '--auto_resume'))

    def test_it_makes_a_run_ours(self):
        assert uses_our_classes({'datasets': {'train': {'type': 'OwnPairs'}}})
        assert not uses_our_classes({'datasets': {'train': {'type': 'PairedImageDataset'}}})


class TestBrokenCheckpoints:
    @pytest.fixture(scope='class')
    def made(self, photos, tmp_path_factory):
        """An undisturbed run of six iterations, and one that was killed in the fifth."""
        folder = tmp_path_factory.mktemp('made')
        opt = distillation(photos, folder, iters=6)
        straight = train_in(folder, {**opt, 'name': 'straight'})
        kill_in(folder, 5, opt)
        return folder, opt, straight

    @pytest.fixture
    def killed_run(self, made, tmp_path):
        folder, opt, straight = made
        shutil.copytree(folder / 'experiments', tmp_path / 'experiments')
        return copy.deepcopy(opt), straight

    @pytest.mark.parametrize(
        'file', ['training_states/4.state', 'training_states/4.effsr', 'models/net_g_4.pth', 'models/net_a_4.pth']
    )
    def test_a_truncated_newest_one_falls_back_with_a_warning(self, killed_run, tmp_path, train, capsys, file):
        opt, straight = killed_run
        path = tmp_path / 'experiments' / 'short' / file
        path.write_bytes(path.read_bytes()[:-100])
        left_over = path.with_name(f'.{path.name}.0.part')  # of a write that was killed
        left_over.touch()
        assert same(straight, train(opt, '--auto_resume'))
        assert not left_over.exists()
        assert f'{path.name} cannot be read' in capsys.readouterr().out
        assert [p.name for p in (tmp_path / 'experiments').iterdir() if 'archived' in p.name] == []

    @pytest.mark.parametrize('files', ['net_g_4.pth', 'net_a_4.pth', 'net_a_4.pth 4.effsr'])
    def test_of_a_lost_one_the_one_before_counts(self, killed_run, tmp_path, train, capsys, files):
        """A side file says which networks were saved; one that is lost with a network does not hide that."""
        opt, straight = killed_run
        for name in files.split():
            (found,) = (tmp_path / 'experiments' / 'short').rglob(name)
            found.unlink()
        assert same(straight, train(opt, '--auto_resume'))
        said = capsys.readouterr().out
        assert files.split()[0] in said
        assert 'net_g_2.pth' in said

    def test_the_hosts_data_set_says_that_it_begins_its_epoch_again(self, killed_run, train, capsys):
        opt, _ = killed_run
        del opt['train']['progressive']
        opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'batch_size_per_gpu': 1}
        train(opt, '--auto_resume')
        assert 'first sample of epoch 0, not exactly' in capsys.readouterr().out

    def test_all_broken_is_an_error_and_archives_nothing(self, killed_run, tmp_path, train):
        opt, _ = killed_run
        for state in (tmp_path / 'experiments' / 'short' / 'training_states').glob('*.state'):
            state.write_bytes(b'')
        with pytest.raises((CheckpointError, SystemExit), match='training_states'):
            train(opt, '--auto_resume')
        assert sorted(p.name for p in (tmp_path / 'experiments').iterdir()) == ['short', 'straight']

    def test_a_state_named_by_hand_is_not_skipped(self, killed_run, tmp_path, train):
        opt, straight = killed_run
        state = tmp_path / 'experiments/short/training_states/2.state'
        opt['path']['resume_state'] = str(state)
        assert same(straight, train(opt))
        state.write_bytes(b'')
        with pytest.raises((CheckpointError, SystemExit), match=r'2\.state'):
            train(opt)

    def test_other_options_go_on_but_say_that_it_is_not_the_same_run(self, killed_run, tmp_path, train, capsys):
        """From there on it is exact again: another kill makes no difference."""
        opt, straight = killed_run
        opt['datasets']['train']['dataset_enlarge_ratio'] = 50
        opt['logger']['save_checkpoint_freq'] = 1  # another state, 5, lies between the change and the end
        changed = train(opt, '--auto_resume')
        assert not same(straight, changed)
        assert "epoch 0, not exactly: it had {'ratio': 2} and now has {'ratio': 50}" in capsys.readouterr().out
        (tmp_path / 'experiments/short/training_states/6.state').unlink()
        assert same(changed, train(opt, '--auto_resume'))
        assert 'not exactly' not in capsys.readouterr().out


class TestTeacher:
    @pytest.fixture
    def stopped(self, photos, tmp_path, killed_at):
        opt = distillation(photos, tmp_path, iters=6)
        teacher = torch.load(tmp_path / 'teacher.pth', weights_only=True)['params']
        other = {name: torch.zeros_like(value) for name, value in teacher.items()}
        torch.save({'params': other, 'params_ema': teacher}, tmp_path / 'teacher.pth')
        opt['path']['param_key_t'] = 'params_ema'
        killed_at(4, opt)
        return opt, teacher

    def resumed_option(self, opt: dict, tmp_path: Path) -> dict:
        experiment = tmp_path / 'experiments' / 'short'
        opt = copy.deepcopy(opt) | {'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True, 'auto_resume': True}
        opt['path'] |= {name: str(experiment / name) for name in ('models', 'training_states')}
        return opt

    def test_it_keeps_its_file_and_key(self, stopped, tmp_path):
        opt = self.resumed_option(stopped[0], tmp_path)
        assert load_resume_state(opt)['iter'] == 2
        assert opt['path']['pretrain_network_t'] == str(tmp_path / 'teacher.pth')
        assert opt['path']['param_key_t'] == 'params_ema'


class TestEarlyEnd:
    @pytest.mark.parametrize('dataset', ['EffSRPairedDataset', 'PairedImageDataset'])
    def test_the_ratio_that_helps_is_named_and_helps(self, photos, train, dataset):
        """Four images in batches of three: the host would stop after 6 of 10 iterations."""
        opt = short_run(photos, TINY_HASN, iters=10)
        opt['datasets']['train'] |= {
            'type': dataset,
            'batch_size_per_gpu': 3,
            'dataset_enlarge_ratio': 1,
            'gt_size': 64,
        }
        opt['logger']['use_tb_logger'] = False
        with pytest.raises((ValueError, SystemExit), match=r'6 of 10 iterations.* to 2'):
            train(opt)
        opt['datasets']['train']['dataset_enlarge_ratio'] = 2
        assert train(opt)

    @pytest.mark.parametrize(('length', 'batch', 'world', 'total'), [(5, 4, 1, 20), (5, 8, 1, 20), (100, 16, 2, 777)])
    def test_the_forecast_is_what_the_hosts_arithmetic_gives(self, length, batch, world, total):
        for ratio in (1, 2, 3, 5):
            samples = -(-length * ratio // world)
            epochs = -(-total // -(-length * ratio // (batch * world)))
            expected = min(total, (epochs + 1) * (samples // batch))
            assert iterations_that_run(StagePlan(batch), length, ratio, world, batch, total) == expected
        best = enlarge_ratio_for(StagePlan(batch), length, 1, world, batch, total)
        runs = [
            iterations_that_run(StagePlan(batch), length, ratio, world, batch, total) for ratio in range(1, best + 1)
        ]
        assert runs[-1] == total
        assert best == 1 or runs[-2] < total

    def test_the_ratio_is_the_smallest_although_a_larger_one_may_be_too_small_again(self):
        draw, found = random.Random(0), []
        for _ in range(300):
            batch, length, total = draw.choice([2, 4, 8, 16]), draw.randint(1, 40), draw.randint(1, 400)
            stages = {'gt_size': [1, 2], 'iters': [20, 20], 'batch': [draw.choice([1, 4, 16]), draw.choice([1, 4, 16])]}
            plan = StagePlan(batch, draw.choice([None, stages]))
            world = draw.choice([1, 2])
            fits = [
                ratio
                for ratio in range(1, 400)
                if -(-length * ratio // world) >= max(stage.batch for stage in plan.stages)
                and iterations_that_run(plan, length, ratio, world, batch, total) == total
            ]
            found.append((enlarge_ratio_for(plan, length, 1, world, batch, total), fits))
        assert all(ratio == fits[0] for ratio, fits in found if fits)
        assert sum(bool(fits) for _, fits in found) > 200
        assert any(fits and set(range(fits[0], fits[-1])) - set(fits) for _, fits in found), 'no case has a gap'

    def test_where_no_ratio_in_reach_suffices_one_that_does_is_named(self, monkeypatch):
        monkeypatch.setattr('basicsr_effsr.data.course.MOST_RATIOS', 100)
        plan = StagePlan(1, {'gt_size': [1, 2], 'iters': [10, 10], 'batch': [1, 64]})
        ratio = enlarge_ratio_for(plan, 4, 1, 1, 1, 100_000)
        assert iterations_that_run(plan, 4, ratio, 1, 1, 100_000) == 100_000

    @pytest.mark.parametrize('start', [(0, 0), (3, 7), (1, 25), (40, 60)])
    def test_epochs_of_one_stage_are_counted_at_once(self, start):
        plan = StagePlan(3, {'gt_size': [1, 2, 3], 'iters': [20, 7, 1], 'batch': [3, 2, 4]})
        for ratio in (0.5, 1, 2, 3.7, 9):
            done = start[1]
            for _ in range(start[0], math.ceil(70 / math.ceil(11 * ratio / (3 * 2))) + 1):
                done += plan.iterations(math.ceil(11 * ratio / 2), done)
            assert iterations_that_run(plan, 11, ratio, 2, 3, 70, start) == min(done, 70)

    def test_bytes_are_not_for_the_hosts_model(self, photos, train):
        opt = small(photos, 2, model_type='SRModel')
        opt['datasets']['train']['uint8'] = True
        with pytest.raises((ValueError, SystemExit), match=r'uint8.*SRModel'):
            train(opt)

    def test_stages_need_a_data_set_that_knows_them(self, photos, train):
        opt = short_run(photos, TINY_HASN, iters=4)
        opt['datasets']['train']['type'] = 'PairedImageDataset'
        opt['train']['progressive'] = {'gt_size': [64, 96], 'iters': [2, 2]}
        with pytest.raises((ValueError, SystemExit), match=r'^train\.progressive: PairedImageDataset '):
            train(opt)

    @pytest.mark.parametrize('progressive', [None, {'gt_size': [64, 96], 'iters': [2, 2], 'batch': [3, 1]}])
    def test_gpus_of_one_process_take_a_batch_each(self, progressive):
        """BasicSR's DataParallel, with and without stages."""
        data = {'phase': 'train', 'batch_size_per_gpu': 3, 'num_worker_per_gpu': 0}
        ours = replacements({'train': {'progressive': progressive, 'total_iter': 4}, 'manual_seed': 0})
        sampler = ours['EnlargedSampler'](Images(), 1, 0)
        loader = ours['build_dataloader'](Images(), data, num_gpu=2, dist=False, sampler=sampler, seed=0)
        expected = [6, 6, 6, 6] if progressive is None else [6, 6, 2, 2]
        assert [len(batch) for batch, _ in zip(loader, range(4), strict=False)] == expected
