"""AGDN: attention guidance distillation network, and AGDN-S with ``num_feat=24, num_block=4, tlc=96``.

Paper:        H. Wang et al., "Attention Guidance Distillation Network for Efficient Image
              Super-Resolution", CVPR Workshops 2024.
Weights:      the authors' x2, x3, x4 and AGDN-S checkpoints load with ``strict=True``; names are theirs.
Differences:  from the paper's text, the authors' code is followed: the self-attention has layer norms
              and a gated feed-forward layer around it, and both attentions add their input. From the
              code: TLC takes any batch, holds no state and has no loop over windows; the local variance
              is computed from two average pools.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from typing import Any, ClassVar, Dict, Iterable, Iterator, Literal, Mapping, Optional, Sequence, Tuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESA,
    UPSAMPLER_NAMES,
    CCALayer,
    GatedDconvFFN,
    LayerNorm2d,
    Network,
    at_least_float32,
    channels_last,
    check_input,
    cosines,
    eager_on_cpu,
    gelu,
    in_parts,
    infers_on_cpu,
    is_compiling,
    pixelshuffle_upsampler,
    register_in,
    unobserved,
    usual_options,
)

__all__ = ['AGDN']


class BSConv(nn.Module):
    """Blueprint separable convolution, Fig. 3 (c): 1 x 1, then depth-wise 3 x 3 on reflected borders.

    (N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride)); H, W >= 2.
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1) -> None:
        super().__init__()
        self.pw = nn.Conv2d(in_ch, out_ch, 1, bias=False)
        self.dw = nn.Conv2d(out_ch, out_ch, 3, stride, 1, groups=out_ch, padding_mode='reflect')

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


def side_by_side(x: Tensor, convs: Sequence[BSConv]) -> Tuple[Tensor, ...]:
    """What blueprint convolutions of one stride give for one map, by two convolutions in all."""
    if not (eager_on_cpu(x) and all(map(unobserved, convs))):
        return tuple(conv(x) for conv in convs)
    x = F.conv2d(x, torch.cat([conv.pw.weight for conv in convs]))
    layers = (conv.dw.parameters() for conv in convs)
    weight, bias = (torch.cat(parts) for parts in zip(*layers))  # noqa: B905 (Python 3.8)
    x = F.pad(x, (1, 1, 1, 1), mode='reflect')
    return F.conv2d(x, weight, bias, convs[0].dw.stride, groups=len(weight)).chunk(len(convs), dim=1)


