"""Every layout of checkpoint that programs write, in every command that reads one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.test import test_pipeline as host_test
from runs import TINY_HASN, short_run, twin_of
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.models.effsr_model import EffSRModel

OPTION = {**TINY_HASN, 'upscale': 2}
SETTINGS = ('num_feat=8', 'num_block=1', 'esa_channels=4')
NAMED = ['--arch', 'HASN', '--scale', '2', *(word for each in SETTINGS for word in ('--set', each))]


def behind(prefix: str, state: dict) -> dict:
    return {f'{prefix}{name}': tensor for name, tensor in state.items()}


LAYOUTS = {
    'bare': lambda s: s,
    **{k: lambda s, k=k: {k: s, 'epoch': 3} for k in ('params', 'params_ema', 'params-ema', 'state_dict')},
    **{k: lambda s, k=k: {k: s, 'epoch': 3} for k in ('model_state_dict', 'model', 'net_g')},
    **{p: lambda s, p=p: behind(p, s) for p in ('module.', '_orig_mod.', 'net_g.', 'model.', 'generator.')},
    'module._orig_mod. in params': lambda s: {'params': behind('module._orig_mod.', s)},
    '_orig_mod.module. bare': lambda s: behind('_orig_mod.module.', s),
    'params_ema in model': lambda s: {'model': {'params_ema': s}, 'iter': 7},
    'net_g. in model in state_dict': lambda s: {'state_dict': {'model': behind('net_g.', s)}},
    'compiled inside': lambda s: {'params': {n.replace('block_1.', 'block_1._orig_mod.'): t for n, t in s.items()}},
    'lightning': lambda s: {
        'state_dict': {**behind('model.', s), 'loss.window': torch.ones(9), 'lpips.net.0.weight': torch.ones(2, 2)},
        'pytorch-lightning_version': '2.4.0',
        'global_step': 5,
    },
    'safetensors': None,
    'safetensors with metadata': None,
}


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(1)
    return build_network(OPTION).state_dict()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """data/Set5 with one HR and LR image, a network at random under ``random.pth``."""
    folder = tmp_path_factory.mktemp('matrix')
    image = torch.randint(0, 255, (48, 48, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    for name, written in (('GTmod12', image), ('LRbicx2', image[::2, ::2])):
        (folder / 'data' / 'Set5' / name).mkdir(parents=True)
        cv2.imwrite(str(folder / 'data' / 'Set5' / name / 'a.png'), written)
    return folder


@pytest.fixture(params=LAYOUTS)
def file(request, state, folder) -> Path:
    layout = LAYOUTS[request.param]
    if layout is not None:
        torch.save(layout(dict(state)), folder / 'net.pth')
        return folder / 'net.pth'
    save_file = pytest.importorskip('safetensors.torch', reason='needs the extra: export').save_file
    facts = {'note': 'by another program'} if 'metadata' in request.param else None
    save_file(dict(state), folder / 'net.safetensors', metadata=facts)
    return folder / 'net.safetensors'


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def options(folder: Path) -> dict:
    opt = short_run(folder, OPTION, scale=2)
    sets = folder / 'data' / 'Set5'
    for data in opt['datasets'].values():
        data.update(dataroot_gt=str(sets / 'GTmod12'), dataroot_lq=str(sets / 'LRbicx2'))
    opt['datasets']['train'] |= {'gt_size': 48, 'batch_size_per_gpu': 1}
    opt['train'] |= {'total_iter': 10, 'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.5}}
    return opt


def test_training(file, folder, state):
    opt = options(folder) | {'is_train': True, 'dist': False}
    opt['path']['pretrain_network_g'] = str(file)
    model = EffSRModel(opt)
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_testing(file, folder, tmp_path, monkeypatch):
    opt = twin_of(options(folder), file)
    (folder / 'test.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.setattr(sys, 'argv', ['test', '-opt', str(folder / 'test.yml')])
    host_test(str(tmp_path))


def test_check(file, folder):
    (folder / 'test.yml').write_text(yaml.safe_dump(twin_of(options(folder), file)))
    report = json.loads(run('check', '-opt', folder / 'test.yml', '--json'))
    assert not report['problems']


@pytest.mark.parametrize('named', [NAMED, []], ids=['arch', 'weights'])
def test_evaluate_infer_export_and_benchmark(named, file, folder):
    common = [*named, '--weights', file, '--json']
    sets = ['--data', folder / 'data', '--out', folder / 'evaluate', '--device', 'cpu', '--show', '0']
    assert json.loads(run('evaluate', *common, *sets))['scale'] == 2
    image = folder / 'data' / 'Set5' / 'LRbicx2' / 'a.png'
    report = json.loads(run('infer', image, *common, '--out', folder / 'a.png', '--overwrite', '--device', 'cpu'))
    assert report['images'][0]['output_size'] == [48, 48]
    exported = json.loads(run('export', *common, '--form', 'pth', '--out', folder / 'exported.pth'))
    assert exported['network'] == 'HASN'
    counted = json.loads(run('benchmark', *common, '--no-latency', '--size', '16x16', '--device', 'cpu'))
    assert counted['costs'][0]['model'] == 'HASN'


def test_convert(file, folder, state):
    run('convert', file, folder / 'ours.pth')
    written = torch.load(folder / 'ours.pth', weights_only=True)['params']
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_spandrel(file, state):
    spandrel = pytest.importorskip('spandrel', reason='needs the extra: spandrel')
    from basicsr_effsr import spandrel_bridge

    spandrel_bridge.install()
    loaded = spandrel.ModelLoader().load_from_file(file)
    assert loaded.architecture.id == 'effsr_HASN'
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
