"""An LMDB can be open once in a process; our data sets share it, and the check says where another would open it."""

from __future__ import annotations

import os
import pickle

import lmdb
import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import DataLoader

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.pairs import lmdbs_opened_twice
from basicsr_effsr.data.sampler import SampleIndex
from datasets_prep.files import write_png
from datasets_prep.lmdb_maker import make_lmdb


def fill(root, seed: int) -> None:
    for kind, side in (('HR', 16), ('LR', 8)):
        for name in 'abc':
            pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_png(root / kind / f'{name}.png', pixels)
        make_lmdb(root / kind, root / f'{kind}.lmdb', overwrite=True)


@pytest.fixture
def root(tmp_path):
    fill(tmp_path, 0)
    return tmp_path


def options(root, phase: str = 'val', kind: str = 'EffSRPairedDataset', **more) -> dict:
    return {
        'name': 'unit',
        'type': kind,
        'phase': phase,
        'scale': 2,
        'gt_size': 8,
        'use_hflip': True,
        'use_rot': True,
        'dataroot_gt': str(root / 'HR.lmdb'),
        'dataroot_lq': str(root / 'LR.lmdb'),
        'io_backend': {'type': 'lmdb'},
        **more,
    }


def build(*args, **more):
    opt = options(*args, **more)
    return DATASET_REGISTRY.get(opt['type'])(opt)


def test_training_and_validation_read_one_lmdb_in_one_process(root):
    train, val = build(root, 'train'), build(root)
    assert train[SampleIndex(0, 0, 0, 0)]['gt'].shape == (3, 8, 8)
    first = val[0]['gt']
    assert torch.equal(build(root)[0]['gt'], first)
    link = root / 'link.lmdb'
    link.symlink_to(root / 'HR.lmdb')
    assert torch.equal(build(root, dataroot_gt=str(link))[0]['gt'], first)
    assert torch.equal(pickle.loads(pickle.dumps(val))[0]['gt'], first)


@pytest.mark.parametrize('way', ['fork', 'spawn'])
def test_workers_read_what_this_process_has_open(root, way):
    val = build(root)
    first = [val[i]['gt'] for i in range(3)]
    loader = DataLoader(val, num_workers=2, multiprocessing_context=way)
    for _ in range(2 if way == 'fork' else 1):  # workers are started anew in every epoch
        assert all(torch.equal(item['gt'][0], gt) for item, gt in zip(loader, first, strict=True))
    assert torch.equal(val[0]['gt'], first[0])


def test_an_lmdb_that_was_made_again_is_read_anew(root):
    before = build(root)[0]['gt']
    fill(root, 1)
    assert not torch.equal(build(root)[0]['gt'], before)


def test_what_another_has_open_is_named(root):
    other = lmdb.open(str(root / 'HR.lmdb'), readonly=True, lock=False)
    try:
        with pytest.raises(ValueError, match=r'HR\.lmdb .*EffSRPairedDataset'):
            build(root)[0]
    finally:
        other.close()


def test_a_missing_entry_is_named(root):
    assert lmdbs.get(root / 'HR.lmdb', 'z') is None
    text = (root / 'HR.lmdb' / 'meta_info.txt').read_text()
    for kind in ('HR', 'LR'):
        (root / f'{kind}.lmdb' / 'meta_info.txt').write_text(text.replace('c.png', 'z.png'))
    with pytest.raises(ValueError, match=r"HR\.lmdb .*'z'"):
        build(root)[2]


HOST = 'PairedImageDataset'


@pytest.mark.parametrize(
    ('train', 'val', 'clash'),
    [
        ({}, {}, False),
        ({'kind': HOST}, {}, True),
        ({}, {'kind': HOST}, True),
        ({'kind': HOST}, {'kind': HOST}, True),
        ({'kind': HOST, 'num_worker_per_gpu': 2}, {'kind': HOST}, True),
        ({'kind': HOST, 'num_worker_per_gpu': 2, 'persistent_workers': True}, {'kind': HOST}, False),
    ],
)
def test_the_check_tells_which_lmdb_would_be_opened_twice(root, train, val, clash):
    datasets = {'train': options(root, 'train', **train), 'val': options(root, **val)}
    found = lmdbs_opened_twice(datasets)
    assert [where for where, _ in found] == ['datasets.val.dataroot_gt', 'datasets.val.dataroot_lq'] * clash
    link = root / 'link.lmdb'
    os.symlink(root / 'HR.lmdb', link)
    datasets['val'] |= {'dataroot_gt': str(link), 'dataroot_lq': str(root / 'other.lmdb')}
    assert [where for where, _ in lmdbs_opened_twice(datasets)] == ['datasets.val.dataroot_gt'] * clash


def test_the_host_dies_where_the_check_says_so(root):
    train, val = (build(root, kind=HOST) for _ in range(2))
    train[0]
    try:
        with pytest.raises(lmdb.Error):
            val[0]
    finally:
        for environment in train.file_client.client._client.values():
            environment.close()
