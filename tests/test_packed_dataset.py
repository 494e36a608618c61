"""Does a pack give the samples that the images themselves give?"""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY

from basicsr_effsr.data.packs import PackError
from basicsr_effsr.data.sampler import SampleIndex, draw
from datasets_prep.files import read_image, write_png
from datasets_prep.jobs import Schedule
from datasets_prep.lmdb_maker import make_lmdb
from datasets_prep.lr import make_lr
from datasets_prep.pack import make_pack

TRAIN = {'name': 'test', 'phase': 'train', 'gt_size': 24, 'use_hflip': True, 'use_rot': True, 'scale': 3}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def pair(tmp_path):
    """Folders of HR and x3 LR images, and packs of the same."""
    for i, size in enumerate([(48, 60, 3), (36, 72, 3), (33, 45)]):
        write_png(tmp_path / 'HR' / f'{i:04d}.png', noise(*size, seed=i))
    make_lr(tmp_path / 'HR', tmp_path, scales=(3,))
    make_pack(tmp_path / 'HR', tmp_path / 'HR.pack')
    make_pack(tmp_path / 'X3', tmp_path / 'X3.pack')
    return tmp_path


def packed(pair, **options):
    roots = {'dataroot_gt': str(pair / 'HR.pack'), 'dataroot_lq': str(pair / 'X3.pack')}
    return DATASET_REGISTRY.get('PackedPairedImageDataset')({**TRAIN, **roots, **options})


def folders(pair, kind='EffSRPairedDataset', **options):
    roots = {'dataroot_gt': str(pair / 'HR'), 'dataroot_lq': str(pair / 'X3'), 'io_backend': {'type': 'disk'}}
    return DATASET_REGISTRY.get(kind)({**TRAIN, **roots, **options})


def assert_same(ours, theirs):
    for key in ('gt', 'lq'):
        assert ours[key].dtype == theirs[key].dtype
        assert ours[key].is_contiguous()
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'uint8': True},
        {'color': 'y'},
        {'mean': [0.4, 0.5, 0.6], 'std': [0.1, 0.2, 0.3]},
        {'use_rot': False},
        {'use_hflip': False, 'gt_size': 33},
        {'phase': 'val'},
    ],
    ids=str,
)
def test_equal_to_the_folder_data_set_sample_by_sample(pair, options):
    ours, theirs = packed(pair, **options), folders(pair, **options)
    assert len(ours) == len(theirs) == 3
    for position in range(48):
        index = SampleIndex(position % 3, seed=5, epoch=2, position=position)
        assert_same(ours[index], theirs[index])


def test_the_comparison_above_meets_every_symmetry():
    draws = [draw(SampleIndex(p % 3, 5, 2, p), (16, 20), 8, True, True)[2:] for p in range(48)]
    assert len(set(draws)) == 8


def test_every_form_has_the_order_of_the_folder(tmp_path):
    """Else the same run draws other images from it: one name is the beginning of another."""
    for i, name in enumerate(('img', 'img-2', 'img3', 'im')):
        write_png(tmp_path / 'HR' / f'{name}.png', noise(24, 24, 3, seed=i))
    make_lr(tmp_path / 'HR', tmp_path, scales=(3,))
    for folder in ('HR', 'X3'):
        make_pack(tmp_path / folder, tmp_path / f'{folder}.pack')
        make_lmdb(tmp_path / folder, tmp_path / f'{folder}.lmdb')
    data = folders(tmp_path)
    roots = {'dataroot_gt': str(tmp_path / 'HR.lmdb'), 'dataroot_lq': str(tmp_path / 'X3.lmdb')}
    stored = folders(tmp_path, **roots, io_backend={'type': 'lmdb'})
    for other in (packed(tmp_path), stored):
        for i in range(4):
            assert_same(other[SampleIndex(i, 7, 2, i)], data[SampleIndex(i, 7, 2, i)])


