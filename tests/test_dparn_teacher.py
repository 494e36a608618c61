"""DPARNTeacher against DRCT's official network, and what it does better."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from nets import needs_programs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from basicsr_effsr.archs import dparn_teacher_arch
from basicsr_effsr.archs.dparn_teacher_arch import DPARNTeacher, SwinBlock

DRCT = {'num_feat': 180, 'num_block': 6, 'num_heads': 6, 'tail': 'drct'}
TINY = {'num_feat': 8, 'num_block': 2, 'num_heads': 2, 'window_size': 4, 'num_grow_ch': 4, 'drop_path_rate': 0.0}
GOLDEN = ['drct_small_x4', 'drct_small_x3', 'drct_small_w16_x2']


def size(**options) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in DPARNTeacher(**options).parameters())


def official(vectors: dict) -> DPARNTeacher:
    config = vectors['config']
    net = DPARNTeacher(
        num_feat=config['embed_dim'],
        num_block=len(config['depths']),
        upscale=config['upscale'],
        num_heads=config['num_heads'][0],
        window_size=config['window_size'],
        num_grow_ch=config['gc'],
        mlp_ratio=config['mlp_ratio'],
        tail='drct',
    )
    net.load_state_dict(vectors['state_dict'])
    return net.eval()


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_vectors(golden, name):
    vectors = golden(name)
    with torch.no_grad():
        torch.testing.assert_close(official(vectors)(vectors['input']), vectors['output'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_probes(golden, name):
    """All stations but the 1 x 1 convolutions, which run as linear layers here and so are not called."""
    vectors = golden(name)
    net = official(vectors)
    wanted = {key for key in vectors['probes'] if '.adjust' not in key}
    seen: dict[str, Tensor] = {}
    for key, module in net.named_modules():
        if key in wanted:
            module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out.detach()))
    with torch.no_grad():
        net(vectors['input'])
    assert set(seen) == wanted
    for key, out in seen.items():
        probe = vectors['probes'][key]
        if len(probe['shape']) == 3:  # theirs are tokens: (N, H W, C)
            out = out if 'swin' in key else out.movedim(1, -1)
            out = out.flatten(1, 2)
        assert tuple(out.shape) == tuple(probe['shape']), key
        where = torch.linspace(0, out.numel() - 1, 16, dtype=torch.float64).long()
        values = torch.as_tensor(probe['samples'])
        torch.testing.assert_close(out.flatten()[where], values, rtol=0, atol=2e-5, msg=key)


def test_sizes_of_drct_and_drct_l():
    assert [size(**DRCT, upscale=r) for r in (2, 3, 4)] == [13_991_867, 14_176_507, 14_139_579]
    large = {**DRCT, 'num_block': 12}
    assert [size(**large, upscale=r) for r in (2, 3, 4)] == [27_433_007, 27_617_647, 27_580_719]


@pytest.mark.parametrize(('options', 'upscale', 'expected'), [(DRCT, 4, 1115.03), (DRCT, 3, 1838.32), ({}, 4, 349.84)])
def test_multiply_adds_at_1280x720(options, upscale, expected):
    """Those of DRCT are the official code's, counted by operator on images padded to whole windows."""
    with torch.device('meta'):
        net = DPARNTeacher(**options, upscale=upscale).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, *{3: (240, 426), 4: (180, 320)}[upscale]))
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, abs=0.006)


def test_official_keys_and_shapes():
    """The 508 entries of DRCT x4, less 30 position indices and 12 masks."""
    with torch.device('meta'):
        shapes = {key: list(p.shape) for key, p in DPARNTeacher(**DRCT).state_dict().items()}
    assert len(shapes) == 508 - 30 - 12
    widths, heads, hidden = (180, 212, 244, 276, 308), (6, 4, 2, 6, 4), (360, 424, 488, 276, 308)
    for k, (d, h, m) in enumerate(zip(widths, heads, hidden, strict=True), 1):
        block = f'layers.5.swin{k}'
        assert shapes[f'{block}.attn.relative_position_bias_table'] == [961, h]
        assert shapes[f'{block}.attn.qkv.weight'] == [3 * d, d]
        assert shapes[f'{block}.attn.proj.bias'] == [d]
        assert shapes[f'{block}.mlp.fc1.weight'] == [m, d]
        assert shapes[f'{block}.norm2.weight'] == [d]
        assert shapes[f'layers.5.adjust{k}.weight'] == [32 if k < 5 else 180, d, 1, 1]
    frame = {'conv_first', 'patch_embed.norm', 'norm', 'conv_after_body', 'conv_before_upsample.0', 'conv_last'}
    frame |= {'upsample.0', 'upsample.2'}
    assert {key.rsplit('.', 1)[0] for key in shapes if not key.startswith('layers')} == frame


