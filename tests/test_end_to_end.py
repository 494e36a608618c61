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
from runs import TINY_HASN, break_option, losses, short_run, twin_of, write

HOST = Path(basicsr.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))
def test_every_network_trains_with_falling_loss(case, photos, tmp_path):
    scale = max(case.scales)
    opt = short_run(photos, case.option(), scale=scale, val=None)
    del opt['val']
    out = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    values = losses(out)
    assert len(values) == 20
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    stored = torch.load(tmp_path / 'experiments/short/models/net_g_latest.pth', weights_only=True)
    assert set(stored) == {'params', 'params_ema'}


def test_train_resume_and_test_leave_everything_where_the_user_stands(photos, tmp_path):
    site_before = {p.name for p in HOST.parent.iterdir()}
    opt = short_run(photos, TINY_HASN, iters=10)
    file = write(opt, tmp_path / 'short.yml')
    out = logged('-m', 'basicsr.train', '-opt', file, cwd=tmp_path, fresh=True)
    assert 'eta: 0:00:00' in out, 'of the last iteration, where the host says -1 day'
    for noise in ('-1 day', 'RuntimeWarning', 'Conv2d(', 'run_state', 'RunState'):
        assert noise not in out
    experiment = tmp_path / 'experiments' / 'short'
    assert (experiment / 'training_states' / '10.state').is_file()
    assert list((tmp_path / 'tb_logger' / 'short').iterdir())

    opt['train']['total_iter'] = 14
    out = logged('-m', 'basicsr.train', '-opt', write(opt, Path(file)), '--auto_resume', cwd=tmp_path)
    assert 'iter: 10.' in out
    assert len(losses(out)) == 4
    assert [p.name for p in (tmp_path / 'experiments').iterdir()] == ['short'], 'the first run must not be archived'

    twin = twin_of(opt, experiment / 'models' / 'net_g_latest.pth')
    out = logged('-m', 'basicsr.test', '-opt', write(twin, tmp_path / 'test.yml'), cwd=tmp_path)
    assert re.search(r'psnr: \d\d\.\d+', out)
    assert len(list((tmp_path / 'results' / 'short' / 'visualization' / 'photos').glob('*.png'))) == 4
    assert {p.name for p in HOST.parent.iterdir()} == site_before


def test_hr_images_alone_train_as_pairs_do(photos, tmp_path):
    opt, found = short_run(photos, TINY_HASN, iters=2), []
    for data in opt['datasets'].values():
        data['type'] = 'EffSRPairedDataset'
    for name in ('pairs', 'alone'):
        out = logged(
            '-m', 'basicsr.train', '-opt', write({**opt, 'name': name}, tmp_path / f'{name}.yml'), cwd=tmp_path
        )
        found.append((losses(out), re.findall(r'# psnr: (\S+)', out)))
        for data in opt['datasets'].values():
            data['dataroot_lq'] = 'bicubic'
    assert [len(one) for one in found[0]] == [2, 1]
    assert found[0] == found[1]


def test_a_training_needs_no_command_line_library(photos, tmp_path):
    path = tmp_path / 'broken'
    path.mkdir()
    for name in ('typer', 'rich', 'matplotlib'):
        (path / f'{name}.py').write_text(f'raise ImportError("{name} must not be imported")')
    file = write(short_run(photos, TINY_HASN, iters=2), tmp_path / 'short.yml')
    out = logged('-m', 'basicsr.train', '-opt', file, cwd=tmp_path, PYTHONPATH=str(path))
    assert len(losses(out)) == 2
    assert run('-c', 'import typer', cwd=tmp_path, PYTHONPATH=str(path)).returncode


