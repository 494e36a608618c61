"""``effsr features`` and ``effsr lam``: maps of named modules, and the definition of the attribution."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn
from typer.testing import CliRunner

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import app
from basicsr_effsr.tools.features import draw_maps
from basicsr_effsr.utils.attribution import blurred, diffusion_index, gradient_detector, local_attribution

pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")
TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}
PHOTO = np.ascontiguousarray(data.astronaut()[20:44, 150:182])  # 24 x 32


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    """What names a small network and an image."""
    folder = tmp_path_factory.mktemp('features')
    torch.manual_seed(0)
    torch.save({'params': HASN(**TINY).state_dict()}, folder / 'net.pth')
    Image.fromarray(PHOTO).save(folder / 'lr.png')
    return ['--weights', str(folder / 'net.pth'), '--image', str(folder / 'lr.png'), '--device', 'cpu']


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_submodules_are_listed_with_what_they_give(words):
    done = call('features', *words, '--json')
    assert done.exit_code == 0, done.output
    shapes = {each['name']: (each['type'], each['shape']) for each in json.loads(done.stdout)}
    assert shapes['block_1'] == ('HASB', [1, 8, 24, 32])
    assert shapes['block_1.esa.conv1'] == ('Conv2d', [1, 4, 24, 32])


def test_maps_of_named_modules_become_one_picture(words, tmp_path):
    out = tmp_path / 'new' / 'maps.png'
    names = ['--module', 'block_1', '--module', 'block_1.esa.conv1', '--channels', 3]
    done = call('features', *words, *names, '--out', out)
    assert done.exit_code == 0, done.output
    with Image.open(out) as image:
        assert (image.width, round(image.info['dpi'][0])) == (2148, 300)


def test_the_channels_that_vary_most_are_drawn_in_their_order():
    maps = np.zeros((9, 6, 8), np.float32)
    for channel, strength in ((7, 3.0), (2, 2.0), (4, 1.0)):
        maps[channel, :3] = strength
    page = draw_maps(np.zeros((6, 8, 3)), [('it', maps)], 2)
    drawn = [at for at in page.subfigs[0].axes if at.images]
    assert [at.get_title().split(':')[0] for at in drawn] == ['LR', 'mean of |x|', '2', '7']
    assert np.array_equal(drawn[3].images[0].get_array(), maps[7])
    assert np.array_equal(drawn[1].images[0].get_array(), np.abs(maps).mean(0))


@pytest.mark.parametrize(
    ('command', 'more', 'named'),
    [
        ('features', ('--module', 'block_1', '--module', 'blok_1'), 'block_1'),
        ('features', ('--module', 'block_1', '--out', 'a.bmp'), 'a.bmp'),
        ('features', ('--module', 'block_1', '--json'), '--module'),
        ('lam', ('--crop', '60,0,16,16'), '60,0,16,16'),
        ('lam', ('--out', 'a.bmp'), 'a.bmp'),
    ],
)
def test_bad_input_is_one_sentence(words, command, more, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(command, *words, *more)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert named in done.stderr
    assert not list(tmp_path.rglob('*'))


class Sharp(nn.Module):
    """3 x 3 convolution and pixel shuffle: every SR pixel sees 3 x 3 LR pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.conv(x), 2)


def test_contributions_add_up_to_what_the_blur_took_from_the_patch():
    """Completeness of path integrals: the sum is D at the image less D at the blurred image."""
    lq, net, patch = (PHOTO / 255).astype(np.float32), HASN(**TINY).eval(), (20, 10, 16, 12)

    def detected(image):
        with torch.no_grad():
            return float(gradient_detector(net(torch.from_numpy(image.transpose(2, 0, 1).copy())[None]), patch))

    want = detected(lq) - detected(blurred(lq, 1.2))
    assert abs(want) > 1e-2
    found = local_attribution(net, lq, patch, steps=40, sigma=1.2)
    assert found.shape == lq.shape
    assert found.sum() == pytest.approx(want, rel=0.02)


def test_only_what_the_patch_sees_contributes():
    lq, patch = (PHOTO / 255).astype(np.float32), (20, 10, 8, 6)  # LR pixels 10 to 13, 5 to 7, and one around them
    seen = np.abs(local_attribution(Sharp().eval(), lq, patch, steps=4, sigma=1.2)).sum(axis=2) > 0
    y, x = np.nonzero(seen)
    assert (y.min(), y.max(), x.min(), x.max()) == (4, 8, 9, 14)


def test_diffusion_index_of_known_distributions():
    one = np.zeros((4, 5, 3))
    one[2, 3] = 7.0
    assert diffusion_index(one) == pytest.approx(100 / 20), 'one pixel of n: 100 / n'
    assert diffusion_index(np.ones((4, 5, 3))) == pytest.approx(100)
    values = np.abs(np.random.default_rng(0).normal(size=12))
    gini = np.abs(values[:, None] - values).sum() / (2 * 12**2 * values.mean())
    assert diffusion_index(values.reshape(3, 4, 1)) == pytest.approx(100 * (1 - gini))


def test_lam_draws_and_says_its_index(words, tmp_path):
    out = tmp_path / 'lam.pdf'
    done = call('lam', *words, '--crop', '20,10,16,16', '--steps', '2', '--out', out)
    assert done.exit_code == 0, done.output
    assert 0 < float(re.search(r'index ([\d.]+)', done.stdout)[1]) < 100
    assert out.read_bytes().startswith(b'%PDF')
