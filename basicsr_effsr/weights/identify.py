"""Which of our networks a state dict is of, and with which options, from its names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
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
    """n with max(whole // n, 1) == part: the usual one, else one that divides, else the smallest."""
    likely = (usual, max(whole // part, 1), *range(1, whole + 1))
    return next((n for n in likely if max(whole // n, 1) == part), usual)


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
    last = state.get(f'{left}convs.2.expand.weight', state.get(f'{left}convs.2.weight'))
    if last is not None:
        options['branch_ratio'] = last.shape[1] // (first.shape[0] // 2)
    tails = _tails(state['upsampler.0.weight'].shape[0], first.shape[1])
    for esa, mix, (out, upscale) in product(('rlfn', 'rfdn'), ('none', 'conv'), tails):
        yield {
            **options,
            'esa_type': esa,
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
    }
    ratio = state[f'{swin}mlp.fc1.weight'].shape[0] / first.shape[0]
    ratios = dict.fromkeys((round(ratio, 1), round(ratio, 2), ratio))  # hidden widths are rounded down
    outs = dict.fromkeys((first.shape[1], 3, 1))
    for mlp_ratio, tail, upscale, out in product(ratios, ('paper', 'drct'), (2, 3, 4), outs):
        yield {**options, 'mlp_ratio': mlp_ratio, 'tail': tail, 'upscale': upscale, 'num_out_ch': out}


def _first(state: State, *patterns: str) -> Tensor | None:
    """The first tensor whose name ends in one of ``patterns``, taken in turn."""
    return next((state[name] for pattern in patterns for name in state if name.endswith(pattern)), None)


def _fits(usual: int, whole: int) -> int:
    """``usual`` if it divides ``whole``, else the largest smaller number that does."""
    return next(n for n in range(usual, 0, -1) if whole % n == 0)


def _efrdn(state: State) -> Iterator[Options]:
    first, block, path = state['head.weight'], 'body.0.', 'body.0.fflbs.0.'
    width = first.shape[0]
    blocks, places = _count(state, r'body\.(\d+)\.'), _count(state, r'convs\.(\d+)\.')
    options: Options = {
        'num_in_ch': first.shape[1],
        'num_feat': width,
        'share': tuple(place % blocks for place in range(places)),  # the order leaves no trace
        'mlp_hidden': state['transformers.0.mlp.0.weight'].shape[0],
        'num_heads': _fits(8, 9 * width // 2),
        # groups of layers that are not there must still divide
        'gcrb_groups': _fits(2, width // 4),
        'effb_groups': _fits(8, width),
        'sc_groups': _fits(4, width // 2),
        'distill': min(8, width - 1),
    }
    mask = _first(state, 'esa.conv1.weight', f'{path}branches.0.0.conv1.weight', f'{path}branches.0.1.conv1.weight')
    if mask is not None:
        options['esa_channels'] = mask.shape[0]
    if f'{block}c5.weight' in state:
        options['block'] = 'imdb'
    elif f'{block}distills.0.weight' in state:
        options['block'] = 'rfdb'
    elif f'{block}fuse_conv.weight' in state:
        options |= _acdm(state, width)
    deploy = any(re.search(r'\.0\.(reduce|conv)\.bias$', name) for name in state)
    for out, upscale in _tails(state['up_deep.weight'].shape[0], first.shape[1]):
        yield {**options, 'num_out_ch': out, 'upscale': upscale, **({'deploy': True} if deploy else {})}


def _acdm(state: State, width: int) -> Options:
    block, path = 'body.0.', 'body.0.fflbs.0.'
    coefficients = _count(state, r'body\.0\.fflbs\.0\.coefficients\.(\d+)\.')
    options: Options = {
        'block': 'acdm',
        'distill': width - state[f'{block}convs.0.weight'].shape[1],
        'conv4_out': state[f'{block}conv4.weight'].shape[0],
        'acrb': 'conv3' if f'{block}acrbs.0.weight' in state else 'none',
        'fflb': any(name.startswith(path) for name in state),
        'mscc': f'{block}mscc.0.left1.weight' in state,
    }
    if any(name.startswith(f'{block}acrbs.0.conv.') for name in state):
        options['acrb'] = 'acrb'
    if options['fflb']:
        options |= {
            'gcrb': f'{path}branches.0.1.conv1.weight' in state,
            'effb': f'{path}effb.conv1.weight' in state,
            'cc': coefficients > 0,
        }
    if coefficients:
        both = f'{path}coefficients.0.std.0.weight' in state
        options['cc_mode'] = 'two' if coefficients == 2 else 'four' if both else 'four_single_bottleneck'
        options['cc_reduction'] = _divisor(width, state[f'{path}coefficients.0.mean.0.weight'].shape[0], 16)
    reduce = _first(state, '.0.reduce.conv.weight', '.0.reduce.weight')  # not the attention's
    if reduce is not None:
        options['gcrb_groups'] = width // reduce.shape[1]
    fusion = _first(state, 'effb.conv1.weight')
    if fusion is not None:
        options['effb_groups'] = 2 * width // fusion.shape[1]
    calibrated = _first(state, 'left1.weight')
    if calibrated is not None:
        options['sc_groups'] = width // 2 // calibrated.shape[1]
        options['grouped_bias'] = _first(state, 'left1.bias') is not None
    return options


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
    'EFRDN': (('head.weight', 'body.0.*', 'transformers.0.*', 'up_deep.weight', 'up_shallow.weight'), _efrdn),
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
# options that leave no trace in the weights; they get their default, and AGDN-S its window
UNSEEN: dict[str, tuple[str, ...]] = {
    'HASN': (),
    'AGDN': ('tlc',),
    'IMDN': (),
    'ASID': (),
    'DPARN': ('mix', 'act', 'image_skip', 'zero_mean', 'last_act', 'merged_training'),
    'DPARNTeacher': ('drop_path_rate',),
    'EFRDN': ('share', 'num_heads', 'attn_chunks', 'cnn_dc', 'trans_dc', 'qk_scale', 'fold_norm'),
}
COUNTERS = 'num_batches_tracked'  # of batch norms; files of other programs may lack them, and torch fills them in
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


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without the counters of batch norms."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTERS)}


def candidates(network: str, state: State) -> list[Options]:
    """``type`` and options that weights with the names of ``network`` may be of, the likeliest first."""
    found: list[Options] = []
    try:
        for options in islice(NETWORKS[network][1](state), MAX_TRIED):
            found.append({'type': network, **options})
    except (KeyError, IndexError, ZeroDivisionError):  # layers that every such network has are missing or empty
        pass
    return found


def identify(state: State, build: Callable[[Options], nn.Module]) -> Options | None:
    """``type`` and options of the network that ``state`` loads into with ``strict=True``; None if there is none.

    Options that leave no trace in the weights (``UNSEEN``: activations, windows of TLC, dense connections, heads and
    chunks of EFRDN's attention, the order in which its blocks are shared) have their default values, AGDN-S its
    published window, and shared blocks stand in turn. Where several values give the same layers (8 // 3 == 8 // 4),
    one of them is found, the default if it is among them.

    Args:
        state: names and tensors.
        build: makes a network from ``type`` and options, best on the meta device.
    """
    shapes = shapes_of(state)
    for network in NETWORKS:
        if not looks_like(network, state):
            continue
        for option in candidates(network, state):
            try:
                net = build(option)
            except (ValueError, TypeError):
                continue
            if shapes_of(net.state_dict()) == shapes:
                return option
    return None
