"""ASID against the authors' network, the paper's tables and the definitions of its parts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conventions import thop_macs
from torch import nn
from torch.nn import functional as F

from basicsr_effsr.archs.asid_arch import (
    ASID,
    SharedAttention,
    TransposedAttention,
    image_of,
    tokens_of,
)
from basicsr_effsr.imaging.tiling import tiled_forward
from basicsr_effsr.utils.complexity import count_macs

GOLDEN = [f'{name}_x{r}' for name in ('asid', 'asid_d8') for r in (2, 3, 4)]
TINY = {'num_feat': 8, 'num_block': 3, 'upscale': 2}


def size(**options) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in ASID(**options).parameters())


def official(vectors: dict) -> ASID:
    blocks = 8 if any(key.startswith('block7.') for key in vectors['state_dict']) else 3
    upscale = int((vectors['output'].shape[-1] / vectors['input'].shape[-1]) + 0.5)
    net = ASID(upscale=upscale, num_block=blocks).eval()
    net.load_state_dict(vectors['state_dict'], strict=True)
    return net


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_vectors(golden, name):
    """The official network takes and gives [-1, 1]."""
    vectors = golden(name)
    with torch.no_grad():
        out = official(vectors)((vectors['input'] + 1) / 2) * 2 - 1
    torch.testing.assert_close(out, vectors['output'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_probes(golden, name):
    """Every probed sub-module of the official network exists under its name and gives its values."""
    vectors = golden(name)
    net = official(vectors)
    seen = {}

    def keep(key):
        return lambda _m, _i, out: seen.__setitem__(key, out[0] if isinstance(out, tuple) else out)

    for key in vectors['probes']:
        net.get_submodule(key).register_forward_hook(keep(key))
    with torch.no_grad():
        net((vectors['input'] + 1) / 2)
    assert len(vectors['probes']) >= 26
    for key, probe in vectors['probes'].items():
        out = seen[key]
        assert tuple(out.shape) == tuple(probe['shape']), key
        where = torch.linspace(0, out.numel() - 1, 16, dtype=torch.float64).long()
        difference = (out.flatten()[where] - torch.as_tensor(probe['samples'])).abs().max()
        assert difference <= 2e-5, f'{key}: {difference:.1e}'


@pytest.mark.parametrize(('blocks', 'sizes'), [(3, (297_516, 304_011, 313_104)), (8, (732_146, 738_641, 747_734))])
def test_published_sizes(blocks, sizes):
    assert tuple(size(upscale=r, num_block=blocks) for r in (2, 3, 4)) == sizes


@pytest.mark.parametrize(
    ('options', 'parameters', 'paper', 'gmacs', 'paper_gmacs'),
    [
        (
            {'information_distillation': False, 'channel_split': False, 'attention_sharing': 'none'},
            *(288_264, 288, 61.79, 62.323),
        ),
        ({'channel_split': False, 'attention_sharing': 'none'}, 400_764, 401, 85.95, 87.344),
        ({'channel_split': False}, 364_656, 365, 78.26, 79.119),
        ({'attention_sharing': 'none'}, 316_344, 316, 66.65, 67.836),
        ({}, 297_516, 298, 62.93, 63.592),
        ({'attention_sharing': 'intra'}, 305_004, 305, 64.65, 65.317),
    ],
    ids=['baseline', 'ID', 'ID+AS', 'ID+CS', 'ASID', 'IntraGroup'],
)
def test_tables_3_and_4(options, parameters, paper, gmacs, paper_gmacs):
    """Multiply-adds by the rule of thop, which leaves out attention products and adds small terms, to the digit."""
    assert size(upscale=2, **options) == parameters
    assert round(parameters / 1000) == paper
    macs = count_macs(ASID(upscale=2, **options).eval(), (360, 640))
    assert (macs.convolution + macs.linear) / 1e9 == pytest.approx(gmacs, abs=0.005)
    with torch.device('meta'):
        net = ASID(upscale=2, **options)
    assert thop_macs(net, (360, 640)) == pytest.approx(paper_gmacs, abs=6e-4)


@pytest.mark.parametrize(('blocks', 'gmacs', 'paper'), [(3, 17.00, 17.2), (8, 40.34, 40.7)])
def test_table_2(blocks, gmacs, paper):
    macs = count_macs(ASID(num_block=blocks).eval(), (180, 320))
    assert (macs.convolution + macs.linear) / 1e9 == pytest.approx(gmacs, abs=0.005)
    with torch.device('meta'):
        net = ASID(num_block=blocks)
    assert round(thop_macs(net, (180, 320)), 1) == paper


def test_tokens_by_their_definition():
    """Facts of the groupings, pixel by pixel: 16 x 24 pixels are 2 x 3 groups of 64."""
    x = torch.arange(16 * 24, dtype=torch.float32).reshape(1, 1, 16, 24)
    meso, grid = tokens_of(x, (2, 8, 3, 8), True), tokens_of(x, (8, 2, 8, 3), False)
    for u, v, r, q in ((0, 0, 0, 0), (1, 2, 3, 5), (0, 1, 7, 7), (1, 0, 2, 6)):
        assert meso[0, u * 3 + v, 8 * r + q] == x[0, 0, 8 * u + r, 8 * v + q]
        assert grid[0, u * 3 + v, 8 * r + q] == x[0, 0, r * 2 + u, q * 3 + v]
    assert torch.equal(image_of(meso, (2, 8, 3, 8), True), x)
    assert torch.equal(image_of(grid, (8, 2, 8, 3), False), x)


def test_spatial_attention_written_out():
    attention = SharedAttention(4, own_map=True).double()
    tokens = torch.randn(1, 2, 64, 4, dtype=torch.float64)
    out, found = attention(tokens, None)
    q, k, v = (tokens @ w.T for w in attention.to_qkv.weight.chunk(3))
    table = attention.rel_pos_bias.weight[:, 0]
    logits = torch.empty(1, 2, 64, 64, dtype=torch.float64)
    for i in range(64):
        for j in range(64):
            place = (i // 8 - j // 8 + 7) * 15 + (i % 8 - j % 8 + 7)
            logits[..., i, j] = (q[..., i, :] * k[..., j, :]).sum(-1) / 2 + table[place]
    torch.testing.assert_close(found, logits.softmax(-1))
    torch.testing.assert_close(out, logits.softmax(-1) @ v @ attention.to_out[0].weight.T)


@pytest.mark.parametrize('spread', [False, True])
def test_channel_attention_written_out(spread):
    module = TransposedAttention(3, spread).double()
    nn.init.constant_(module.temperature, 1.7)
    x = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    hidden = F.conv2d(F.conv2d(x, module.qkv.weight), module.qkv_dwconv.weight, padding=1, groups=9)
    expected = torch.empty_like(x)
    if spread:
        groups = [(slice(i, None, 8), slice(j, None, 8)) for i in range(8) for j in range(8)]
    else:
        groups = [(slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8)) for i in range(2) for j in range(3)]
    for rows, columns in groups:
        part = hidden[0, :, rows, columns]
        q, k, v = part.flatten(1).chunk(3)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T * 1.7).softmax(-1)
        expected[0, :, rows, columns] = (weights @ v).reshape(3, *part.shape[1:])
    torch.testing.assert_close(module(x, (2, 3)), F.conv2d(expected, module.project_out.weight))


def test_only_the_first_block_computes_maps():
    net = ASID(**TINY)
    owners = [name for name, module in net.named_modules() if isinstance(module, SharedAttention) and module.own_map]
    assert len(owners) == 6
    assert all(name.startswith('block0.residual_layer.0.') for name in owners)


@pytest.mark.parametrize('layer', ['SLA1', 'SGA1', 'SLA2', 'SGA2', 'SLA3', 'SGA3'])
@pytest.mark.parametrize('block', [1, 2])
def test_each_later_block_sends_gradient_through_the_shared_map(block, layer):
    """Every other use of the map is cut off, block 0's own one too: what reaches q and k came through this one."""
    net = ASID(**TINY)
    first = net.get_submodule(f'block0.residual_layer.0.{layer}.attn')
    other = net.get_submodule(f'block{3 - block}.residual_layer.{layer}.attn')
    first.register_forward_hook(lambda _m, _i, out: (out[0].detach(), out[1]))
    other.register_forward_pre_hook(lambda _m, args: (args[0], args[1].detach()))
    net(torch.rand(1, 3, 17, 20)).square().mean().backward()
    query, key, value = first.to_qkv.weight.grad.chunk(3)
    assert query.any()
    assert key.any()
    assert not value.any()
    assert first.rel_pos_bias.weight.grad.any()


