"""Every option file we ship builds, without data and without weights."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from basicsr.losses import build_loss
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from nets import CASES

from basicsr_effsr.options.check import problems

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'options').rglob('*.yml'))
TRAIN = [file for file in FILES if file.parent.name == 'train']
every_file = pytest.mark.parametrize('file', FILES, ids=lambda f: f'{f.parent.name}-{f.stem}')
every_recipe = pytest.mark.parametrize('file', TRAIN, ids=lambda f: f.stem)


def load(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding='utf-8'))


def test_files_lie_flat_in_two_folders():
    assert {file.parent for file in FILES} == {ROOT / 'options' / 'train', ROOT / 'options' / 'test'}


def test_every_published_network_can_be_trained_and_tested():
    """IMDN comes with its fine-tuning only, the teacher with its training only."""
    have = {kind: {load(f)['network_g']['type'] for f in FILES if f.parent.name == kind} for kind in ('train', 'test')}
    assert set(CASES) <= have['train']
    assert set(CASES) - {'DPARNTeacher'} <= have['test']


@every_file
def test_names_are_registered_and_options_are_known(file):
    opt = load(file)
    assert opt['model_type'] in MODEL_REGISTRY
    for key in ('network_g', 'network_t'):
        if key in opt:
            net = dict(opt[key])
            inspect.signature(ARCH_REGISTRY.get(net.pop('type'))).bind(**net)  # TypeError names the unknown option
    for dataset in opt['datasets'].values():
        assert dataset['type'] in DATASET_REGISTRY


@every_file
def test_nothing_but_data_and_weights_is_missing(file):
    """The pre-flight check finds no other fault; paths are the user's to fill."""
    found = [str(p) for p in problems(load(file), file.parent.name == 'train') if p.fatal]
    assert not [text for text in found if not re.search('dataroot|pretrain_network|datasets/|pretrained_models', text)]


@every_recipe
def test_losses_build(file):
    train = load(file)['train']
    terms = {**train.get('losses', {}), **{k: v for k, v in train.items() if k.endswith('_opt') and v}}
    for name, loss in terms.items():
        if 'type' in loss and 'VGG' not in loss['type']:
            assert name.startswith('l_') or name.endswith('_opt')
            build_loss(loss)


@every_file
def test_scale_is_said_once(file):
    opt, text = load(file), file.read_text(encoding='utf-8')
    assert re.search(r'^scale: &scale \d$', text, re.M)
    assert opt['network_g']['upscale'] == opt['scale']
    assert text.count('upscale: *scale') == 1 + ('network_t' in opt)
    for metric in opt['val']['metrics'].values():
        assert metric['crop_border'] == opt['scale']


@every_file
def test_header_runs_this_file_and_the_name_is_the_stem(file):
    command = 'basicsr.train' if file.parent.name == 'train' else 'basicsr.test'
    assert f'{command} -opt {file.relative_to(ROOT).as_posix()}' in file.read_text(encoding='utf-8')
    assert load(file)['name'] in (file.stem, f'test_{file.stem}')


@every_file
def test_path_holds_only_keys_that_the_host_does_not_turn_into_folders(file):
    for key in load(file).get('path', {}):
        assert any(part in key for part in ('strict_load', 'pretrain_network', 'resume', 'param_key')), key


@every_recipe
def test_schedules_fit_the_run(file):
    train = load(file)['train']
    total = train['total_iter']
    milestones = train['scheduler'].get('milestones', [])
    assert all(m < total for m in milestones)
    if 'periods' in train['scheduler']:
        assert sum(train['scheduler']['periods']) == total
