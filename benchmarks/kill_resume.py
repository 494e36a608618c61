"""Kills a distillation run at random moments, repeats the command, and compares every bit of the final weights.

A DPARN student with moving average and adapters learns from a small teacher, in two patch sizes, with a loader process
and validation. It runs once undisturbed; then as often as asked it is killed (SIGKILL) at a random moment of its
training, and the same command with --auto_resume finishes it. Exit code 1 if any bit differs.
Run:  python benchmarks/kill_resume.py [--kills 5] [--iters 120] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from skimage import data

import basicsr_effsr
from basicsr_effsr.imaging.bicubic import imresize

SCALE = 4
TEACHER = {'type': 'DPARNTeacher', 'num_feat': 16, 'num_block': 2, 'num_heads': 2, 'num_grow_ch': 8, 'window_size': 8}
STUDENT = {'type': 'DPARN', 'num_feat': 16, 'num_block': 2, 'esa_channels': 4}


def prepare(folder: Path) -> dict:
    """Nine 160 x 160 crops of a photograph, a teacher, and the options of the run."""
    from basicsr.archs import build_network

    image = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    for kind in ('HR', 'LR'):
        (folder / kind).mkdir()
    for i in range(9):
        y, x = 160 * (i // 3), 160 * (i % 3)
        gt = np.ascontiguousarray(image[y : y + 160, x : x + 160])
        cv2.imwrite(str(folder / 'HR' / f'{i}.png'), gt)
        cv2.imwrite(str(folder / 'LR' / f'{i}.png'), imresize(gt, scale=1 / SCALE))
    torch.manual_seed(0)
    torch.save({'params': build_network({**TEACHER, 'upscale': SCALE}).state_dict()}, folder / 'teacher.pth')
    roots = {'dataroot_gt': str(folder / 'HR'), 'dataroot_lq': str(folder / 'LR'), 'io_backend': {'type': 'disk'}}
    (folder / 'val.txt').write_text('4.png (160,160,3)\n')
    return {
        'model_type': 'DistillationModel',
        'scale': SCALE,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'train',
                'type': 'EffSRPairedDataset',
                **roots,
                'gt_size': 96,
                'use_hflip': True,
                'use_rot': True,
                'num_worker_per_gpu': 1,
                'batch_size_per_gpu': 4,
                'dataset_enlarge_ratio': 10,
                'persistent_workers': True,
            },
            'val': {
                'name': 'val',
                'type': 'PairedImageDataset',
                **roots,
                'meta_info_file': str(folder / 'val.txt'),
            },
        },
        'network_g': {**STUDENT, 'upscale': SCALE},
        'network_t': {**TEACHER, 'upscale': SCALE},
        'path': {'pretrain_network_t': str(folder / 'teacher.pth'), 'ignore_resume_networks': ['network_t']},
        'train': {
            'ema_decay': 0.99,
            'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
            'progressive': {'gt_size': [64, 96], 'batch': [4, 2]},
            'distill': {
                'feature_pairs': {'body.0': 'layers.0', 'body.1': 'layers.1'},
                'feature_loss': {'type': 'FAKDLoss', 'adapter': 'conv1x1'},
            },
        },
        'val': {'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': SCALE}}},
        'logger': {'print_freq': 1, 'use_tb_logger': False},
    }


def start(folder: Path, opt: dict, name: str, log: Path) -> subprocess.Popen:
    file = folder / f'{name}.yml'
    file.write_text(yaml.safe_dump({**opt, 'name': name}, sort_keys=False))
    command = [sys.executable, '-m', 'basicsr.train', '-opt', str(file), '--auto_resume']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log.open('a'), stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait() != 0:
        raise SystemExit(f'the run failed:\n{log.read_text()[-3000:]}')


def last_iteration(log: Path) -> int:
    found = re.findall(r'iter: +(\d+),', log.read_text())
    return int(found[-1]) if found else 0


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    models = folder / 'experiments' / name / 'models'
    stored = {
        net: torch.load(models / f'{net}_latest.pth', map_location='cpu', weights_only=True)
        for net in ('net_g', 'net_a')
    }
    return {
        f'{net}.{key}.{n}': v for net, file in stored.items() for key, part in file.items() for n, v in part.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--iters', type=int, default=120)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    arguments = parser.parse_args()
    basicsr_effsr.register()
    print(
        f'{os.cpu_count()} CPU cores, 1 thread, Python {platform.python_version()}, torch {torch.__version__}; '
        f'{arguments.iters} iterations, a checkpoint every {arguments.iters // 8}'
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        opt = prepare(folder)
        opt['train'] |= {
            'total_iter': arguments.iters,
            'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [arguments.iters], 'restart_weights': [1]},
        }
        opt['train']['progressive']['iters'] = [arguments.iters // 2] * 2
        opt['logger']['save_checkpoint_freq'] = arguments.iters // 8
        opt['val']['val_freq'] = arguments.iters // 4
        log = folder / 'straight.log'
        process = start(folder, opt, 'straight', log)
        while last_iteration(log) == 0 and process.poll() is None:
            time.sleep(0.05)
        begun = time.monotonic()
        finish(process, log)
        length = time.monotonic() - begun
        expected = weights(folder, 'straight')
        print(f'undisturbed: {length:.1f} s from the first iteration on; {len(expected)} tensors')
        choose, failed = random.Random(arguments.seed), False
        for kill in range(1, arguments.kills + 1):
            name, moment = f'killed{kill}', choose.uniform(0, 0.9 * length)
            log = folder / f'{name}.log'
            process = start(folder, opt, name, log)
            while last_iteration(log) == 0 and process.poll() is None:
                time.sleep(0.05)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            reached = last_iteration(log)
            states = (folder / 'experiments' / name / 'training_states').glob('*.state')
            resumed = max((int(s.stem) for s in states), default=0)
            finish(start(folder, opt, name, log), log)
            found = weights(folder, name)
            equal = found.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in found.items())
            failed |= not equal
            print(
                f'kill {kill}: {moment:5.1f} s after the first iteration, at iteration {reached:3d}, resumed from '
                f'{resumed:3d}: {"bit-identical" if equal else "DIFFERENT"}',
                flush=True,
            )
    sys.exit(failed)


if __name__ == '__main__':
    main()
