"""What the pre-flight check finds, what it lets pass, and that the schema for editors is current."""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
from functools import reduce
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from nets import CASES
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.host.dry_run import dry_step
from basicsr_effsr.host.loop import replacements
from basicsr_effsr.options import data_rules, spec
from basicsr_effsr.options import forecast as forecasts
from basicsr_effsr.options.check import inspected
from basicsr_effsr.options.file import force
from basicsr_effsr.options.forecast import course_of
from basicsr_effsr.options.problem import Context
from basicsr_effsr.options.schema import option_schema
from basicsr_effsr.utils import complexity
from basicsr_effsr.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TINY = {'type': 'HASN', 'upscale': 4, 'num_feat': 8, 'num_block': 1, 'esa_channels': 4}


@pytest.fixture
def data(tmp_path):
    """Five pairs of 96x80 and 24x20 pixels, in folders HR and LR."""
    for name, size in (('HR', (96, 80)), ('LR', (24, 20))):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new('RGB', size).save(tmp_path / name / f'{i}.png')
    return tmp_path


@pytest.fixture
def opt(data):
    """A training that has nothing wrong with it."""
    folders = {'dataroot_gt': str(data / 'HR'), 'dataroot_lq': str(data / 'LR'), 'io_backend': {'type': 'disk'}}
    return {
        'name': 'fine',
        'model_type': 'EffSRModel',
        'scale': 4,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'a',
                'type': 'EffSRPairedDataset',
                **folders,
                'gt_size': 64,
                'use_hflip': True,
                'num_worker_per_gpu': 0,
                'batch_size_per_gpu': 5,
                'dataset_enlarge_ratio': 4,
            },
            'val': {'name': 'b', 'type': 'PairedImageDataset', **folders},
        },
        'network_g': dict(TINY),
        'path': {'pretrain_network_g': None},
        'train': {
            'total_iter': 20,
            'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [10], 'gamma': 0.5},
            'losses': {'l_pix': {'type': 'L1Loss', 'loss_weight': 1.0}},
        },
        'val': {'val_freq': 10, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 4}}},
        'logger': {'print_freq': 5, 'save_checkpoint_freq': 10, 'use_tb_logger': False},
    }


def put(opt, dotted, value):
    """``opt`` with one entry changed, or removed if the value is ``...``."""
    *path, last = dotted.split('.')
    section = opt
    for key in path:
        section = section[key]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return opt


def found_by_check(opt, is_train=True):
    """What the rules or, if they find nothing, the dry step find."""
    context = inspected(opt, is_train)
    if not any(problem.fatal for problem in context.found):
        context.found += dry_step(context.opt, is_train)
    return context.found


def places(opt, is_train=True, fatal=True):
    """The options that errors are about; or warnings."""
    return [p.where for p in found_by_check(opt, is_train) if p.fatal is fatal]


def said(opt, where):
    """What is said of an option and what is below it, errors and warnings."""
    return ' '.join(p.message for p in found_by_check(opt) if f'{p.where}.'.startswith(f'{where}.'))


def forecast(opt, is_train):
    context = inspected(opt, is_train)
    return context.found, forecasts.forecast(context)


def test_a_sound_file_has_no_problem_and_is_left_as_it_was(opt):
    before = copy.deepcopy(opt)
    assert found_by_check(opt) == []
    assert opt == before


