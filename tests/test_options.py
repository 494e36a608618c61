"""Every option file we ship builds, without data and without weights."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import pytest
import yaml
from basicsr.losses import build_loss
from basicsr.utils.registry import ARCH_REGISTRY
from nets import CASES

from basicsr_effsr._registration import lookup
from basicsr_effsr.options.check import inspected

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'options').glob('t*/*.yml'))  # those in options/papers are no option files


def load(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding='utf-8'))


def test_files_lie_flat_in_two_folders():
    assert {file.parent for file in FILES} == {ROOT / 'options' / 'train', ROOT / 'options' / 'test'}


def test_every_published_network_can_be_trained_and_tested():
    """IMDN comes with its fine-tuning only, the teacher with its training only."""
    have = {kind: {load(f)['network_g']['type'] for f in FILES if f.parent.name == kind} for kind in ('train', 'test')}
    assert set(CASES) <= have['train']
    assert set(CASES) - {'DPARNTeacher'} <= have['test']


def names_are_registered_and_options_are_known(opt: dict) -> None:
    assert lookup('MODEL', opt['model_type'])[0]
    for key in ('network_g', 'network_t'):
        if key in opt:
            net = dict(opt[key])
            inspect.signature(ARCH_REGISTRY.get(net.pop('type'))).bind(**net)  # TypeError names the unknown option
    for dataset in opt['datasets'].values():
        assert lookup('DATASET', dataset['type'])[0]


def nothing_but_data_and_weights_is_missing(opt: dict, file: Path) -> None:
    """The check finds no other fault; paths are the user's to fill."""
    found = [problem for problem in inspected(opt, file.parent.name == 'train').found if problem.fatal]
    assert not [p for p in found if not re.search(r'\.dataroot_|^path\.pretrain_network_', p.where)]


def scale_is_said_once(opt: dict, text: str) -> None:
    assert re.search(r'^scale: &scale \d$', text, re.M)
    assert opt['network_g']['upscale'] == opt['scale']
    assert text.count('upscale: *scale') == 1 + ('network_t' in opt)
    for metric in opt['val'].get('metrics', {}).values():
        assert metric['crop_border'] == opt['scale']


def header_runs_this_file_and_the_name_is_the_stem(opt: dict, text: str, file: Path) -> None:
    assert f'basicsr.{file.parent.name} -opt {file.relative_to(ROOT).as_posix()}' in text
    assert opt['name'] in (file.stem, f'test_{file.stem}')


def path_holds_only_keys_that_the_host_does_not_turn_into_folders(opt: dict) -> None:
    for key in opt.get('path', {}):
        assert any(part in key for part in ('strict_load', 'pretrain_network', 'resume', 'param_key')), key


def losses_build(train: dict) -> None:
    terms = {**train.get('losses', {}), **{k: v for k, v in train.items() if k.endswith('_opt') and v}}
    for name, loss in terms.items():
        if 'type' in loss and 'VGG' not in loss['type'] and 'vgg_type' not in loss:  # which fetch weights
            assert name.startswith('l_') or name.endswith('_opt')
            build_loss(copy.deepcopy(loss))


def schedule_fits_the_run(train: dict) -> None:
    total = train['total_iter']
    assert all(m < total for m in train['scheduler'].get('milestones', []))
    if 'periods' in train['scheduler']:
        assert sum(train['scheduler']['periods']) == total


@pytest.mark.parametrize('file', FILES, ids=lambda f: f'{f.parent.name}-{f.stem}')
def test_file(file):
    text = file.read_text(encoding='utf-8')
    opt = yaml.safe_load(text)
    names_are_registered_and_options_are_known(opt)
    scale_is_said_once(opt, text)
    header_runs_this_file_and_the_name_is_the_stem(opt, text, file)
    path_holds_only_keys_that_the_host_does_not_turn_into_folders(opt)
    if file.parent.name == 'train':
        losses_build(opt['train'])
        schedule_fits_the_run(opt['train'])
    nothing_but_data_and_weights_is_missing(opt, file)
