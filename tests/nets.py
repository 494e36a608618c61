"""The networks under test. Adding an architecture to the package means adding one entry here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

needs_programs = pytest.mark.skipif(
    not hasattr(torch.export.Dim, 'DYNAMIC'), reason='torch.export of any size begins with torch 2.6'
)


@dataclass(frozen=True)
class Case:
    """One registered network and what must hold for it.

    Attributes:
        type: registered name.
        tiny: options of a network small enough for a unit test.
        scales: published scale factors.
        size: H, W of the test image; odd and unequal on purpose, at least ``min_size``.
        params: upscale -> parameters of the published network (default options).
        live: option -> two legal values (or sets of options) that must give networks of different size or output.
        refused: options that the constructor must refuse with a ValueError.
        eval_differs: why train and eval mode compute different things; empty where they agree.
        inert: endings of parameter names that no gradient can reach, with the reason.
        not_exported: why ``torch.export`` / ONNX with dynamic height and width does not hold.
        not_compiled: why ``torch.compile`` does not hold.
        has_fuse: the net offers ``fuse()``.
        convolutional: options of the purely convolutional form, and the ``halo`` that it must state.
    """

    type: str
    tiny: dict
    scales: tuple[int, ...] = (2, 3, 4)
    size: tuple[int, int] = (17, 23)
    params: dict[int, int] = field(default_factory=dict)
    live: dict[str, tuple] = field(default_factory=dict)
    refused: tuple[dict, ...] = ()
    eval_differs: str = ''
    inert: dict[str, str] = field(default_factory=dict)
    not_exported: str = ''
    not_compiled: str = ''
    has_fuse: bool = False
    convolutional: tuple[dict, int] | None = None

    def option(self, **changes) -> dict:
        return {'type': self.type, **self.tiny, **changes}


CASES = {
    'HASN': Case(
        'HASN',
        tiny={'num_feat': 8, 'num_block': 2, 'esa_channels': 4, 'squeeze_factor': 2},
        params={2: 418_388, 3: 425_423, 4: 435_272},
        live={
            'num_feat': (8, 12),
            'num_block': (1, 2),
            'kernel_size': (3, 5),
            'mlp_ratio': (1, 2),
            'esa_channels': (3, 4),
            'compress_ratio': (1, 2),
            'squeeze_factor': (1, 4),
            'use_esa': (True, False),
            'use_cab': (True, False),
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
        },
        refused=({'upscale': 5}, {'kernel_size': 4}, {'num_feat': 0}, {'num_block': -1}),
        convolutional=({'use_esa': False, 'use_cab': False}, 15),
    ),
    'DPARN': Case(
        'DPARN',
        tiny={'num_feat': 8, 'num_block': 2, 'esa_channels': 4},
        params={2: 463_336, 3: 470_371, 4: 480_220},
        live={
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
            'num_feat': (8, 12),
            'num_block': (1, 2),
            'num_rerb': (0, 2),
            'expansion': (1, 2),
            'expand_bias': (True, False),
            'merged_training': (True, False),
            'branches': (('esa', 'spa'), ('spa', 'esa')),
            'esa_type': ('rlfn', 'rfdn'),
            'esa_channels': (3, 4),
            'branch_ratio': (1, 2),
            'zero_mean': (True, False),
            'last_act': (True, False),
            'mix': ('none', 'shuffle'),
            'act': ('relu', 'silu'),
            'image_skip': ('nearest', 'bilinear'),
            'two_layer_tail': (False, True),
            'deploy': (True, False),
        },
        refused=(
            {'num_feat': 9},
            {'num_block': 0},
            {'num_rerb': 4},
            {'branches': ('esa',)},
            {'branches': 'esa'},
            {'branches': ('esa', 'cca')},
            {'branches': ['esa', ['spa']]},
            {'branches': None},
            {'esa_type': 'swin'},
            {'mix': 'add'},
            {'act': 'tanh'},
            {'image_skip': 'bicubic'},
            {'image_skip': 'nearest', 'num_out_ch': 1},
        ),
        has_fuse=True,
        convolutional=({'branches': ('spa', 'spa')}, 9),
    ),
    'DPARNTeacher': Case(
        'DPARNTeacher',
        tiny={
            'num_feat': 8,
            'num_block': 2,
            'num_heads': 2,
            'window_size': 4,
            'num_grow_ch': 4,
            'drop_path_rate': 0.0,
        },
        params={2: 4_146_812, 3: 4_155_467, 4: 4_167_584},
        live={
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
            'num_feat': (8, 12),
            'num_block': (1, 2),
            'num_heads': (1, 2),
            'window_size': (4, 6),
            'num_grow_ch': (4, 6),
            'mlp_ratio': (1.0, 2.0),
            'drop_path_rate': (0.0, 0.9),
            'tail': ('paper', 'drct'),
        },
        refused=(
            {'num_heads': 3},
            {'num_grow_ch': 5, 'num_heads': 4},
            {'window_size': 5},
            {'mlp_ratio': 0.0},
            {'drop_path_rate': 1.0},
            {'tail': 'nearest'},
            {'num_block': 0},
        ),
        not_exported='cutting two symbolic axes into windows adds guards that cannot be proved ahead: it exports '
        'with prefer_deferred_runtime_asserts_over_guards=True, from three windows per axis on (test_dparn_teacher.py)',
    ),
    'AGDN': Case(
        'AGDN',
        tiny={'num_feat': 12, 'num_block': 2, 'tlc': 12},
        params={2: 280_530, 3: 286_215, 4: 294_174},
        live={
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
            'num_feat': (12, 24),
            'num_block': (1, 2),
            'spatial_attn': ('mvsa', 'esa'),
            'channel_attn': ('rcca', 'cca'),
            'use_sgsa': (True, False),
            'num_heads': (1, 3),
            'tlc': (12, 0),
        },
        refused=(
            {'num_feat': 15},
            {'num_feat': 2, 'num_heads': 1},
            {'num_heads': 5},
            {'num_block': 0},
            {'tlc': -1},
            {'spatial_attn': 'MVSA'},
            {'channel_attn': 'esa'},
        ),
        eval_differs='TLC: in eval mode the self-attention works in windows, in training on the whole patch',
        inert=dict.fromkeys(('conv2_3.dw.bias', 'conv2_4.dw.bias'), 'a variance does not see a constant shift'),
        convolutional=({'spatial_attn': 'none', 'channel_attn': 'none', 'use_sgsa': False}, 11),
    ),
    'IMDN': Case(
        'IMDN',
        tiny={'num_feat': 16, 'num_block': 2},
        params={2: 694_404, 3: 703_059, 4: 715_176},
        live={'num_in_ch': (1, 3), 'num_out_ch': (1, 3), 'num_feat': (8, 16), 'num_block': (1, 2)},
        refused=({'num_feat': 6}, {'num_block': 0}),
    ),
    'SPAN_effsr': Case(
        'SPAN_effsr',
        tiny={'num_feat': 8, 'num_block': 2},
        params={2: 481_324, 3: 488_359, 4: 498_208},
        live={'num_in_ch': (1, 3), 'num_out_ch': (1, 3), 'num_feat': (8, 12), 'num_block': (1, 2)},
        refused=({'num_feat': 0}, {'num_block': 0}),
        convolutional=({}, 9),
    ),
    'ASID': Case(
        'ASID',
        tiny={'num_feat': 8, 'num_block': 2},
        params={2: 297_516, 3: 304_011, 4: 313_104},
        live={
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
            'num_feat': (8, 12),
            'num_block': (1, 2),
            'attention_sharing': ('inter', 'intra'),
            'information_distillation': (
                {'channel_split': False},
                {'channel_split': False, 'information_distillation': False},
            ),
            'channel_split': (True, False),
        },
        refused=(
            {'num_feat': 10},
            {'num_block': 0},
            {'attention_sharing': 'all'},
            {'information_distillation': False},
        ),
        not_exported='cutting a symbolic size into 8 x 8 groups adds guards that cannot be proved ahead; with '
        'prefer_deferred_runtime_asserts_over_guards=True it exports, to ONNX for every size (test_asid.py)',
    ),
    'EFRDN': Case(
        'EFRDN',
        tiny={
            'num_feat': 16,
            'share': (0,),
            'distill': 4,
            'conv4_out': 8,
            'cc_reduction': 4,
            'esa_channels': 4,
            'num_heads': 2,
            'mlp_hidden': 8,
        },
        params={2: 751_668, 3: 760_338, 4: 772_476},
        live={
            'num_in_ch': (1, 3),
            'num_out_ch': (1, 3),
            'num_feat': (16, 32),
            'share': ((0,), (0, 0)),
            'distill': (4, 5),
            'conv4_out': (8, 9),
            'cc_reduction': (4, 8),
            'gcrb_groups': (1, 2),
            'effb_groups': (4, 8),
            'sc_groups': (2, 4),
            'esa_channels': (3, 4),
            'num_heads': (1, 2),
            'attn_chunks': (1, 4),
            'mlp_hidden': (8, 9),
            'deploy': (True, False),
        },
        refused=(
            {'num_feat': 18},
            {'num_feat': 0},
            {'share': ()},
            {'share': (0, 2)},
            {'share': (1, 1)},
            {'share': [0.0, 1.0]},
            {'share': (False, True)},
            {'share': [[0], 1]},
            {'share': 2},
            {'distill': 16},
            {'gcrb_groups': 3},
            {'effb_groups': 3},
            {'sc_groups': 3},
            {'num_heads': 5},
            {'attn_chunks': 0},
            {'mlp_hidden': 0},
        ),
        eval_differs='batch norms take the statistics of the batch in training and their own in eval mode',
        has_fuse=True,
    ),
}

# What papers compare their networks with: registered, and all the contracts hold, but no network of its own.
ABLATIONS = {
    'EFRDNAblation': replace(
        CASES['EFRDN'],
        type='EFRDNAblation',
        live=CASES['EFRDN'].live
        | {
            'block': ('imdb', 'rfdb'),
            'acrb': ('conv3', 'none'),
            'fflb': (True, False),
            'mscc': (True, False),
            'gcrb': (True, False),
            'effb': (True, False),
            'cc': (True, False),
            'cc_mode': ('two', 'four_single_bottleneck'),
            'cnn_dc': (True, False),
            'trans_dc': (True, False),
            'qk_scale': (None, 1.0),
            'fold_norm': (True, False),
        },
        refused=(
            *CASES['EFRDN'].refused,
            {'block': 'swin'},
            {'acrb': 'conv5'},
            {'cc_mode': 'three'},
            {'qk_scale': 0.0},
        ),
    ),
}
