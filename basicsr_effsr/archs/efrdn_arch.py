"""EFRDN: efficient feature reuse distillation network.

Paper:        C. Liu et al., "An efficient feature reuse distillation network for lightweight image
              super-resolution".
Weights:      none published; parameter names are ours.
Differences:  no code is public. What text and figures leave open is chosen so that the sizes and multiply-adds of
              Tables 1 to 4 come out within 1.5 % (tests/test_efrdn.py): groups of 4 in the self-calibrated
              convolutions and of 8 in the feature fusion, two combination coefficients per lattice block, 144
              hidden units in the transformer. Folding divides by the overlap, so that it inverts unfolding; the
              ancestors of the transformer (ESRT, LBNet) leave a gain of 9 with a dark rim. Attention is fused: no map
              of chunk x chunk is ever held.
Ablations:    Tables 2 to 5, and other readings of the text, are EFRDNAblation (efrdn_ablation_arch.py).
Length:       the paper draws thirteen blocks of its own, and a drop-in is one file.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, Literal, Mapping, Sequence, Tuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESARFDN,
    Fusable,
    bottleneck_gate,
    check_input,
    conv_like,
    count_numbers,
    divisor,
    exporting,
    fused_attention,
    register_in,
    std_and_mean,
    usual_options,
)

__all__ = ['EFRDN']


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deals the channels of ``groups`` groups out in turn: (N, C, H, W) -> same."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ConvBN(nn.Sequential):
    """Convolution without bias and batch norm; ``fuse`` gives the one convolution that it is in eval mode."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the equal convolution, in float64."""
        mean, var = (self.bn.get_buffer(name).double() for name in ('running_mean', 'running_var'))
        gain = self.bn.weight.double() / torch.sqrt(var + self.bn.eps)
        return self.conv.weight.double() * gain.view(-1, 1, 1, 1), self.bn.bias.double() - mean * gain

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The equal plain convolution; this module is left as it was."""
        return conv_like(self.conv, *self.weight_and_bias())


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
            branch.weight_and_bias() for branch in (self.horizontal, self.square, self.vertical)
        )
        weight = weight + F.pad(row, (0, 0, 1, 1)) + F.pad(column, (1, 1, 0, 0))
        return conv_like(self.square.conv, weight, bias + row_bias + column_bias)


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

    The gate acts on the left half of the channels. Every 3x3 has ``groups`` and no bias.
    """

    def __init__(self, num_feat: int, gate: nn.Module, groups: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.groups = groups
        self.gate = gate
        self.left1 = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=False)
        self.left2 = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=False)
        self.right = nn.Conv2d(half, half, 3, padding=1, groups=groups, bias=False)
        self.merge = nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        left = self.left2(self.left1(left) * self.gate(left))
        return x + self.merge(channel_shuffle(torch.cat((left, self.right(right)), dim=1), self.groups))