def test_crops_and_turns_are_distributed_as_the_hosts(tmp_path):
    write_png(tmp_path / 'HR' / 'a.png', noise(9, 9, 3))
    make_lr(tmp_path / 'HR', tmp_path, scales=(3,))
    make_pack(tmp_path / 'HR', tmp_path / 'HR.pack')
    make_pack(tmp_path / 'X3', tmp_path / 'X3.pack')
    random.seed(0)
    seen = []
    for dataset in (packed(tmp_path, gt_size=6), folders(tmp_path, 'PairedImageDataset', gt_size=6)):
        seen.append(Counter(dataset[0]['gt'].numpy().tobytes() for _ in range(3200)))
    ours, host = seen
    assert set(ours) == set(host)
    assert len(ours) == 4 * 8  # corners times symmetries
    for outcome in ours:  # 100 +- 9.8 each; five standard deviations
        assert abs(ours[outcome] - 100) < 50
        assert abs(host[outcome] - 100) < 50


def test_patches_follow_the_stage_of_the_run(pair):
    ours, theirs = packed(pair), folders(pair)
    for size in (12, 33):
        index = SampleIndex(1, seed=5, epoch=2, position=7, gt_size=size)
        assert ours[index]['gt'].shape == (3, size, size)
        assert_same(ours[index], theirs[index])
    with pytest.raises(ValueError, match=r"'0000' .*X3\.pack \(20x16\)"):
        ours[SampleIndex(0, seed=5, epoch=2, position=7, gt_size=60)]


