"""Which of our networks a state dict is of, and with which options, from its names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from torch import Tensor, nn

State = Mapping[str, Tensor]
Options = dict[str, Any]

MAX_TRIED = 64  # networks that are built, without memory, to find one that fits


def _count(state: State, pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _tails(channels: int, num_in_ch: int) -> list[tuple[int, int]]:
    """(num_out_ch, upscale) that a pixel shuffle of ``channels`` channels may be; the likeliest first."""
    outs = dict.fromkeys((num_in_ch, 3, 1))
    return [(out, r) for out in outs for r in (2, 3, 4) if out * r * r == channels]


def _divisor(whole: int, part: int, usual: int) -> int:
    """n with max(whole // n, 1) == part, the usual one if it does."""
    if max(whole // usual, 1) == part:
        return usual
    return next((n for n in range(1, whole + 1) if max(whole // n, 1) == part), usual)


def _hasn(state: State) -> Iterator[Options]:
    first, block = state['conv_1.weight'], 'block_1.'
    width = first.shape[0]
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': width,
        'num_block': _count(state, r'block_(\d+)\.'),
        'kernel_size': state[f'{block}dwconv.conv.weight'].shape[-1],
        'mlp_ratio': state[f'{block}f1.conv.weight'].shape[0] // width,
        'use_esa': f'{block}esa.conv1.weight' in state,
        'use_cab': f'{block}cab.cab.0.weight' in state,
    }
    if options['use_esa']:
        options['esa_channels'] = state[f'{block}esa.conv1.weight'].shape[0]
    if options['use_cab']:
        options['compress_ratio'] = _divisor(width, state[f'{block}cab.cab.0.weight'].shape[0], 3)
        options['squeeze_factor'] = _divisor(width, state[f'{block}cab.cab.3.attention.1.weight'].shape[0], 30)
    for out, upscale in _tails(state['upsampler.0.weight'].shape[0], first.shape[1]):
        yield {**options, 'num_out_ch': out, 'upscale': upscale}


def _agdn(state: State) -> Iterator[Options]:
    first = state['fea_conv.weight']
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': first.shape[0],
        'num_block': _count(state, r'B(\d+)\.'),
        'use_sgsa': 'B1.ea.restormer_attn.temperature' in state,
    }
    if options['use_sgsa']:
        options['num_heads'] = state['B1.ea.restormer_attn.temperature'].shape[0]
    if (options['num_feat'], options['num_block']) == (24, 4):
        options['tlc'] = 96  # AGDN-S; the window is not in the weights
    shapes = product(('mvsa', 'esa', 'none'), ('rcca', 'cca', 'none'))
    tails = _tails(state['upsampler.0.weight'].shape[0], first.shape[1])
    for (spatial, channel), (out, upscale) in product(shapes, tails):
        yield {**options, 'spatial_attn': spatial, 'channel_attn': channel, 'num_out_ch': out, 'upscale': upscale}


def _imdn(state: State) -> Iterator[Options]:
    first = state['fea_conv.weight']
    for out, upscale in _tails(state['upsampler.0.weight'].shape[0], first.shape[1]):
        yield {
            'num_in_ch': first.shape[1],
            'num_out_ch': out,
            'num_feat': first.shape[0],
            'num_block': _count(state, r'IMDB(\d+)\.'),
            'upscale': upscale,
        }


def _asid(state: State) -> Iterator[Options]:
    first = state['input.weight']
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': first.shape[0],
        'num_block': _count(state, r'block(\d+)\.'),
    }
    forms = product(('inter', 'intra', 'none'), (True, False), (True, False))
    for (sharing, distil, split), (out, upscale) in product(
        forms, _tails(state['up.0.weight'].shape[0], first.shape[1])
    ):
        yield {
            **options,
            'num_out_ch': out,
            'upscale': upscale,
            'attention_sharing': sharing,
            'information_distillation': distil,
            'channel_split': split,
        }


def _dparn(state: State) -> Iterator[Options]:
    first = state['head.weight']
    left, right = 'body.0.left.', 'body.0.right.'
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': first.shape[0],
        'num_block': _count(state, r'body\.(\d+)\.'),
        'branches': tuple('esa' if f'{side}esa.conv1.weight' in state else 'spa' for side in (left, right)),
    }
    path = next((f'{side}esa.' for side in (left, right) if f'{side}esa.conv1.weight' in state), None)
    if path is not None:
        options['esa_channels'] = state[f'{path}conv1.weight'].shape[0]
    merged = {n for n in state if re.fullmatch(r'body\.0\.(left|right)\.convs\.\d\.expand\.weight', n)}
    if merged:
        expand = state[min(merged)]
        options['expansion'] = expand.shape[0] // expand.shape[1]
        options['expand_bias'] = min(merged).replace('.weight', '.bias') in state
        options['num_rerb'] = len(merged) // 2
    else:
        options['deploy'] = True
    tails = _tails(state['upsampler.0.weight'].shape[0], first.shape[1])
    for esa, ratio, mix, (out, upscale) in product(('rlfn', 'rfdn'), (1, 2, 3, 4), ('none', 'conv'), tails):
        yield {
            **options,
            'esa_type': esa,
            'branch_ratio': ratio,
            'num_out_ch': out,
            'upscale': upscale,
            **({} if mix == 'none' else {'mix': mix}),
        }


def _dparn_teacher(state: State) -> Iterator[Options]:
    first, swin = state['conv_first.weight'], 'layers.0.swin1.'
    table = state[f'{swin}attn.relative_position_bias_table']
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': first.shape[0],
        'num_block': _count(state, r'layers\.(\d+)\.'),
        'num_heads': table.shape[1],
        'window_size': (math.isqrt(table.shape[0]) + 1) // 2,
        'num_grow_ch': state['layers.0.adjust1.weight'].shape[0],
        'mlp_ratio': state[f'{swin}mlp.fc1.weight'].shape[0] / first.shape[0],
    }
    for tail, upscale, out in product(('paper', 'drct'), (2, 3, 4), dict.fromkeys((first.shape[1], 3, 1))):
        yield {**options, 'tail': tail, 'upscale': upscale, 'num_out_ch': out}


