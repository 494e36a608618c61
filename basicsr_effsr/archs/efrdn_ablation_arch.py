"""EFRDN with its blocks left out or exchanged: Tables 2 to 5 of its paper, and other readings of its text.

Paper:        C. Liu et al., "An efficient feature reuse distillation network for lightweight image
              super-resolution".
Weights:      none published; parameter names are EFRDN's.
Differences:  as efrdn_arch.py, which must lie beside this file; a switch that is left alone gives EFRDN itself.
"""

from __future__ import annotations

import math
import re
from typing import Any, Dict, Iterator, Mapping, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import ESARFDN, IMDB, check_choice, count_numbers, divisor, pixelshuffle_tails, register_in
from .efrdn_arch import CC, EFFB, EFRDN, SelfCalibration, Transformer, largest_divisor

__all__ = ['EFRDNAblation']


class RFDB(nn.Module):
    """Residual feature distillation block of RFDN, of Table 2.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, esa_channels: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.distills = nn.ModuleList(nn.Conv2d(num_feat, half, 1) for _ in range(3))
        self.refines = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in range(3))
        self.conv4 = nn.Conv2d(num_feat, half, 3, padding=1)
        self.conv5 = nn.Conv2d(4 * half, num_feat, 1)
        self.esa = ESARFDN(num_feat, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for step in range(3):
            kept.append(F.leaky_relu(self.distills[step](x), 0.05))
            x = F.leaky_relu(self.refines[step](x) + x, 0.05)
        kept.append(F.leaky_relu(self.conv4(x), 0.05))
        return self.esa(self.conv5(torch.cat(kept, dim=1)))


class SharedCC(CC):
    """Combination coefficient whose one bottleneck serves means and deviations.  (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, num_feat: int, reduction: int) -> None:
        super().__init__(num_feat, reduction)
        del self.std

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return 0.5 * (self.mean(mean) + self.mean(std))


class One(nn.Module):
    """A coefficient of 1."""

    def forward(self, x: Tensor) -> float:
        return 1.0