# one entry changed -> the options that are named
FAULTS = [
    ('train.losses.l_pix.los_weight', 1.0, 'train.losses.l_pix.los_weight'),
    ('network_g.num_feats', 8, 'network_g.num_feats'),
    ('network_g.type', 'HASM', 'network_g.type'),
    ('network_g.upscale', 2, 'network_g.upscale'),
    ('network_g.kernel_size', 4, 'network_g'),
    ('model_type', 'EffSrModel', 'model_type'),
    ('train.optim_g.lr', '1e-4', 'train.optim_g.lr'),
    ('train.optim_g.beta', 0.9, 'train.optim_g.beta'),
    ('train.optim_g.type', 'AdamX', 'train.optim_g.type'),
    ('train.scheduler.type', 'StepLR', 'train.scheduler.type'),
    ('train.scheduler.gama', 0.5, 'train.scheduler.gama'),
    ('train.total_iter', '20', 'train.total_iter'),
    ('network_g.num_feat', '1e1', 'network_g.num_feat'),
    ('train.optim_g.lr', '1', 'train.optim_g.lr'),
    ('train.amp', 'fp8', 'train.amp'),
    ('train.accumulate', 2, 'train.accumulate'),
    ('train.progressive', {'gt_size': [32], 'iters': [20]}, 'train.progressive.gt_size'),
    ('datasets.train.gt_size', 66, 'datasets.train.gt_size'),
    ('datasets.train.gt_size', 32, 'datasets.train.gt_size'),
    ('datasets.train.gt_size', 96, 'datasets.train.gt_size'),
    ('datasets.train.gt_size', ..., 'datasets.train.gt_size'),
    ('datasets.train.batch_size_per_gpu', 50, 'datasets.train.dataset_enlarge_ratio'),
    ('datasets.val.persistent_workers', True, 'datasets.val'),
    ('datasets.test_1', {}, 'datasets.test_1 datasets.test_1.type'),
    ('path.teacher', 't.pth', 'path.teacher'),
    ('path.pretrain_network_g', 'no.pth', 'path.pretrain_network_g'),
    ('path.resume_state', 'no.state', 'path.resume_state'),
    ('logger.use_tb_logger', ..., 'logger.use_tb_logger'),
    ('val.val_freq', ..., 'val.val_freq'),
    ('val.self_ensembel', True, 'val.self_ensembel'),
    ('val.metrics.psnr.type', 'psnr', 'val.metrics.psnr.type'),
    ('num_gpu', '2', 'num_gpu'),
    ('datasets.train.filename_tmpl', '{}x4', 'datasets.train.dataroot_lq'),
    ('datasets.train.io_backend', {'tyep': 'disk'}, 'datasets.train.io_backend.tyep datasets.train.io_backend.type'),
    ('datasets.train.io_backend', {'type': 'dsk'}, 'datasets.train.io_backend.type'),
    ('datasets.val.io_backend', {'type': 'lmbd'}, 'datasets.val.io_backend.type'),
    ('datasets.val.io_backend', {'type': 'disk', 'foo': 1}, 'datasets.val.io_backend.foo'),
    ('datasets.val.io_backend', 'disk', 'datasets.val.io_backend'),
    ('datasets.train.type', 'PairedDataset', 'datasets.train.type'),
    ('datasets.train.type', [], 'datasets.train.type'),
    ('datasets.train.std', [0.5], 'datasets.train.mean'),
    ('datasets.train', ..., 'datasets.train'),
    ('datasets', 5, 'datasets'),
    ('train', ..., 'train'),
    ('logger', ..., 'logger'),
    ('scale', ..., 'scale'),
    ('scale', 0, 'scale'),
    ('network_g.num_feat', 0, 'network_g'),
    ('network_g.num_block', 10**9, 'network_g'),
    ('network_g.type', [], 'network_g'),
    ('train.compile', {'moed': 'x'}, 'train.compile.moed'),
    ('train.compile', {'mode': 'fastest'}, 'train.compile.mode'),
    ('train.use_checkpoint', 'yes', 'train.use_checkpoint'),
    ('train.optim_g.type', ['Adam'], 'train.optim_g'),
    ('train.scheduler.type', [], 'train.scheduler'),
    ('train.scheduler.milestones', ['x'], 'train.scheduler.milestones'),
    ('train.scheduler.restart_weights', [1, 0.5], 'train.scheduler'),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [5]}, 'train.scheduler.periods'),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [20, 0]}, 'train.scheduler.periods'),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [10, 10]}, 'train.scheduler'),
    ('train.losses.l_pix.reduction', 'avg', 'train.losses.l_pix'),
    ('train.losses.l_pix.type', [], 'train.losses.l_pix'),
    ('train.losses.l_pix', {'type': 'FAKDLoss', 'block_size': -1}, 'train.losses.l_pix'),
    ('train.progressive', {'gt_size': [64, 480], 'iters': [9, 9]}, 'train.progressive.gt_size'),
    ('train.progressive', {'gt_size': [64, 66], 'iters': [9, 9]}, 'train.progressive.gt_size'),
    ('train.progressive', {'gt_size': [64, 80], 'iters': [9]}, 'train.progressive'),
    ('train.progressive', {'gt_size': [], 'iters': []}, 'train.progressive.gt_size train.progressive.iters'),
    ('train.progressive', {'gt_size': None, 'iters': [9]}, 'train.progressive.gt_size'),
    ('train.progressive', {'gt_size': 'x', 'iters': [9]}, 'train.progressive.gt_size'),
    ('train.progressive', {'gt_size': [64], 'iters': [0]}, 'train.progressive.iters'),
    ('val.val_freq', 0, 'val.val_freq'),
    ('val.tile', {'size': 16, 'overlap': 16}, 'val.tile.overlap'),
    ('val.tile', {'size': 0}, 'val.tile.size'),
    ('val.metrics.psnr.crop_border', -1, 'val.metrics.psnr.crop_border'),
    ('val.metrics.psnr.crop_border', 40, 'val.metrics.psnr.crop_border'),
    ('logger.print_freq', 0, 'logger.print_freq'),
    ('logger.save_checkpoint_freq', 0, 'logger.save_checkpoint_freq'),
    ('logger.wandb', {'projct': 'x'}, 'logger.wandb.projct'),
    ('datasets.train.io_backend', {}, 'datasets.train.io_backend.type'),
    ('train.optim_g.type', 'LBFGS', 'train.optim_g.type'),
    ('train.optim_g.type', 'Optimizer', 'train.optim_g.type'),
    ('train.losses.l_style', {'type': 'L1Loss'}, 'train.losses.l_style'),
    ('val.tile', {'size': 8}, 'val.tile.size'),
    ('name', '..', 'name'),
    ('name', '../datasets', 'name'),
    ('name', 'x' * 300, 'name'),
    ('datasets.train_2', {}, 'datasets.train_2'),
    ('datasets.val.name', '../b', 'datasets.val.name'),
    ('val.suffix', 'a/../../b', 'val.suffix'),
    ('train.losses', {'pix': {'type': 'L1Loss'}}, 'train.losses.pix'),
    ('datasets.train.color', 'y', 'network_g'),
    ('network_g.num_out_ch', 1, 'network_g'),
    ('train.optim_g.lr', ..., 'train.optim_g.lr'),
    ('train.scheduler.gamma', None, 'train.scheduler.gamma'),
    ('train.losses.l_pix.loss_weight', None, 'train.losses.l_pix.loss_weight'),
    ('train.losses.l_pix.reduction', 'none', 'train.losses.l_pix'),
    ('train.optim_g.type', 'SparseAdam', 'train.optim_g'),
    ('train.optim_g.differentiable', True, 'train.optim_g'),
    ('train.optim_g.capturable', True, 'train.optim_g'),
    ('logger.wandb', {'project': 'p'}, 'logger.wandb'),
    ('network_g.num_feat', None, 'network_g.num_feat'),
    ('val.tile', {'size': 16, 'overlap': None}, 'val.tile.overlap'),
    ('val.fuze', True, 'val.fuze'),
    ('val.metrics.psnr.better', 'more', 'val.metrics.psnr.better'),
]


@pytest.mark.parametrize(('dotted', 'value', 'where'), FAULTS, ids=[f'{d}={v}'[:50] for d, v, _ in FAULTS])
def test_one_fault_is_named_where_it_is(opt, dotted, value, where):
    found = found_by_check(put(opt, dotted, value))
    named = {problem.where for problem in found if problem.fatal}
    assert all(any(f'{one}.'.startswith(f'{place}.') for one in named) for place in where.split()), named
    assert all('\n' not in str(problem) for problem in found)


def test_values_at_the_bounds_pass(opt):
    for dotted, value in (
        ('train.ema_decay', 0),
        ('train.grad_clip', 0),
        ('train.total_iter', 2e1),
        ('train.accumulate', 5.0),
        ('datasets.train.batch_size_per_gpu', 5.0),
        ('network_g.num_feat', 8.0),
        ('train.max_nonfinite', 0),
        ('datasets.train.use_hflip', None),
        ('datasets.train.use_rot', None),
        ('logger.use_tb_logger', None),
        ('train.warmup_iter', -1.0),
        ('train.progressive', {'gt_size': [64.0, 80], 'iters': [1e1, 10]}),
        ('train.compile', {'mode': 'default', 'dynamic': True}),
        ('val.tile', {'size': 16, 'overlap': 16, 'blend': 'halo'}),
        ('val.metrics.psnr.crop_border', 39),
        ('datasets.train.mean', [0.5]),
        ('datasets.train.std', [0.5]),
        ('datasets.train.filename_tmpl', '{}'),
        ('manual_seed', 2**32 - 1),
    ):
        put(opt, dotted, value)
    assert not places(opt)


