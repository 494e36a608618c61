"""What the pre-flight check finds, what it lets pass, and that the schema for editors is current."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.data.pairs import list_pairs
from basicsr_effsr.host.loop import replacements
from basicsr_effsr.options import check
from basicsr_effsr.options import forecast as forecasts
from basicsr_effsr.options.check import problems
from basicsr_effsr.options.forecast import forecast
from basicsr_effsr.options.schema import option_schema
from basicsr_effsr.utils.complexity import count_params, peak_memory

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


def found(opt, is_train=True, fatal=True):
    return [str(p) for p in problems(opt, is_train) if p.fatal is fatal]


def test_a_sound_file_has_no_problem_and_is_left_as_it_was(opt):
    before = copy.deepcopy(opt)
    assert problems(opt, True) == []
    assert opt == before


FAULTS = [
    ('train.losses.l_pix.los_weight', 1.0, r"train\.losses\.l_pix\.los_weight: .*did you mean 'loss_weight'"),
    ('network_g.num_feats', 8, r"network_g\.num_feats: nothing reads this option; did you mean 'num_feat'"),
    ('network_g.type', 'HASM', r"network_g\.type: there is no arch 'HASM'; did you mean 'HASN'"),
    ('network_g.upscale', 2, r'network_g\.upscale: must equal scale, got 2 and 4'),
    ('network_g.kernel_size', 4, r'network_g: HASN: kernel_size must be odd, got 4'),
    ('model_type', 'EffSrModel', r"model_type: there is no model 'EffSrModel'; did you mean 'EffSRModel'"),
    ('train.optim_g.lr', '1e-4', r"train\.optim_g\.lr: must be a number, got '1e-4'; .*write !!float 1e-4"),
    ('train.optim_g.beta', 0.9, r"train\.optim_g\.beta: .*'betas'"),
    ('train.optim_g.type', 'AdamX', r"torch\.optim has no 'AdamX'"),
    ('train.scheduler.type', 'StepLR', r"BasicSR has no 'StepLR'; did you mean 'MultiStepLR'"),
    ('train.scheduler.gama', 0.5, r"train\.scheduler\.gama: .*'gamma'"),
    ('train.total_iter', '20', r"train\.total_iter: must be .*got '20'; in quotes it is a text, write 20 without them"),
    ('network_g.num_feat', '1e1', r"network_g\.num_feat: must be a whole number, got '1e1'$"),
    (
        'train.optim_g.lr',
        '1',
        r"train\.optim_g\.lr: must be a number, got '1'; in quotes it is a text, write 1 without",
    ),
    ('train.amp', 'fp8', r'train\.amp: must be one of bf16, fp16'),
    ('train.accumulate', 2, r'train\.accumulate: must divide the batch of 5, got 2'),
    ('train.losses', {}, r'train\.losses: names no loss'),
    ('train.progressive', {'gt_size': [32], 'iters': [20]}, r'gives LR patches of 8 pixels, HASN .* needs 15'),
    ('datasets.train.gt_size', 66, r'gt_size: must be a multiple of scale 4, got 66'),
    ('datasets.train.gt_size', 32, r'gives LR patches of 8 pixels, HASN \(network_g\) needs 15; take at least 60'),
    ('datasets.train.gt_size', 96, r'needs LR images of at least 24 pixels a side, the smallest is 24x20'),
    ('datasets.train.gt_size', ..., r'datasets\.train\.gt_size: is missing'),
    ('datasets.train.dataset_enlarge_ratio', 1.2, r'training would end after \d+ of 20 iterations.*set it to \d'),
    ('datasets.train.batch_size_per_gpu', 50, r'would end after 0 of 20 iterations.*set it to 10$'),
    ('datasets.val.persistent_workers', True, r'datasets\.val\.persistent_workers: must be left out'),
    ('datasets.test_1', {}, r'datasets\.test_1: must be one of train, val'),
    ('path.teacher', 't.pth', r'path\.teacher: nothing reads this option and BasicSR makes a folder of it'),
    ('path.pretrain_network_g', 'no.pth', r'path\.pretrain_network_g: no\.pth does not exist'),
    ('path.resume_state', 'no.state', r'path\.resume_state: no\.state does not exist'),
    ('logger.use_tb_logger', ..., r'logger\.use_tb_logger: is missing'),
    ('val.val_freq', ..., r'val\.val_freq: is missing'),
    ('val.self_ensembel', True, r"val\.self_ensembel: .*'self_ensemble'"),
    ('val.metrics.psnr.type', 'psnr', r"there is no metric 'psnr'"),
    ('num_gpu', '2', r"num_gpu: must be auto or a whole number, got '2'"),
    ('datasets.train.dataroot_gt', 'nowhere', r'dataroot_gt: the folder nowhere does not exist'),
    ('datasets.train.filename_tmpl', '{}x4', r'0x4\.png does not exist, the partner of .*0\.png'),
    ('datasets.train.filename_tmpl', '{}_{}', r'filename_tmpl: must be a text with {} in place of the name'),
    ('datasets.train.filename_tmpl', 'same', r'filename_tmpl: must be a text with {} in place of the name'),
    ('datasets.train.filename_tmpl', None, r'filename_tmpl: must be a text with {} in place of the name'),
    ('datasets.train.io_backend', {'tyep': 'disk'}, r"io_backend\.tyep: .*did you mean 'type'"),
    ('datasets.train.io_backend', {'type': 'dsk'}, r'io_backend\.type: must be one of disk, lmdb, memcached'),
    ('datasets.val.io_backend', {'type': 'lmbd'}, r'val\.io_backend\.type: must be one of disk, lmdb, memcached'),
    ('datasets.val.io_backend', {'type': 'disk', 'foo': 1}, r'io_backend\.foo: nothing reads this option'),
    ('datasets.val.io_backend', 'disk', r"io_backend: must be a section, got 'disk'"),
    ('datasets.train.prefetch_mode', 'cuda', r'prefetch_mode: cuda needs pin_memory: true'),
    ('datasets.train.type', 'PairedDataset', r'there is no data set .PairedDataset.'),
    ('datasets.train.type', [], r'there is no data set \[\]'),
    ('datasets.train.dataset_enlarge_ratio', 0, r'dataset_enlarge_ratio: must be greater than 0, got 0'),
    ('datasets.train.batch_size_per_gpu', 0, r'batch_size_per_gpu: must be at least 1, got 0'),
    ('datasets.train.num_worker_per_gpu', -1, r'num_worker_per_gpu: must be at least 0, got -1'),
    ('datasets.train.gt_size', 0, r'gt_size: must be at least 1, got 0'),
    ('datasets.train.mean', [0.5, 0.5, 0.5], r'train\.mean: needs std beside it'),
    ('datasets.train.std', [0.5], r'train\.std: needs mean beside it'),
    ('datasets.train.std', [0], r'train\.std: must be greater than 0'),
    ('datasets.train.mean', ['x'], r'train\.mean: must be a list of numbers'),
    ('datasets.train', ..., r'datasets\.train: is missing'),
    ('datasets', 5, r'^datasets: must be a section, got 5'),
    ('train', ..., r'^train: is missing'),
    ('logger', ..., r'^logger: is missing'),
    ('scale', ..., r'^scale: is missing'),
    ('scale', 0, r'^scale: must be at least 1, got 0'),
    ('scale', -1, r'^scale: must be at least 1, got -1'),
    ('num_gpu', -1, r'^num_gpu: must be at least 0'),
    ('manual_seed', -3, r'^manual_seed: must be at least 0'),
    ('network_g.num_feat', 0, r'network_g: HASN: num_feat'),
    ('network_g.type', [], r'network_g: must be a section with a type, got \[\]'),
    ('train.total_iter', 0, r'total_iter: must be at least 1, got 0'),
    ('train.total_iter', float('inf'), r'total_iter: must be at least 1, got inf'),
    ('train.ema_decay', 1, r'ema_decay: must be at least 0 and less than 1, got 1'),
    ('train.ema_decay', -0.1, r'ema_decay: must be at least 0 and less than 1, got -0\.1'),
    ('train.accumulate', 0, r'accumulate: must be at least 1, got 0'),
    ('train.grad_clip', 0, r'grad_clip: must be greater than 0, got 0'),
    ('train.max_nonfinite', 0, r'max_nonfinite: must be at least 1, got 0'),
    ('train.warmup_iter', -2, r'warmup_iter: must be at least -1, got -2'),
    ('train.compile', {'moed': 'x'}, r"compile\.moed: .*did you mean 'mode'"),
    ('train.compile', {'mode': 'fastest'}, r'compile\.mode: must be one of default, '),
    ('train.optim_g.lr', 0, r'optim_g\.lr: must be greater than 0, got 0'),
    ('train.optim_g.lr', float('nan'), r'optim_g\.lr: must be greater than 0, got nan'),
    ('train.optim_g.betas', [0.9, 1.0], r'optim_g\.betas: must be at least 0 and less than 1'),
    ('train.optim_g.betas', [0.9], r'train\.optim_g: Adam cannot be made: '),
    ('train.optim_g.type', ['Adam'], r'torch\.optim has no \['),
    ('train.scheduler.type', [], r'BasicSR has no \[\]'),
    ('train.scheduler.milestones', ['x'], r'milestones: must be a list of numbers, got \[.x.\]'),
    ('train.scheduler.restart_weights', [1, 0.5], r'restart_weights: must be as many as restarts, got 2 and 1$'),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [5]}, r'must sum up to total_iter 20 at least'),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [20, 0]}, r'periods: must be greater than 0'),
    (
        'train.scheduler',
        {'type': 'CosineAnnealingRestartLR', 'periods': [10, 10]},
        r'restart_weights: must be as many as periods, got 1 and 2$',
    ),
    ('train.losses.l_pix.reduction', 'avg', r'losses\.l_pix: Unsupported reduction mode: avg'),
    ('train.losses.l_pix.type', [], r'losses\.l_pix: must be a section with a type, got \[\]'),
    ('train.losses.l_pix', {'type': 'FAKDLoss', 'block_size': -1}, r'train\.losses\.l_pix: '),
    (
        'train.progressive',
        {'gt_size': [64, 480], 'iters': [9, 9]},
        r'480 needs LR images of at least 120 pixels',
    ),
    ('train.progressive', {'gt_size': [64, 66], 'iters': [9, 9]}, r'must hold multiples of scale 4, got 66'),
    ('train.progressive', {'gt_size': [64, 80], 'iters': [9]}, r'must be lists of one length, got 2, 1 and 2'),
    ('train.progressive', {'gt_size': [], 'iters': []}, r'must be lists of one length, got 0'),
    ('train.progressive', {'gt_size': None, 'iters': [9]}, r'progressive\.gt_size: is missing'),
    ('train.progressive', {'gt_size': 'x', 'iters': [9]}, r'gt_size: must be a list of whole numbers, got x'),
    ('train.progressive', {'gt_size': [64], 'iters': [0]}, r'progressive\.iters: must be at least 1, got \[0\]'),
    ('val.val_freq', 0, r'val_freq: must be at least 1, got 0'),
    ('val.tile', {'size': 16, 'overlap': 16}, r'tile\.overlap: must be less than size 16, got 16'),
    ('val.tile', {'size': 0}, r'tile\.size: must be at least 1, got 0'),
    ('val.metrics.psnr.crop_border', -1, r'crop_border: must be at least 0, got -1'),
    ('val.metrics.psnr.crop_border', 40, r'crop_border: leaves nothing of an HR image of 96x80 in val, got 40'),
    ('logger.print_freq', 0, r'print_freq: must be at least 1, got 0'),
    ('logger.save_checkpoint_freq', 0, r'save_checkpoint_freq: must be at least 1, got 0'),
    ('logger.wandb', {'projct': 'x'}, r"wandb\.projct: .*did you mean 'project'"),
    ('datasets.train.io_backend', {}, r'train\.io_backend\.type: is missing: disk for folders'),
    ('train.optim_g.type', 'LBFGS', r'LBFGS needs several backward passes per iteration; take Adam'),
    ('train.optim_g.type', 'Optimizer', r"torch\.optim has no 'Optimizer'"),
    ('train.losses.l_style', {'type': 'L1Loss'}, r'EffSRModel: train\.losses\.l_style must have another name'),
    ('val.tile', {'size': 8}, r'EffSRModel: val\.tile\.size must be at least 15, because HASN needs'),
]


@pytest.mark.parametrize(('dotted', 'value', 'expected'), FAULTS, ids=[f'{d}={v}'[:50] for d, v, _ in FAULTS])
def test_one_fault_is_one_sentence(opt, dotted, value, expected):
    texts = found(put(opt, dotted, value))
    assert [t for t in texts if re.search(expected, t)], texts
    assert all('\n' not in t for t in texts)


def test_values_at_the_bounds_pass(opt):
    for dotted, value in (
        ('train.ema_decay', 0),
        ('train.warmup_iter', -1),
        ('train.progressive', {'gt_size': [64, 80], 'iters': [10, 10]}),
        ('train.compile', {'mode': 'default', 'dynamic': True}),
        ('val.tile', {'size': 16, 'overlap': 16, 'blend': 'halo'}),
        ('val.metrics.psnr.crop_border', 39),
        ('datasets.train.mean', [0.5]),
        ('datasets.train.std', [0.5]),
        ('datasets.train.filename_tmpl', '{}'),
        ('manual_seed', 2**32 - 1),
    ):
        put(opt, dotted, value)
    assert not found(opt)


def test_a_scale_of_any_whole_number_is_fine(opt, data):
    for i in range(5):
        Image.new('RGB', (96, 80)).save(data / 'HR' / f'{i}.png')
        Image.new('RGB', (16, 13)).save(data / 'LR' / f'{i}.png')
    opt |= {'scale': 6, 'network_g': {**TINY, 'upscale': 6}}
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    assert not [t for t in found(opt, False) if 'network_g' not in t]


def test_one_ill_typed_section_is_reported_once(opt):
    assert found(put(opt, 'train', 5)) == ['train: must be a section, got 5']


def test_losses_are_built_without_fetching_and_without_drawing(opt, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', lambda *a, **k: pytest.fail('weights were fetched'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    percep = {'type': 'VGGFeatureLoss', 'download': True}
    put(opt, 'train.losses.l_vgg', percep)
    put(opt, 'train.perceptual_opt', {'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1}})
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert not found(opt)
    assert torch.equal(torch.get_rng_state(), state)
    percep['download'] = False
    assert any(t.startswith('train.losses.l_vgg: VGGFeatureLoss: the ImageNet weights') for t in found(opt))
    percep |= {'if_missing': 'zero', 'layers': {'relu9_9': 1.0}}
    assert any(t.startswith('train.losses.l_vgg: ') and 'relu9_9' in t for t in found(opt))


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
        opt['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 8, 'input_size': 128}
        opt['train'] |= {
            'optim_d': {'type': 'Adam', 'lr': 1e-4},
            'pixel_opt': opt['train'].pop('losses')['l_pix'],
            'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.005},
            'net_d_iters': 1,
            'net_d_init_iters': 0,
        }
        return opt

    def test_their_own_keys_pass(self, gan):
        assert not found(put(gan, 'train.key_of_somebody', 1))
        assert not found(put(gan, 'train.blur_opt', {'type': 'no loss at all'}))

    @pytest.mark.parametrize(
        ('right', 'misspelt'),
        [('train.pixel_opt', 'pixel_optt'), ('train.gan_opt', 'gan_optt'), ('train.gan_opt.gan_type', 'gan_typ')],
    )
    def test_misspellings_are_fatal(self, gan, right, misspelt):
        *path, last = right.split('.')
        section = gan
        for key in path:
            section = section[key]
        section[misspelt] = section.pop(last)
        assert any(f'{misspelt}: nothing reads this option; did you mean {last!r}?' in t for t in found(gan))

    @pytest.mark.parametrize(
        ('dotted', 'value', 'expected'),
        [
            ('train.gan_opt.gan_type', 'x', r'train\.gan_opt: GAN type x is not implemented'),
            ('train.gan_opt.type', 'GANLos', r"there is no loss 'GANLos'; did you mean 'GANLoss'"),
            ('train.ldl_opt', {'type': 'L1Loss', 'reduction': 'avg'}, r'train\.ldl_opt: Unsupported'),
            ('train.my_opt', {'type': 'L1Loss', 'reduction': 'avg'}, r'train\.my_opt: Unsupported'),
            ('train.optim_d.lr', -1, r'train\.optim_d\.lr: must be greater than 0'),
        ],
    )
    def test_every_loss_and_optimizer_is_checked(self, gan, dotted, value, expected):
        assert any(re.search(expected, t) for t in found(put(gan, dotted, value)))

    def test_a_file_without_pairs_needs_no_scale(self, opt):
        for key in ('scale', 'train', 'val'):
            del opt[key]
        opt['model_type'] = 'StyleGAN2Model'
        opt['network_g'] = {'type': 'StyleGAN2Generator', 'out_size': 32, 'num_style_feat': 64, 'num_mlp': 2}
        opt['datasets'] = {'train': {'name': 'F', 'type': 'FFHQDataset', 'batch_size_per_gpu': 4}}
        assert not [t for t in found(opt) if 'scale' in t]


def test_of_a_test_file_val_and_its_suffix_are_asked_for(opt):
    del opt['train'], opt['logger']
    opt['model_type'] = 'SRModel'
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    put(opt, 'val', {'save_img': True})
    assert any(t.startswith('val.suffix: is missing') for t in found(opt, False))
    assert any(t.startswith('val: is missing') for t in found(put(opt, 'val', ...), False))
    assert any(t.startswith('datasets.test_1: is missing') for t in found(put(opt, 'datasets', {}), False))


def test_a_host_data_set_cannot_keep_workers_it_does_not_have(opt):
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True, 'persistent_workers': True}
    assert any('persistent_workers: needs workers' in t for t in found(opt))


JUNK = (None, 0, -1, 1.5, float('inf'), 'x', '{}_{}', [], [None], {}, {'type': []}, True)


def entries(section, path=()):
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from entries(value, (*path, key))


def test_no_mutated_file_gives_a_traceback(opt, monkeypatch, tmp_path):
    """Every entry of a file with everything in it, replaced by what is not meant there."""
    counted, weighed = forecasts._network_facts, forecasts._training_memory
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
    assert not found(opt)
    broken = []
    for number, path in enumerate(entries(opt)):
        counts = path[0] in ('scale', 'network_g')  # what else is changed makes no difference to a network
        monkeypatch.setattr(forecasts, '_network_facts', counted if counts else lambda *_: {})
        weighs = counts or path[:2] in (('train', 'accumulate'), ('train', 'progressive'), ('train', 'distill'))
        monkeypatch.setattr(forecasts, '_training_memory', weighed if weighs else lambda *_: 0)
        for junk in JUNK[number % 6 :: 6] if len(path) > 1 else JUNK:
            changed = put(copy.deepcopy(opt), '.'.join(path), copy.deepcopy(junk))
            try:
                forecast(changed, True)
            except Exception as error:
                broken.append(f'{".".join(path)}: {junk!r}: {error!r}')
    assert not broken


@pytest.mark.parametrize(
    ('dotted', 'misspelt'),
    [
        ('train', 'trian'),
        ('datasets.train.use_hflip', 'use_hflips'),
        ('val.metrics.psnr.crop_border', 'crop_boarder'),  # the function takes any keyword and drops it
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
    assert any(t.startswith(f'{where}: nothing reads this option; did you mean {right!r}?') for t in found(opt))


@pytest.mark.parametrize(
    ('dotted', 'value', 'expected'),
    [
        ('val.metrics.psnr.crop_border', 0, 'papers crop 4 pixels'),
        ('train.scheduler.milestones', [10, 20], 'some are never reached in 20 iterations'),
        ('datasets.train.num_worker_per_gpu', 1, 'every epoch starts them anew'),
        ('train.losses', {'pix': {'type': 'L1Loss'}}, 'should start with l_'),
        ('my_note', 'kept by somebody', 'my_note: nothing reads this option'),
        ('name', 'debug_it', 'validates every 8'),
    ],
)
def test_what_is_only_odd_is_a_warning(opt, dotted, value, expected):
    assert not found(put(opt, dotted, value))
    assert any(expected in text for text in found(opt, fatal=False))


def test_the_ratio_it_names_is_the_smallest_that_works(opt):
    put(opt, 'datasets.train.batch_size_per_gpu', 4)
    put(opt, 'datasets.train.dataset_enlarge_ratio', 1)
    (text,) = found(opt)
    assert 'training would end after 11 of 20 iterations' in text  # as a run of the host itself does
    ratio = int(text.rpartition(' ')[2])
    assert not found(put(opt, 'datasets.train.dataset_enlarge_ratio', ratio))
    assert ratio == 1 or found(put(opt, 'datasets.train.dataset_enlarge_ratio', ratio - 1))


def test_a_host_data_set_ends_early_too(opt):
    put(opt, 'datasets.train.type', 'PairedImageDataset')
    put(opt, 'datasets.train.use_rot', True)
    assert not found(opt)
    put(opt, 'datasets.train.batch_size_per_gpu', 8)
    put(opt, 'datasets.train.dataset_enlarge_ratio', 1)
    assert 'training would end after 0 of 20 iterations' in found(opt)[0]


def test_pairs_of_another_scale_and_unreadable_images_are_named(opt, data):
    Image.new('RGB', (48, 40)).save(data / 'LR' / '3.png')
    assert any(
        '3.png (96x80) must be 4 times the size of' in t and 'it is 2 times as wide and 2 times as high' in t
        for t in found(opt)
    )
    whole = (data / 'LR' / '2.png').read_bytes()
    (data / 'LR' / '3.png').write_bytes(whole[:-20])
    assert any('LR/3.png is cut off' in t for t in found(opt))
    (data / 'LR' / '3.png').write_bytes(whole[:20])
    assert any('LR/3.png cannot be read as an image' in t for t in found(opt))
    (data / 'LR' / '3.png').write_bytes(b'no image')
    assert any('LR/3.png cannot be read as an image' in t for t in found(opt))
    (data / 'LR' / '3.png').unlink()
    assert any('3.png does not exist, the partner of' in t for t in found(opt))


def test_the_ratio_of_both_sides_is_said(opt, data):
    Image.new('RGB', (23, 20)).save(data / 'LR' / '3.png')
    assert any('it is 4.17 times as wide and 4 times as high' in t for t in found(opt))


@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_images_of_validation_that_cannot_be_decoded_are_named(opt, data, kind):
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    for folder, image in (('HR', noise), ('LR', noise[::4, ::4])):
        (data / 'val' / folder).mkdir(parents=True)
        Image.fromarray(image).save(data / 'val' / folder / f'a.{kind}')
    opt['datasets']['val'] |= {'dataroot_gt': str(data / 'val' / 'HR'), 'dataroot_lq': str(data / 'val' / 'LR')}
    assert not found(opt)
    file = data / 'val' / 'HR' / f'a.{kind}'
    whole = file.read_bytes()
    damaged = whole[: len(whole) // 3] if kind == 'jpg' else whole[:2000] + bytes(200) + whole[2200:]
    file.write_bytes(damaged)
    (text,) = found(opt)
    assert text.startswith(f'datasets.val: {file} ')


def test_images_of_validation_that_are_too_small_for_the_network_are_refused(opt, data):
    for folder, size in (('HR', (96, 56)), ('LR', (24, 14))):
        (data / 'val' / folder).mkdir(parents=True)
        Image.new('RGB', size).save(data / 'val' / folder / 'a.png')
    opt['datasets']['val'] |= {'dataroot_gt': str(data / 'val' / 'HR'), 'dataroot_lq': str(data / 'val' / 'LR')}
    words = 'datasets.val.dataroot_lq: HASN needs LR images of at least 15 pixels a side, the smallest side is 14; '
    assert found(opt) == [words + 'leave the image out']


@pytest.mark.parametrize('few', [100, 5])
def test_one_small_image_among_many_is_found_where_looking_is_cheap(opt, data, monkeypatch, few):
    monkeypatch.setattr(check, 'FEW_PAIRS', few)
    monkeypatch.setattr(check, 'SAMPLED_PAIRS', 2)
    for i in range(5, 60):
        for folder in ('HR', 'LR'):
            shutil.copy(data / folder / '0.png', data / folder / f'{i}.png')
    for folder, size in (('HR', (96, 60)), ('LR', (24, 15))):
        Image.new('RGB', size).save(data / folder / '41.png')
    told = 'the smallest is 24x15; lower gt_size' in ' '.join(found(opt))
    assert told == (few == 100), 'of a larger folder only a sample is read'


def test_surplus_images_are_refused(opt, data):
    Image.new('RGB', (24, 20)).save(data / 'LR' / 'more.png')
    assert any('5 HR and' in t and '6 LR images' in t for t in found(opt))


def test_every_header_is_read_of_validation_and_of_training_when_asked_for(opt, data, monkeypatch):
    monkeypatch.setattr(check, 'FEW_PAIRS', 50)
    for i in range(60):
        Image.new('RGB', (96, 80)).save(data / 'HR' / f'x{i:02}.png')
        Image.new('RGB', (24, 20)).save(data / 'LR' / f'x{i:02}.png')
    (data / 'LR' / 'x02.png').write_bytes(b'no image')  # not among the sample
    assert [t.partition(':')[0] for t in found(opt)] == ['datasets.val']
    opt['datasets'].pop('val')
    assert not found(opt)
    assert any('x02.png' in str(p) for p in problems(opt, True, every_image=True))


def test_meta_info_chooses_the_images(opt, data):
    (data / 'meta.txt').write_text('0.png (80,96,3)\n2.png (80,96,3)\n')
    train = put(opt, 'datasets.train.meta_info_file', str(data / 'meta.txt'))['datasets']['train']
    assert [Path(p.gt).name for p in list_pairs('datasets.train', train)] == ['0.png', '2.png']
    (data / 'meta.txt').write_text('9.png (80,96,3)\n')
    assert any('9.png does not exist' in t for t in found(opt))


def test_lmdbs_are_compared_by_their_lists(opt, data):
    for name, size, keys in (('HR', '80,96,3', '01'), ('LR', '40,48,3', '01')):
        folder = data / f'{name}.lmdb'
        folder.mkdir()
        (folder / 'data.mdb').touch()
        (folder / 'meta_info.txt').write_text(''.join(f'{k}.png ({size}) 1\n' for k in keys))
    train = opt['datasets']['train']
    train |= {
        'dataroot_gt': str(data / 'HR.lmdb'),
        'dataroot_lq': str(data / 'LR.lmdb'),
        'io_backend': {'type': 'lmdb'},
    }
    assert any('must be 4 times' in t for t in found(opt))
    (data / 'LR.lmdb' / 'meta_info.txt').write_text('0.png (20,24,3) 1\n')
    assert any("'1' is in one only" in t for t in found(opt))


@pytest.mark.parametrize('line', ['0.png', '', '0.png (a,b,3) 1', '0.png (20) 1', '0.png (0,0,3) 1'])
def test_a_malformed_list_of_an_lmdb_is_named_with_its_line(opt, data, line):
    for name in ('HR', 'LR'):
        (data / f'{name}.lmdb').mkdir()
        (data / f'{name}.lmdb' / 'data.mdb').touch()
        (data / f'{name}.lmdb' / 'meta_info.txt').write_text(f'1.png (80,96,3) 1\n{line}\n')
    opt['datasets']['train'] |= {'dataroot_gt': str(data / 'HR.lmdb'), 'dataroot_lq': str(data / 'LR.lmdb')}
    (text,) = found(put(opt, 'datasets.train.io_backend', {'type': 'lmdb'}))
    assert text.startswith('datasets.train.dataroot_gt: line 2 of ')
    assert f'must be like 0001.png (480,480,3) 1, got {line!r}; make the LMDB again' in text


def test_a_list_of_images_in_another_encoding_is_named(opt, data):
    (data / 'meta.txt').write_bytes('é.png (80,96,3)\n'.encode('latin-1'))
    (text,) = found(put(opt, 'datasets.train.meta_info_file', str(data / 'meta.txt')))
    assert text.startswith('datasets.train.meta_info_file: ')
    assert text.endswith('meta.txt must be a text in UTF-8; save it as such')


def test_images_ofany_size_are_measured(opt, data, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # Pillow refuses more than twice as many
    assert problems(opt, True) == []
    assert Image.MAX_IMAGE_PIXELS == 100


class TestChannels:
    @pytest.fixture
    def luma(self, opt):
        for data in opt['datasets'].values():
            data['color'] = 'y'
        opt['network_g'] |= {'num_in_ch': 1, 'num_out_ch': 1}
        return opt

    def test_luma_for_a_network_of_one_channel_is_fine(self, luma):
        assert problems(luma, True) == []

    def test_a_network_of_one_channel_cannot_see_rgb(self, luma):
        del luma['datasets']['val']['color']
        assert found(luma) == [
            f'network_g.{name}: must be 3, the channels of datasets.val (RGB), got 1; or set color: y there'
            for name in ('num_in_ch', 'num_out_ch')
        ]

    def test_a_network_of_three_channels_cannot_see_luma(self, opt):
        opt['datasets']['train']['color'] = 'y'
        assert found(opt) == [
            f'network_g.{name}: must be 1, the channels of datasets.train (color: y), got 3; or take color: y out'
            for name in ('num_in_ch', 'num_out_ch')
        ]

    def test_the_teacher_sees_what_is_trained_on(self, opt):
        opt |= {'model_type': 'DistillationModel', 'network_t': {**TINY, 'num_in_ch': 1, 'num_out_ch': 1}}
        assert 'network_t.num_in_ch: must be 3, the channels of datasets.train (RGB), got 1' in str(found(opt))

    def test_models_of_others_may_add_channels(self, opt):
        opt['model_type'] = 'ESRGANModel'
        opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
        opt['train']['pixel_opt'] = opt['train'].pop('losses')['l_pix']
        opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 4, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
        assert not [text for text in found(opt) if 'num_in_ch' in text]
        assert [text for text in found(opt, fatal=False) if 'num_in_ch: must be 3' in text]

    def test_bytes_are_of_three_channels(self, luma):
        texts = found(put(luma, 'datasets.train.uint8', True))
        assert texts == ['datasets.train.uint8: cannot be combined with color, mean or std; drop one']

    def test_luma_has_one_mean(self, luma):
        luma['datasets']['train'] |= {'mean': [0.5, 0.5, 0.5], 'std': [1]}
        assert found(luma) == ['datasets.train.mean: must hold one number per channel, got [0.5, 0.5, 0.5]']


def test_stages_need_a_data_set_that_can_change_its_patches(opt):
    opt['datasets']['train'] |= {'type': 'PairedImageDataset', 'use_rot': True}
    (text,) = found(put(opt, 'train.progressive', {'gt_size': [64], 'iters': [20]}))
    assert text == 'train.progressive: PairedImageDataset cannot change its patches; use EffSRPairedDataset'


def test_an_empty_loss_is_none(opt):
    assert not found(put(opt, 'train.losses.l_other', None))  # EffSRModel passes over it


def test_training_has_one_phase(opt):
    opt['datasets']['train_2'] = copy.deepcopy(opt['datasets']['train'])
    assert [t.partition(':')[0] for t in found(opt)] == ['datasets.train_2']  # BasicSR knows train only


def test_a_checkpoint_must_fit_unless_told_otherwise(opt, tmp_path):
    file = tmp_path / 'x2.pth'
    torch.save({'params': build_network({**TINY, 'upscale': 2}).state_dict()}, file)
    put(opt, 'path.pretrain_network_g', str(file))
    assert any('does not fit HASN' in t and 'another scale' in t for t in found(opt))
    put(opt, 'path.strict_load_g', False)
    assert not found(opt)
    assert any('parameters will be loaded, the others start anew' in t for t in found(opt, fatal=False))
    put(opt, 'path.param_key_g', 'ema')
    assert any("has no 'ema'" in t for t in found(opt))


def test_feature_names_and_the_teacher_are_looked_up(opt, tmp_path):
    opt['model_type'] = 'DistillationModel'
    opt['network_t'] = {**TINY, 'num_feat': 12}
    opt['train']['distill'] = {
        'feature_pairs': {'block_1': 'block_7'},
        'feature_loss': {'type': 'FAKDLoss', 'block': 3},
    }
    texts = found(opt)
    assert any("HASN (network_t) has no submodule 'block_7'; did you mean 'block_1'" in t for t in texts)
    assert any('pretrain_network_t: is missing' in t for t in texts)
    assert any("feature_loss.block: nothing reads this option; did you mean 'block_size'" in t for t in texts)
    torch.save({'params': build_network(opt['network_t']).state_dict()}, tmp_path / 't.pth')
    opt['path']['pretrain_network_t'] = str(tmp_path / 't.pth')
    opt['train']['distill'] = {'feature_pairs': {'block_1': 'block_1'}, 'feature_loss': {'type': 'FAKDLoss'}}
    assert not found(opt)


def test_a_resumed_run_needs_no_starting_weights(opt, tmp_path):
    put(opt, 'path.pretrain_network_g', 'gone.pth')
    (tmp_path / '10.state').touch()
    put(opt, 'path.resume_state', str(tmp_path / '10.state'))
    assert not found(opt)


def test_more_gpus_than_there_are_stop_a_run_and_warn_elsewhere(opt):
    put(opt, 'num_gpu', 64)
    put(opt, 'datasets.train.dataset_enlarge_ratio', 640)
    assert not found(opt)
    assert any('64 GPUs and' in t for t in found({**opt, 'rank': 0}))


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
    monkeypatch.setattr(forecasts, '_network_facts', lambda *_: {})
    monkeypatch.setattr(forecasts, '_training_memory', lambda *_: 0)
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
    course = check.Check(opt, True, False, images={'train': check.Images(5)}).course()
    assert (course.runs, course.epochs, course.patches) == (10**12, 25 * 10**10, 5 * 10**12)


def test_patches_of_a_file_of_ours_with_stages():
    opt = yaml.safe_load((ROOT / 'options' / 'train' / 'dparn_x4_distill.yml').read_text())
    going = check.Check({**opt, 'num_gpu': 1}, True, False, images={'train': check.Images(32592)})
    course = going.course()
    assert (course.runs, course.batches) == (500_000, [16, 16, 16, 8])
    assert course.patches == 16 * 400_000 + 8 * 100_000


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
    assert any('2 GPUs without a launcher multiply the batch by 2' in text for text in found(opt, fatal=False))


def test_a_run_that_several_gpus_cut_short_says_so(opt):
    texts = found(put(opt, 'num_gpu', 2))
    assert any('and 2 GPUs of one process take 2 times the batch' in text for text in texts), texts


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
        image = 4 * 64 * 3 * self.LR**2
        output = 16 * image
        least = 4 * count_params(net) + image + output + 4 * 64 * 24 * self.LR**2  # with the features that are kept
        assert least / 2**20 < with_teacher - alone
        peak = peak_memory(net, (self.LR, self.LR)) - 4 * count_params(net)  # of one image
        assert with_teacher - alone == pytest.approx(64 * peak / 2**20, rel=0.5)

    def test_it_grows_with_the_batch_and_shrinks_with_its_precision(self, distil):
        full = self.estimate(distil)
        half = self.estimate(put(copy.deepcopy(distil), 'train.distill.teacher_dtype', 'bf16'))
        parts = self.estimate(put(copy.deepcopy(distil), 'train.accumulate', 4))
        assert half < full
        assert parts == pytest.approx(full / 4, rel=0.1)

    def test_what_cannot_be_counted_gives_no_figure(self, distil, monkeypatch):
        network = check.Check.network
        monkeypatch.setattr(
            check.Check, 'network', lambda self, key: None if key == 'network_t' else network(self, key)
        )
        assert 'estimated memory per GPU, MiB' not in forecast(distil, True)[1]


def run(*arguments):
    return CliRunner().invoke(app, ['check', *map(str, arguments)])


def test_exit_codes_and_json(opt, tmp_path):
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump(opt))
    fine = run('-opt', file, '--json')
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)['problems'] == []
    file.write_text(yaml.safe_dump(put(opt, 'network_g.upscale', 2)))
    assert run('-opt', file).exit_code == 1
    for bad in (['-opt', tmp_path / 'none.yml'], []):
        result = run(*bad)
        assert (result.exit_code, result.stderr.count('\n')) == (2, 1)


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        ('a: [', 'is not YAML: '),
        ('manual_seed: 2024-13-45', 'is not YAML: '),
        ('name: caf\xe9', 'must be saved as UTF-8, byte 9 is of another encoding'),
        ('a: &a {b: *a}', 'must end somewhere, an anchor (&) is used within its own section'),
        ('- a\n- b', 'must hold sections such as network_g and datasets, found a list'),
        ('', 'must hold sections such as network_g and datasets, found None'),
    ],
)
def test_what_is_no_option_file_is_one_sentence(tmp_path, content, expected):
    (tmp_path / 'a.yml').write_bytes(content.encode('latin-1'))
    result = run('-opt', tmp_path / 'a.yml')
    assert (result.exit_code, result.stdout, result.stderr.count('\n')) == (2, '', 1)
    assert expected in result.stderr
    assert run('-opt', tmp_path).exit_code == 2


@pytest.mark.parametrize(
    ('dotted', 'value', 'expected'),
    [
        ('network_g', None, 'network_g: is missing'),
        ('network_g', [], 'network_g: must be a section, got a list'),
        ('network_g', 'HASN', "network_g: must be a section, got 'HASN'"),
        ('network_g', {}, 'network_g: must be a section with a type, got a dict'),
        ('network_g.type', ['HASN'], "network_g: must be a section with a type, got ['HASN']"),
        ('path', 'abc', "path: must be a section, got 'abc'"),
        ('path', None, 'path: is missing'),
        ('path.pretrain_network_g', 5, 'path.pretrain_network_g: must be a text, got 5'),
        ('datasets', None, 'datasets: is missing'),
        ('datasets', 'DIV2K', "datasets: must be a section, got 'DIV2K'"),
        ('datasets.train', 'DIV2K', "datasets.train: must be a section, got 'DIV2K'"),
        ('train', None, 'train: is missing'),
        ('train', [1], 'train: must be a section, got a list'),
        ('val', 5, 'val: must be a section, got 5'),
    ],
)
def test_odd_sections_are_one_error_each(opt, tmp_path, dotted, value, expected):
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump(put(opt, dotted, value)))
    result = run('-opt', file, '--json')
    assert result.exit_code == 1
    fatal = [f'{p["where"]}: {p["message"]}' for p in json.loads(result.stdout)['problems'] if p['fatal']]
    assert len(fatal) == 1, fatal
    assert fatal[0].startswith(expected)


def test_shipped_schema_is_current():
    """Run: effsr check --schema > basicsr_effsr/option_schema.json"""
    assert json.loads((ROOT / 'basicsr_effsr' / 'option_schema.json').read_text()) == option_schema()


def test_schema_accepts_our_files_and_refuses_misspellings(opt, validator):
    for file in sorted((ROOT / 'options').rglob('*.yml')):
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
    return bool(list(validator.iter_errors(opt))), found(opt)


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
    opt['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 8, 'input_size': 128}
    opt['path']['param_key_d'] = 'params'
    assert both(validator, opt) == (False, [])
    opt['model_type'] = 'SRModel'
    underlined, errors = both(validator, opt)
    assert underlined
    assert errors


def test_the_table_of_optimizers_is_complete():
    """For editors, of any version of torch; an option that a newer one has is to be added."""
    import inspect

    from basicsr_effsr.options.spec import OPTIMIZERS

    for name, cls in vars(torch.optim).items():
        optimizer = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        if optimizer and name not in ('Optimizer', 'LBFGS'):
            assert set(inspect.signature(cls).parameters) - {'params'} <= set(OPTIMIZERS[name]), name


def test_our_models_and_the_table_name_the_same_keys():
    from basicsr.utils.registry import MODEL_REGISTRY

    from basicsr_effsr.options import spec as option_spec

    model = MODEL_REGISTRY.get('DistillationModel')
    assert set(option_spec.TRAIN) == set(model.train_keys)
    assert set(option_spec.VAL) == set(model.val_keys)