class OverlappingTransformer(Transformer):
    """Folds as the code of ESRT does: a gain of 9 with a dark rim.  (N, C, H, W) -> same."""

    @staticmethod
    def fold(tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return F.fold(tokens.transpose(1, 2), size, 3, padding=1)


def give_bias(conv: nn.Conv2d) -> None:
    """Gives a convolution without bias one, initialised as torch does."""
    bound = 1 / math.sqrt(conv.weight[0].numel())
    conv.bias = nn.Parameter(torch.empty_like(conv.weight[:, 0, 0, 0]).uniform_(-bound, bound))


def _first(state: Mapping[str, Tensor], *patterns: str) -> Tensor | None:
    """The first tensor whose name ends in one of ``patterns``, taken in turn."""
    return next((state[name] for pattern in patterns for name in state if name.endswith(pattern)), None)


def _acdm_options(state: Mapping[str, Tensor], width: int) -> Dict[str, Any]:
    block, path = 'body.0.', 'body.0.fflbs.0.'
    coefficients = count_numbers(state, r'body\.0\.fflbs\.0\.coefficients\.(\d+)\.')
    options: Dict[str, Any] = {
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
        options.update(
            {
                'gcrb': f'{path}branches.0.1.conv1.weight' in state,
                'effb': f'{path}effb.conv1.weight' in state,
                'cc': coefficients > 0,
            }
        )
    if coefficients:
        both = f'{path}coefficients.0.std.0.weight' in state
        options['cc_mode'] = 'two' if coefficients == 2 else 'four' if both else 'four_single_bottleneck'
        options['cc_reduction'] = divisor(width, state[f'{path}coefficients.0.mean.0.weight'].shape[0], 16)
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


@register_in(ARCH_REGISTRY)
class EFRDNAblation(EFRDN):
    """EFRDN and what its paper compares it with; input and output as there.

    Args:
        num_in_ch, num_out_ch, num_feat, upscale, distill, conv4_out, cc_reduction, gcrb_groups, effb_groups, sc_groups,
            esa_channels, num_heads, attn_chunks, mlp_hidden, deploy: as for EFRDN.
        share: as for EFRDN; None is (0, 1, 0, 1) for 'acdm' and four blocks otherwise.
        block: 'acdm', or 'imdb' or 'rfdb' for Table 2; these two know of the following only the transformers'.
        acrb: on distilled channels: 'acrb', 'conv3' (a plain 3x3) or 'none' (Table 3).
        fflb: keep the FFLBs (Table 3).
        mscc: keep the MSCC (Table 3).
        gcrb: keep the GCRBs in the branches of an FFLB (Table 4); EFFB keeps its own.
        effb: keep the EFFB (Table 4).
        cc: keep the combination coefficients (Table 4); they are 1 otherwise.
        cc_mode: combination coefficients of an FFLB: 'two' (each serves both butterflies), 'four', or
            'four_single_bottleneck' (mean and deviation go through the same layers; as many parameters as 'two').
        grouped_bias: give the 3x3 of EFFB, SCSA and SCCA a bias.
        cnn_dc: dense connections among the blocks (Eq. 2, Table 5).
        trans_dc: dense connections among the transformers (Eq. 5 and 7, Table 5).
        qk_scale: factor on the products of queries and keys; None is Eq. 30, ESRT's code has 1/6.
        fold_norm: divide folded tokens by their overlap; False is ESRT's code.

    Raises:
        ValueError: as for EFRDN.
    """

    unseen = (*EFRDN.unseen, 'cnn_dc', 'trans_dc', 'qk_scale', 'fold_norm')

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        upscale: int = 4,
        share: Sequence[int] | None = None,
        distill: int = 8,
        conv4_out: int = 32,
        cc_reduction: int = 16,
        gcrb_groups: int = 2,
        effb_groups: int = 8,
        sc_groups: int = 4,
        esa_channels: int = 8,
        num_heads: int = 8,
        attn_chunks: int = 4,
        mlp_hidden: int = 144,
        deploy: bool = False,
        block: str = 'acdm',
        acrb: str = 'acrb',
        fflb: bool = True,
        mscc: bool = True,
        gcrb: bool = True,
        effb: bool = True,
        cc: bool = True,
        cc_mode: str = 'two',
        grouped_bias: bool = False,
        cnn_dc: bool = True,
        trans_dc: bool = True,
        qk_scale: float | None = None,
        fold_norm: bool = True,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ('self', '__class__')}
        check_choice('EFRDNAblation', 'block', block, ('acdm', 'imdb', 'rfdb'))
        check_choice('EFRDNAblation', 'acrb', acrb, ('acrb', 'conv3', 'none'))
        check_choice('EFRDNAblation', 'cc_mode', cc_mode, ('two', 'four', 'four_single_bottleneck'))
        if qk_scale is not None and not qk_scale > 0:
            raise ValueError(f'EFRDNAblation: qk_scale must be positive, or none for 1/sqrt(width), got {qk_scale!r}')
        if share is None:
            share = (0, 1, 0, 1) if block == 'acdm' else (0, 1, 2, 3)
        super().__init__(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=num_feat,
            upscale=upscale,
            share=share,
            distill=distill,
            conv4_out=conv4_out,
            cc_reduction=cc_reduction,
            gcrb_groups=gcrb_groups,
            effb_groups=effb_groups,
            sc_groups=sc_groups,
            esa_channels=esa_channels,
            num_heads=num_heads,
            attn_chunks=attn_chunks,
            mlp_hidden=mlp_hidden,
            deploy=deploy,
        )
        self._options = options
        self.cnn_dc = cnn_dc
        self.trans_dc = trans_dc
        self.min_size = ESARFDN.min_size if block == 'rfdb' or (block == 'acdm' and fflb) else 1

        def coefficients() -> nn.ModuleList:
            if not cc:
                return nn.ModuleList([One()])
            kind = SharedCC if cc_mode == 'four_single_bottleneck' else CC
            return nn.ModuleList(kind(num_feat, cc_reduction) for _ in range(2 if cc_mode == 'two' else 4))

        def exchange(lattice: Any) -> None:
            if not gcrb:
                lattice.branches = nn.ModuleList(nn.Sequential(branch[1]) for branch in lattice.branches)
            if not cc or cc_mode != 'two':
                lattice.coefficients = coefficients()
            if not effb:
                lattice.effb = nn.Identity()

        def ablated(acdm: Any) -> nn.Module:
            if block != 'acdm':
                return IMDB(num_feat) if block == 'imdb' else RFDB(num_feat, esa_channels)
            if acrb == 'conv3':
                acdm.acrbs = nn.ModuleList(nn.Conv2d(distill, distill, 3, padding=1) for _ in range(3))
            elif acrb == 'none':
                acdm.acrbs = nn.ModuleList(nn.Identity() for _ in range(3))
            if fflb:
                for lattice in acdm.fflbs:
                    exchange(lattice)
            else:
                acdm.fflbs = nn.ModuleList(nn.Identity() for _ in range(3))
            if not mscc:
                acdm.mscc = nn.Sequential()
            if grouped_bias:
                _give_biases(acdm)
            return acdm

        self.body = nn.ModuleList(ablated(acdm) for acdm in self.body)
        if not fold_norm:
            self.transformers = nn.ModuleList(
                OverlappingTransformer(num_feat, num_heads, attn_chunks, mlp_hidden) for _ in range(2)
            )
        if qk_scale is not None:
            attentions: Any = [transformer.attn for transformer in self.transformers]
            for attention in attentions:
                attention.scale = qk_scale

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        first, block, path = state['head.weight'], 'body.0.', 'body.0.fflbs.0.'
        width = first.shape[0]
        blocks, places = count_numbers(state, r'body\.(\d+)\.'), count_numbers(state, r'convs\.(\d+)\.')
        options: Dict[str, Any] = {
            'num_in_ch': first.shape[1],
            'num_feat': width,
            'share': tuple(place % blocks for place in range(places)),  # the order leaves no trace
            'mlp_hidden': state['transformers.0.mlp.0.weight'].shape[0],
            'num_heads': largest_divisor(9 * width // 2, 8),
            # groups of layers that are not there must still divide
            'gcrb_groups': largest_divisor(width // 4, 2),
            'effb_groups': largest_divisor(width, 8),
            'sc_groups': largest_divisor(width // 2, 4),
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
            options.update(_acdm_options(state, width))
        deploy = any(re.search(r'\.0\.(reduce|conv)\.bias$', name) for name in state)
        for out, upscale in pixelshuffle_tails(state['up_deep.weight'].shape[0], first.shape[1]):
            yield {**options, 'num_out_ch': out, 'upscale': upscale, **({'deploy': True} if deploy else {})}

    def cnn(self, shallow: Tensor) -> Tensor:
        if self.cnn_dc:
            return super().cnn(shallow)
        deep = shallow
        for place, number in enumerate(self.share):
            deep = self.convs[place](self.body[number](deep))
        return deep + shallow

    def trans(self, x: Tensor, shallow: Tensor) -> Tensor:
        if self.trans_dc:
            return super().trans(x, shallow)
        for place in range(2):
            x = self.trans_convs[place](self.transformers[place](x))
        return x + shallow


def _give_biases(acdm: nn.Module) -> None:
    for module in acdm.modules():
        if isinstance(module, EFFB):
            give_bias(module.conv1)
            give_bias(module.conv2)
        elif isinstance(module, SelfCalibration):
            for conv in (module.left1, module.left2, module.right, module.merge):
                give_bias(conv)