def test_a_scale_of_any_whole_number_is_fine(opt, data):
    for i in range(5):
        Image.new('RGB', (96, 80)).save(data / 'HR' / f'{i}.png')
        Image.new('RGB', (16, 13)).save(data / 'LR' / f'{i}.png')
    opt |= {'scale': 6, 'network_g': {**TINY, 'upscale': 6}}
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    assert not [where for where in places(opt, False) if 'network_g' not in where]


def test_nothing_is_fetched(opt, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *a, **k: pytest.fail('weights were fetched'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    percep = {'type': 'VGGFeatureLoss', 'download': True}
    assert not places(put(opt, 'train.losses.l_vgg', percep))
    percep['download'] = False
    assert places(opt) == ['train.losses.l_vgg']
    percep |= {'if_missing': 'zero', 'layers': {'relu9_9': 1.0}}
    assert 'relu9_9' in said(opt, 'train.losses.l_vgg')


HOST_NETS = {
    'EDSR': {'num_block': 1, 'res_scale': 1},
    'RCAN': {'num_group': 1, 'num_block': 1, 'squeeze_factor': 4, 'res_scale': 1},
}


@pytest.mark.parametrize('name', HOST_NETS)
def test_networks_of_the_host_that_need_memory_are_counted(opt, name, capfd):
    channels = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'img_range': 255.0, 'rgb_mean': [0.45, 0.44, 0.4]}
    opt['network_g'] = {'type': name, **channels, **HOST_NETS[name], 'upscale': 4}
    problems_found, will = forecast(opt, True)
    assert not [p for p in problems_found if p.fatal]
    assert will['network_g, parameters'] == sum(p.numel() for p in build_network(opt['network_g']).parameters())
    assert will['estimated memory per GPU, MiB'] > 0
    assert 'Traceback' not in ''.join(capfd.readouterr())


class TestForeignModels:
    @pytest.fixture
    def gan(self, opt):
        opt['model_type'] = 'ESRGANModel'
        opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
        opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
        opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}
        opt['train'] |= {
            'optim_d': {'type': 'Adam', 'lr': 1e-4},
            'pixel_opt': opt['train'].pop('losses')['l_pix'],
            'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.005},
            'net_d_iters': 1,
            'net_d_init_iters': 0,
        }
        return opt

    def test_their_own_keys_pass(self, gan):
        assert not places(put(gan, 'train.key_of_somebody', 1))
        assert not places(put(gan, 'train.blur_opt', {'type': 'no loss at all'}))

    @pytest.mark.parametrize(
        ('dotted', 'value', 'where'),
        [
            ('train.gan_opt.gan_type', 'x', 'train.gan_opt'),
            ('train.gan_opt.gan_typ', 'x', 'train.gan_opt.gan_typ'),
            ('train.gan_opt.type', 'GANLos', 'train.gan_opt'),
            ('train.ldl_opt', {'type': 'L1Loss', 'reduction': 'avg'}, 'train.ldl_opt'),
            ('train.optim_d.lr', -1, 'train.optim_d.lr'),
        ],
    )
    def test_every_loss_and_optimizer_is_checked(self, gan, dotted, value, where):
        assert places(put(gan, dotted, value)) == [where]

    def test_a_misspelling_is_a_warning_as_they_may_read_it(self, gan):
        gan['train']['perceptual_op'] = None
        assert 'train.perceptual_op' in places(gan, fatal=False)

    def test_a_file_without_pairs_needs_no_scale(self, opt):
        for key in ('scale', 'train', 'val'):
            del opt[key]
        opt['model_type'] = 'StyleGAN2Model'
        opt['network_g'] = {'type': 'StyleGAN2Generator', 'out_size': 32, 'num_style_feat': 64, 'num_mlp': 2}
        opt['datasets'] = {'train': {'name': 'F', 'type': 'FFHQDataset', 'batch_size_per_gpu': 4}}
        assert 'scale' not in [problem.where for problem in inspected(opt, True).found]


def test_of_a_test_file_val_and_its_suffix_are_asked_for(opt):
    del opt['train'], opt['logger']
    opt['model_type'] = 'SRModel'
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    put(opt, 'val', {'save_img': True})
    assert places(opt, False) == ['val']
    assert not places(put(opt, 'val.suffix', None), False)
    assert places(put(opt, 'val', ...), False) == ['val']
    assert 'datasets.test' in places(put(opt, 'datasets', {}), False)


JUNK = (None, 0, -1, 1.5, float('inf'), 'x', '{}_{}', [], [None], {}, {'type': []}, True)


def entries(section, path=()):
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from entries(value, (*path, key))


def test_no_mutated_file_gives_a_traceback(opt, monkeypatch, tmp_path):
    """Every entry of a file with everything in it, replaced by what is not meant there."""
    opt['model_type'] = 'DistillationModel'
    opt['network_t'] = dict(TINY)
    torch.save({'params': build_network(TINY).state_dict()}, tmp_path / 't.pth')
    opt['train'] |= {
        'progressive': {'gt_size': [64, 80], 'iters': [10, 10], 'batch': [2, 2]},
        'distill': {'alpha': 1, 'feature_pairs': {'block_1': 'block_1'}, 'feature_loss': {'type': 'L1Loss'}},
        'compile': {'mode': 'default'},
        'accumulate': 1,
    }
    opt['val']['tile'] = {'size': 16, 'overlap': 8}
    opt['logger']['wandb'] = {'project': None}
    opt['datasets']['train'] |= {'filename_tmpl': '{}', 'mean': [0.5], 'std': [0.5], 'meta_info_file': None}
    opt['path'] |= {'resume_state': None, 'param_key_g': 'params', 'training_states': None}
    opt['path']['pretrain_network_t'] = str(tmp_path / 't.pth')
    assert not places(opt)
    monkeypatch.setattr(complexity, 'count_macs', lambda *_, **__: None)  # counted elsewhere, and slow
    monkeypatch.setattr(complexity, 'saved_for_backward', lambda *_, **__: 0)
    broken = []
    for number, path in enumerate(entries(opt)):
        for junk in JUNK[number % 6 :: 6] if len(path) > 1 else JUNK:
            changed = put(copy.deepcopy(opt), '.'.join(path), copy.deepcopy(junk))
            try:
                forecast(changed, True)
            except Exception as error:
                broken.append(f'{".".join(path)}: {junk!r}: {error!r}')
    assert not broken