def stored_by_official_code(net: DPARNTeacher) -> dict[str, Tensor]:
    """The net's weights with the derived buffers that official checkpoints hold besides."""
    state = dict(net.state_dict())
    tokens = net.window_size**2
    for i in range(len(net.layers)):
        for k in range(1, 6):
            state[f'layers.{i}.swin{k}.attn.relative_position_index'] = torch.zeros(tokens, tokens, dtype=torch.int64)
            if k % 2 == 0:
                state[f'layers.{i}.swin{k}.attn_mask'] = torch.zeros(16, tokens, tokens)
    return state


@pytest.mark.parametrize('wrapped', [False, True])
def test_official_checkpoint_with_its_buffers_loads_strictly(wrapped):
    net, other = DPARNTeacher(**TINY, tail='drct').eval(), DPARNTeacher(**TINY, tail='drct').eval()
    state = stored_by_official_code(net)
    assert len(state) == len(net.state_dict()) + 2 * (5 + 2)
    given = dict(state)
    if wrapped:
        nn.ModuleDict({'net_g': other}).load_state_dict({f'net_g.{k}': v for k, v in state.items()}, strict=True)
    else:
        other.load_state_dict(state, strict=True)
    assert state.keys() == given.keys(), "the caller's dict must stay as it was"
    x = torch.rand(1, 3, 9, 10)
    assert torch.equal(net(x), other(x))