# network -> names that its weights always hold, and the options they may be of, the likeliest first
NETWORKS: dict[str, tuple[tuple[str, ...], Callable[[State], Iterator[Options]]]] = {
    'HASN': (
        ('conv_1.weight', 'block_1.dwconv.conv.weight', 'block_1.dwconv2.conv.weight', 'upsampler.0.weight'),
        _hasn,
    ),
    'AGDN': (('fea_conv.weight', 'B1.c1_d.weight', 'B1.c1_r.pw.weight', 'B1.c4.weight', 'upsampler.0.weight'), _agdn),
    'IMDN': (('fea_conv.weight', 'IMDB1.c1.weight', 'IMDB1.cca.conv_du.0.weight', 'upsampler.0.weight'), _imdn),
    'ASID': (('input.weight', 'block0.esa.conv1.weight', 'block0.res_end.weight', 'up.0.weight'), _asid),
    'DPARN': (('head.weight', 'body.0.left.convs.0.*', 'body.0.right.convs.0.*', 'upsampler.0.weight'), _dparn),
    'DPARNTeacher': (
        (
            'conv_first.weight',
            'layers.0.swin1.attn.relative_position_bias_table',
            'layers.0.adjust5.weight',
            'conv_after_body.weight',
        ),
        _dparn_teacher,
    ),
}
FORBIDDEN = {'DPARNTeacher': 'layers.0.swin1.attn.relative_position_index'}  # a buffer that only DRCT's own files hold


def looks_like(network: str, state: State) -> bool:
    """True if ``state`` has the names that every checkpoint of ``network`` has."""
    if FORBIDDEN.get(network) in state:
        return False
    for name in NETWORKS[network][0]:
        prefix = name.removesuffix('*')
        if name not in state and not (prefix != name and any(key.startswith(prefix) for key in state)):
            return False
    return True


def identify(state: State, build: Callable[[Options], nn.Module]) -> Options | None:
    """``type`` and options of the network that ``state`` loads into with ``strict=True``; None if there is none.

    Options that leave no trace in the weights (activations, windows of TLC) have their published values.

    Args:
        state: names and tensors.
        build: makes a network from ``type`` and options, best on the meta device.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for network, (_, candidates) in NETWORKS.items():
        if not looks_like(network, state):
            continue
        for tried, options in enumerate(candidates(state)):
            if tried >= MAX_TRIED:
                break
            option = {'type': network, **options}
            try:
                net = build(option)
            except (ValueError, TypeError):
                continue
            if {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes:
                return option
    return None