def test_values_of_a_class_that_nobody_knows_are_read_by_nobody(opt):
    for *place, last in [path for path in entries(opt) if path[-1] == 'type']:
        for neighbour in reduce(dict.__getitem__, place, opt):
            changed = copy.deepcopy(opt)
            section = reduce(dict.__getitem__, place, changed)
            section[last], section[neighbour] = section[neighbour], section[last]
            assert last == neighbour or places(changed)
    opt['datasets']['train'] |= {'type': 'FFHQDataset', 'gt_size': [64], 'batch_size_per_gpu': 'x'}
    forecast(opt, True)


@pytest.mark.parametrize(
    ('dotted', 'misspelt'),
    [
        ('train', 'trian'),
        ('datasets.train.use_hflip', 'use_hflips'),
        ('logger.print_freq', 'print_frequency'),
    ],
)
def test_a_misspelt_option_is_fatal_and_names_the_right_one(opt, dotted, misspelt):
    *path, right = dotted.split('.')
    section = opt
    for key in path:
        section = section[key]
    section[misspelt] = section.pop(right)
    where = '.'.join([*path, misspelt])
    assert where in places(opt)
    assert repr(right) in said(opt, where)


@pytest.mark.parametrize(
    ('dotted', 'value', 'where'),
    [
        ('val.metrics.psnr.crop_border', 0, None),
        ('train.scheduler.milestones', [10, 20], None),
        ('train.warmup_iter', 15, None),
        ('train.warmup_iter', 15, 'train.scheduler.milestones'),
        ('datasets.train.num_worker_per_gpu', 1, 'datasets.train.persistent_workers'),
        ('my_note', 'kept by somebody', None),
        ('name', 'debug_it', None),
    ],
)
def test_what_is_only_odd_is_a_warning(opt, dotted, value, where):
    assert not places(put(opt, dotted, value))
    assert (where or dotted) in places(opt, fatal=False)


def test_half_precision_where_a_network_suffers_from_it_is_a_warning(opt):
    opt['train']['amp'] = 'bf16'
    assert not inspected(opt, True).found
    opt['network_g'] = CASES['AGDN'].option(upscale=4)
    assert [(p.where, p.fatal) for p in inspected(opt, True).found] == [('train.amp', False)]


@pytest.mark.parametrize(('warmup', 'milestones'), [(4, [2, 12]), (10, [5]), (15, [3, 15])])
def test_the_rate_that_a_warm_up_reaches_is_the_hosts(opt, warmup, milestones):
    """MultiStepLR multiplies the rate that it finds, and during a warm-up it finds a smaller one."""
    from basicsr.models.base_model import BaseModel
    from basicsr.models.lr_scheduler import MultiStepRestartLR

    opt['train'] |= {
        'warmup_iter': warmup,
        'scheduler': {'type': 'MultiStepLR', 'milestones': milestones, 'gamma': 0.5},
    }
    model = BaseModel({'num_gpu': 0, 'is_train': True})
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    model.optimizers, model.schedulers = [optimizer], [MultiStepRestartLR(optimizer, milestones, gamma=0.5)]
    rates = []
    for iteration in range(1, 21):
        optimizer.step()
        model.update_learning_rate(iteration, warmup_iter=warmup)
        rates.append(optimizer.param_groups[0]['lr'])
    assert not places(opt)
    assert said(opt, 'train.warmup_iter').endswith(f' {max(rates):g}')
    falls = sum(after < before for before, after in itertools.pairwise(rates))
    assert ('train.scheduler.milestones' in places(opt, fatal=False)) == (falls < len(milestones))


def test_who_reads_a_key_is_said_by_the_model_classes(opt):
    opt['model_type'] = 'SRModel'
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
    opt['train']['pixel_opt'] = opt['train'].pop('losses')['l_pix']
    assert not places(opt)
    opt['train']['amp'], opt['val']['tile'] = 'bf16', {'size': 16}
    assert places(opt) == ['train.amp', 'val.tile']


def test_the_ratio_it_names_is_the_smallest_that_works(opt):
    put(opt, 'datasets.train.batch_size_per_gpu', 4)
    put(opt, 'datasets.train.dataset_enlarge_ratio', 1)
    text = said(opt, 'datasets.train.dataset_enlarge_ratio')
    assert '11 of 20 iterations' in text  # as a run of the host itself does
    ratio = int(text.rpartition(' ')[2])
    assert not places(put(opt, 'datasets.train.dataset_enlarge_ratio', ratio))
    assert ratio == 1 or places(put(opt, 'datasets.train.dataset_enlarge_ratio', ratio - 1))


def test_pairs_of_another_scale_and_unreadable_images_are_named(opt, data):
    file = data / 'LR' / '3.png'
    whole = (data / 'LR' / '2.png').read_bytes()
    Image.new('RGB', (23, 20)).save(file)
    assert '4.17 times as wide and 4 times as high' in said(opt, 'datasets.train')
    for content in (whole[:-20], whole[:20], b'no image', b''):
        file.write_bytes(content)
        assert 'LR/3.png' in said(opt, 'datasets.train')
    file.unlink()
    assert '3.png' in said(opt, 'datasets.train.dataroot_lq')