class EFFB(nn.Module):
    """Enhanced feature fusion block, Fig. 1: three GCRBs, fused by 3x3 with SCSA, SCCA.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, gcrb_groups: int, effb_groups: int, sc_groups: int, deploy: bool) -> None:
        super().__init__()
        self.gcrbs = nn.ModuleList(GCRB(num_feat, gcrb_groups, deploy) for _ in range(3))
        self.conv1 = nn.Conv2d(2 * num_feat, num_feat, 3, padding=1, groups=effb_groups, bias=False)
        self.scsa = SelfCalibration(num_feat, SpatialGate(), sc_groups)
        self.conv2 = nn.Conv2d(2 * num_feat, num_feat, 3, padding=1, groups=effb_groups, bias=False)
        self.scca = SelfCalibration(num_feat, ChannelGate(num_feat // 2), sc_groups)

    def forward(self, x: Tensor) -> Tensor:
        first = self.gcrbs[0](x)
        second = self.gcrbs[1](first)
        third = self.gcrbs[2](second)
        y = self.scsa(self.conv1(channel_shuffle(torch.cat((first, second), dim=1), 2)))
        return self.scca(self.conv2(channel_shuffle(torch.cat((y, third), dim=1), 2)))


class CC(nn.Module):
    """Combination coefficient, Fig. 4: gains from means and from deviations, averaged.  (N, C, H, W) -> (N, C, 1, 1).

    Each is a bottleneck of ``num_feat // reduction`` channels.
    """

    def __init__(self, num_feat: int, reduction: int) -> None:
        super().__init__()
        self.mean = bottleneck_gate(num_feat, max(num_feat // reduction, 1))
        self.std = bottleneck_gate(num_feat, max(num_feat // reduction, 1))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = std_and_mean(x)
        return 0.5 * (self.mean(mean) + self.std(std))


class FFLB(nn.Module):
    """Feature fusion lattice block, Eq. 10-16: two butterflies, then EFFB.  (N, C, H, W) -> same."""

    def __init__(
        self, num_feat: int, reduction: int, gcrb_groups: int, effb: nn.Module, esa_channels: int, deploy: bool
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(GCRB(num_feat, gcrb_groups, deploy), ESARFDN(num_feat, esa_channels)) for _ in range(2)
        )
        self.coefficients = nn.ModuleList(CC(num_feat, reduction) for _ in range(2))
        self.scale_upper = nn.Parameter(torch.ones(()))
        self.scale_lower = nn.Parameter(torch.ones(()))
        self.effb = effb

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.coefficients)  # A and B serve both butterflies
        a1, b1, a2, b2 = (self.coefficients[i % count] for i in range(4))
        low = self.branches[0](x)
        upper, lower = x + b1(low) * low, low + a1(x) * x
        up = self.branches[1](upper)
        upper, lower = up + b2(lower) * lower, lower + a2(up) * up
        return x + self.effb(self.scale_upper * upper + self.scale_lower * lower)


class ACDM(nn.Module):
    """Asymmetric convolution distillation module, Eq. 17-27.  (N, C, H, W) -> same.

    At each of three steps ``distill`` channels leave through one of ``acrbs`` and the others go on through one of
    ``fflbs``; ``conv4_out`` stay to the end.
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


