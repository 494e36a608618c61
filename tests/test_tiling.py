"""Tiles and the self-ensemble against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_effsr.imaging.tiling import self_ensemble, tile_starts, tiled_bands, tiled_forward


def convolutional(upscale: int = 2) -> nn.Module:
    """Radius 3: two 3 x 3 convolutions and the one before the shuffle."""
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 3 * upscale**2, 3, padding=1),
            nn.PixelShuffle(upscale),
        )
        .double()
        .eval()
    )


def image(*size: int) -> torch.Tensor:
    return torch.rand(*size, dtype=torch.float64)


@pytest.mark.parametrize(
    ('length', 'starts'),
    [(150, [0, 40, 80, 86]), (64, [0]), (20, [0]), (65, [0, 1]), (104, [0, 40]), (144, [0, 40, 80])],
)
def test_starts_by_hand(length, starts):
    assert tile_starts(length, 64, 24) == starts


@pytest.mark.parametrize('size', [(41, 67), (16, 90), (7, 9)])
@pytest.mark.parametrize('tile', [1, 5, 16, 100])
def test_halo_tiles_of_a_convolutional_net_are_exact(size, tile):
    net, x = convolutional(), image(2, 3, *size)
    out = tiled_forward(net, x, upscale=2, tile=tile, overlap=3, blend='halo')
    torch.testing.assert_close(out, net(x), rtol=0, atol=1e-13)


def test_a_halo_smaller_than_the_receptive_field_is_not_exact():
    net, x = convolutional(), image(1, 3, 40, 40)
    out = tiled_forward(net, x, upscale=2, tile=16, overlap=2, blend='halo')
    assert (out - net(x)).abs().max() > 1e-6


def test_mean_is_the_sum_over_tiles_divided_by_their_number():
    """The protocol of the ASID paper, written out: 64 x 64 tiles, stride 40, the last one flush."""
    net, x = convolutional(3), image(1, 3, 70, 150)
    total, count = torch.zeros(1, 3, 210, 450, dtype=torch.float64), torch.zeros(210, 450, dtype=torch.float64)
    for top in (0, 6):
        for left in (0, 40, 80, 86):
            part = net(x[..., top : top + 64, left : left + 64])
            total[..., 3 * top : 3 * top + 192, 3 * left : 3 * left + 192] += part
            count[3 * top : 3 * top + 192, 3 * left : 3 * left + 192] += 1
    out = tiled_forward(net, x, upscale=3, tile=64, overlap=24)
    torch.testing.assert_close(out, total / count, rtol=0, atol=1e-13)


@pytest.mark.parametrize('blend', ['mean', 'feather', 'halo'])
def test_a_pointwise_net_does_not_see_the_tiles(blend):
    def enlarge(x):
        return (x * x + 0.1).repeat_interleave(2, -1).repeat_interleave(2, -2)

    x = image(2, 3, 33, 50)
    out = tiled_forward(enlarge, x, upscale=2, tile=16, overlap=5, blend=blend)
    torch.testing.assert_close(out, enlarge(x), rtol=1e-12, atol=0)


def test_feathered_tiles_have_no_step_at_their_border():
    """Two tiles that disagree by 1 meet in a ramp: no neighbouring pixels differ by more than its slope."""
    calls = iter([0.0, 1.0])

    def net(x):
        return torch.full_like(x, next(calls))

    line = tiled_forward(net, image(1, 1, 8, 24), upscale=1, tile=16, overlap=8, blend='feather')[0, 0, 4]
    assert (line[0], line[-1]) == (0, 1)
    assert line.diff().min() >= 0
    assert line.diff().max() <= 1 / 8 + 1e-12


def test_half_precision_is_summed_in_single():
    x = torch.rand(1, 1, 40, 40).to(torch.bfloat16)
    out = tiled_forward(lambda t: t, x, upscale=1, tile=16, overlap=8)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, x)


def test_progress_counts_every_tile():
    seen = []
    options = {'upscale': 1, 'tile': 10, 'overlap': 0}
    list(tiled_bands(lambda t: t, image(1, 1, 20, 30), **options, progress=lambda *p: seen.append(p)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize('options', [{'tile': 0, 'overlap': 0}, {'tile': 8, 'overlap': 8}, {'tile': 8, 'overlap': -1}])
def test_impossible_tiles_are_refused(options):
    with pytest.raises(ValueError, match='tiled_forward: tile'):
        tiled_forward(lambda t: t, image(1, 1, 20, 20), upscale=1, **options)


def test_unknown_blend_is_refused():
    with pytest.raises(ValueError, match=r"blend .*'sum'"):
        tiled_forward(lambda t: t, image(1, 1, 20, 20), upscale=1, tile=8, overlap=0, blend='sum')


def test_self_ensemble_commutes_with_flips_and_rotations():
    net, x = convolutional(), image(2, 3, 9, 14)
    out = self_ensemble(net, x)
    assert out.shape == (2, 3, 18, 28)
    torch.testing.assert_close(self_ensemble(net, x.flip(-1)), out.flip(-1), rtol=0, atol=1e-13)
    turned = self_ensemble(net, torch.rot90(x, 1, (-2, -1)))
    torch.testing.assert_close(turned, torch.rot90(out, 1, (-2, -1)), rtol=0, atol=1e-13)


def test_self_ensemble_sees_eight_different_views():
    seen = []

    def net(x):
        seen.append(x)
        return x

    x = image(1, 1, 4, 4)
    torch.testing.assert_close(self_ensemble(net, x), x)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8
