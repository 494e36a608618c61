"""From Python: a network by name or file, an image of any type in, the same type out, equal to the command's."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from typer.testing import CliRunner

import basicsr_effsr
from basicsr_effsr.archs.imdn_arch import IMDN
from basicsr_effsr.cli import app
from basicsr_effsr.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PHOTO = np.ascontiguousarray(data.astronaut()[40:60, 150:176])  # (20, 26, 3)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    net = IMDN(upscale=2, num_feat=8, num_block=1)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


def test_the_import_loads_nothing():
    loaded = 'import sys, basicsr_effsr; print([m for m in ("torch", "numpy", "basicsr", "PIL") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', loaded], capture_output=True, text=True).stdout == '[]\n'
    assert {'benchmark', 'evaluate', 'load_model', 'upscale', 'register'} <= set(dir(basicsr_effsr))
    with pytest.raises(AttributeError, match='nothing_such'):
        basicsr_effsr.nothing_such  # noqa: B018


def test_networks_are_there_by_name():
    from basicsr_effsr import DPARNTeacher
    from basicsr_effsr.archs import IMDN as found  # noqa: N811

    assert found is basicsr_effsr.IMDN is IMDN
    assert DPARNTeacher.__module__ == 'basicsr_effsr.archs.dparn_teacher_arch'
    for name in ('Nothing', 'ARCH_REGISTRY', 'Network', 'imdn'):
        with pytest.raises(AttributeError, match=name):
            getattr(basicsr_effsr, name)


def test_scores_are_those_of_the_command(weights, tmp_path):
    for place, name in (((), 'HR'), ((2,), 'LR_bicubic/X2')):
        (tmp_path / 'Set5' / name).mkdir(parents=True)
        lq = data.astronaut()[40:88, 150:210]
        Image.fromarray(lq[::2, ::2] if place else lq).save(tmp_path / 'Set5' / name / 'a.png')
    words = ['evaluate', '--weights', weights, '--data', tmp_path, '--out', tmp_path / 'out', '--json']
    told = json.loads(CliRunner().invoke(app, [str(word) for word in words]).stdout)
    found = basicsr_effsr.evaluate({'file': weights, 'net': basicsr_effsr.load_model(weights)}, tmp_path, device='cpu')
    assert [report.name for report in found.models] == ['file', 'net']
    for report in found.models:
        assert report.means()['Set5']['psnr'] == told['means']['Set5']['psnr']
    assert found.paired[0].psnr.mean == 0
    with pytest.raises(UserError, match='no paper'):
        basicsr_effsr.evaluate(weights, tmp_path, protocol='paper')
    with pytest.raises(UserError, match='at least one'):
        basicsr_effsr.evaluate([], tmp_path)
    with pytest.raises(UserError, match='upscale'):
        basicsr_effsr.evaluate(torch.nn.Identity(), tmp_path)


def test_costs_of_networks_at_hand(weights):
    nets = [weights, IMDN(upscale=2, num_feat=12, num_block=1)]
    found = basicsr_effsr.benchmark(nets, sizes=['16x16'], dtypes=[], device='cpu')
    assert [(cost.model, cost.params) for cost in found.costs[:2]] == [
        ('IMDN, net', sum(p.numel() for p in basicsr_effsr.load_model(weights).parameters())),
        ('IMDN', sum(p.numel() for p in nets[1].parameters())),
    ]
    assert found.latencies == []


def test_every_type_gives_what_the_network_gives(weights):
    net = basicsr_effsr.load_model(weights)
    assert (type(net), net.upscale, net.training) == (IMDN, 2, False)
    batch = torch.from_numpy(PHOTO.transpose(2, 0, 1)).float()[None] / 255
    with torch.no_grad():
        expected = net(batch).clamp(0, 1)
    assert torch.equal(basicsr_effsr.upscale(batch, net), expected)
    assert torch.equal(basicsr_effsr.upscale(batch[0], weights), expected[0])
    assert torch.equal(basicsr_effsr.upscale(batch.repeat(2, 1, 1, 1), net)[1:], expected)
    assert basicsr_effsr.upscale(batch.double(), net).dtype == torch.float64
    levels = (expected[0] * 255).round().permute(1, 2, 0).numpy()
    for image in (PHOTO, Image.fromarray(PHOTO)):
        out = basicsr_effsr.upscale(image, net)
        assert type(out) is type(image) or isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(out), levels.astype(np.uint8))
    deep = basicsr_effsr.upscale(PHOTO.astype(np.uint16) * 257, net)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - levels).max() < 0.51
    floats = basicsr_effsr.upscale(PHOTO.astype(np.float32) / 255, net)
    assert floats.dtype == np.float32
    assert np.array_equal(floats, expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', 'I;16', '1', 'CMYK'])
def test_pillows_modes(weights, mode):
    image = (
        Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
        if mode == 'I;16'
        else Image.fromarray(PHOTO).convert(mode)
    )
    out = basicsr_effsr.upscale(image, weights)
    kept = {'LA': 'RGBA', 'P': 'RGB', '1': 'L', 'CMYK': 'RGB'}
    assert (out.mode, out.size) == (kept.get(mode, mode), (52, 40))


def test_gray_stays_gray(weights):
    gray = PHOTO[..., 1]
    assert basicsr_effsr.upscale(gray, weights).shape == (40, 52)
    assert basicsr_effsr.upscale(gray[..., None], weights).shape == (40, 52, 1)
    assert basicsr_effsr.upscale(torch.rand(1, 5, 6), weights).shape == (1, 10, 12)


def test_the_command_gives_the_same_image(weights, tmp_path):
    image = data.astronaut()[40:88, 150:210]
    Image.fromarray(image).save(tmp_path / 'a.png')
    words = ['infer', tmp_path / 'a.png', '--weights', weights, '--out', tmp_path / 'b.png', '--tile', 40]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'b.png')), basicsr_effsr.upscale(image, weights, tile=40))


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 3), int),
        torch.zeros(4, 4),
        torch.zeros(3, 0, 4),
        'a.png',
    ],
    ids=['two channels', 'one axis', 'int64', 'two axes', 'empty', 'a path'],
)
def test_what_is_no_image_is_refused(weights, image):
    with pytest.raises(UserError):
        basicsr_effsr.upscale(image, weights)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(reference, tmp_path, monkeypatch):
    source = reference / 'checkpoints' / 'agdn_x4_official.pth'
    (tmp_path / 'zoo').mkdir()
    for target in (tmp_path / 'zoo' / 'agdn_x4.pth', tmp_path / 'agdn_x4.pth'):
        shutil.copyfile(source, target)
    Image.fromarray(data.astronaut()[40:80, 150:210]).save(tmp_path / 'photo.png')
    (tmp_path / 'datasets').mkdir()
    (tmp_path / 'datasets' / 'Set5').symlink_to((reference / 'set5').resolve())
    monkeypatch.setenv('EFFSR_CACHE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / 'docs' / 'python.md'), module_relative=False)
    assert (failed, tried) == (0, 17)
    assert Image.open('photo_x4.png').size == (240, 160)
