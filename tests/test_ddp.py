"""Two processes over gloo: the gradients, the scores and the resume of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from ddp_worker import results
from host import logged
from runs import TINY_HASN, short_run, write

TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
TEACHER = {'type': 'DPARNTeacher', 'num_feat': 8, 'num_block': 1, 'num_heads': 2, 'num_grow_ch': 4, 'window_size': 8}
pytestmark = pytest.mark.slow


def distillation(photos: Path, folder: Path) -> dict:
    """Short distillation with adapters, clipping and accumulation, SGD so that no step hides a wrong gradient."""
    opt = short_run(photos, TINY_HASN, model_type='DistillationModel', network_t={**TEACHER, 'upscale': 4})
    torch.save({'params': build_network(opt['network_t']).state_dict()}, folder / 'teacher.pth')
    opt['path']['pretrain_network_t'] = str(folder / 'teacher.pth')
    del opt['train']['pixel_opt']
    opt['train'] |= {
        'optim_g': {'type': 'SGD', 'lr': 0.1},
        'accumulate': 2,
        'grad_clip': 1.0,
        'distill': {
            'gamma': 1.0,
            'feature_pairs': {'block_1': 'layers.0'},
            'feature_loss': {'type': 'FAKDLoss', 'adapter': 'conv1x1'},
        },
    }
    return opt


def test_two_ranks_compute_what_one_computes_with_the_doubled_batch(photos, tmp_path):
    opt = distillation(photos, tmp_path) | {'is_train': True, 'auto_resume': False}
    one = tmp_path / 'one'  # a data set with fewer images than ranks
    for kind in ('HR', 'X4'):
        (one / kind).mkdir(parents=True)
        shutil.copy(photos / kind / '2.png', one / kind)
    opt['datasets']['val_one'] = opt['datasets']['val'] | {'name': 'one'}
    opt['datasets']['val_one'] |= {'dataroot_gt': str(one / 'HR'), 'dataroot_lq': str(one / 'X4')}
    for phase, data in opt['datasets'].items():
        data |= {'phase': phase.split('_')[0], 'scale': 4}
    opt['path'] |= {'visualization': str(tmp_path / 'alone')}
    opt['val']['metrics']['ssim'] = {'type': 'calculate_ssim', 'crop_border': 4, 'test_y_channel': True}
    alone = results(opt, 0, 1)
    opt['path'] |= {'visualization': str(tmp_path / 'shared')}
    (tmp_path / 'opt.json').write_text(json.dumps(opt))
    worker = str(Path(__file__).with_name('ddp_worker.py'))
    logged(*TORCHRUN, worker, str(tmp_path / 'opt.json'), str(tmp_path), cwd=tmp_path)
    ranks = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1)]
    for part in ('net_g', 'net_g_ema', 'adapters'):
        for name, value in alone[part].items():
            assert torch.equal(ranks[0][part][name], ranks[1][part][name]), f'{part}.{name} differs between ranks'
            torch.testing.assert_close(ranks[0][part][name], value, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(alone['logs'], ranks[0]['logs'], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    for phase, scores in alone['scores'].items():
        assert ranks[0]['scores'][phase] == ranks[1]['scores'][phase] == pytest.approx(scores, abs=2e-3)
    assert ranks[0]['best']['one']['psnr']['iter'] == 3
    pictures = {f.relative_to(tmp_path / 'alone') for f in (tmp_path / 'alone').rglob('*.png')}
    assert len(pictures) == 5 - 1  # training names the file by image, and 2.png is in both data sets
    assert {f.relative_to(tmp_path / 'shared') for f in (tmp_path / 'shared').rglob('*.png')} == pictures
    assert alone['skipped']
    assert all(rank['skipped'] for rank in ranks), 'a NaN on one rank must make all ranks skip the iteration'


def test_a_run_on_two_ranks_resumes_bit_identical(photos, tmp_path):
    """The student draws random numbers (drop path), other ones on each rank, and its adapters are drawn too."""
    opt = distillation(photos, tmp_path)
    opt['manual_seed'] = None  # then rank 0 draws one for all
    opt['network_g'] = {**TEACHER, 'num_block': 2, 'drop_path_rate': 0.5, 'upscale': 4}
    opt['train']['distill']['feature_pairs'] = {'layers.0': 'layers.0'}
    opt['train'] |= {'total_iter': 6, 'optim_g': {'type': 'Adam', 'lr': 1e-3}}
    opt['datasets']['train'] |= {'dataset_enlarge_ratio': 4, 'gt_size': 64}  # 4 iterations an epoch
    opt['logger'] |= {'save_checkpoint_freq': 3}
    opt['val']['val_freq'] = 3
    file = write(opt, tmp_path / 'short.yml')
    command = (*TORCHRUN, '-m', 'basicsr.train', '-opt', file, '--launcher', 'pytorch', '--auto_resume')
    log = logged(*command, cwd=tmp_path)
    assert log.count('# psnr:') == 3, 'rank 0 alone logs the scores, twice while training and once at the end'
    folder = tmp_path / 'experiments' / 'short'
    assert {f.name for f in (folder / 'training_states').iterdir()} == {
        f'{i}{kind}' for i in (3, 6) for kind in ('.state', '.effsr', '.rank1.effsr')
    }
    sides = [torch.load(f, weights_only=True) for f in (folder / 'training_states').glob('*.effsr')]
    assert len({side['seed'] for side in sides}) == 1
    latest = folder / 'models' / 'net_g_latest.pth'
    straight = torch.load(latest, weights_only=True)
    latest.unlink()
    for left in folder.glob('*/*6.*'):  # as after a kill between iterations 3 and 6
        left.unlink()
    log = logged(*command, cwd=tmp_path)
    assert 'iter: 3.' in log
    again = torch.load(latest, weights_only=True)
    for key, stored in straight.items():
        assert all(torch.equal(again[key][name], value) for name, value in stored.items()), key
    assert [f.name for f in (tmp_path / 'experiments').iterdir()] == ['short']
