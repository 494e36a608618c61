"""EFRDN with its blocks left out or exchanged: Tables 2 to 5 of its paper, and other readings of its text.

Paper:        C. Liu et al., "An efficient feature reuse distillation network for lightweight image
              super-resolution".
Weights:      none published; parameter names are EFRDN's.
Differences:  as efrdn_arch.py, which must lie beside this file; a switch that is left alone gives EFRDN itself.
"""

from __future__ import annotations

import inspect
from typing import Any, Dict, Iterator, Literal, Mapping, Optional, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import ESARFDN, IMDB, check_options, count_numbers, register_in, std_and_mean
from .efrdn_arch import CC, EFRDN, Transformer

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
        std, mean = std_and_mean(x)
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
        cnn_dc: dense connections among the blocks (Eq. 2, Table 5).
        trans_dc: dense connections among the transformers (Eq. 5 and 7, Table 5).
        qk_scale: factor on the products of queries and keys; None is Eq. 30, ESRT's code has 1/6.
        fold_norm: divide folded tokens by their overlap; False is ESRT's code.
    """

    ncnn = 'not tried'
    unseen = (*EFRDN.unseen, 'cnn_dc', 'trans_dc', 'qk_scale', 'fold_norm')

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        upscale: Literal[2, 3, 4] = 4,
        share: Optional[Sequence[int]] = None,
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
        block: Literal['acdm', 'imdb', 'rfdb'] = 'acdm',
        acrb: Literal['acrb', 'conv3', 'none'] = 'acrb',
        fflb: bool = True,
        mscc: bool = True,
        gcrb: bool = True,
        effb: bool = True,
        cc: bool = True,
        cc_mode: Literal['two', 'four', 'four_single_bottleneck'] = 'two',
        cnn_dc: bool = True,
        trans_dc: bool = True,
        qk_scale: Optional[float] = None,
        fold_norm: bool = True,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ('self', '__class__')}
        check_options(EFRDNAblation, options)
        if qk_scale is not None and not qk_scale > 0:
            raise ValueError(f'EFRDNAblation: qk_scale must be positive, or none for 1/sqrt(width), got {qk_scale!r}')
        if share is None:
            share = (0, 1, 0, 1) if block == 'acdm' else (0, 1, 2, 3)
        super().__init__(**{**{name: options[name] for name in inspect.signature(EFRDN).parameters}, 'share': share})
        self._options = options
        self.cnn_dc = cnn_dc
        self.trans_dc = trans_dc
        self.min_size = ESARFDN.min_size if block == 'rfdb' or (block == 'acdm' and fflb) else 1

        def exchange(lattice: Any) -> None:
            if not gcrb:
                lattice.branches = nn.ModuleList(nn.Sequential(branch[1]) for branch in lattice.branches)
            if not cc:
                lattice.coefficients = nn.ModuleList([One()])
            elif cc_mode != 'two':
                kind = CC if cc_mode == 'four' else SharedCC
                lattice.coefficients = nn.ModuleList(kind(num_feat, cc_reduction) for _ in range(4))
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
        inner = [name[len('body.0.') :] for name in state if name.startswith('body.0.')]

        def has(beginning: str) -> bool:
            return any(name.startswith(beginning) for name in inner)

        switches: Dict[str, Any] = {'block': 'imdb' if has('c5.') else 'rfdb' if has('distills.') else 'acdm'}
        if switches['block'] == 'acdm':
            switches['fflb'] = has('fflbs.')
            switches['mscc'] = has('mscc.')
            switches['acrb'] = 'acrb' if has('acrbs.0.conv.') else 'conv3' if has('acrbs.') else 'none'
        if has('fflbs.'):
            count = count_numbers(inner, r'fflbs\.0\.coefficients\.(\d+)\.')
            single = not has('fflbs.0.coefficients.0.std.')
            switches['gcrb'] = has('fflbs.0.branches.0.1.')
            switches['effb'] = has('fflbs.0.effb.')
            switches['cc'] = count > 0
            if count:
                switches['cc_mode'] = 'two' if count == 2 else 'four_single_bottleneck' if single else 'four'
        for options in EFRDN.options_of(state):
            yield {**options, **switches}

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
