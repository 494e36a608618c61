"""EFRDN: efficient feature reuse distillation network.

Paper:        C. Liu et al., "An efficient feature reuse distillation network for lightweight image
              super-resolution".
Weights:      none published; parameter names are ours.
Differences:  no code is public. What text and figures leave open is chosen so that the sizes and multiply-adds of
              Tables 1 to 4 come out within 1.5 % (tests/test_efrdn.py): groups of 4 in the self-calibrated
              convolutions and of 8 in the feature fusion, two combination coefficients per lattice block, 144
              hidden units in the transformer. Folding divides by the overlap, so that it inverts unfolding; the
              ancestors of the transformer (ESRT, LBNet) leave a gain of 9 with a dark rim (``fold_norm=False``).
              Attention is fused: no map of chunk x chunk is ever held.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, Mapping, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESARFDN,
    IMDB,
    check_choice,
    check_input,
    check_positive,
    count_numbers,
    divisor,
    pixelshuffle_tails,
    register_in,
    rgb_mean,
)

__all__ = ['EFRDN']


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deals the channels of ``groups`` groups out in turn: (N, C, H, W) -> same."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Channels a0, b0, a1, b1, ...: two (N, C, H, W) -> (N, 2C, H, W)."""
    return torch.stack((a, b), dim=2).flatten(1, 2)


class ConvBN(nn.Sequential):
    """Convolution without bias and batch norm; ``fuse`` gives the one convolution that it is in eval mode."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the equal convolution, in float64."""
        mean, var = (self.bn.get_buffer(name).double() for name in ('running_mean', 'running_var'))
        gain = self.bn.weight.double() / torch.sqrt(var + self.bn.eps)
        return self.conv.weight.double() * gain.view(-1, 1, 1, 1), self.bn.bias.double() - mean * gain

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The equal plain convolution; this module is left as it was."""
        weight, bias = self.folded()
        return _conv_like(self.conv, self.conv.kernel_size, self.conv.padding, weight, bias)


def _conv_like(conv: nn.Conv2d, kernel_size, padding, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with bias and the given values, otherwise as ``conv``."""
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size, padding=padding, groups=conv.groups)
    fused.to(conv.weight).load_state_dict({'weight': weight, 'bias': bias})
    return fused


class AsymmetricConv(nn.Module):
    """BN(1x3) + BN(3x3) + BN(3x1), Fig. 3; in eval mode equal to one 3x3.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.horizontal = ConvBN(nn.Conv2d(num_feat, num_feat, (1, 3), padding=(0, 1), bias=False))
        self.square = ConvBN(nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False))
        self.vertical = ConvBN(nn.Conv2d(num_feat, num_feat, (3, 1), padding=(1, 0), bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.horizontal(x) + self.square(x) + self.vertical(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The equal plain convolution, added up in float64; this module is left as it was."""
        (row, row_bias), (weight, bias), (column, column_bias) = (
            branch.folded() for branch in (self.horizontal, self.square, self.vertical)
        )
        weight = weight + F.pad(row, (0, 0, 1, 1)) + F.pad(column, (1, 1, 0, 0))
        return _conv_like(self.square.conv, 3, 1, weight, bias + row_bias + column_bias)


class ACRB(nn.Module):
    """Asymmetric convolution residual block, Fig. 3: x + ReLU(asymmetric convolution).  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, deploy: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat, 3, padding=1) if deploy else AsymmetricConv(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


class GCRB(nn.Module):
    """Group convolution residual block: x plus a bottleneck of a quarter of the channels.  (N, C, H, W) -> same.

    Two grouped 1x1 with a channel shuffle and a depth-wise 3x3 between them, as in ShuffleNet; batch norm and ReLU
    follow each.
    """

    def __init__(self, num_feat: int, groups: int, deploy: bool) -> None:
        super().__init__()
        mid = num_feat // 4
        self.groups = groups

        def conv(in_ch: int, out_ch: int, kernel_size: int, groups: int) -> nn.Module:
            layer = nn.Conv2d(in_ch, out_ch, kernel_size, padding=kernel_size // 2, groups=groups, bias=deploy)
            return layer if deploy else ConvBN(layer)

        self.reduce = conv(num_feat, mid, 1, groups)
        self.depthwise = conv(mid, mid, 3, mid)
        self.expand = conv(mid, num_feat, 1, groups)

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(F.relu(self.reduce(x)), self.groups)
        return x + F.relu(self.expand(F.relu(self.depthwise(y))))


class SpatialGate(nn.Module):
    """One gain per pixel from mean and maximum over the channels.  (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)))


