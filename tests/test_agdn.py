"""AGDN and AGDN-S against the authors' networks, the paper's tables and TLC's own definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr_effsr.archs.agdn_arch import AGDN, SGSA, BlueprintESA, local_variance

AGDN_S = {'num_feat': 24, 'num_block': 4, 'tlc': 96}
TINY = {'num_feat': 12, 'num_block': 1}
OPTIONS = {'agdn_x4': {}, 'agdn_seeded_x4': {}, 'agdn_s_x4': AGDN_S}
CHECKPOINTS = {'agdn_x4': 'params_ema', 'agdn_s_x4': None}
every_golden = pytest.mark.parametrize('name', OPTIONS)
every_checkpoint = pytest.mark.parametrize('name', CHECKPOINTS)


def size(**options) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in AGDN(**options).parameters())


def starts(length: int, kernel: int) -> list[int]:
    """First pixels of the windows, as TLC walks along an axis."""
    side = min(length, kernel)
    count = (length - 1) // side + 1
    step = side if count == 1 else -((side - length) // (count - 1))
    found = [0]
    while found[-1] + side < length:
        following = found[-1] + step
        found.append(length - side if following + side >= length else following)
    return found


def attend_window(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """(heads, C / heads, h, w) each, one window of one image."""
    flat = [F.normalize(t.flatten(2), dim=-1) for t in (q, k)]
    return ((flat[0] @ flat[1].transpose(1, 2) * temperature).relu() @ v.flatten(2)).view_as(v)


def windowed_forward(attention: SGSA, x: Tensor) -> Tensor:
    """SGSA with TLC as it is defined: image by image, window by window, sum over count."""
    heads, (height, width) = attention.num_heads, x.shape[-2:]
    qkv = attention.qkv_dwconv(attention.qkv(x)).unflatten(1, (3, heads, -1))
    total, count = torch.zeros_like(qkv[:, 0]), torch.zeros_like(x[:1, :1])
    down, right = min(height, attention.tlc), min(width, attention.tlc)
    for top in starts(height, attention.tlc):
        for left in starts(width, attention.tlc):
            here = (..., slice(top, top + down), slice(left, left + right))
            count[here] += 1
            for i in range(x.shape[0]):
                out = attend_window(*qkv[i][here].unbind(), attention.temperature)
                total[i][here] = total[i][here] + out
    return attention.project_out(total.flatten(1, 2) / count)


def official(reference, name: str) -> dict:
    stored = torch.load(reference / 'checkpoints' / f'{name}_official.pth', map_location='cpu', weights_only=True)
    return stored[CHECKPOINTS[name]] if CHECKPOINTS[name] else stored


@every_golden
def test_golden_vectors(golden, name):
    vectors = golden(name)
    net = AGDN(**OPTIONS[name])
    net.load_state_dict(vectors['state_dict'])
    with torch.no_grad():
        for mode, suffix in ((True, ''), (False, '_eval')):
            out = net.train(mode)(vectors[f'input{suffix}'])
            torch.testing.assert_close(out, vectors[f'output{suffix}'], rtol=0, atol=2e-6)


@every_golden
def test_golden_probes(golden, name):
    vectors = golden(name)
    net = AGDN(**OPTIONS[name])
    net.load_state_dict(vectors['state_dict'])
    seen = {}
    for key, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out.detach()))
    for mode, suffix in ((True, ''), (False, '_eval')):
        with torch.no_grad():
            net.train(mode)(vectors[f'input{suffix}'])
        assert set(vectors[f'probes{suffix}']) <= set(seen)
        for key, probe in vectors[f'probes{suffix}'].items():
            out = seen[key]
            assert tuple(out.shape) == tuple(probe['shape']), key
            where = torch.linspace(0, out.numel() - 1, 16, dtype=torch.float64).long()
            values = torch.as_tensor(probe['samples'])
            tolerance = max(2e-5, 1e-6 * probe['absmax'])  # maps reach 28, where float32 resolves 2e-6
            torch.testing.assert_close(out.flatten()[where], values, rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize(('name', 'tolerance'), [('agdn_x4', 3e-4), ('agdn_s_x4', 8e-6)])
def test_golden_tlc_steps(golden, reference, name, tolerance):
    """Every rule of the window grid.

    The inputs are noise, on which the official float32 output itself is up to 1.3e-4 (AGDN) and 4e-6
    (AGDN-S) away from float64; the grid proper is held to 1e-10 in test_tlc_equals_its_definition.
    """
    net, wrong = AGDN(**OPTIONS[name]).eval(), AGDN(**{**OPTIONS[name], 'tlc': 0}).eval()
    for each in (net, wrong):
        each.load_state_dict(official(reference, name))
    tlc = net.get_submodule('B1.ea.restormer_attn').tlc
    with torch.no_grad():
        for case in golden(f'{name}_tlc_steps')['cases']:
            x, expected = case['input_eval'], case['output_eval']
            torch.testing.assert_close(net(x), expected, rtol=0, atol=tolerance)
            if max(x.shape[-2:]) > tlc:
                assert (wrong(x) - expected).abs().max() > 20 * tolerance


@every_checkpoint
def test_official_checkpoint_loads_strictly(reference, name):
    AGDN(**OPTIONS[name]).load_state_dict(official(reference, name), strict=True)


@pytest.mark.parametrize(
    ('length', 'kernel', 'expected'),
    [
        (48, 48, [0]),
        (30, 48, [0]),
        (49, 48, [0, 1]),
        (70, 48, [0, 22]),
        (61, 48, [0, 13]),
        (97, 48, [0, 25, 49]),
        (180, 48, [0, 44, 88, 132]),
        (200, 48, [0, 38, 76, 114, 152]),
    ],
)
def test_published_window_starts(length, kernel, expected):
    """Of the definition that the tests below compare with."""
    assert starts(length, kernel) == expected


def test_no_pixel_lies_in_three_windows():
    """What the merging of the network rests on."""
    for kernel in (*range(1, 20), 48, 96):
        for length in range(1, 12 * kernel + 2):
            found = starts(length, kernel)
            pairs = zip(found, found[2:], strict=False)
            assert all(after >= before + kernel for before, after in pairs), (length, kernel)


@pytest.mark.parametrize(
    'size_', [(7, 7), (8, 8), (8, 9), (9, 8), (5, 30), (30, 5), (17, 23), (25, 25), (16, 24), (33, 8), (1, 50)]
)
def test_tlc_equals_its_definition(size_):
    attention = SGSA(12, 3, tlc=8).double().eval()
    torch.nn.init.uniform_(attention.temperature, 0.5, 2.0)
    x = torch.rand(3, 12, *size_, dtype=torch.float64)
    expected = windowed_forward(attention, x)
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-12)
    whole = SGSA(12, 3, tlc=None).double().eval()
    whole.load_state_dict(attention.state_dict())
    same = (whole(x) - expected).abs().max() < 1e-12
    assert same == (max(size_) <= 8)


def test_tlc_works_in_eval_mode_only_and_can_be_switched_off():
    x = torch.rand(1, 3, 30, 41, dtype=torch.float64)
    net = AGDN(**TINY, tlc=16).double()
    off = AGDN(**TINY, tlc=0).double()
    off.load_state_dict(net.state_dict())
    assert torch.equal(net.train()(x), off.train()(x))
    assert torch.equal(off.eval()(x), off.train()(x))
    assert not torch.allclose(net.eval()(x), off.eval()(x), rtol=0, atol=1e-6)
    none = AGDN(**TINY, tlc=None).double().eval()
    none.load_state_dict(net.state_dict())
    assert torch.equal(none(x), off(x))


def test_tlc_keeps_the_gradient_of_its_definition():
    attention = SGSA(6, 3, tlc=4).double().eval()
    x = torch.rand(2, 6, 7, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.rand_like(x)
    ours = torch.autograd.grad((attention(x) * weight).sum(), [x, *attention.parameters()])
    theirs = torch.autograd.grad((windowed_forward(attention, x) * weight).sum(), [x, *attention.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('train', [True, False])
def test_half_precision_stays_finite_on_a_black_image(dtype, train):
    try:
        torch.nn.functional.pad(torch.zeros(1, 1, 4, 4, dtype=dtype), (1, 1, 1, 1), mode='reflect')
    except RuntimeError:
        pytest.skip(f'torch {torch.__version__} cannot reflect {dtype} on a CPU')
    net = AGDN(**TINY, tlc=16).to(dtype).train(train)
    with torch.no_grad():
        torch.nn.init.zeros_(net.get_submodule('B1.ea.restormer_attn').qkv.weight)  # zero length q and k
        assert net(torch.zeros(1, 3, 20, 33, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize('kernel_size', [5, 7])
def test_local_variance_is_that_of_every_window(kernel_size):
    x = 40 + torch.rand(2, 3, 14, 19, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1), mode='reflect')
    windows = padded.unfold(2, kernel_size, 3).unfold(3, kernel_size, 3).flatten(-2)
    expected = windows.var(-1)
    torch.testing.assert_close(local_variance(x, kernel_size, 3), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(local_variance(x.float(), kernel_size, 3), expected.float(), rtol=1e-3, atol=1e-6)
    assert local_variance(x, kernel_size, 3).shape == F.max_pool2d(x, kernel_size, 3, padding=1).shape


def test_gradients_are_finite_on_constant_channels():
    net = AGDN(**TINY).train()
    with torch.no_grad():
        block = net.get_submodule('B1')
        block.cca.dwconv.weight.zero_()
        block.esa.body[0].conv1.weight.zero_()
        block.ea.restormer_attn.qkv.weight.zero_()
    x = torch.full((2, 3, 16, 16), 0.5, requires_grad=True)
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert x.grad.isfinite().all()


PLAIN = {'spatial_attn': 'none', 'channel_attn': 'none', 'use_sgsa': False}
TABLE_1 = [
    ({}, 126_552, 127),
    ({'spatial_attn': 'mvsa'}, 144_766, 145),
    ({'channel_attn': 'rcca'}, 132_761, 132),
    ({'spatial_attn': 'mvsa', 'channel_attn': 'rcca'}, 150_975, 151),
    ({'spatial_attn': 'mvsa', 'channel_attn': 'rcca', 'use_sgsa': True}, 294_174, 293),
]


def uncounted(spatial_attn='mvsa', channel_attn='rcca', use_sgsa=True, num_block=7) -> int:
    """Parameters that lie directly in modules the paper's counter (thop) does not know."""
    norms_and_temperature = 4 * 42 + 3
    return num_block * (42 * (channel_attn == 'rcca') + norms_and_temperature * use_sgsa)