def local_variance(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Unbiased variance of each window of a map whose border is reflected by one pixel.

    (N, C, H, W) -> the size that max pooling with padding 1 gives. At least float32 inside, around the
    mean of the whole map: the difference of two moments cancels otherwise.
    """
    wide = at_least_float32(x)
    centred = F.pad(wide - wide.mean(dim=(2, 3), keepdim=True), (1, 1, 1, 1), mode='reflect')
    mean = F.avg_pool2d(centred, kernel_size, stride)
    square = F.avg_pool2d(centred.square(), kernel_size, stride)
    count = kernel_size**2
    return ((square - mean.square()) * (count / (count - 1))).to(x.dtype)


class MVSA(nn.Module):
    """Multi-level variance-aware spatial attention, Fig. 3 (d): mask times input, plus input.

    (N, C, H, W) -> same; H, W >= 15. The branches D5 and D7 pool with windows of 5 and 7.
    """

    min_size = 15  # below it the D7 branch is one pixel wide, which cannot be reflected

    def __init__(self, num_feat: int, mask_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, mask_channels, 1)
        self.conv_f = nn.Conv2d(mask_channels, mask_channels, 1)
        self.conv2_1 = BSConv(mask_channels, mask_channels, stride=2)
        self.conv2_2 = BSConv(mask_channels, mask_channels, stride=2)
        self.conv2_3 = BSConv(mask_channels, mask_channels, stride=2)
        self.conv2_4 = BSConv(mask_channels, mask_channels, stride=2)
        self.conv_max_1 = BSConv(mask_channels, mask_channels)
        self.conv_max_2 = BSConv(mask_channels, mask_channels)
        self.conv3_1 = BSConv(mask_channels, mask_channels)
        self.conv3_2 = BSConv(mask_channels, mask_channels)
        self.conv4 = nn.Conv2d(mask_channels, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        one, two, three, four = side_by_side(reduced, (self.conv2_1, self.conv2_2, self.conv2_3, self.conv2_4))
        d5 = F.max_pool2d(one, 5, 3, padding=1) + local_variance(four, 5, 3)
        d7 = F.max_pool2d(two, 7, 3, padding=1) + local_variance(three, 7, 3)
        d5 = self.conv3_1(F.gelu(self.conv_max_1(d5)))
        d7 = self.conv3_2(F.gelu(self.conv_max_2(d7)))
        d5 = F.interpolate(d5, size=x.shape[-2:], mode='bilinear', align_corners=False)
        d7 = F.interpolate(d7, size=x.shape[-2:], mode='bilinear', align_corners=False)
        return x * torch.sigmoid(self.conv4(d5 + d7 + self.conv_f(reduced))) + x


class BlueprintESA(ESA):
    """ESA with a blueprint separable inner convolution: the size of Table 2's ESA."""

    def __init__(self, num_feat: int, esa_channels: int) -> None:
        super().__init__(num_feat, esa_channels)
        self.conv3 = BSConv(esa_channels, esa_channels)


class RCCA(nn.Module):
    """Reallocated contrast-aware channel attention, Fig. 3 (e), plus its input.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=num_feat)
        self.decompose = nn.Conv2d(num_feat, 1, 1)
        self.sigma = nn.ParameterDict({'scale': torch.full((1, num_feat, 1, 1), 1e-5)})
        self.cca = CCALayer(num_feat, num_feat // (num_feat // 4))

    def forward(self, x: Tensor) -> Tensor:
        deep = gelu(self.dwconv(x))
        complement = (deep - gelu(self.decompose(deep))) * self.sigma['scale']
        return complement + self.cca(deep) + x


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """(..., P) -> (..., len(index)): the same as ``index_select``, which on a CPU takes nine times as long."""
    if is_compiling():  # a graph would hold the index at the size of the maps
        return x.index_select(-1, index)
    return x.gather(-1, index.expand(*x.shape[:-1], -1))


class _Axis:
    """TLC's windows on one axis of ``length`` pixels, and the way back from windows to pixels.

    Only the last window may depart from the even step; no pixel lies in more than two windows, so
    the mean over all windows of a pixel is the mean of the first and the last one.

    Attributes:
        side: window side, min(length, kernel).
        count: number of windows.
        starts: (count,), the first pixel of each window.
        take: (count, side), the pixels of each window.
        first, last: two (length,), the first and the last window that holds each pixel, and its place there.
    """

    def __init__(self, length: int, kernel: int, device: torch.device) -> None:
        traced = isinstance(length, Tensor)  # sizes of a trace are tensors
        self.side: int = length.clamp(max=kernel) if traced else torch.sym_min(length, kernel)  # type: ignore
        self.count = (length - 1) // self.side + 1
        gaps: int = (self.count - 1).clamp(min=1) if traced else torch.sym_max(self.count - 1, 1)  # type: ignore
        step = (length - self.side + gaps - 1) // gaps  # rounded up; never below 0, where ONNX divides another way
        self.starts = starts = (torch.arange(self.count, device=device) * step).clamp(max=length - self.side)
        self.take = starts[:, None] + torch.arange(self.side, device=device)
        pixel = torch.arange(length, device=device)
        first = (starts + self.side <= pixel[:, None]).sum(1)
        last = (starts <= pixel[:, None]).sum(1) - 1
        self.first, self.last = ((window, pixel - starts[window]) for window in (first, last))


class SGSA(nn.Module):
    """Sparse global self-attention between channels, Fig. 3 (f): ReLU in the place of softmax.

    In eval mode with ``tlc`` set, similarities are those of windows of at most tlc x tlc pixels, and a
    pixel gets the mean over the windows that hold it (TLC, test-time local converter). (N, C, H, W) -> same.
    """

    def __init__(self, num_feat: int, num_heads: int, tlc: int | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tlc = tlc
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(num_feat, 3 * num_feat, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * num_feat, 3 * num_feat, 3, padding=1, groups=3 * num_feat, bias=False)
        self.project_out = nn.Conv2d(num_feat, num_feat, 1, bias=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
        """(..., C / heads, pixels) each -> same as ``v``; ``temperature`` fits the dimensions before the last two."""
        return F.relu(cosines(q, k) * temperature) @ v

    def attend_locally(self, qkv: Tensor, kernel: int) -> Tensor:
        """(N, 3 C, H, W) -> (N, C, H, W); no map has more than five dimensions, which is what Core ML takes."""
        (height, width), heads = qkv.shape[-2:], self.num_heads
        rows, columns = (_Axis(length, kernel, qkv.device) for length in (height, width))
        if eager_on_cpu(qkv):
            return self.attend_in_turn(qkv.chunk(3, dim=1), kernel)
        take = rows.take[:, None, :, None] * width + columns.take[:, None]
        windows = _pick(qkv.flatten(2), take.flatten()).unflatten(2, (rows.count * columns.count, -1))
        q, k, v = (part.unflatten(1, (heads, -1)).flatten(0, 1).transpose(1, 2) for part in windows.chunk(3, dim=1))
        out = self.attend(q, k, v, self.temperature.repeat(len(qkv), 1, 1)[:, None])
        out = out.transpose(1, 2).flatten(2)  # (N x heads, C / heads, pixels of all windows)

        def at(row: Tuple[Tensor, Tensor], column: Tuple[Tensor, Tensor]) -> Tensor:
            window = row[0][:, None] * columns.count + column[0]
            return _pick(out, ((window * rows.side + row[1][:, None]) * columns.side + column[1]).flatten())

        upper, lower = (at(row, columns.first) + at(row, columns.last) for row in (rows.first, rows.last))
        return ((upper / 2 + lower / 2) / 2).reshape(len(qkv), -1, height, width)

    def attend_in_turn(self, qkv: Iterable[Tensor], kernel: int) -> Tensor:
        """The same of three (N, C, H, W), window after window, which holds one of them at a time."""
        q, k, v = (part.unflatten(1, (self.num_heads, -1)) for part in qkv)
        rows, columns = (_Axis(length, kernel, v.device) for length in v.shape[-2:])
        total, count = torch.zeros_like(v), torch.zeros_like(v[:1, :1, :1])
        for top, left in product(rows.starts.tolist(), columns.starts.tolist()):
            here = (..., slice(top, top + rows.side), slice(left, left + columns.side))
            own = [part[here].flatten(-2) for part in (q, k, v)]
            out = self.attend(own[0], own[1], own[2], self.temperature)
            total[here] += out.unflatten(-1, (rows.side, columns.side))
            count[here] += 1
        return total.div_(count).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        # a graph with symbolic sizes must not branch on them: there one window per axis takes the general way
        symbolic = is_compiling()
        local = self.tlc and not self.training and (symbolic or max(x.shape[-2:]) > self.tlc)
        if local and infers_on_cpu(x, 0, self):
            out = self.attend_in_turn(in_parts(x, self.qkv, self.qkv_dwconv, 3), self.tlc or 0)
            return self.project_out(out)
        qkv = self.qkv_dwconv(self.qkv(x))
        if local:
            out = self.attend_locally(qkv, self.tlc or 0)
        else:
            q, k, v = (part.reshape(len(part), self.num_heads, -1, x[0, 0].numel()) for part in qkv.chunk(3, dim=1))
            out = self.attend(q, k, v, self.temperature).reshape(x.shape)
        return self.project_out(out)


class EnhancedAttention(nn.Module):
    """SGSA and a gated feed-forward layer, each behind a layer norm, each added.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, num_heads: int, tlc: int | None) -> None:
        super().__init__()
        self.norm3 = nn.Sequential(OrderedDict(body=LayerNorm2d(num_feat)))
        self.restormer_attn = SGSA(num_feat, num_heads, tlc)
        self.norm4 = nn.Sequential(OrderedDict(body=LayerNorm2d(num_feat)))
        self.restormer_ffn = GatedDconvFFN(num_feat, 2 * num_feat)

    def forward(self, x: Tensor) -> Tensor:
        x = self.restormer_attn(self.norm3(x)) + x
        return self.restormer_ffn(self.norm4(x)) + x