def test_what_is_given_out_is_not_the_pack(pair):
    dataset = packed(pair, phase='val', uint8=True)
    dataset[0]['gt'].zero_()
    expected = read_image(pair / 'HR' / '0000.png')[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(dataset[0]['gt'].numpy(), expected)


def test_names_for_the_results_are_those_of_the_images(pair):
    from os.path import basename, splitext

    assert splitext(basename(packed(pair, phase='val')[1]['lq_path']))[0] == '0001'


def test_it_can_be_sent_to_another_process_after_use(pair):
    dataset = packed(pair)
    index = SampleIndex(1, seed=5, epoch=2, position=7)
    first = dataset[index]
    assert_same(pickle.loads(pickle.dumps(dataset))[index], first)


def test_a_folder_of_shards_is_one_data_set(pair):
    for name in ('HR', 'X3'):
        for i in (1, 2):
            make_pack(pair / name, pair / f'{name}s' / f'{name}.pack', schedule=Schedule(shard=(i, 2)))
    shards = packed(pair, dataroot_gt=str(pair / 'HRs'), dataroot_lq=str(pair / 'X3s'))
    for i in range(3):
        index = SampleIndex(i, seed=5, epoch=2, position=i)
        assert_same(shards[index], packed(pair)[index])
    make_pack(pair / 'HR', pair / 'HRs' / 'again.pack')
    with pytest.raises(ValueError, match="'0000'"):
        packed(pair, dataroot_gt=str(pair / 'HRs'))


def test_the_template_pairs_names(pair):
    (pair / 'X3').rename(pair / 'plain')
    make_lr(pair / 'HR', pair, scales=(3,), filename_tmpl='{}x{scale}')
    make_pack(pair / 'X3', pair / 'named.pack')
    ours = packed(pair, dataroot_lq=str(pair / 'named.pack'), filename_tmpl='{}x3')
    index = SampleIndex(1, seed=5, epoch=2, position=7)
    assert_same(ours[index], packed(pair)[index])
    with pytest.raises(FileNotFoundError, match='dataroot_lq: '):
        packed(pair, dataroot_lq=str(pair / 'named.pack'))


def test_pairs_that_do_not_fit_are_refused(pair):
    with pytest.raises(ValueError, match=r"'0000' of .*HR\.pack \(60x48\) must be 2 times"):
        packed(pair, scale=2)[0]
    with pytest.raises(ValueError, match=r"'0001' of .*X3\.pack \(24x12\) must be at least 13 pixels"):
        packed(pair, gt_size=39)[1]
    for scale in (2, 4):
        with pytest.raises(ValueError, match=rf"'0000' of .*HR\.pack \(60x48\) must be {scale} times"):
            packed(pair, scale=scale, phase='val')[0]
    for template in ('{1}', '{name}', '{', 'x', '{}x{scale}'):
        with pytest.raises(ValueError, match='filename_tmpl: '):
            packed(pair, filename_tmpl=template)


def test_absent_and_cut_packs_are_refused_at_the_start(pair):
    with pytest.raises(FileNotFoundError, match=r'absent\.pack'):
        packed(pair, dataroot_gt=str(pair / 'absent.pack'))
    (pair / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty'):
        packed(pair, dataroot_gt=str(pair / 'empty'))
    data = (pair / 'HR.pack').read_bytes()
    (pair / 'HR.pack').write_bytes(data[: len(data) // 2])
    with pytest.raises(PackError, match=r'HR\.pack'):
        packed(pair)


def test_validation_takes_hr_images_that_were_not_cropped(pair):
    write_png(pair / 'HR' / '0000.png', noise(50, 61, 3))
    make_pack(pair / 'HR', pair / 'HR.pack', overwrite=True)
    ours = packed(pair, phase='val')[0]
    assert ours['gt'].shape == (3, 48, 60)
    with pytest.raises(ValueError, match=r'\(61x50\)'):
        packed(pair)[0]
    for size in ((51, 60), (48, 63), (47, 60), (48, 59)):
        write_png(pair / 'HR' / '0000.png', noise(*size, 3))
        make_pack(pair / 'HR', pair / 'HR.pack', overwrite=True)
        with pytest.raises(ValueError, match=r'HR\.pack .*\b3\b.*\b2\b'):
            packed(pair, phase='val')[0]


OPTIONS = """
name: packed
model_type: SRModel
scale: &scale 3
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: test
    type: PackedPairedImageDataset
    dataroot_gt: {root}/HR.pack
    dataroot_lq: {root}/X3.pack
    io_backend: {{type: disk}}
    gt_size: 48
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 4
    prefetch_mode: ~
  val:
    name: val
    type: PackedPairedImageDataset
    dataroot_gt: {root}/HR.pack
    dataroot_lq: {root}/X3.pack
    io_backend: {{type: disk}}
network_g: {{type: HASN, num_feat: 8, num_block: 1, upscale: *scale}}
path: {{pretrain_network_g: ~, strict_load_g: true, resume_state: ~}}
train:
  ema_decay: 0
  optim_g: {{type: Adam, lr: !!float 1e-3}}
  scheduler: {{type: MultiStepLR, milestones: [100]}}
  total_iter: 4
  warmup_iter: -1
  pixel_opt: {{type: L1Loss, loss_weight: 1.0, reduction: mean}}
val:
  val_freq: !!float 4
  save_img: true
  metrics:
    psnr: {{type: calculate_psnr, crop_border: *scale, test_y_channel: true}}
logger: {{print_freq: 1, save_checkpoint_freq: !!float 4, use_tb_logger: false, wandb: ~}}
dist_params: {{backend: nccl, port: 29500}}
"""


@pytest.mark.slow
def test_the_unchanged_command_trains_with_it(pair):
    for i, size in enumerate([(48, 60, 3), (60, 72, 3), (51, 48)]):  # HASN takes LR images from 15 pixels on
        write_png(pair / 'HR' / f'{i:04d}.png', noise(*size, seed=i))
    make_lr(pair / 'HR', pair, scales=(3,), overwrite=True)
    for name in ('HR', 'X3'):
        make_pack(pair / name, pair / f'{name}.pack', overwrite=True)
    (pair / 'packed.yml').write_text(OPTIONS.format(root=pair))
    done = subprocess.run(
        [sys.executable, '-m', 'basicsr.train', '-opt', 'packed.yml'], cwd=pair, capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert 'iter:       4' in text
    assert sorted(p.name for p in (pair / 'experiments' / 'packed' / 'visualization').iterdir()) == [
        '0000',
        '0001',
        '0002',
    ]