@pytest.mark.parametrize(('options', 'parameters', 'paper'), TABLE_1)
def test_attention_rows_of_table_1(options, parameters, paper):
    options = {**PLAIN, **options}
    assert size(**options) == parameters
    assert round((parameters - uncounted(**options)) / 1000) == paper


def test_esa_and_cca_row_of_table_2():
    """An ESA of a plain stride-2 convolution and one blueprint convolution is the one that meets 286K."""
    options = {'spatial_attn': 'esa', 'channel_attn': 'cca'}
    assert size(**options) == 287_209
    assert round((287_209 - uncounted(**options)) / 1000) == 286
    assert isinstance(AGDN(**TINY, **options).get_submodule('B1.esa'), BlueprintESA)


@pytest.mark.parametrize(
    ('num_block', 'parameters', 'paper'), [(5, 216_294, 215), (6, 255_234, 254), (7, 294_174, 293)]
)
def test_depth_rows_of_table_4(num_block, parameters, paper):
    assert size(num_block=num_block) == parameters
    assert round((parameters - uncounted(num_block=num_block)) / 1000) == paper


def test_size_of_agdn_s():
    assert size(**AGDN_S) == 69_272


def test_switched_off_attentions_shrink_the_smallest_image():
    sides = {kind: AGDN(**TINY, spatial_attn=kind).min_size for kind in ('mvsa', 'esa', 'none')}
    for kind, side in sides.items():
        net = AGDN(**TINY, spatial_attn=kind).eval()
        assert net(torch.rand(1, 3, side, side)).shape == (1, 3, 4 * side, 4 * side)
        with pytest.raises(ValueError, match=rf'AGDN: .*\b{side}\b'):
            net(torch.rand(1, 3, side - 1, side))
        net.min_size = 1
        with pytest.raises(RuntimeError):  # the limit is not stricter than need be
            net(torch.rand(1, 3, side - 1, side - 1))


def test_gains_start_as_in_the_official_code():
    block = AGDN(**TINY).get_submodule('B1')
    assert (block.cca.sigma.scale == 1e-5).all()
    assert (block.ea.restormer_attn.temperature == 1).all()
