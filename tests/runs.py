"""Option files of short runs on small real photographs, and how to read their logs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
import yaml

from basicsr_effsr.archs import hasn_arch

TINY_HASN = {'type': 'HASN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4}


def short_run(photos: Path, net: dict, *, scale: int = 4, iters: int = 20, **changes) -> dict:
    """Option file of a short run on the CPU; ``changes`` replace top-level keys."""
    disk = {'type': 'disk'}
    pair = {'dataroot_gt': str(photos / 'HR'), 'dataroot_lq': str(photos / f'X{scale}')}
    metrics = {'psnr': {'type': 'calculate_psnr', 'crop_border': scale, 'test_y_channel': True}}
    opt = {
        'name': 'short',
        'model_type': 'EffSRModel',
        'scale': scale,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'photos',
                'type': 'EffSRPairedDataset',
                **pair,
                'io_backend': dict(disk),
                'gt_size': 96,
                'use_hflip': True,
                'use_rot': True,
                'num_worker_per_gpu': 0,
                'batch_size_per_gpu': 2,
                'dataset_enlarge_ratio': 100,
                'prefetch_mode': None,
            },
            'val': {'name': 'photos', 'type': 'PairedImageDataset', **pair, 'io_backend': dict(disk)},
        },
        'network_g': {'upscale': scale, **net},
        'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
        'train': {
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1000], 'gamma': 0.5},
            'total_iter': iters,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        },
        'val': {'val_freq': 10_000, 'save_img': False, 'metrics': metrics},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 10, 'use_tb_logger': True},
    }
    opt.update(changes)
    return opt


def parsed(folder: Path, network: dict, data: dict) -> dict:
    """Options as the host has parsed them, of a model built in this process with its files in ``folder``."""
    for name in ('models', 'states'):
        (folder / name).mkdir()
    return {
        'name': 'unit',
        'model_type': 'EffSRModel',
        'scale': 2,
        'num_gpu': 0,
        'manual_seed': 0,
        'is_train': True,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'network_g': dict(network),
        'datasets': {'train': data},
        'path': {'models': str(folder / 'models'), 'training_states': str(folder / 'states')},
        'train': {
            'total_iter': 100,
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        },
        'val': {'val_freq': 100, 'save_img': False},
    }


def twin_of(opt: dict, weights: Path | str) -> dict:
    """The test twin of a training option file."""
    opt = {key: value for key, value in opt.items() if key not in ('train', 'logger')}
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    opt['path'] = {'pretrain_network_g': str(weights), 'strict_load_g': True}
    opt['val'] = {**opt['val'], 'save_img': True}
    return opt


def write(opt: dict, file: Path) -> str:
    file.write_text(yaml.safe_dump(opt, sort_keys=False))
    return str(file)


def losses(log: str, key: str = 'l_pix') -> list[float]:
    return [float(value) for value in re.findall(rf'{key}: (\S+)', log)]


def break_option(kind: str, opt: dict, folder: Path) -> None:
    """Puts one fault into ``opt`` or a copy of its training data in ``folder``."""
    train = opt['datasets']['train']
    copy = folder / 'data'
    shutil.copytree(Path(train['dataroot_gt']).parent, copy)
    train['dataroot_gt'], train['dataroot_lq'] = str(copy / 'HR'), str(copy / f'X{opt["scale"]}')
    if kind == 'misspelt option':
        opt['network_g']['num_faet'] = 8
    elif kind == 'misspelt network':
        opt['network_g']['type'] = 'HASM'
    elif kind == 'missing folder':
        train['dataroot_gt'] = str(folder / 'nowhere')
    elif kind == 'unequal count':
        (copy / 'X4' / '3.png').unlink()
    elif kind == 'wrong scale':
        train['dataroot_lq'] = str(copy / 'X2')
    elif kind == 'unreadable image':
        (copy / 'X4' / '2.png').write_bytes(b'not a picture')
    elif kind == 'other network':
        path = folder / 'other.pth'
        torch.save({'params': {'conv.weight': torch.zeros(3)}}, path)
        opt['path']['pretrain_network_g'] = str(path)
    elif kind == 'other scale':
        path = folder / 'x2.pth'
        options = {key: value for key, value in opt['network_g'].items() if key != 'type'} | {'upscale': 2}
        torch.save({'params': hasn_arch.HASN(**options).state_dict()}, path)
        opt['path']['pretrain_network_g'] = str(path)
    elif kind == 'number as text':
        opt['train']['optim_g']['lr'] = '2e-4'
    elif kind == 'early end':
        train.update(dataset_enlarge_ratio=1, batch_size_per_gpu=3)
    elif kind == 'no iteration':
        train.update(dataset_enlarge_ratio=1, batch_size_per_gpu=8)
    elif kind == 'other upscale':
        opt['network_g']['upscale'] = 2
    elif kind == 'impossible value':
        opt['network_g']['kernel_size'] = 4
    elif kind == 'patch too large':
        train['gt_size'] = 400
    elif kind == 'patch no multiple':
        train['gt_size'] = 98
    elif kind == 'misspelt train key':
        opt['train']['grad_clipp'] = 1.0
    elif kind == 'misspelt loss option':
        opt['train']['pixel_opt']['loss_wieght'] = 1.0
    elif kind == 'misspelt data set':
        train['type'] = 'EffSRPairdDataset'
    elif kind == 'missing logger key':
        del opt['logger']['use_tb_logger']
    elif kind == 'workers':
        opt['datasets']['val']['persistent_workers'] = True
    else:
        raise KeyError(kind)


def training_that_meets(name: str, action: str, *argv: str) -> str:
    """Code of a training in which ``action`` is executed once the file ``name`` has been written."""
    return f"""
import os, resource, runpy, shutil, signal, sys, time
replace = os.replace

def noticed(source, target, **options):
    replace(source, target, **options)
    if os.path.basename(target) == {name!r}:
        {action}

os.replace, sys.argv = noticed, ['train', *{argv!r}]
runpy.run_module('basicsr.train', run_name='__main__', alter_sys=True)
"""
