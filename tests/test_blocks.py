"""Blocks shared by several networks, against something trusted or worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import (
    ESA,
    CCALayer,
    GatedDconvFFN,
    LayerNorm2d,
    check_input,
    cosines,
    gelu,
    is_compiling,
    normalize,
    pixelshuffle_upsampler,
)


def test_layernorm2d_equals_layernorm_on_channels_last():
    ours, theirs = LayerNorm2d(6), nn.LayerNorm(6)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x.movedim(1, -1)).movedim(-1, 1))


def test_esa_step_by_step():
    esa = ESA(6, 4).double()
    x = torch.randn(2, 6, 19, 31, dtype=torch.float64)
    c = F.conv2d(x, esa.conv1.weight, esa.conv1.bias)
    pooled = F.max_pool2d(F.conv2d(c, esa.conv2.weight, esa.conv2.bias, stride=2), 7, 3)
    assert pooled.shape[-2:] == (((19 - 3) // 2 + 1 - 7) // 3 + 1, ((31 - 3) // 2 + 1 - 7) // 3 + 1)
    up = F.interpolate(F.conv2d(pooled, esa.conv3.weight, esa.conv3.bias, padding=1), (19, 31), mode='bilinear')
    mask = F.conv2d(up + F.conv2d(c, esa.conv_f.weight, esa.conv_f.bias), esa.conv4.weight, esa.conv4.bias)
    torch.testing.assert_close(esa(x), x * mask.sigmoid())


def test_esa_smallest_map():
    assert ESA(4, 4)(torch.randn(1, 4, 15, 15)).shape == (1, 4, 15, 15)
    with pytest.raises(RuntimeError):
        ESA(4, 4)(torch.randn(1, 4, 14, 15))


def test_cca_by_hand():
    # the two 1 x 1 convolutions pass channel 0 on, so the gain is sigmoid(std + mean) of [1, 5]: 2 + 3
    cca = CCALayer(1, 1)
    for conv in (cca.conv_du[0], cca.conv_du[2]):
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
    x = torch.tensor([[[[1.0, 5.0]]]])
    torch.testing.assert_close(cca(x), x * torch.sigmoid(torch.tensor(5.0)))


def test_cca_has_a_finite_gradient_on_a_constant_channel():
    x = torch.full((1, 2, 4, 4), 0.3, requires_grad=True)
    CCALayer(2, 2)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gated_ffn_takes_the_first_half_as_gate():
    ffn = GatedDconvFFN(2, 3)
    x = torch.randn(1, 2, 5, 6)
    hidden = F.conv2d(F.conv2d(x, ffn.project_in.weight), ffn.dwconv.weight, padding=1, groups=6)
    expected = F.conv2d(F.gelu(hidden[:, :3]) * hidden[:, 3:], ffn.project_out.weight)
    torch.testing.assert_close(ffn(x), expected)


@pytest.mark.parametrize('rows', [12, 13, 31, 99], ids='rows {}'.format)
def test_gated_ffn_in_strips_is_that_of_the_whole_map(rows):
    ffn = GatedDconvFFN(4, 6).double()
    x = torch.randn(2, 4, 31, 25, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(ffn.in_strips(x, pixels=25 * rows), ffn(x))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['rows', 'channels last'])
def test_gelu_and_its_gradient_hold_in_both_layouts(layout):
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    torch.testing.assert_close(gelu(x), F.gelu(x))
    assert gelu(x).stride() == x.stride()
    assert torch.autograd.gradcheck(gelu, x)


@pytest.mark.parametrize('along', [-1, -2], ids=['rows', 'columns'])
def test_cosines_by_their_definition_gradients_included(along):
    q, k = (torch.randn(2, 4, 4, dtype=torch.float64).transpose(-1, along).requires_grad_() for _ in range(2))
    torch.testing.assert_close(cosines(q, k), F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2))
    assert torch.autograd.gradcheck(cosines, (q, k))


def test_cosines_of_zeros_are_zero_with_a_finite_gradient():
    q = torch.zeros(1, 2, 3, requires_grad=True)
    found = cosines(q, torch.randn(1, 2, 3))
    found.sum().backward()
    assert not found.any()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_upsampler_orders_channels_as_pixel_shuffle():
    up = pixelshuffle_upsampler(1, 1, 2)
    nn.init.zeros_(up[0].weight)
    up[0].bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert up(torch.zeros(1, 1, 1, 1)).squeeze().tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_vector_is_normalized_to_zero_in_every_precision(dtype):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    out = normalize(x)
    torch.testing.assert_close(out, torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=dtype))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_compiling_is_noticed_where_pytorch_can_tell(monkeypatch):
    assert not is_compiling()
    seen = []
    torch.compile(lambda x: seen.append(is_compiling()) or x, backend='eager')(torch.zeros(1))
    assert seen == [True]
    monkeypatch.delattr(torch.compiler, 'is_compiling')  # 2.0 has the module and not the function
    assert not is_compiling()
    monkeypatch.delattr(torch, 'compiler')
    assert not is_compiling()


def test_check_input_names_the_net_and_the_fix():
    net = nn.Identity()
    net.min_size = 15
    with pytest.raises(ValueError, match=r'Identity: .*\b15\b.*\b9 x 40\b'):
        check_input(net, torch.zeros(1, 3, 9, 40), 3)