class AGDB(nn.Module):
    """Attention guidance distillation block, Eqs. 6-9 and Fig. 3 (a).  (N, C, H, W) -> same."""

    def __init__(
        self, num_feat: int, spatial_attn: str, channel_attn: str, use_sgsa: bool, num_heads: int, tlc: int | None
    ) -> None:
        super().__init__()
        distilled = num_feat // 2
        self.c1_d = nn.Conv2d(num_feat, distilled, 1)
        self.c1_r = BSConv(num_feat, num_feat)
        self.c2_d = nn.Conv2d(num_feat, distilled, 1)
        self.c2_r = BSConv(num_feat, num_feat)
        self.c3_d = nn.Conv2d(num_feat, distilled, 1)
        self.c3_r = BSConv(num_feat, num_feat)
        self.c4 = nn.Conv2d(num_feat, distilled, 3, padding=1, groups=distilled)
        self.c5 = nn.Conv2d(4 * distilled, num_feat, 1)
        self.esa: nn.Module = nn.Identity()
        if spatial_attn == 'mvsa':
            self.esa = nn.Sequential(OrderedDict(body=nn.Sequential(MVSA(num_feat, num_feat // 4))))  # official keys
        elif spatial_attn == 'esa':
            self.esa = BlueprintESA(num_feat, num_feat // 4)
        self.cca: nn.Module = nn.Identity()
        if channel_attn == 'rcca':
            self.cca = RCCA(num_feat)
        elif channel_attn == 'cca':
            self.cca = CCALayer(num_feat, num_feat // (num_feat // 4))
        self.ea = EnhancedAttention(num_feat, num_heads, tlc) if use_sgsa else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.ea(self.cca(self.esa(self.fused(x)))) + x

    def fused(self, x: Tensor) -> Tensor:
        """Distillation alone, Eq. 6; apart, so that what it holds is gone before the attentions."""
        r1 = gelu(self.c1_r(x) + x)
        r2 = gelu(self.c2_r(r1) + r1)
        r3 = gelu(self.c3_r(r2) + r2)
        distilled = torch.cat((self.c1_d(x), self.c2_d(r1), self.c3_d(r2), self.c4(r3)), dim=1)
        return self.c5(gelu(distilled))


@register_in(ARCH_REGISTRY)
class AGDN(Network):
    """Attention guidance distillation network for efficient super-resolution.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= ``min_size``, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. In training mode the self-attention sees the
    whole patch, in eval mode windows of ``tlc`` x ``tlc``, the size of a training patch.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk, even, at least 4 (code: 42; AGDN-S: 24).
        num_block: number of AGDBs (Table 4: 7; AGDN-S: 4).
        upscale: scale factor r, one of 2, 3, 4.
        spatial_attn: 'mvsa', 'esa' (Table 2) or 'none' (Table 1).
        channel_attn: 'rcca', 'cca' (Table 2) or 'none' (Table 1).
        use_sgsa: keep the self-attention and its feed-forward layer (Table 1).
        num_heads: heads of the self-attention; divides ``num_feat``.
        tlc: side of the windows of the self-attention in eval mode, in LR pixels (code: 48 at every
            scale; AGDN-S: 96). None or 0 switches TLC off (Table 3). A graph exported with dynamic height and
            width holds for sides above ``tlc``; without TLC it holds for every legal size.

    Attributes:
        halo: LR pixels of context that make a tile exact; None with an attention, which sees the whole map or windows.
    """

    marks = ('fea_conv.weight', 'B1.c1_d.weight', 'B1.c1_r.pw.weight', 'B1.c4.weight', 'upsampler.0.weight')
    unseen = ('tlc',)
    supports_half = False  # each MVSA enlarges errors some twentyfold on text, hatching, dither (docs/tools.md)
    variants: ClassVar[Dict[str, Dict[str, int]]] = {'AGDN-S': {'num_feat': 24, 'num_block': 4, 'tlc': 96}}
    renames = UPSAMPLER_NAMES
    ncnn = 'runs with tlc=0, attention over the whole map, by pnnx from --form torchscript, at any size'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 42,
        num_block: int = 7,
        upscale: Literal[2, 3, 4] = 4,
        spatial_attn: Literal['mvsa', 'esa', 'none'] = 'mvsa',
        channel_attn: Literal['rcca', 'cca', 'none'] = 'rcca',
        use_sgsa: bool = True,
        num_heads: int = 3,
        tlc: Optional[int] = 48,
    ) -> None:
        super().__init__(locals(), centred=True)
        if tlc and (not isinstance(tlc, int) or tlc < 1):
            raise ValueError(f'AGDN: tlc must be a side in pixels, or none, got {tlc!r}')
        if num_feat % 2 or num_feat < 4:
            raise ValueError(f'AGDN: num_feat must be even and at least 4, got {num_feat}')
        if use_sgsa and num_feat % num_heads:
            raise ValueError(f'AGDN: num_heads must divide num_feat = {num_feat}, got {num_heads}')
        self.min_size = 2 if spatial_attn == 'none' else MVSA.min_size  # 2: the least that can be reflected
        if spatial_attn == 'esa':
            self.min_size = ESA.min_size + 6  # its pooled map is reflected, too
        convolutional = spatial_attn == channel_attn == 'none' and not use_sgsa
        self.halo = 4 * num_block + 3 if convolutional else None  # one pixel per 3 x 3 in sequence
        self.num_block = num_block
        self.fea_conv = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        for i in range(1, num_block + 1):
            self.add_module(f'B{i}', AGDB(num_feat, spatial_attn, channel_attn, use_sgsa, num_heads, tlc))
        self.c1 = nn.Conv2d(num_feat * num_block, num_feat, 1)
        self.c2 = BSConv(num_feat, num_feat)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        heads = 'B1.ea.restormer_attn.temperature'
        options = {'use_sgsa': True, 'num_heads': len(state[heads])} if heads in state else {'use_sgsa': False}
        usual = list(usual_options(state, 'fea_conv.weight', r'B(\d+)\.', 'upsampler.0.weight'))
        for spatial, channel, each in product(('mvsa', 'esa', 'none'), ('rcca', 'cca', 'none'), usual):
            yield {**each, **options, 'spatial_attn': spatial, 'channel_attn': channel}

    def merged(self, shallow: Tensor) -> Tensor:
        """``c1`` of what all blocks give; where nobody needs that any more it is added up, not kept to the end."""
        deep, levels, alone = shallow, [], infers_on_cpu(shallow, 0, self.c1)
        weight, bias = self.c1.parameters()
        total = bias.view(1, -1, 1, 1)
        for i, part in enumerate(weight.chunk(self.num_block, dim=1), 1):
            deep = self.get_submodule(f'B{i}')(deep)
            if alone:
                total = total + F.conv2d(deep, part)
            else:
                levels.append(deep)
        return total if alone else self.c1(torch.cat(levels, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.fea_conv(channels_last(x - self.mean_in))
        fused = self.c2(gelu(self.merged(shallow)))
        return self.upsampler(fused + shallow) + self.mean_out