class ChannelGate(nn.Module):
    """One gain per channel from the global mean.  (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        mid = max(num_feat // 4, 1)
        self.squeeze = nn.Conv2d(num_feat, mid, 1)
        self.excite = nn.Conv2d(mid, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class SelfCalibration(nn.Module):
    """Self-calibrated convolution, Fig. 2: SCSA with a spatial, SCCA with a channel gate.  (N, C, H, W) -> same.

    Args:
        num_feat: channels C.
        gate: gains for the left half of the channels.
        groups: groups of every 3x3.
        bias: give the 3x3 a bias.
    """

    def __init__(self, num_feat: int, gate: nn.Module, groups: int, bias: bool) -> None:
        super().__init__()
        half = num_feat // 2
        self.groups = groups
        self.gate = gate
        self.left1 = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=bias)
        self.left2 = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=bias)
        self.right = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=bias)
        self.merge = nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        left = self.left2(self.left1(left) * self.gate(left))
        return x + self.merge(channel_shuffle(torch.cat((left, self.right(right)), dim=1), self.groups))


def scsa(num_feat: int, groups: int, bias: bool) -> SelfCalibration:
    """Self-calibrated convolution with spatial attention."""
    return SelfCalibration(num_feat, SpatialGate(), groups, bias)


def scca(num_feat: int, groups: int, bias: bool) -> SelfCalibration:
    """Self-calibrated convolution with channel attention."""
    return SelfCalibration(num_feat, ChannelGate(num_feat // 2), groups, bias)


class EFFB(nn.Module):
    """Enhanced feature fusion block, Fig. 1: three GCRBs, fused by 3x3 with SCSA, SCCA.  (N, C, H, W) -> same."""

    def __init__(
        self, num_feat: int, gcrb_groups: int, effb_groups: int, sc_groups: int, bias: bool, deploy: bool
    ) -> None:
        super().__init__()
        self.gcrbs = nn.ModuleList(GCRB(num_feat, gcrb_groups, deploy) for _ in range(3))
        self.conv1 = nn.Conv2d(2 * num_feat, num_feat, 3, padding=1, groups=effb_groups, bias=bias)
        self.scsa = scsa(num_feat, sc_groups, bias)
        self.conv2 = nn.Conv2d(2 * num_feat, num_feat, 3, padding=1, groups=effb_groups, bias=bias)
        self.scca = scca(num_feat, sc_groups, bias)

    def forward(self, x: Tensor) -> Tensor:
        first = self.gcrbs[0](x)
        second = self.gcrbs[1](first)
        third = self.gcrbs[2](second)
        y = self.scsa(self.conv1(interleave(first, second)))
        return self.scca(self.conv2(interleave(y, third)))


class CC(nn.Module):
    """Combination coefficient, Fig. 4: gains from means and from deviations, averaged.  (N, C, H, W) -> (N, C, 1, 1).

    Args:
        num_feat: channels C.
        reduction: the bottlenecks have ``num_feat // reduction`` channels.
        shared: one bottleneck serves both branches.
    """

    def __init__(self, num_feat: int, reduction: int, shared: bool) -> None:
        super().__init__()

        def bottleneck() -> nn.Sequential:
            mid = max(num_feat // reduction, 1)
            return nn.Sequential(
                nn.Conv2d(num_feat, mid, 1), nn.ReLU(inplace=True), nn.Conv2d(mid, num_feat, 1), nn.Sigmoid()
            )

        self.mean = bottleneck()
        self.std = None if shared else bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        # torch's own deviation has gradient 0 on a constant channel, where a square root would have NaN
        std, mean = torch.std_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return 0.5 * (self.mean(mean) + (self.mean if self.std is None else self.std)(std))


class FFLB(nn.Module):
    """Feature fusion lattice block, Eq. 10-16: two butterflies, then EFFB.  (N, C, H, W) -> same.

    Args:
        num_feat: channels C.
        coefficients: 0 (all coefficients are 1), 2 (A and B serve both butterflies) or 4 combination coefficients.
        reduction: their bottlenecks have ``num_feat // reduction`` channels.
        shared: one bottleneck per coefficient instead of one each for mean and deviation.
        gcrb: keep the GCRBs of the two branches.
        effb: the fusion block, or identity.
        gcrb_groups: groups of a GCRB's 1x1.
        esa_channels: channels of ESA's mask branch.
        deploy: build the fused form.
    """

    def __init__(
        self,
        num_feat: int,
        coefficients: int,
        reduction: int,
        shared: bool,
        gcrb: bool,
        effb: nn.Module,
        gcrb_groups: int,
        esa_channels: int,
        deploy: bool,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                *([GCRB(num_feat, gcrb_groups, deploy)] if gcrb else []),
                ESARFDN(num_feat, esa_channels),
            )
            for _ in range(2)
        )
        self.coefficients = nn.ModuleList(CC(num_feat, reduction, shared) for _ in range(coefficients))
        self.scale_upper = nn.Parameter(torch.ones(()))
        self.scale_lower = nn.Parameter(torch.ones(()))
        self.effb = effb

    def weighted(self, butterfly: int, branch: int, x: Tensor) -> Tensor:
        """``x`` times A (branch 0) or B (branch 1) of the first or second butterfly."""
        count = len(self.coefficients)
        return x if count == 0 else x * self.coefficients[(2 * butterfly + branch) % count](x)

    def forward(self, x: Tensor) -> Tensor:
        low = self.branches[0](x)
        upper, lower = x + self.weighted(0, 1, low), low + self.weighted(0, 0, x)
        up = self.branches[1](upper)
        upper, lower = up + self.weighted(1, 1, lower), lower + self.weighted(1, 0, up)
        return x + self.effb(self.scale_upper * upper + self.scale_lower * lower)


class ACDM(nn.Module):
    """Asymmetric convolution distillation module, Eq. 17-27.  (N, C, H, W) -> same.

    Args:
        num_feat: channels C.
        distill: channels that leave at each of the three steps.
        conv4_out: channels that stay to the end.
        acrbs: what works on the distilled channels at each step.
        fflbs: what works on the remaining channels at each step.
        mscc: what ends the module.
    """

    def __init__(
        self, num_feat: int, distill: int, conv4_out: int, acrbs: nn.ModuleList, fflbs: nn.ModuleList, mscc: nn.Module
    ) -> None:
        super().__init__()
        self.split = (num_feat - distill, distill)
        self.convs = nn.ModuleList(nn.Conv2d(num_feat - distill, num_feat, 3, padding=1) for _ in range(3))
        self.acrbs = acrbs
        self.fflbs = fflbs
        self.conv4 = nn.Conv2d(num_feat, conv4_out, 3, padding=1)
        self.fuse_conv = nn.Conv2d(3 * distill + conv4_out, num_feat, 3, padding=1)
        self.mscc = mscc

    def forward(self, x: Tensor) -> Tensor:
        y, kept = x, []
        for step in range(3):
            remain, distilled = y.split(self.split, dim=1)
            kept.append(self.acrbs[step](distilled))
            y = self.fflbs[step](self.convs[step](remain))
        return x + self.mscc(self.fuse_conv(torch.cat((*kept, self.conv4(y)), dim=1)))


class RFDB(nn.Module):
    """Residual feature distillation block of RFDN, for Table 2.  (N, C, H, W) -> same."""

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


class EMHA(nn.Module):
    """Efficient multi-head attention (ESRT): half the width, within consecutive chunks.  (N, T, C) -> same.

    The T tokens are cut into chunks of ceil(T / attn_chunks). Attention is fused, so memory grows with T and not
    with its square.

    Args:
        dim: width C of a token.
        num_heads: heads, on half the width.
        attn_chunks: number of chunks.
        qk_scale: factor on the products of queries and keys; None is one over the root of a head's width (Eq. 30).
    """

    def __init__(self, dim: int, num_heads: int, attn_chunks: int, qk_scale: float | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_chunks = attn_chunks
        self.scale = (dim // 2 // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.reduce = nn.Linear(dim, dim // 2, bias=False)
        self.qkv = nn.Linear(dim // 2, 3 * (dim // 2), bias=False)
        self.proj = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.reduce(x))
        tokens, chunks = qkv.shape[1], self.attn_chunks
        size = (tokens + chunks - 1) // chunks  # not -(-tokens // chunks): ONNX rounds towards zero
        # Sizes that are symbols say nothing about a remainder; there the last chunk always goes by itself.
        whole = tokens // size if isinstance(tokens, int) else chunks - 1
        parts = []
        if whole > 0:
            parts.append(self.attend(qkv[:, : whole * size].unflatten(1, (whole, size)).flatten(0, 1)))
            parts[0] = parts[0].unflatten(0, (-1, whole)).flatten(1, 2)
        if not isinstance(tokens, int) or tokens > whole * size:
            parts.append(self.attend(qkv[:, whole * size :]))
        return self.proj(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention of every token of a chunk to its whole chunk: (chunks, T, 3C) -> (chunks, T, C)."""
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        width = q.shape[-1]
        if width % 8 and q.is_cuda:  # the memory-efficient kernels want whole vectors; zeros change no product
            q, k, v = (F.pad(part, (0, -width % 8)) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return out[..., :width].transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Efficient transformer, Eq. 28-29, on the 3 x 3 neighbourhoods of all pixels.  (N, C, H, W) -> same.

    Args:
        num_feat: channels C; a token holds 9 C values.
        num_heads: heads of the attention.
        attn_chunks: chunks within which attention acts.
        mlp_hidden: hidden units of the MLP.
        qk_scale: factor on the products of queries and keys.
        fold_norm: divide the folded tokens by their overlap, which makes folding the inverse of unfolding.
    """

    def __init__(
        self,
        num_feat: int,
        num_heads: int,
        attn_chunks: int,
        mlp_hidden: int,
        qk_scale: float | None,
        fold_norm: bool,
    ) -> None:
        super().__init__()
        dim = 9 * num_feat
        self.fold_norm = fold_norm
        self.norm1 = nn.LayerNorm(dim)
        self.attn = EMHA(dim, num_heads, attn_chunks, qk_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_hidden), nn.ReLU(inplace=True), nn.Linear(mlp_hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        tokens = unfold(x)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return fold(tokens, (x.shape[2], x.shape[3]), self.fold_norm)


def unfold(x: Tensor) -> Tensor:
    """The zero-padded 3 x 3 neighbourhood of every pixel, row by row: (N, C, H, W) -> (N, H W, 9C)."""
    return F.unfold(x, 3, padding=1).transpose(1, 2)


def fold(tokens: Tensor, size: tuple[int, int], norm: bool) -> Tensor:
    """Adds the neighbourhoods up where they lie: (N, H W, 9C) -> (N, C, H, W).

    Args:
        tokens: as ``unfold`` makes them.
        size: H, W.
        norm: divide by the number of neighbourhoods at a pixel: 9, at edges 6, in corners 4.
    """
    x = F.fold(tokens.transpose(1, 2), size, 3, padding=1)
    if not norm:
        return x
    rows, columns = (_neighbours(side, x) for side in size)
    return x / (rows[:, None] * columns)


def _neighbours(side: int, like: Tensor) -> Tensor:
    """How many of positions i - 1, i, i + 1 lie within ``side``, for every i: (side,)."""
    position = torch.arange(side, device=like.device)
    return 3 - (position == 0).to(like.dtype) - (position == side - 1).to(like.dtype)


def _first(state: Mapping[str, Tensor], *patterns: str) -> Tensor | None:
    """The first tensor whose name ends in one of ``patterns``, taken in turn."""
    return next((state[name] for pattern in patterns for name in state if name.endswith(pattern)), None)


def _fits(usual: int, whole: int) -> int:
    """``usual`` if it divides ``whole``, else the largest smaller number that does."""
    return next(n for n in range(usual, 0, -1) if whole % n == 0)


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
class EFRDN(nn.Module):
    """Efficient feature reuse distillation network for lightweight super-resolution.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= ``min_size``, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. Batch norms make train and eval mode differ. Attention
    acts within horizontal strips of a quarter of the image, so a tile is not equal to that part of a whole image.
    Train in the default form, deploy the result of ``fuse()``.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk (Section 4.2: 32).
        upscale: scale factor r, one of 2, 3, 4.
        block: 'acdm', or 'imdb' or 'rfdb' for Table 2; these two know of the following only ``share`` and
            ``esa_channels``.
        share: which block stands at each place, by number from 0; None is (0, 1, 0, 1) (Section 3.1) for 'acdm' and
            four blocks otherwise. Its length is the number of blocks in sequence.
        distill: channels distilled at each step of an ACDM (fitted: 8).
        conv4_out: channels of the last of its refined features (fitted: 32).
        acrb: on distilled channels: 'acrb', 'conv3' (a plain 3x3) or 'none' (Table 3).
        fflb: keep the FFLBs (Table 3).
        mscc: keep the MSCC (Table 3).
        gcrb: keep the GCRBs in the branches of an FFLB (Table 4); EFFB keeps its own.
        effb: keep the EFFB (Table 4).
        cc: keep the combination coefficients (Table 4); they are 1 otherwise.
        cc_mode: combination coefficients of an FFLB: 'two' (each serves both butterflies), 'four', or
            'four_single_bottleneck' (mean and deviation go through the same layers; as many parameters as 'two').
        cc_reduction: their bottlenecks have ``num_feat // cc_reduction`` channels (LatticeNet: 16).
        gcrb_groups: groups of a GCRB's 1x1 (fitted: 2).
        effb_groups: groups of EFFB's two 3x3 (fitted: 8).
        sc_groups: groups of the 3x3 of SCSA and SCCA (fitted: 4).
        grouped_bias: give the 3x3 of EFFB, SCSA and SCCA a bias.
        esa_channels: channels of ESA's mask branch (fitted: 8).
        cnn_dc: dense connections among the blocks (Eq. 2, Table 5).
        trans_dc: dense connections among the transformers (Eq. 5 and 7, Table 5).
        num_heads: heads of the attention (ESRT: 8).
        attn_chunks: horizontal strips within which attention acts (ESRT: 4).
        mlp_hidden: hidden units of the transformer's MLP (fitted: 144).
        qk_scale: factor on the products of queries and keys; None is Eq. 30, ESRT's code has 1/6.
        fold_norm: divide folded tokens by their overlap; False is ESRT's code.
        deploy: build the fused form, for checkpoints saved from a fused net.

    Raises:
        ValueError: an option is out of its range, or an input is not of the stated shape.
    """

    mean_in: Tensor
    mean_out: Tensor
    marks = ('head.weight', 'body.0.*', 'transformers.0.*', 'up_deep.weight', 'up_shallow.weight')
    unseen = ('share', 'num_heads', 'attn_chunks', 'cnn_dc', 'trans_dc', 'qk_scale', 'fold_norm')
    ncnn = 'not converted whole by pnnx: maps of five dimensions in the attention'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        upscale: int = 4,
        block: str = 'acdm',
        share: Sequence[int] | None = None,
        distill: int = 8,
        conv4_out: int = 32,
        acrb: str = 'acrb',
        fflb: bool = True,
        mscc: bool = True,
        gcrb: bool = True,
        effb: bool = True,
        cc: bool = True,
        cc_mode: str = 'two',
        cc_reduction: int = 16,
        gcrb_groups: int = 2,
        effb_groups: int = 8,
        sc_groups: int = 4,
        grouped_bias: bool = False,
        esa_channels: int = 8,
        cnn_dc: bool = True,
        trans_dc: bool = True,
        num_heads: int = 8,
        attn_chunks: int = 4,
        mlp_hidden: int = 144,
        qk_scale: float | None = None,
        fold_norm: bool = True,
        deploy: bool = False,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ('self', '__class__')}
        super().__init__()
        check_choice('EFRDN', 'upscale', upscale, (2, 3, 4))
        check_choice('EFRDN', 'block', block, ('acdm', 'imdb', 'rfdb'))
        check_choice('EFRDN', 'acrb', acrb, ('acrb', 'conv3', 'none'))
        check_choice('EFRDN', 'cc_mode', cc_mode, ('two', 'four', 'four_single_bottleneck'))
        check_positive(
            'EFRDN',
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=num_feat,
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
        )
        if share is None:
            share = (0, 1, 0, 1) if block == 'acdm' else (0, 1, 2, 3)
        whole = isinstance(share, Sequence) and all(type(number) is int for number in share)
        if not whole or not share or set(share) != set(range(len(set(share)))):
            raise ValueError(
                'EFRDN: share must name blocks by whole numbers from 0 without a gap, such as [0, 1, 0, 1], '
                f'got {share!r}'
            )
        share = tuple(share)
        for option, value, must_divide, what in (
            ('gcrb_groups', gcrb_groups, num_feat // 4, 'num_feat // 4'),
            ('effb_groups', effb_groups, num_feat, 'num_feat'),
            ('sc_groups', sc_groups, num_feat // 2, 'num_feat // 2'),
            ('num_heads', num_heads, 9 * num_feat // 2, '9 num_feat / 2'),
        ):
            if must_divide % value:
                raise ValueError(f'EFRDN: {option} must divide {what} = {must_divide}, got {value}')
        if num_feat % 4:
            raise ValueError(f'EFRDN: num_feat must be a multiple of 4, got {num_feat}')
        if distill >= num_feat:
            raise ValueError(f'EFRDN: distill must be less than num_feat = {num_feat}, got {distill}')
        if qk_scale is not None and not qk_scale > 0:
            raise ValueError(f'EFRDN: qk_scale must be positive, or none for 1/sqrt(width), got {qk_scale!r}')
        self._options = options
        self.upscale = upscale
        self.deploy = deploy
        self.num_in_ch = num_in_ch
        self.share = share
        self.cnn_dc = cnn_dc
        self.trans_dc = trans_dc
        self.min_size = ESARFDN.min_size if block == 'rfdb' or (block == 'acdm' and fflb) else 1

        def make_acrb() -> nn.Module:
            if acrb == 'acrb':
                return ACRB(distill, deploy)
            return nn.Conv2d(distill, distill, 3, padding=1) if acrb == 'conv3' else nn.Identity()

        def make_fflb() -> nn.Module:
            if not fflb:
                return nn.Identity()
            fusion = (
                EFFB(num_feat, gcrb_groups, effb_groups, sc_groups, grouped_bias, deploy) if effb else nn.Identity()
            )
            count = 0 if not cc else 2 if cc_mode == 'two' else 4
            shared = cc_mode == 'four_single_bottleneck'
            return FFLB(num_feat, count, cc_reduction, shared, gcrb, fusion, gcrb_groups, esa_channels, deploy)

        def make_block() -> nn.Module:
            if block == 'imdb':
                return IMDB(num_feat)
            if block == 'rfdb':
                return RFDB(num_feat, esa_channels)
            acrbs, fflbs = (nn.ModuleList(make() for _ in range(3)) for make in (make_acrb, make_fflb))
            pair = (scsa(num_feat, sc_groups, grouped_bias), scca(num_feat, sc_groups, grouped_bias)) if mscc else ()
            return ACDM(num_feat, distill, conv4_out, acrbs, fflbs, nn.Sequential(*pair))

        self.register_buffer('mean_in', rgb_mean(num_in_ch), persistent=False)
        self.register_buffer('mean_out', rgb_mean(num_out_ch), persistent=False)
        self.head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(make_block() for _ in set(share))
        self.convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in share)
        self.transformers = nn.ModuleList(
            Transformer(num_feat, num_heads, attn_chunks, mlp_hidden, qk_scale, fold_norm) for _ in range(2)
        )
        self.trans_convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 1) for _ in range(2))
        self.up_deep = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1)
        self.up_shallow = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1)

    def cnn(self, shallow: Tensor) -> Tensor:
        """Eq. 2 and 3.  (N, C, H, W) -> same."""
        deep = earlier = shallow  # ``earlier``: the sum of all before, if the connections are dense
        for place, number in enumerate(self.share):
            deep = self.body[number](deep)
            deep = self.convs[place](deep + earlier if self.cnn_dc else deep)
            earlier = earlier + deep
        return earlier if self.cnn_dc else deep + shallow

    def trans(self, x: Tensor, shallow: Tensor) -> Tensor:
        """Eq. 4 to 7.  Two (N, C, H, W) -> one."""
        for place in range(2):
            y = self.trans_convs[place](self.transformers[place](x))
            x = x + y if self.trans_dc else y
        return x + shallow

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
            options.update(_acdm_options(state, width))
        deploy = any(re.search(r'\.0\.(reduce|conv)\.bias$', name) for name in state)
        for out, upscale in pixelshuffle_tails(state['up_deep.weight'].shape[0], first.shape[1]):
            yield {**options, 'num_out_ch': out, 'upscale': upscale, **({'deploy': True} if deploy else {})}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.head(x - self.mean_in)
        deep = self.trans(self.cnn(shallow), shallow)
        # the shuffle of a sum is the sum of the shuffles of Eq. 8
        return F.pixel_shuffle(self.up_deep(deep) + self.up_shallow(shallow), self.upscale) + self.mean_out

    def fuse(self, *, inplace: bool = False) -> EFRDN:
        """The deployed form: batch norms folded, every ACRB with one plain 3 x 3, computed in float64.

        Equal to this net in eval mode.

        Args:
            inplace: change this net instead of a copy. The copy is built anew, so hooks do not follow.

        Returns:
            The deployed net, with ``deploy`` True; its state dict loads into ``EFRDN(deploy=True, ...)``.
        """
        net = self
        if not inplace:
            net = type(self)(**self._options).to(self.head.weight).train(self.training)
            net.load_state_dict(self.state_dict())
        for parent in list(net.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, (AsymmetricConv, ConvBN)):
                    setattr(parent, name, child.fuse())
        net.deploy = True
        net._options = {**net._options, 'deploy': True}
        return net