@pytest.mark.parametrize('shape', [(16, 24), (16, 21), (19, 24), (9, 9)])
def test_padding_is_mid_grey_and_cropped(shape):
    """A size that needs no padding, one or both axes: equal to padding the image by hand."""
    net = ASID(**TINY).double().eval()
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    padded = F.pad(x, (0, -shape[1] % 8, 0, -shape[0] % 8), value=0.5)
    torch.testing.assert_close(net(x), net(padded)[..., : 2 * shape[0], : 2 * shape[1]])


@pytest.mark.parametrize(
    ('size', 'side', 'tops', 'lefts'),
    [
        ((70, 150), 64, (0, 6), (0, 40, 80, 86)),
        ((50, 150), 50, (0,), (0, 26, 52, 78, 100)),
        ((86, 57), 57, (0, 29), (0,)),  # woman of Set5 at x4
    ],
)
def test_the_papers_tiles_written_out(size, side, tops, lefts):
    """The authors' tester: square tiles of side min(64, h, w), stride side - 24, the last one flush, plain averages."""
    net = ASID(**TINY).eval()
    x = torch.rand(1, 3, *size)
    total, count = torch.zeros(1, 3, 2 * size[0], 2 * size[1]), torch.zeros(2 * size[0], 2 * size[1])
    with torch.no_grad():
        for top, left in product(tops, lefts):
            where = np.s_[..., 2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
            total[where] += net(x[..., top : top + side, left : left + side])
            count[where] += 1
        out = tiled_forward(net, x, upscale=2, tile=64, overlap=24, blend='mean')
    torch.testing.assert_close(out, total / count, rtol=0, atol=1e-6)


def test_the_papers_tiles_differ_from_the_whole_image():
    """Why the test files say `val: tile`: grid attention sees the whole of what it is given."""
    net = ASID(**TINY).eval()
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        tiled = tiled_forward(net, x, upscale=2, tile=32, overlap=12)
        assert (tiled - net(x)).abs().max() > 1e-5
        assert torch.equal(tiled_forward(net, x, upscale=2, tile=72, overlap=12), net(x))


def test_neither_sharing_nor_splits_without_distillation():
    with pytest.raises(ValueError, match=r'ASID: .*information_distillation'):
        ASID(information_distillation=False)


def test_half_precision_survives_a_channel_of_zeros():
    """q and k of norm 0, as a dead channel has them; 1e-12 is 0 in float16."""
    net = ASID(num_feat=8, num_block=1).half().eval()
    nn.init.zeros_(net.get_submodule('block0.residual_layer.0.BlockC.cttn1.qkv').weight)
    with torch.no_grad():
        assert net(torch.rand(1, 3, 20, 33, dtype=torch.float16)).isfinite().all()