class EMHA(nn.Module):
    """Efficient multi-head attention (ESRT): half the width, within consecutive chunks.  (N, T, C) -> same.

    The T tokens are cut into chunks of ceil(T / attn_chunks). Attention is fused, so memory grows with T and not
    with its square.
    """

    def __init__(self, dim: int, num_heads: int, attn_chunks: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_chunks = attn_chunks
        self.scale = (dim // 2 // num_heads) ** -0.5  # Eq. 30
        self.reduce = nn.Linear(dim, dim // 2, bias=False)
        self.qkv = nn.Linear(dim // 2, 3 * (dim // 2), bias=False)
        self.proj = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.reduce(x))
        tokens, chunks = qkv.shape[1], self.attn_chunks
        size = (tokens + chunks - 1) // chunks  # not -(-tokens // chunks): ONNX rounds towards zero
        if torch.jit.is_tracing():  # ncnn has no batches
            strips = [qkv[:, i * size : (i + 1) * size] for i in range(chunks - 1)]
            return self.proj(torch.cat([self.attend(part) for part in (*strips, qkv[:, (chunks - 1) * size :])], dim=1))
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
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        return fused_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)


TAPS = torch.eye(9).view(9, 1, 3, 3)  # when exporting, fold and unfold are convolutions, which every engine has


def unfold(x: Tensor) -> Tensor:
    """The zero-padded 3 x 3 neighbourhood of every pixel, row by row: (N, C, H, W) -> (N, H W, 9C)."""
    if exporting():
        taps = TAPS.to(x).repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(x, taps, padding=1, groups=x.shape[1]).flatten(2).transpose(1, 2)
    return F.unfold(x, 3, padding=1).transpose(1, 2)


def fold(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of ``unfold``: neighbourhoods added up where they lie, divided by how many lie at a pixel.

    (N, H W, 9C) -> (N, C, H, W) with H, W = ``size``; the divisor is 9, at edges 6, in corners 4.
    """
    if exporting():
        maps, taps = tokens.transpose(1, 2).unflatten(2, size), TAPS.to(tokens).view(1, 9, 3, 3).flip(1)
        channels = maps.shape[1] // 9
        count = F.conv2d(maps[:1, :1] * 0 + 1, torch.ones_like(taps[:, :1]), padding=1)
        return F.conv2d(maps, taps.repeat(channels, 1, 1, 1), padding=1, groups=channels) / count
    count = F.fold(F.unfold(tokens.new_ones(1, 1, *size), 3, padding=1), size, 3, padding=1)
    return F.fold(tokens.transpose(1, 2), size, 3, padding=1) / count


class Transformer(nn.Module):
    """Efficient transformer, Eq. 28-29, on the 3 x 3 neighbourhoods of all pixels, tokens of 9 C values.

    (N, C, H, W) -> same.
    """

    fold = staticmethod(fold)

    def __init__(self, num_feat: int, num_heads: int, attn_chunks: int, mlp_hidden: int) -> None:
        super().__init__()
        dim = 9 * num_feat
        self.norm1 = nn.LayerNorm(dim)
        self.attn = EMHA(dim, num_heads, attn_chunks)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_hidden), nn.ReLU(inplace=True), nn.Linear(mlp_hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        tokens = unfold(x)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.fold(tokens, (x.shape[2], x.shape[3]))


def largest_divisor(whole: int, usual: int) -> int:
    """``usual`` if it divides ``whole``, else the largest smaller number that does."""
    return next(n for n in range(usual, 0, -1) if whole % n == 0)


@register_in(ARCH_REGISTRY)
class EFRDN(Fusable):
    """Efficient feature reuse distillation network for lightweight super-resolution.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= ``min_size``, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. Batch norms make train and eval mode differ. Attention
    acts within ``attn_chunks`` horizontal strips of the image, so a tile is not equal to that part of a whole image.
    Train in the default form, deploy the result of ``fuse()``.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk (Section 4.2: 32).
        upscale: scale factor r, one of 2, 3, 4.
        share: which block stands at each place, by number from 0 (Section 3.1). Its length is the number of blocks in
            sequence.
        distill: channels distilled at each step of an ACDM (fitted: 8).
        conv4_out: channels of the last of its refined features (fitted: 32).
        cc_reduction: combination coefficients have bottlenecks of ``num_feat // cc_reduction`` channels
            (LatticeNet: 16).
        gcrb_groups: groups of a GCRB's 1x1 (fitted: 2).
        effb_groups: groups of EFFB's two 3x3 (fitted: 8).
        sc_groups: groups of the 3x3 of SCSA and SCCA (fitted: 4).
        esa_channels: channels of ESA's mask branch (fitted: 8).
        num_heads: heads of the attention (ESRT: 8).
        attn_chunks: horizontal strips within which attention acts (ESRT: 4, LBNet: 16).
        mlp_hidden: hidden units of the transformer's MLP (fitted: 144).
        deploy: build the fused form, for checkpoints saved from a fused net.
    """

    min_size = ESARFDN.min_size
    marks = ('head.weight', 'body.0.*', 'transformers.0.*', 'up_deep.weight', 'up_shallow.weight')
    unseen: Tuple[str, ...] = ('share', 'num_heads', 'attn_chunks')
    parts = (AsymmetricConv, ConvBN)
    ncnn = 'runs, by pnnx from --form torchscript, at any size'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        upscale: Literal[2, 3, 4] = 4,
        share: Sequence[int] = (0, 1, 0, 1),
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
    ) -> None:
        super().__init__(locals(), centred=True)
        name = type(self).__name__
        whole = isinstance(share, Sequence) and all(type(number) is int for number in share)
        if not whole or not share or set(share) != set(range(len(set(share)))):
            raise ValueError(
                f'{name}: share must name blocks by integers from 0 without a gap, such as [0, 1, 0, 1], got {share!r}'
            )
        share = tuple(share)
        for option, value, must_divide, what in (
            ('gcrb_groups', gcrb_groups, num_feat // 4, 'num_feat // 4'),
            ('effb_groups', effb_groups, num_feat, 'num_feat'),
            ('sc_groups', sc_groups, num_feat // 2, 'num_feat // 2'),
            ('num_heads', num_heads, 9 * num_feat // 2, '9 num_feat / 2'),
        ):
            if must_divide % value:
                raise ValueError(f'{name}: {option} must divide {what} = {must_divide}, got {value}')
        if num_feat % 4:
            raise ValueError(f'{name}: num_feat must be a multiple of 4, got {num_feat}')
        if distill >= num_feat:
            raise ValueError(f'{name}: distill must be less than num_feat = {num_feat}, got {distill}')
        self.deploy = deploy
        self.share = share

        def make_block() -> ACDM:
            acrbs = nn.ModuleList(ACRB(distill, deploy) for _ in range(3))
            effbs = (EFFB(num_feat, gcrb_groups, effb_groups, sc_groups, deploy) for _ in range(3))
            fflbs = nn.ModuleList(
                FFLB(num_feat, cc_reduction, gcrb_groups, effb, esa_channels, deploy) for effb in effbs
            )
            gates = SpatialGate(), ChannelGate(num_feat // 2)
            mscc = nn.Sequential(*(SelfCalibration(num_feat, gate, sc_groups) for gate in gates))
            return ACDM(num_feat, distill, conv4_out, acrbs, fflbs, mscc)

        self.head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(make_block() for _ in set(share))
        self.convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in share)
        self.transformers = nn.ModuleList(Transformer(num_feat, num_heads, attn_chunks, mlp_hidden) for _ in range(2))
        self.trans_convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 1) for _ in range(2))
        self.up_deep = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1)
        self.up_shallow = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1)

    def cnn(self, shallow: Tensor) -> Tensor:
        """Eq. 2 and 3.  (N, C, H, W) -> same."""
        deep = total = shallow
        for place, number in enumerate(self.share):
            deep = self.convs[place](self.body[number](deep) + total)
            total = total + deep
        return total

    def trans(self, x: Tensor, shallow: Tensor) -> Tensor:
        """Eq. 4 to 7.  Two (N, C, H, W) -> one."""
        for place in range(2):
            x = x + self.trans_convs[place](self.transformers[place](x))
        return x + shallow

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        width = len(state['head.weight'])
        readings = {  # layers, and what they show; EFRDNAblation may lack them, then their option must still fit
            'distill': (r'body\.0\.convs\.0\.weight', lambda t: width - t.shape[1], min(8, width - 1)),
            'conv4_out': (r'body\.0\.conv4\.weight', len, 32),
            'cc_reduction': (r'.*coefficients\.0\.mean\.0\.weight', lambda t: divisor(width, len(t), 16), 16),
            'gcrb_groups': (
                r'.*\.0\.reduce(\.conv)?\.weight',
                lambda t: width // t.shape[1],
                largest_divisor(width // 4, 2),
            ),
            'effb_groups': (r'.*effb\.conv1\.weight', lambda t: 2 * width // t.shape[1], largest_divisor(width, 8)),
            'sc_groups': (r'.*left1\.weight', lambda t: width // 2 // t.shape[1], largest_divisor(width // 2, 4)),
            'esa_channels': (r'body.*(esa|branches\.0\.\d)\.conv1\.weight', len, 8),
            'mlp_hidden': (r'transformers\.0\.mlp\.0\.weight', len, 144),
        }
        options: Dict[str, Any] = {'num_heads': largest_divisor(9 * width // 2, 8)}
        for option, (pattern, read, otherwise) in readings.items():
            layer = next((tensor for name, tensor in state.items() if re.fullmatch(pattern, name)), None)
            options[option] = otherwise if layer is None else read(layer)
        if any(re.search(r'\.0\.(reduce|conv)\.bias$', name) for name in state):
            options['deploy'] = True
        # the order in which blocks are shared leaves no trace
        places = count_numbers(state, r'convs\.(\d+)\.')
        for usual in usual_options(state, 'head.weight', r'body\.(\d+)\.', 'up_deep.weight'):
            blocks = usual.pop('num_block')
            yield {**usual, **options, 'share': tuple(place % blocks for place in range(places))}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.head(x - self.mean_in)
        deep = self.trans(self.cnn(shallow), shallow)
        # the shuffle of a sum is the sum of the shuffles of Eq. 8
        return F.pixel_shuffle(self.up_deep(deep) + self.up_shallow(shallow), self.upscale) + self.mean_out