def test_anything_else_in_a_checkpoint_is_still_refused():
    net = DPARNTeacher(**TINY, tail='drct')
    for extra in ('layers.0.swin1.attn.relative_position_indices', 'attn_mask', 'layers.0.swin1.attn.extra'):
        with pytest.raises(RuntimeError, match='Unexpected key'):
            net.load_state_dict({**net.state_dict(), extra: torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r'conv_last\.weight'):
        DPARNTeacher(**TINY, tail='paper').load_state_dict(net.state_dict())


def test_head_counts_follow_the_official_rule_and_must_divide():
    net = DPARNTeacher(**{**TINY, 'num_feat': 60, 'num_heads': 6, 'num_grow_ch': 32, 'num_block': 1})
    assert [getattr(net.layers[0], f'swin{k}').attn.num_heads for k in range(1, 6)] == [6, 4, 2, 6, 4]
    with pytest.raises(ValueError, match='swin block 2 has width 122 and 4 heads'):
        DPARNTeacher(num_feat=90, num_heads=6)


def plain_block(block: SwinBlock, x: Tensor) -> Tensor:
    """Shifted-window attention written out: labels by loop, mask of the image's size, explicit softmax."""
    side, shift, attn = block.window_size, block.shift, block.attn
    batch, height, width, feat = x.shape
    labels = torch.zeros(height, width, dtype=torch.long)
    if shift:
        for i, rows in enumerate((slice(0, -side), slice(-side, -shift), slice(-shift, None))):
            for j, cols in enumerate((slice(0, -side), slice(-side, -shift), slice(-shift, None))):
                labels[rows, cols] = 3 * i + j
    x = torch.roll(x, (-shift, -shift), (1, 2))
    out = torch.zeros_like(x)
    heads = attn.num_heads
    for top in range(0, height, side):
        for left in range(0, width, side):
            tokens = x[:, top : top + side, left : left + side].reshape(batch, side * side, feat)
            label = labels[top : top + side, left : left + side].flatten()
            q, k, v = attn.qkv(tokens).view(batch, -1, 3, heads, feat // heads).permute(2, 0, 3, 1, 4)
            logits = q * (feat // heads) ** -0.5 @ k.transpose(-1, -2)
            for a in range(side * side):
                for b in range(side * side):
                    row, col = a // side - b // side + side - 1, a % side - b % side + side - 1
                    logits[:, :, a, b] += attn.relative_position_bias_table[row * (2 * side - 1) + col]
                    logits[:, :, a, b] -= 100.0 * (label[a] != label[b])
            mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, side, side, feat)
            out[:, top : top + side, left : left + side] = attn.proj(mixed)
    return torch.roll(out, (shift, shift), (1, 2))


@pytest.mark.parametrize('grid', [(1, 1), (1, 3), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize('shifted', [False, True])
def test_fused_attention_equals_the_plain_form_and_its_gradients(shifted, grid):
    side = 4
    net = DPARNTeacher(**TINY)
    block = SwinBlock(6, 2, side, shifted, 1.0, 0.0).double()
    nn.init.normal_(block.attn.relative_position_bias_table)
    masks = net.shift_masks.double()
    x = torch.randn(2, grid[0] * side, grid[1] * side, 6, dtype=torch.float64)
    out, grads = [], []
    for form in (lambda: block.windowed(x, net.position_index, masks), lambda: plain_block(block, x)):
        block.zero_grad()
        out.append(form())
        out[-1].pow(2).sum().backward()
        grads.append({name: p.grad.clone() for name, p in block.attn.named_parameters()})
    torch.testing.assert_close(*out, rtol=0, atol=1e-12)
    for name, expected in grads[1].items():
        torch.testing.assert_close(grads[0][name], expected, rtol=1e-9, atol=1e-11, msg=name)


class Masks(TorchFunctionMode):
    """Shape of every mask that the fused kernel is given, and whether its dtype is that of the queries."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            mask = kwargs['attn_mask']
            self.seen.append((tuple(mask.shape), mask.dtype == args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def masks() -> Iterator[list[tuple]]:
    with Masks() as mode:
        yield mode.seen


# three plain blocks and two shifted ones per group; four kinds of window, or the corner alone
@pytest.mark.parametrize(('shape', 'calls'), [((24, 21), 2 * (3 + 2 * 4)), ((3, 4), 2 * (3 + 2 * 1))], ids=str)
def test_attention_sees_small_masks_whatever_the_size_of_the_image(masks, shape, calls):
    """(1, heads, T, T): nothing grows with the number of windows but the tokens."""
    with torch.no_grad():
        DPARNTeacher(**TINY).bfloat16().eval()(torch.rand(1, 3, *shape).bfloat16())
    assert len(masks) == calls
    assert set(masks) == {((1, 2, 16, 16), True)}


def test_masks_take_the_dtype_of_the_tokens_where_only_parameters_are_cast(masks):
    net, block = DPARNTeacher(**TINY), SwinBlock(6, 2, 4, True, 1.0, 0.0).bfloat16()
    out = block(torch.randn(1, 8, 8, 6).bfloat16(), net.position_index, net.shift_masks)
    assert net.shift_masks.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert set(masks) == {((1, 2, 16, 16), True)}


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (3, 2), (5, 9), (8, 8), (8, 11)], ids=str)
def testany_size_is_padded_by_reflection_and_cropped(shape):
    net = DPARNTeacher(**TINY, upscale=3).double().eval()
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    missing = [(-side) % 4 for side in shape]
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode='reflect')
    expected = net(torch.from_numpy(padded))[..., : 3 * shape[0], : 3 * shape[1]]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-13)


def test_features_for_distillation_are_maps():
    net = DPARNTeacher(**TINY).eval()
    seen = []
    net.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    net(torch.rand(2, 3, 16, 12))
    assert seen == [(2, 8, 16, 12)]


def test_drop_path_schedule_is_drcts():
    """All five blocks of a group take the first of its six steps of linspace(0, rate, 36)."""
    with torch.device('meta'):
        net = DPARNTeacher(**DRCT)
    steps = torch.linspace(0, 0.1, 36)[::6].tolist()
    for group, expected in zip(net.layers, steps, strict=True):
        for k in range(1, 6):
            assert getattr(group, f'swin{k}').drop_path == pytest.approx(expected, abs=1e-7)
    assert steps[1] == pytest.approx(0.0171, abs=1e-4)


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    x = torch.ones(4000, 2, 3, 1)
    out = dparn_teacher_arch.drop_path(x, 0.25, training=True)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert dparn_teacher_arch.drop_path(x, 0.25, training=False) is x
    assert dparn_teacher_arch.drop_path(x, 0.0, training=True) is x


def test_drop_path_acts_in_training_only():
    net = DPARNTeacher(**{**TINY, 'drop_path_rate': 0.9})
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))


def test_initialisation_is_drcts():
    net = DPARNTeacher(num_feat=48, num_block=1)
    block = net.layers[0].swin3
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.attn.relative_position_bias_table):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.attn.proj.bias.any()
    assert not block.mlp.fc2.bias.any()


def test_tail_of_the_paper_has_two_learnable_layers():
    with torch.device('meta'):
        net = DPARNTeacher(upscale=4)
    assert net.conv_before_upsample[0].weight.shape == (64, 96, 3, 3)
    assert net.upsampler[0].weight.shape == (48, 64, 3, 3)
    assert isinstance(net.upsampler[1], nn.PixelShuffle)
    assert not hasattr(net, 'conv_last')
    assert size() == 4_167_584


@needs_programs
@pytest.mark.slow
def test_exports_with_dynamic_height_and_width(tmp_path):
    net = DPARNTeacher(**{**TINY, 'num_block': 1}).eval()
    dims = {2: torch.export.Dim('height', min=9), 3: torch.export.Dim('width', min=9)}  # more than two windows
    program = torch.export.export(
        net, (torch.rand(1, 3, 13, 15),), dynamic_shapes=(dims,), prefer_deferred_runtime_asserts_over_guards=True
    )
    for shape in ((13, 15), (9, 30), (16, 24)):
        x = torch.rand(1, 3, *shape)
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_padded_head_widths_compute_the_same_on_a_gpu():
    """Widths such as 30 and 53 are padded to multiples of 8 there."""
    net = DPARNTeacher(**{**DRCT, 'num_block': 1}).eval()
    x = torch.rand(1, 3, 40, 16)
    with torch.no_grad():
        expected = net.double()(x.double())
        out = net.cuda()(x.double().cuda()).cpu()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


def test_reflection_agrees_with_torch_where_torch_can():
    x = torch.rand(1, 2, 9, 13)
    ours = dparn_teacher_arch.reflect_to_multiple(x, 8)
    assert torch.equal(ours, F.pad(x, (0, 3, 0, 7), mode='reflect'))
