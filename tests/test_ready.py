"""Ready means ready: each of these is refused at its option, or the short run really works."""

from __future__ import annotations

import copy
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import check, run
from runs import TINY_HASN, short_run

from basicsr_effsr.host.dry_run import dry_step
from datasets_prep.lmdb_maker import make_lmdb

WITHOUT_HR = {'name': 'lq', 'type': 'SingleImageDataset', 'io_backend': {'type': 'disk'}}


@pytest.fixture
def opt(photos):
    opt = short_run(photos, TINY_HASN, scale=2, iters=2)
    opt['datasets']['train'] |= {'gt_size': 32, 'dataset_enlarge_ratio': 4}
    opt['logger'] |= {'save_checkpoint_freq': 1, 'use_tb_logger': False}
    opt['val']['val_freq'] = 2
    return opt


def put(opt: dict, place: str, value) -> None:
    *sections, name = place.split('.')
    for key in sections:
        opt = opt.setdefault(key, {})
    opt[name] = value


def refused_at(opt: dict) -> list[str]:
    """Where the check of an option file finds something fatal; empty if it says ready."""
    return [problem.where for problem in check(opt) if problem.fatal]


REFUSED = {  # what is put where, and at which option it is refused
    'wandb without tensorboard files': ('logger.wandb', {'project': 'x'}, 'logger'),
    'name with a slash': ('name', 'a/b', 'name'),
    'name of this folder': ('name', '.', 'name'),
    'name of the parent folder': ('name', '..', 'name'),
    'no name': ('name', '', 'name'),
    'a map for a loss': ('train.pixel_opt.reduction', 'none', 'train.pixel_opt'),
    'GANLoss': ('train.losses.l_x', {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'train.losses.l_x'),
    'GANLoss that runs': ('train.losses.l_x', {'type': 'GANLoss', 'gan_type': 'hinge'}, 'train.losses.l_x'),
    'WeightedTVLoss': ('train.losses.l_x', {'type': 'WeightedTVLoss'}, 'train.losses.l_x'),
    'SparseAdam': ('train.optim_g', {'type': 'SparseAdam', 'lr': 1e-4}, 'train.optim_g'),
    'capturable on a CPU': ('train.optim_g', {'type': 'Adam', 'lr': 1e-4, 'capturable': True}, 'train.optim_g'),
    'differentiable': ('train.optim_g', {'type': 'Adam', 'lr': 1e-4, 'differentiable': True}, 'train.optim_g'),
    'a scale that is no integer': ('scale', 2.0, 'scale'),
    'a seed that is no integer': ('manual_seed', 1e4, 'manual_seed'),
    'weights that diverge': ('train.optim_g', {'type': 'SGD', 'lr': 1e30, 'weight_decay': 1e30}, 'train.optim_g'),
    'lr: ~': ('train.optim_g.lr', None, 'train.optim_g'),
    'one beta': ('train.optim_g.betas', [0.9], 'train.optim_g'),
    'unknown backend of compile': ('train.compile', {'backend': 'nobody'}, 'train.compile'),
    'rates that end below zero': ('train.scheduler', {'type': 'MultiStepLR', 'milestones': [1], 'gamma': -1},
                                  'train.scheduler'),
}  # fmt: skip


@pytest.mark.parametrize('kind', REFUSED)
def test_it_is_refused_at_its_option(opt, kind):
    place, value, where = REFUSED[kind]
    opt['train']['total_iter'] = 4
    put(opt, place, value)
    found = refused_at(opt)
    assert found
    assert all(f'{one}.'.startswith(f'{where}.') for one in found), found


def test_wandb_that_is_not_installed(opt, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', type(sys)('tensorboard'))
    sys.modules['torch.utils.tensorboard'].SummaryWriter = None
    opt['logger'] |= {'use_tb_logger': True, 'wandb': {'project': 'x'}}
    found = refused_at(opt)
    assert found
    assert all(where.startswith('logger.wandb') for where in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU it works')
def test_prefetching_to_a_gpu_that_is_not_there(opt):
    opt['datasets']['train'] |= {'prefetch_mode': 'cuda', 'pin_memory': True}
    assert refused_at(opt) == ['datasets.train.prefetch_mode']


def test_a_network_file_is_no_state(opt, tmp_path):
    torch.save({'params': {}}, tmp_path / 'net.pth')
    opt['path']['resume_state'] = str(tmp_path / 'net.pth')
    assert refused_at(opt) == ['path.resume_state']


def test_a_metric_that_needs_hr_names_itself_and_without_it_the_run_works(opt, photos, tmp_path):
    opt['datasets']['val'] = {**WITHOUT_HR, 'dataroot_lq': str(photos / 'X2')}
    assert refused_at(opt) == ['val.metrics.psnr']
    opt['val']['metrics'] = None
    assert not refused_at(opt)
    run(opt, tmp_path)


def test_two_data_sets_of_one_name(opt, tmp_path):
    """They would share best score, log key and folder."""
    opt['datasets']['val_2'] = copy.deepcopy(opt['datasets']['val'])
    found = refused_at(opt)
    assert found
    assert set(found) <= {'datasets.val.name', 'datasets.val_2.name'}


WORKS = {
    'warm-up in scientific notation': ('train.warmup_iter', 2e4),
    'clipping that is off': ('train.grad_clip', 0),
    'milestones within the warm-up': (
        'train', {'warmup_iter': 3, 'scheduler': {'type': 'MultiStepLR', 'milestones': [1]}}
    ),
    'counts as floats': ('train', {'accumulate': 2.0, 'progressive': {'gt_size': [32.0], 'iters': [2e4]}}),
    'three parts of a batch': ('datasets.train.batch_size_per_gpu', 3),
}  # fmt: skip


@pytest.mark.parametrize('kind', WORKS)
def test_it_is_ready_and_runs(opt, tmp_path, kind):
    place, value = WORKS[kind]
    put(opt, place, {**opt['train'], **value} if place == 'train' else value)
    assert not refused_at(opt)
    run(opt, tmp_path)


def test_one_lmdb_for_training_and_validation(opt, photos, tmp_path):
    for key in ('dataroot_gt', 'dataroot_lq'):
        root = tmp_path / f'{key}.lmdb'
        make_lmdb(Path(opt['datasets']['train'][key]), root)
        for data in opt['datasets'].values():
            data |= {key: str(root), 'io_backend': {'type': 'lmdb'}}
    assert set(refused_at(opt)) == {'datasets.val.dataroot_gt', 'datasets.val.dataroot_lq'}  # the host opens its own
    opt['datasets']['val']['type'] = 'EffSRPairedDataset'
    assert not refused_at(opt)
    run(opt, tmp_path)


def test_a_step_leaves_nothing_behind(opt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(opt)
    numbers = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    handlers = {name: list(getattr(one, 'handlers', ())) for name, one in logging.root.manager.loggerDict.items()}
    argv = list(sys.argv)
    assert not dry_step(opt, True)
    assert opt == before
    assert numbers == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert {name: list(getattr(logging.root.manager.loggerDict[name], 'handlers', ())) for name in handlers} == handlers
    assert (sys.argv, list(tmp_path.iterdir())) == (argv, [])
