"""A network that is added by CONTRIBUTING's steps alone is known to every command that tells networks by weights."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from typer.testing import CliRunner

import basicsr_effsr.archs
from basicsr_effsr import register
from basicsr_effsr.cli import app

ARCH = '''
"""Toy: two convolutions."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

RELATIVE


@ARCH_REGISTRY.register()
class Toy(nn.Module):
    """Toy network."""

    min_size = 1
    marks = ('toy_head.weight', 'toy_tail.*')
    unseen = ('slope',)
    variants = {'Toy-L': {'num_feat': 6, 'slope': 0.3}}
    renames = {'toy_first.': 'toy_head.'}

    def __init__(self, *, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 4, upscale=2, slope=0.1):
        super().__init__()
        self.upscale, self.num_in_ch, self.slope = upscale, num_in_ch, slope
        self.toy_head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.toy_tail = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state):
        first = state['toy_head.weight']
        for out, upscale in pixelshuffle_tails(state['toy_tail.0.weight'].shape[0], first.shape[1]):
            yield {'num_in_ch': first.shape[1], 'num_feat': first.shape[0], 'num_out_ch': out, 'upscale': upscale}

    def forward(self, x):
        return self.toy_tail(nn.functional.leaky_relu(self.toy_head(x), self.slope))
'''
BLOCKS = 'effsr_blocks import pixelshuffle_tails, pixelshuffle_upsampler'


@pytest.fixture(params=['a file in archs', 'another package'])
def weights(request, tmp_path, monkeypatch):
    """A checkpoint of Toy-L at x3, known by its class alone."""
    if request.param == 'a file in archs':
        folder, module = tmp_path / 'archs', 'basicsr_effsr.archs.toy_arch'
        monkeypatch.setattr(basicsr_effsr.archs, '__path__', [*basicsr_effsr.archs.__path__, str(folder)])
        relative = f'from .{BLOCKS}'
    else:
        folder, module = tmp_path / 'their_package', 'their_package.toy_arch'
        monkeypatch.syspath_prepend(tmp_path)
        relative = f'from basicsr_effsr.archs.{BLOCKS}'
    folder.mkdir()
    (folder / '__init__.py').touch()
    (folder / 'toy_arch.py').write_text(ARCH.replace('RELATIVE', relative))
    if request.param == 'a file in archs':
        register()
    else:
        __import__(module)
    net = ARCH_REGISTRY.get('Toy')(num_feat=6, upscale=3)
    torch.save({'model': {f'_orig_mod.{name}': t for name, t in net.state_dict().items()}}, tmp_path / 'toy.pth')
    yield tmp_path / 'toy.pth'
    for name in ('Toy', 'Toy_effsr'):
        ARCH_REGISTRY._obj_map.pop(name, None)
    for name in [name for name in sys.modules if name == module or name == module.rpartition('.')[0] + '.toy_arch']:
        del sys.modules[name]
    vars(basicsr_effsr.archs).pop('toy_arch', None)
    sys.modules.pop('their_package', None)


def run(*arguments) -> dict:
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, '--json')])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_it_is_known_by_its_weights_everywhere(weights, tmp_path):
    for name, size in (('GTmod12', 24), ('LRbicx3', 8)):
        (tmp_path / 'data' / 'Set5' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'data' / 'Set5' / name / 'a.png'), np.full((size, size, 3), 90, np.uint8))
    image = tmp_path / 'data' / 'Set5' / 'LRbicx3' / 'a.png'
    known = run('convert', weights)
    assert {'type': 'Toy', 'num_feat': 6, 'upscale': 3, 'slope': 0.3}.items() <= known['network'].items()
    assert known['assumed'] == {'slope': 0.3}
    common = ['--weights', weights]
    enlarged = run('infer', image, *common, '--out', tmp_path / 'a.png', '--device', 'cpu')
    assert (enlarged['network'], enlarged['images'][0]['output_size']) == ('Toy', [24, 24])
    exported = run('export', *common, '--form', 'pth', '--out', tmp_path / 'b.pth')
    assert (exported['network'], exported['scale'], exported['ncnn']) == ('Toy', 3, 'not tried')
    sets = ['--data', tmp_path / 'data', '--out', tmp_path / 'evaluate', '--device', 'cpu', '--show', '0']
    assert run('evaluate', *common, *sets)['network'] == 'Toy'
    counted = run('benchmark', *common, '--no-latency', '--size', '16x16', '--device', 'cpu')
    assert counted['costs'][0]['model'] == 'Toy-L'  # by its variant


def test_it_is_known_under_the_names_of_another_program(weights, tmp_path):
    state = torch.load(weights, weights_only=True)['model']
    foreign = {name.replace('_orig_mod.toy_head.', 'toy_first.'): tensor for name, tensor in state.items()}
    torch.save(foreign, tmp_path / 'foreign.pth')
    known = run('convert', tmp_path / 'foreign.pth')
    assert known['network']['type'] == 'Toy'
    assert known['renamed']['toy_first.weight'] == 'toy_head.weight'


def test_spandrel_knows_it_too(weights):
    spandrel = pytest.importorskip('spandrel', reason='needs the extra: spandrel')
    from basicsr_effsr import spandrel_bridge

    toy = next(each for each in spandrel_bridge.architectures() if each.name == 'Toy')
    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(toy))
    loaded = spandrel.ModelLoader(registry=registry).load_from_file(weights)
    assert (loaded.architecture.id, loaded.scale, loaded.tags) == ('effsr_Toy', 3, ['L', '6nf'])