def test_our_own_commands_need_no_hook(photos, tmp_path):
    """Not even in the loader processes, which spawn starts with nothing but the main module under a launcher."""
    opt = short_run(photos, TINY_HASN, iters=2)
    opt['datasets']['train']['num_worker_per_gpu'] = 1
    file = write(opt, tmp_path / 'short.yml')
    off = {'BASICSR_EFFSR_AUTOLOAD': '0', 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1')
    words = ('-m', 'basicsr_effsr.train', '-opt', file, '--launcher', 'pytorch', '--local-rank=0')
    out = logged(*launcher, *words, cwd=tmp_path, **off)
    assert len(losses(out)) == 2
    twin = twin_of(opt, tmp_path / 'experiments' / 'short' / 'models' / 'net_g_latest.pth')
    out = logged('-m', 'basicsr_effsr.test', '-opt', write(twin, tmp_path / 'test.yml'), cwd=tmp_path, **off)
    assert (tmp_path / 'results' / 'short').is_dir()
    assert 'psnr' in out


def test_hosts_own_model_and_data_set_train_our_network(photos, tmp_path):
    opt = short_run(photos, TINY_HASN, iters=3, model_type='SRModel')
    opt['datasets']['train']['type'] = 'PairedImageDataset'
    out = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    assert len(losses(out)) == 3


def test_real_world_stages_train_on_a_cpu_and_validate_images_without_hr(photos, tmp_path):
    """Two iterations of each; but for VGG-19, which is half a gigabyte to fetch, all of BasicSR's own losses."""
    (tmp_path / 'meta.txt').write_text(''.join(f'{i}.png (192,192,3)\n' for i in range(4)))
    for name in ('hasn_x4_realworld', 'hasn_x4_realworld_gan'):
        opt = yaml.safe_load((ROOT / 'options' / 'train' / f'{name}.yml').read_text())
        opt |= {'num_gpu': 0, 'gt_size': 64, 'queue_size': 2}
        opt['network_g'] |= TINY_HASN
        opt['train'] |= {'total_iter': 2, 'perceptual_opt': None}
        opt['val']['val_freq'] = 2
        opt['logger']['print_freq'] = 1
        data, val = opt['datasets'].values()
        data |= {'dataroot_gt': str(photos / 'HR'), 'meta_info': str(tmp_path / 'meta.txt'), 'dataset_enlarge_ratio': 2}
        data |= {'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0, 'persistent_workers': False}
        val['dataroot_lq'] = str(photos / 'X4')
        if 'network_d' in opt:
            opt['network_d']['num_feat'] = 8
        out = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'rw.yml'), cwd=tmp_path)
        values = losses(out, 'l_pix' if 'network_d' not in opt else 'l_g_pix')
        assert len(values) == 2
        assert np.isfinite(values).all()
        assert 'Validation' not in out  # nothing to compare with
        saved = tmp_path / 'experiments' / name / 'visualization'
        assert len({file.parent for file in saved.rglob('*_2.png')}) == 4
        assert cv2.imread(str(next(saved.rglob('*_2.png')))).shape == (192, 192, 3)


def test_dropped_in_files_train_in_a_pristine_tree(photos, tmp_path):
    folder = tmp_path / 'basicsr'
    shutil.copytree(HOST, folder, ignore=shutil.ignore_patterns('__pycache__'))
    degradations = folder / 'data' / 'degradations.py'
    degradations.write_text(degradations.read_text().replace('functional_tensor', 'functional'))
    for name in ('hasn_arch.py', 'effsr_blocks.py'):
        shutil.copy(ROOT / 'basicsr_effsr' / 'archs' / name, folder / 'archs')
    opt = short_run(photos, TINY_HASN, iters=2, model_type='SRModel')
    opt['datasets']['train']['type'] = 'PairedImageDataset'
    file = write(opt, tmp_path / 'short.yml')
    code = (
        'import sys, runpy\nsys.modules["basicsr_effsr"] = None\n'
        'runpy.run_module("basicsr.train", run_name="__main__", alter_sys=True)\n'
    )
    out = logged('-c', code, '-opt', file, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0')
    assert len(losses(out)) == 2
    assert (tmp_path / 'experiments' / 'short' / 'models' / 'net_g_latest.pth').is_file()


@pytest.mark.parametrize('name', ['hasn_x4', 'agdn_x4', 'agdn_s_x4', 'imdn_x4'])
def test_official_weights_score_on_set5_what_the_header_says(reference, tmp_path, name):
    """Through the shipped option file, the unchanged command and the data as docs/data.md makes them."""
    file = ROOT / 'options' / 'test' / f'{name}.yml'
    text = file.read_text(encoding='utf-8')
    stated = re.search(r'^# Run: .*\n# .*weights.* Set5 (\S+) / ([\d.]*\d)', text, re.M)
    sets = tmp_path / 'datasets' / 'Set5'
    folders = [reference / 'set5' / 'HR', sets, '--hr-out', sets / 'GTmod12', '--folder-tmpl', 'LRbicx{scale}']
    logged('-m', 'datasets_prep', 'lr', *map(str, folders), '--scales', '4', '--modulus', '12', cwd=tmp_path)
    target = tmp_path / yaml.safe_load(text)['path']['pretrain_network_g']
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(reference / 'checkpoints' / f'{name}_official.pth', target)
    out = logged('-m', 'basicsr.test', '-opt', str(file), '--force_yml', 'num_gpu=0', cwd=tmp_path)
    assert 'Current net - loaded net' not in out
    psnr, ssim = (float(re.search(rf'{key}: (\d+\.\d+)', out)[1]) for key in ('psnr', 'ssim'))
    assert (f'{psnr:.2f}', f'{ssim:.4f}') == stated.groups()


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('misspelt option', ['network_g.num_faet', "did you mean 'num_feat'?"]),
        ('unreadable image', ['datasets.train', '2.png cannot be read as an image']),
        ('other scale', ['x2.pth', 'upsampler.0', 'another scale']),
    ],
)
def test_bad_input_ends_with_one_sentence_before_anything_is_made(kind, words, photos, tmp_path):
    opt = short_run(photos, TINY_HASN, iters=2)
    break_option(kind, opt, tmp_path)
    done = run('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert 'Traceback' not in done.stderr, done.stderr[-3000:]
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith('basicsr_effsr: ')]
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / 'experiments').exists()