@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_images_of_validation_that_cannot_be_decoded_are_named(opt, data, kind):
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    for folder, image in (('HR', noise), ('LR', noise[::4, ::4])):
        (data / 'val' / folder).mkdir(parents=True)
        Image.fromarray(image).save(data / 'val' / folder / f'a.{kind}')
    opt['datasets']['val'] |= {'dataroot_gt': str(data / 'val' / 'HR'), 'dataroot_lq': str(data / 'val' / 'LR')}
    assert not places(opt)
    file = data / 'val' / 'HR' / f'a.{kind}'
    whole = file.read_bytes()
    damaged = whole[: len(whole) // 3] if kind == 'jpg' else whole[:2000] + bytes(200) + whole[2200:]
    file.write_bytes(damaged)
    assert places(opt) == ['datasets.val']
    assert str(file) in said(opt, 'datasets.val')


def test_images_of_validation_that_are_too_small_for_the_network_are_refused(opt, data):
    for folder, size in (('HR', (96, 56)), ('LR', (24, 14))):
        (data / 'val' / folder).mkdir(parents=True)
        Image.new('RGB', size).save(data / 'val' / folder / 'a.png')
    opt['datasets']['val'] |= {'dataroot_gt': str(data / 'val' / 'HR'), 'dataroot_lq': str(data / 'val' / 'LR')}
    assert places(opt) == ['datasets.val.dataroot_lq']


@pytest.mark.parametrize('few', [100, 5])
def test_one_small_image_among_many_is_found_where_looking_is_cheap(opt, data, monkeypatch, few):
    monkeypatch.setattr(data_rules, 'FEW_PAIRS', few)
    monkeypatch.setattr(data_rules, 'SAMPLED_PAIRS', 2)
    for i in range(5, 60):
        for folder in ('HR', 'LR'):
            shutil.copy(data / folder / '0.png', data / folder / f'{i}.png')
    for folder, size in (('HR', (96, 60)), ('LR', (24, 15))):
        Image.new('RGB', size).save(data / folder / '41.png')
    assert ('datasets.train.gt_size' in places(opt)) == (few == 100), 'of a larger folder only a sample is read'


def test_every_header_is_read_of_validation_and_of_training_when_asked_for(opt, data, monkeypatch):
    monkeypatch.setattr(data_rules, 'FEW_PAIRS', 50)
    for i in range(60):
        Image.new('RGB', (96, 80)).save(data / 'HR' / f'x{i:02}.png')
        Image.new('RGB', (24, 20)).save(data / 'LR' / f'x{i:02}.png')
    (data / 'LR' / 'x02.png').write_bytes(b'no image')  # not among the sample
    assert places(opt) == ['datasets.val']
    opt['datasets'].pop('val')
    assert not places(opt)
    assert any('x02.png' in str(p) for p in inspected(opt, True, every_image=True).found)


def list_lmdb(folder, text: str) -> None:
    """An LMDB that holds nothing, and a list that says what it holds."""
    lmdb.open(str(folder)).close()
    (folder / 'meta_info.txt').write_text(text)


@pytest.mark.parametrize('line', ['0.png', '', '0.png (a,b,3) 1', '0.png (20) 1', '0.png (0,0,3) 1'])
def test_a_malformed_list_of_an_lmdb_is_named_with_its_line(opt, data, line):
    for name in ('HR', 'LR'):
        list_lmdb(data / f'{name}.lmdb', f'1.png (80,96,3) 1\n{line}\n')
    opt['datasets']['train'] |= {'dataroot_gt': str(data / 'HR.lmdb'), 'dataroot_lq': str(data / 'LR.lmdb')}
    assert places(put(opt, 'datasets.train.io_backend', {'type': 'lmdb'})) == ['datasets.train.dataroot_gt']
    assert 'line 2 of ' in said(opt, 'datasets.train.dataroot_gt')


def test_a_list_of_images_in_another_encoding_is_named(opt, data):
    (data / 'meta.txt').write_bytes('é.png (80,96,3)\n'.encode('latin-1'))
    where = 'datasets.train.meta_info_file'
    assert places(put(opt, where, str(data / 'meta.txt'))) == [where]
    assert 'UTF-8' in said(opt, where)


class TestChannels:
    @pytest.fixture
    def luma(self, opt):
        for data in opt['datasets'].values():
            data['color'] = 'y'
        opt['network_g'] |= {'num_in_ch': 1, 'num_out_ch': 1}
        return opt

    def test_luma_for_a_network_of_one_channel_is_fine(self, luma):
        assert inspected(luma, True).found == []

    def test_a_network_of_one_channel_cannot_see_rgb(self, luma):
        del luma['datasets']['val']['color']
        assert places(luma) == ['network_g']

    def test_bytes_are_of_three_channels(self, luma):
        assert places(put(luma, 'datasets.train.uint8', True)) == ['datasets.train.uint8']

    def test_bytes_are_not_normalised(self, opt):
        opt['datasets']['train'] |= {'uint8': True, 'mean': [0.5] * 3, 'std': [0.5] * 3}
        assert places(opt) == ['datasets.train.uint8']


def test_a_checkpoint_must_fit_unless_told_otherwise(opt, tmp_path):
    file = tmp_path / 'x2.pth'
    torch.save({'params': build_network({**TINY, 'upscale': 2}).state_dict()}, file)
    put(opt, 'path.pretrain_network_g', str(file))
    where = 'path.pretrain_network_g'
    assert places(opt) == [where]
    assert str(file) in said(opt, where)
    put(opt, 'path.strict_load_g', False)
    assert not places(opt)
    put(opt, 'path.param_key_g', 'ema')
    assert places(opt) == [where]
    assert "'ema'" in said(opt, where)


def test_feature_names_and_the_teacher_are_looked_up(opt, tmp_path):
    opt['model_type'] = 'DistillationModel'
    opt['network_t'] = {**TINY, 'num_feat': 12}
    opt['train']['distill'] = {
        'feature_pairs': {'block_1': 'block_7'},
        'feature_loss': {'type': 'FAKDLoss', 'block': 3},
    }
    assert set(places(opt)) == {
        'train.distill.feature_pairs',
        'path.pretrain_network_t',
        'train.distill.feature_loss.block',
    }
    assert "'block_1'" in said(opt, 'train.distill.feature_pairs')
    torch.save({'params': build_network(opt['network_t']).state_dict()}, tmp_path / 't.pth')
    opt['path']['pretrain_network_t'] = str(tmp_path / 't.pth')
    opt['train']['distill'] = {'feature_pairs': {'block_1': 'block_1'}, 'feature_loss': {'type': 'FAKDLoss'}}
    assert not places(opt)
    opt['train']['pixel_opt'] = opt['train'].pop('losses')['l_pix']
    assert 'train.pixel_opt' in places(opt, fatal=False)
    opt['train']['distill']['beta'] = 0
    assert 'train.pixel_opt' not in places(opt, fatal=False)


def test_what_basicsr_cannot_load_is_converted(opt, tmp_path):
    opt['model_type'] = 'SRModel'
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
    opt['train']['pixel_opt'] = opt['train'].pop('losses')['l_pix']
    state = build_network(TINY).state_dict()
    where = 'path.pretrain_network_g'
    put(opt, where, str(tmp_path / 'net.pth'))
    for stored in ({'state_dict': {f'model.{key}': value for key, value in state.items()}}, state):
        torch.save(stored, tmp_path / 'net.pth')
        assert places(opt) == [where]
        assert 'effsr convert' in said(opt, where)
    torch.save({'params': state}, tmp_path / 'net.pth')
    assert not places(opt)


def test_more_gpus_than_there_are_stop_a_run_and_warn_elsewhere(opt):
    put(opt, 'num_gpu', 64)
    put(opt, 'datasets.train.dataset_enlarge_ratio', 640)
    assert not [p for p in inspected(opt, True).found if p.fatal]
    assert [p.where for p in inspected({**opt, 'rank': 0}, True).found if p.fatal] == ['num_gpu']


def test_forecast_counts_what_will_happen(opt):
    _, will = forecast(opt, True)
    expected = {
        'images, train': 5,
        'iterations that will run': 20,
        'iterations per epoch': 4,
        'epochs': 5,
        'patches seen': 100,
        'validations': 2,
        'checkpoints': 2,
    }
    assert {k: will[k] for k in expected} == expected
    assert will['network_g, parameters'] == sum(p.numel() for p in build_network(TINY).parameters())
    assert 0 < will['estimated memory per GPU, MiB'] < 100


def play(opt):
    """The training loop of BasicSR with our loaders: (iterations, patches, epochs) of one rank."""
    from basicsr.data import build_dataset

    opt |= {'dist': False, 'world_size': 1, 'rank': 0}
    data = copy.deepcopy(opt['datasets']['train']) | {'phase': 'train', 'scale': opt['scale']}
    ours, batch = replacements(opt), data['batch_size_per_gpu']
    source, ratio, total = build_dataset(data), data['dataset_enlarge_ratio'], opt['train']['total_iter']
    sampler = ours['EnlargedSampler'](source, 1, 0, ratio)
    loader = ours['build_dataloader'](source, data, num_gpu=opt['num_gpu'], sampler=sampler, seed=0)
    done = patches = 0
    for epoch in range(math.ceil(total / math.ceil(len(source) * ratio / batch)) + 1):
        sampler.set_epoch(epoch)
        for samples in loader:
            done += 1
            patches += len(samples['lq'])
            if done == total:
                return done, patches, epoch + 1
    raise AssertionError('the run ends early')


@pytest.mark.parametrize('gpus', [0, 2, 3])
@pytest.mark.parametrize(
    ('kind', 'stages', 'batches'),
    [
        ('PairedImageDataset', None, 5),
        ('EffSRPairedDataset', None, 5),
        ('EffSRPairedDataset', {'gt_size': [64, 72], 'iters': [8, 12]}, 5),
        ('EffSRPairedDataset', {'gt_size': [64, 72], 'iters': [8, 12], 'batch': [8, 2]}, [8, 2]),
        ('EffSRPairedDataset', {'gt_size': [64, 72, 80], 'iters': [8, 8, 100], 'batch': [8, 2, 1]}, [8, 2, 1]),
        ('EffSRPairedDataset', {'gt_size': [64, 72, 80], 'iters': [8, 100, 9], 'batch': [8, 2, 100]}, [8, 2, 100]),
    ],
)
def test_forecast_is_what_the_loop_of_the_host_does(opt, monkeypatch, kind, gpus, stages, batches):
    monkeypatch.setattr(complexity, 'saved_for_backward', lambda *_, **__: 0)
    opt['datasets']['train'] |= {'type': kind, 'use_rot': True, 'dataset_enlarge_ratio': 20}
    found_problems, will = forecast(put(put(opt, 'num_gpu', gpus), 'train.progressive', stages), True)
    times, many = max(gpus, 1), batches if isinstance(batches, list) else [batches]
    assert will['patches per iteration'] == ([b * times for b in many] if many is batches else batches * times)
    per_epoch = [100 // (b * times) for b in many]
    assert will['iterations per epoch'] == (per_epoch if many is batches else per_epoch[0])
    fatal = [str(p) for p in found_problems if p.fatal]
    if fatal:
        with pytest.raises(ValueError, match='set dataset_enlarge_ratio to') as refused:
            play(opt)
        assert str(refused.value).split()[-1] == fatal[0].split()[-1]  # the ratio that both name
    else:
        names = ('iterations that will run', 'patches seen', 'epochs')
        assert tuple(will[name] for name in names) == play(opt)


def test_a_run_of_any_length_is_counted(opt):
    opt['train'] |= {'total_iter': 10**12, 'progressive': {'gt_size': [64, 72], 'iters': [10**9 + 1, 1]}}
    course = course_of(Context(opt, True, images={'train': 5}))
    assert (course.runs, course.epochs, course.patches) == (10**12, 25 * 10**10, 5 * 10**12)


def test_forecast_of_several_ranks(opt):
    opt |= {'dist': True, 'world_size': 3, 'num_gpu': 3}
    put(opt, 'datasets.train.dataset_enlarge_ratio', 20)
    _, will = forecast(opt, True)
    names = ('iterations that will run', 'patches per iteration', 'iterations per epoch', 'epochs', 'patches seen')
    assert [will[name] for name in names] == [20, 15, 6, 4, 300]  # 34 samples per rank, 5 at a time


def test_auto_is_all_visible_gpus(opt, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    put(put(opt, 'num_gpu', 'auto'), 'datasets.train.dataset_enlarge_ratio', 20)
    _, will = forecast(opt, True)
    assert (will['patches per iteration'], will['patches seen']) == (10, 200)
    assert 'num_gpu' in places(opt, fatal=False)


class TestMemoryOfTheTeacher:
    LR, TEACHER = 16, {**TINY, 'num_feat': 24}

    @pytest.fixture
    def distil(self, opt, tmp_path):
        torch.save({'params': build_network(self.TEACHER).state_dict()}, tmp_path / 't.pth')
        opt |= {'model_type': 'DistillationModel', 'network_t': dict(self.TEACHER)}
        opt['path']['pretrain_network_t'] = str(tmp_path / 't.pth')
        opt['train']['distill'] = {'feature_pairs': {'block_1': 'block_1'}, 'feature_loss': {'type': 'FAKDLoss'}}
        return put(opt, 'datasets.train.batch_size_per_gpu', 64)

    @staticmethod
    def estimate(opt):
        return forecast(opt, True)[1]['estimated memory per GPU, MiB']

    def test_it_is_in_the_estimate(self, distil):
        with_teacher = self.estimate(distil)
        alone = self.estimate({**distil, 'model_type': 'EffSRModel', 'train': {**distil['train'], 'distill': None}})
        net = build_network(self.TEACHER)
        weights = 4 * complexity.count_params(net)
        image = complexity.peak_memory(net, (self.LR, self.LR)) - weights
        assert with_teacher - alone == pytest.approx((weights + 64 * image) / 2**20, abs=1)

    def test_it_grows_with_the_batch_and_shrinks_with_its_precision(self, distil):
        full = self.estimate(distil)
        half = self.estimate(put(copy.deepcopy(distil), 'train.distill.teacher_dtype', 'bf16'))
        parts = self.estimate(put(copy.deepcopy(distil), 'train.accumulate', 4))
        assert half < full
        assert parts == pytest.approx(full / 4, rel=0.1)


class TestActivationCheckpointing:
    def test_the_estimate_is_smaller(self, opt):
        put(put(opt, 'datasets.train.batch_size_per_gpu', 64), 'datasets.train.dataset_enlarge_ratio', 100)
        opt['network_g'] = {**TINY, 'num_block': 6}
        full = forecast(copy.deepcopy(opt), True)[1]['estimated memory per GPU, MiB']
        problems_found, will = forecast(put(opt, 'train.use_checkpoint', True), True)
        assert not [p for p in problems_found if p.fatal]
        assert will['estimated memory per GPU, MiB'] < full / 2

    @pytest.mark.parametrize(
        ('dotted', 'value', 'words'),
        [
            ('train.compile', True, 'train.compile'),
            ('network_g', {'type': 'SRVGGNetCompact', 'upscale': 4}, 'has no blocks'),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, opt, dotted, value, words):
        found, _ = forecast(put(put(opt, 'train.use_checkpoint', True), dotted, value), True)
        assert [p.where for p in found if words in str(p) and p.fatal] == ['train.use_checkpoint']


def run(*arguments):
    return CliRunner().invoke(app, ['check', *map(str, arguments)])


def test_exit_codes_and_json(opt, tmp_path):
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump(opt))
    fine = run('-opt', file, '--json')
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)['problems'] == []
    file.write_text(yaml.safe_dump(put(opt, 'network_g.upscale', 2)))
    refused = run('-opt', file)
    assert refused.exit_code == 1
    assert [line.count('line ') for line in refused.stdout.splitlines() if line.startswith('error: ')] == [1]
    for bad in (['-opt', tmp_path / 'none.yml'], []):
        result = run(*bad)
        assert (result.exit_code, result.stderr.count('\n')) == (2, 1)


@pytest.mark.parametrize(
    ('dotted', 'value', 'where'),
    [
        ('network_g', None, 'network_g'),
        ('network_g', [], 'network_g'),
        ('network_g', 'HASN', 'network_g'),
        ('network_g', {}, 'network_g'),
        ('network_g.type', ['HASN'], 'network_g'),
        ('path', 'abc', 'path'),
        ('path', None, 'path'),
        ('path.pretrain_network_g', 5, 'path.pretrain_network_g'),
        ('datasets', None, 'datasets'),
        ('datasets', 'DIV2K', 'datasets'),
        ('datasets.train', 'DIV2K', 'datasets.train'),
        ('train', None, 'train'),
        ('train', [1], 'train'),
        ('val', 5, 'val'),
        ('train.optim_g.lr', ..., 'train.optim_g.lr'),
    ],
)
def test_odd_sections_are_one_error_each_with_a_line(opt, tmp_path, dotted, value, where):
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump(put(opt, dotted, value)))
    result = run('-opt', file, '--json')
    assert result.exit_code == 1
    (problem,) = (p for p in json.loads(result.stdout)['problems'] if p['fatal'])
    assert problem['where'] == where
    last = where.split('.')[-2 if value is ... else -1]  # of what is missing, the section
    assert file.read_text().splitlines()[problem['line'] - 1].strip().startswith(f'{last}:')


def test_the_page_of_options_is_current():
    """Run: effsr check --docs > docs/options.md"""
    page = (ROOT / 'docs' / 'options.md').read_text(encoding='utf-8')
    assert page == run('--docs').stdout, 'effsr check --docs > docs/options.md'


def test_schema_accepts_our_files_and_refuses_misspellings(opt, validator):
    for file in sorted((ROOT / 'options').glob('t*/*.yml')):
        errors = [e.message for e in validator.iter_errors(yaml.safe_load(file.read_text()))]
        assert not errors, f'{file.name}: {errors}'
    for dotted in ('network_g.num_feats', 'train.totl_iter', 'datasets.train.gtsize', 'val.tyle', 'nam'):
        assert list(validator.iter_errors(put(copy.deepcopy(opt), dotted, 1))), dotted
    assert not list(validator.iter_errors(opt))
    for dotted, value in (
        ('val.val_freq', 0),
        ('train.ema_decay', 1),
        ('train.optim_g.lr', 0),
        ('datasets.train.mean', ['x']),
        ('train.compile', {'moed': 'x'}),
        ('logger.wandb', {'projct': 'x'}),
        ('scale', 0),
    ):
        assert list(validator.iter_errors(put(copy.deepcopy(opt), dotted, value))), dotted


def both(validator, opt):
    """Whether the schema underlines something, and the errors of the check."""
    return bool(list(validator.iter_errors(opt))), [p.where for p in inspected(opt, True).found if p.fatal]


@pytest.fixture(scope='module')
def validator():
    jsonschema = pytest.importorskip('jsonschema', reason='pip install jsonschema')
    return jsonschema.Draft7Validator(option_schema())


COSINE = {'type': 'CosineAnnealingRestartLR', 'periods': [20], 'restart_weights': [1]}


@pytest.mark.parametrize(
    ('dotted', 'value'),
    [
        ('train.scheduler', {**COSINE, 'eta_mim': 1e-7}),
        ('train.scheduler', {**COSINE, 'milestones': [5]}),
        ('train.scheduler', {'type': 'CosineAnnealingRestartLR'}),
        ('train.scheduler', {'type': 'StepLR'}),
        ('train.scheduler.gama', 0.5),
        ('train.optim_g.weigth_decay', 0),
        ('train.optim_g.type', 'Adma'),
        ('train.optim_g.type', 'LBFGS'),
        ('train.optim_g', {'type': 'SGD', 'lr': 0.1, 'betas': [0.9, 0.99]}),
        ('train.optim_g', {}),
        ('train.distill', {'alpha': 1}),
        ('train.losses.l_pix', {'type': 'EpsCharbonnierLoss', 'epsilon': 1e-3}),
        ('train.progressive', {'gt_size': [64]}),
        ('path.teacher', 'x.pth'),
        ('datasets.trian', {}),
        ('datasets.train.gt_size', None),
        ('datasets.train.dataroot_gt', ...),
        ('datasets.train.io_backend', None),
        ('datasets.train.io_backend', {}),
        ('datasets.train.filename_tmpl', None),
        ('datasets.train.dataset_enlarge_ratio', None),
        ('val.save_img', ...),
        ('val.val_freq', ...),
        ('val.metrics.psnr', None),
        ('val.metrics.psnr', {'type': 'calculate_psnr', 'crop_boarder': 4}),
        ('network_g', None),
        ('num_gpu', '2'),
        ('logger', None),
    ],
)
def test_what_the_check_refuses_the_schema_underlines(opt, validator, dotted, value):
    underlined, errors = both(validator, put(opt, dotted, value))
    assert errors
    assert underlined


@pytest.mark.parametrize(
    ('dotted', 'value'),
    [
        ('train.losses', None),
        ('train.losses.l_other', None),
        ('train.progressive', None),
        ('train.compile', None),
        ('train.pixel_opt', {'type': 'MSELoss', 'loss_weight': 1.0}),
        ('train.scheduler', COSINE),
        ('train.optim_g', {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'nesterov': True}),
        ('val', None),
        ('val.tile', None),
        ('val.metrics', None),
        ('val.metrics.psnr.test_y_channel', True),
        ('network_t', None),
        ('num_gpu', 'auto'),
        ('datasets.val.meta_info_file', None),
        ('datasets.val_2', {'name': 'c', 'type': 'RealESRGANPairedDataset', 'meta_info': 'pairs.txt'}),
        ('datasets.val_2', {'name': 'c', 'type': 'VideoTestDataset', 'cache_data': True}),
    ],
)
def test_what_the_check_accepts_is_not_underlined(opt, validator, dotted, value):
    if dotted in ('train.losses', 'train.pixel_opt'):
        opt['train'] |= {'pixel_opt': {'type': 'L1Loss'}, 'losses': None}
    assert both(validator, put(opt, dotted, value)) == (False, [])


def test_models_of_others_have_their_own_options(opt, validator):
    opt['model_type'] = 'ESRGANModel'
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
    opt['train'] |= {
        'pixel_opt': opt['train'].pop('losses')['l_pix'],
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.005},
        'optim_d': {'type': 'Adam', 'lr': 1e-4},
        'net_d_iters': 1,
    }
    opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}
    opt['path']['param_key_d'] = 'params'
    assert both(validator, opt) == (False, [])
    opt['model_type'] = 'SRModel'
    underlined, errors = both(validator, opt)
    assert underlined
    assert errors


