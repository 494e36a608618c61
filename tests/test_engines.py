"""Whatever computes a network gives what PyTorch gives, at any size, or is not taken."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from nets import CASES, needs_programs
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.api import upscale
from basicsr_effsr.cli import app
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights import engines, export
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.engines import TOLERANCE, engine_for

pytestmark = needs_programs
for extra in ('onnx', 'onnxruntime', 'onnxscript'):
    pytest.importorskip(extra, reason='needs the extra: export')


def hasn():
    torch.manual_seed(0)
    return build(CASES['HASN'].option(num_block=1, upscale=2))


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A cache in which the network is exported once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('EFFSR_CACHE', str(tmp_path_factory.mktemp('cache')))
        torch.set_num_threads(1)
        engine_for(hasn(), 'onnxruntime')
        yield patch


@pytest.fixture
def no_export(kept, monkeypatch):
    """Whoever exports again fails."""

    def again(*_, **__):
        raise AssertionError('exported again')

    monkeypatch.setattr(export, 'write_onnx', again)


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_an_engine_equals_pytorch_at_any_size_and_batch(name, no_export):
    pytest.importorskip(name)
    net, found = hasn(), engine_for(hasn(), name)
    assert found.difference < 1e-5
    assert name in found.words()
    for size in ((1, 3, 15, 15), (2, 3, 33, 47), (1, 3, 20, 61)):
        lq = torch.rand(size)
        with torch.no_grad():
            torch.testing.assert_close(found(lq), net(lq), atol=1e-5, rtol=0)


def test_other_weights_are_another_file(no_export):
    net = hasn()
    with torch.no_grad():
        next(net.parameters())[0] += 1e-3
    with pytest.raises(AssertionError, match='exported again'):
        engine_for(net, 'onnxruntime')


def test_a_damaged_file_is_made_again(kept, tmp_path, monkeypatch):
    monkeypatch.setenv('EFFSR_CACHE', str(tmp_path))
    (tmp_path / 'engines').mkdir()
    file = tmp_path / 'engines' / f'{engines.fingerprint(hasn())}.onnx'
    file.write_bytes(b'damaged')
    file.with_suffix('.json').write_text('{"sha256": "0", "engines": {}}')
    assert engine_for(hasn(), 'onnxruntime').difference < 1e-5
    assert len(file.read_bytes()) > 1000


@pytest.mark.parametrize(
    ('verdicts', 'taken'),
    [
        ({'onnxruntime': (1e-6, 2.0), 'openvino': (1e-6, 1.5)}, 'onnxruntime'),
        ({'onnxruntime': (1e-6, 2.0), 'openvino': (1e-6, 2.5)}, 'openvino'),
        ({'onnxruntime': (2 * TOLERANCE, 2.0), 'openvino': (float('nan'), 3.0)}, 'torch'),
        ({'onnxruntime': (1e-6, 1.05), 'openvino': (1e-6, 0.9)}, 'torch'),
    ],
)
def test_auto_takes_the_fastest_that_agrees(verdicts, taken, monkeypatch):
    monkeypatch.setattr(engines, 'installed', lambda: list(verdicts))
    monkeypatch.setattr(engines, 'exported', lambda net, name, *_: engines.Computer(name, net, *verdicts[name]))
    assert engine_for(hasn(), 'auto').name == taken
    assert engine_for(hasn(), 'auto', pixels=100).name == 'torch'  # an export would take longer
    assert engine_for(hasn(), 'auto', dtype=torch.bfloat16).name == 'torch'


def test_what_an_engine_cannot_do_is_one_sentence(monkeypatch):
    for name, extra in engines.EXTRAS.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf'basicsr_effsr\[{extra}\]'):
                engine_for(hasn(), name)
    for options in ({'wanted': 'tensorrt'}, {'wanted': 'onnxruntime', 'dtype': torch.float16}):
        with pytest.raises(UserError, match=options['wanted']):
            engine_for(hasn(), **options)
    with pytest.raises(UserError, match='CPU'):
        engine_for(hasn(), 'onnxruntime', device='cuda')


def test_infer_and_upscale_give_the_image_of_pytorch(no_export, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    torch.save({'params': hasn().state_dict()}, tmp_path / 'net.pth')
    line = ['infer', str(tmp_path / 'a.png'), '--weights', str(tmp_path / 'net.pth'), '--device', 'cpu', '--json']
    made = {}
    for engine in ('torch', 'auto', 'onnxruntime'):
        done = CliRunner().invoke(app, [*line, '--engine', engine, '--out', str(tmp_path / f'{engine}.png')])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)['engine'] == ('torch' if engine == 'auto' else engine)
        made[engine] = np.asarray(Image.open(tmp_path / f'{engine}.png')).astype(int)
    assert np.array_equal(made['auto'], made['torch'])
    assert np.abs(made['onnxruntime'] - made['torch']).max() <= 1
    assert np.array_equal(upscale(image, hasn(), engine='onnxruntime'), made['onnxruntime'])
