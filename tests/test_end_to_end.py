"""The unchanged commands of BasicSR, in processes of their own, on small real photographs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import basicsr
import cv2
import numpy as np
import pytest
import torch
import yaml
from host import logged, run
from nets import CASES

from basicsr_effsr.archs import hasn_arch
from datasets_prep.bicubic import imresize

HOST = Path(basicsr.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> Path:
    """Four 192 x 192 crops of a photograph, with LR at every scale: photos/{HR,X2,X3,X4}."""
    from skimage import data

    folder = tmp_path_factory.mktemp('photos')
    image = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    for i, (y, x) in enumerate([(0, 0), (0, 192), (192, 0), (192, 192)]):
        gt = np.ascontiguousarray(image[y : y + 192, x : x + 192])
        for name, written in [('HR', gt), *((f'X{r}', imresize(gt, scale=1 / r)) for r in (2, 3, 4))]:
            (folder / name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name / f'{i}.png'), written)
    return folder


def options(photos: Path, net: dict, *, scale: int = 4, iters: int = 20, **changes) -> dict:
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


def test_options(opt: dict, weights: Path | str) -> dict:
    """The test twin of a training option file."""
    opt = {key: value for key, value in opt.items() if key not in ('train', 'logger')}
    opt['datasets'] = {'test_1': opt['datasets']['val']}
    opt['path'] = {'pretrain_network_g': str(weights), 'strict_load_g': True}
    opt['val'] = {**opt['val'], 'save_img': True}
    return opt


test_options.__test__ = False  # type: ignore[attr-defined]


def write(opt: dict, file: Path) -> str:
    file.write_text(yaml.safe_dump(opt, sort_keys=False))
    return str(file)


def losses(log: str, key: str = 'l_pix') -> list[float]:
    return [float(value) for value in re.findall(rf'{key}: (\S+)', log)]


@pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))
def test_every_network_trains_with_falling_loss(case, photos, tmp_path):
    scale = max(case.scales)
    opt = options(photos, case.option(), scale=scale, val=None)
    del opt['val']
    out = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    values = losses(out)
    assert len(values) == 20
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    stored = torch.load(tmp_path / 'experiments/short/models/net_g_latest.pth', weights_only=True)
    assert set(stored) == {'params', 'params_ema'}


HASN = {'type': 'HASN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4}


def test_train_resume_and_test_leave_everything_where_the_user_stands(photos, tmp_path):
    site_before = {p.name for p in HOST.parent.iterdir()}
    opt = options(photos, HASN, iters=10)
    file = write(opt, tmp_path / 'short.yml')
    logged('-m', 'basicsr.train', '-opt', file, cwd=tmp_path)
    experiment = tmp_path / 'experiments' / 'short'
    assert (experiment / 'training_states' / '10.state').is_file()
    assert list((tmp_path / 'tb_logger' / 'short').iterdir())

    opt['train']['total_iter'] = 14
    out = logged('-m', 'basicsr.train', '-opt', write(opt, Path(file)), '--auto_resume', cwd=tmp_path)
    assert 'iter: 10.' in out
    assert len(losses(out)) == 4
    assert [p.name for p in (tmp_path / 'experiments').iterdir()] == ['short'], 'the first run must not be archived'

    twin = test_options(opt, experiment / 'models' / 'net_g_latest.pth')
    out = logged('-m', 'basicsr.test', '-opt', write(twin, tmp_path / 'test.yml'), cwd=tmp_path)
    assert re.search(r'psnr: \d\d\.\d+', out)
    assert len(list((tmp_path / 'results' / 'short' / 'visualization' / 'photos').glob('*.png'))) == 4
    assert {p.name for p in HOST.parent.iterdir()} == site_before


def test_our_own_commands_need_no_hook(photos, tmp_path):
    opt = options(photos, HASN, iters=2)
    file = write(opt, tmp_path / 'short.yml')
    off = {'BASICSR_EFFSR_AUTOLOAD': '0', 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
    out = logged('-m', 'basicsr_effsr.train', '-opt', file, '--local-rank=0', cwd=tmp_path, **off)
    assert len(losses(out)) == 2
    twin = test_options(opt, tmp_path / 'experiments' / 'short' / 'models' / 'net_g_latest.pth')
    out = logged('-m', 'basicsr_effsr.test', '-opt', write(twin, tmp_path / 'test.yml'), cwd=tmp_path, **off)
    assert (tmp_path / 'results' / 'short').is_dir()
    assert 'psnr' in out


def test_hosts_own_model_and_data_set_train_our_network(photos, tmp_path):
    opt = options(photos, HASN, iters=3, model_type='SRModel')
    opt['datasets']['train']['type'] = 'PairedImageDataset'
    out = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    assert len(losses(out)) == 3


def test_dropped_in_files_train_in_a_pristine_tree(photos, tmp_path):
    folder = tmp_path / 'basicsr'
    shutil.copytree(HOST, folder, ignore=shutil.ignore_patterns('__pycache__'))
    degradations = folder / 'data' / 'degradations.py'
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    for name in ('hasn_arch.py', 'effsr_blocks.py'):
        shutil.copy(ROOT / 'basicsr_effsr' / 'archs' / name, folder / 'archs')
    opt = options(photos, HASN, iters=2, model_type='SRModel')
    opt['datasets']['train']['type'] = 'PairedImageDataset'
    file = write(opt, tmp_path / 'short.yml')
    code = (
        'import sys, runpy\nsys.modules["basicsr_effsr"] = None\n'
        'runpy.run_module("basicsr.train", run_name="__main__", alter_sys=True)\n'
    )
    out = logged('-c', code, '-opt', file, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert len(losses(out)) == 2
    assert (tmp_path / 'experiments' / 'short' / 'models' / 'net_g_latest.pth').is_file()


@pytest.mark.parametrize(
    ('file', 'weights', 'psnr', 'ssim'),
    [
        ('hasn_x4', 'hasn_x4_official', 32.18, 0.8948),
        ('agdn_x4', 'agdn_x4_official', 32.43, 0.8980),
        ('agdn_s_x4', 'agdn_s_x4_official', 32.03, None),
        ('imdn_x4', 'imdn_x4_official', 32.21, 0.8948),
    ],
)
def test_official_weights_score_on_set5_what_the_papers_say(reference, tmp_path, file, weights, psnr, ssim):
    """Through the shipped option file and the unchanged command; data and weights lie where the file says."""
    opt = yaml.safe_load((ROOT / 'options' / 'test' / f'{file}.yml').read_text())
    gt, lq = tmp_path / 'datasets/Set5/GTmod12', tmp_path / 'datasets/Set5/LRbicx4'
    gt.mkdir(parents=True)
    lq.mkdir()
    for source in sorted((reference / 'set5' / 'HR').glob('*.png')):
        image = cv2.imread(str(source))
        height, width = (side - side % 12 for side in image.shape[:2])
        cv2.imwrite(str(gt / source.name), image[:height, :width])
        cv2.imwrite(str(lq / source.name), imresize(np.ascontiguousarray(image[:height, :width]), scale=0.25))
    target = tmp_path / opt['path']['pretrain_network_g']
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(reference / 'checkpoints' / f'{weights}.pth', target)
    out = logged(
        '-m',
        'basicsr.test',
        '-opt',
        str(ROOT / 'options' / 'test' / f'{file}.yml'),
        '--force_yml',
        'num_gpu=0',
        cwd=tmp_path,
    )
    assert 'Current net - loaded net' not in out
    assert float(re.search(r'psnr: (\d+\.\d+)', out)[1]) == pytest.approx(psnr, abs=0.01)
    if ssim is not None:
        assert float(re.search(r'ssim: (\d+\.\d+)', out)[1]) == pytest.approx(ssim, abs=0.0005)


def _one_sentence(done) -> str:
    assert done.returncode not in (0, None)
    assert 'Traceback' not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith('basicsr_effsr: ')]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


def _broken(kind: str, opt: dict, photos: Path, tmp_path: Path) -> None:
    train = opt['datasets']['train']
    copy = tmp_path / 'data'
    shutil.copytree(photos, copy)
    for data in opt['datasets'].values():
        data['dataroot_gt'], data['dataroot_lq'] = str(copy / 'HR'), str(copy / 'X4')
    if kind == 'misspelt option':
        opt['network_g']['num_faet'] = 8
    elif kind == 'misspelt network':
        opt['network_g']['type'] = 'HASM'
    elif kind == 'missing folder':
        train['dataroot_gt'] = str(tmp_path / 'nowhere')
    elif kind == 'unequal count':
        (copy / 'X4' / '3.png').unlink()
    elif kind == 'wrong scale':
        for data in opt['datasets'].values():
            data['dataroot_lq'] = str(copy / 'X2')
    elif kind == 'unreadable image':
        (copy / 'X4' / '2.png').write_bytes(b'not a picture')
    elif kind == 'other network':
        path = tmp_path / 'other.pth'
        torch.save({'params': {'conv.weight': torch.zeros(3)}}, path)
        opt['path']['pretrain_network_g'] = str(path)
    elif kind == 'other scale':
        path = tmp_path / 'x2.pth'
        torch.save({'params': hasn_arch.HASN(num_feat=8, num_block=1, esa_channels=4, upscale=2).state_dict()}, path)
        opt['path']['pretrain_network_g'] = str(path)


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('misspelt option', ['num_faet', 'num_feat']),
        ('misspelt network', ['HASM', 'HASN']),
        ('missing folder', ['nowhere', 'dataroot_gt']),
        ('unequal count', ['4', '3']),
        ('wrong scale', ['scale', '4']),
        ('unreadable image', ['2.png']),
        ('other network', ['other.pth', 'HASN']),
        ('other scale', ['x2.pth', 'upsampler.0']),
    ],
)
def test_bad_input_ends_with_one_sentence_before_anything_is_made(kind, words, photos, tmp_path):
    opt = options(photos, HASN, iters=2)
    _broken(kind, opt, photos, tmp_path)
    done = run('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    sentence = _one_sentence(done)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / 'experiments').exists()