def test_every_key_of_our_models_is_described():
    from basicsr.utils.registry import MODEL_REGISTRY

    model = MODEL_REGISTRY.get('DistillationModel')
    assert set(spec.fields(spec.Train)) == set(model.train_keys)
    assert set(spec.fields(spec.Val)) == set(model.val_keys)


def test_hover_and_choices_of_an_editor():
    schema = option_schema()
    train = schema['properties']['train']['anyOf'][0]['properties']
    assert 'bf16' in str(train['amp'])
    assert all('description' in entry or '$ref' in entry or 'anyOf' in entry for entry in train.values())
    hasn = next(e['then'] for e in schema['definitions']['network']['allOf'] if 'HASN' in str(e['if']))
    assert hasn['properties']['num_feat']['description']
    assert hasn['properties']['num_feat']['default'] == 52


def test_a_turned_photograph_is_measured_as_it_is_loaded(opt, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, size in (('HR', (96, 80)), ('LR', (20, 24))):  # LR is 24x20 when it is upright
        (data / 'turned' / folder).mkdir(parents=True)
        Image.new('RGB', size).save(data / 'turned' / folder / 'a.jpg', exif=exif if folder == 'LR' else Image.Exif())
    for phase in ('train', 'val'):
        roots = {'dataroot_gt': str(data / 'turned' / 'HR'), 'dataroot_lq': str(data / 'turned' / 'LR')}
        opt['datasets'][phase] |= roots
    assert not [p for p in inspected(opt, True).found if p.where.endswith('dataroot_lq')]


def test_keys_that_a_model_of_the_host_reads_are_known():
    opt = yaml.safe_load((ROOT / 'options' / 'train' / 'hasn_x4_realworld.yml').read_text())
    assert not {problem.where for problem in inspected(opt, True).found} & {'gt_usm', 'jpeg_range', 'queue_size'}
    opt['jpeg_rang'] = opt.pop('jpeg_range')
    assert 'jpeg_rang' in {problem.where for problem in inspected(opt, True).found if problem.fatal}


class TestForce:
    @pytest.mark.parametrize(
        ('entry', 'dotted', 'value'),
        [
            ('name=other', 'name', 'other'),
            ('train:total_iter=40', 'train.total_iter', 40),
            ('train:ema_decay=0.5', 'train.ema_decay', 0.5),
            ('train:scheduler:milestones=[3, 4]', 'train.scheduler.milestones', [3, 4]),
            ('path:pretrain_network_g=~', 'path.pretrain_network_g', None),
        ],
    )
    def test_it_means_what_it_means_to_basicsr(self, opt, monkeypatch, tmp_path, entry, dotted, value):
        """Beside the host's own ``parse_options``, on the same file."""
        from basicsr.utils.options import parse_options

        (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt))
        monkeypatch.setattr('sys.argv', ['train', '-opt', str(tmp_path / 'opt.yml'), '--force_yml', entry])
        theirs, _ = parse_options.__wrapped__(str(tmp_path), is_train=True)
        force(opt, entry)
        for options in (theirs, opt):
            for name in dotted.split('.'):
                options = options[name]
            assert options == value

    @pytest.mark.parametrize('entry', ['name', '=3', 'train:nothing:key=3', 'scale:x=3', 'name=a=b', 'train:losses=[3'])
    def test_what_basicsr_cannot_take_is_refused(self, opt, entry):
        with pytest.raises(UserError):
            force(opt, entry)

    def test_the_command_takes_them_as_basicsr_does(self, opt, tmp_path):
        (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt))
        words = ['check', '-opt', str(tmp_path / 'opt.yml'), '--force_yml', 'train:total_iter=16', 'train:ema_decay=2']
        told = json.loads(CliRunner().invoke(app, [*words, '--json']).stdout)
        assert told['forecast']['iterations asked for'] == 16
        assert [problem['where'] for problem in told['problems'] if problem['fatal']] == ['train.ema_decay']
        assert CliRunner().invoke(app, [*words[:3], 'train:total_iter=16']).exit_code == 2
