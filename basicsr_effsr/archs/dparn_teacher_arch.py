"""DPARNTeacher: the residual-dense transformer that teaches DPARN.

Paper:        Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution", Section 3.1; the groups come from C.-C. Hsu et al., "DRCT: Saving Image
              Super-resolution away from Information Bottleneck", CVPR Workshops 2024.
Weights:      with ``tail='drct'`` the checkpoints of DRCT (num_feat 180, 6 groups, 6 heads) and DRCT-L (12 groups)
              load with ``strict=True``; parameter names are theirs. Their stored position indices and shift masks
              follow from the options, so they are accepted and dropped.
Differences:  DPARN's paper gives no size; the default (96 channels, 4 groups, 4 heads, window 16) fits one GPU and
              pairs group for block with the student. ``tail='paper'`` is its "two learnable layers and sub-pixel
              convolution". From DRCT's code: the net pads by reflection and crops by itself, attention is fused
              and no shift mask of the image's size is ever built.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import product
from typing import Any, Dict, Iterator, Literal, Mapping, cast

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    LayerNorm2d,
    Network,
    check_input,
    count_numbers,
    exporting,
    fused_attention,
    pixelshuffle_upsampler,
    position_index,
    register_in,
)

__all__ = ['DPARNTeacher']

_NUM_RECONSTRUCT = 64  # channels of the reconstruction (DRCT's code)
_NOMINAL_DEPTH = 6  # blocks per group in DRCT's drop-path schedule; its groups have five all the same


def _shift_masks(window: int, shift: int) -> Tensor:
    """What keeps rolled-in tokens apart: (2, 2, T, T), by 'is in the last row / column of windows'.

    After rolling by ``shift`` only these windows hold pieces from opposite borders of the image, and each is cut at
    the same place, so four masks serve images of any size.
    """
    beyond = torch.arange(window) >= window - shift
    rows, cols = beyond.repeat_interleave(window), beyond.repeat(window)
    apart_rows, apart_cols = rows[:, None] != rows, cols[:, None] != cols
    apart = torch.stack((torch.zeros_like(apart_rows), apart_cols, apart_rows, apart_rows | apart_cols))
    return -100.0 * apart.unflatten(0, (2, 2))


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zeroes x for whole images of the batch, and keeps its expectation."""
    if rate == 0 or not training:
        return x
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep / (1 - rate)


def _attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v by the fused kernel.

    (3, B, h, w, heads, T, d) -> (B, h, w, heads, T, d); bias (heads, T, T).
    """
    q, k, v = qkv.flatten(1, 3).unbind(0)
    out = fused_attention(q, k, v, bias=bias.to(q.dtype).unsqueeze(0), scale=q.shape[-1] ** -0.5)
    if exporting():  # the kernel's own layout would be taken for granted where the graph is decomposed
        out = out.clone(memory_format=torch.contiguous_format)
    return out.unflatten(0, qkv.shape[1:4])


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias per relative position.

    (B, h, w, T, C) -> same, for h x w windows of T tokens.
    """

    def __init__(self, num_feat: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(num_feat, 3 * num_feat)
        self.proj = nn.Linear(num_feat, num_feat)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, index: Tensor, masks: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(4, 0, 1, 2, 5, 3, 6)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)
        out = _attend(qkv, bias) if masks is None else self.attend_shifted(qkv, bias, masks)
        return self.proj(out.transpose(-3, -2).flatten(-2))

    @staticmethod
    def attend_shifted(qkv: Tensor, bias: Tensor, masks: Tensor) -> Tensor:
        """Four calls, one per kind of window: inner ones, last column, last row, corner."""
        inner, last = slice(None, -1), slice(-1, None)
        rows = []
        for i, row in enumerate((inner, last)):
            groups = [(qkv[:, :, row, col], masks[i, j]) for j, col in enumerate((inner, last))]
            rows.append([_attend(part, bias + mask) for part, mask in groups if exporting() or part.numel()])
        return torch.cat([torch.cat(row, dim=2) for row in rows if row], dim=1)


class SwinBlock(nn.Module):
    """Swin transformer block: (shifted) window attention, then an MLP.  (B, H, W, C) -> same.

    H and W must be multiples of the window.
    """

    def __init__(
        self, num_feat: int, num_heads: int, window_size: int, shifted: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(num_feat)
        self.attn = WindowAttention(num_feat, num_heads, window_size)
        self.norm2 = nn.LayerNorm(num_feat)
        hidden = int(num_feat * mlp_ratio)
        fc1, fc2 = nn.Linear(num_feat, hidden), nn.Linear(hidden, num_feat)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def windowed(self, x: Tensor, index: Tensor, masks: Tensor) -> Tensor:
        side, shift = self.window_size, self.shift
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4)
        windows = self.attn(windows, index, masks if shift else None)
        x = windows.unflatten(3, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x.roll((shift, shift), (1, 2)) if shift else x

    def forward(self, x: Tensor, index: Tensor, masks: Tensor) -> Tensor:
        x = x + drop_path(self.windowed(self.norm1(x), index, masks), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)


class RDG(nn.Module):
    """Residual-dense group of DRCT: five Swin blocks on the growing concatenation.  (N, C, H, W) -> same."""

    def __init__(
        self, num_feat: int, num_grow_ch: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        for k in range(1, 6):
            width = num_feat + (k - 1) * num_grow_ch
            heads = num_heads - width % num_heads
            if (k == 1 and num_feat % num_heads) or width % heads:
                raise ValueError(
                    f'DPARNTeacher: swin block {k} has width {width} and {num_heads if k == 1 else heads} heads, which '
                    'do not divide it; choose num_feat and num_grow_ch as multiples of num_heads'
                )
            ratio = mlp_ratio if k <= 3 else 1.0
            self.add_module(f'swin{k}', SwinBlock(width, heads, window_size, k % 2 == 0, ratio, drop_path))
            self.add_module(f'adjust{k}', nn.Conv2d(width, num_grow_ch if k < 5 else num_feat, 1))

    def forward(self, x: Tensor, index: Tensor, masks: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        dense = x
        for k in range(1, 6):
            adjust = cast(nn.Conv2d, self.get_submodule(f'adjust{k}'))
            swin = self.get_submodule(f'swin{k}')(dense, index, masks)
            out = F.linear(swin, adjust.weight[:, :, 0, 0], adjust.bias)  # the 1 x 1 on channels-last tokens
            if k < 5:
                dense = torch.cat((dense, F.leaky_relu(out, 0.2)), dim=-1)
        return (0.2 * out + x).permute(0, 3, 1, 2)


def reflect_to_multiple(x: Tensor, side: int) -> Tensor:
    """Pads the right and the lower border by reflection to multiples of ``side``, whatever the size of x.

    Where the missing part is longer than the image the reflection bounces on, which ``F.pad`` refuses.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        index = torch.arange((size + side - 1) // side * side, device=x.device)
        period = torch.full_like(index, max(2 * size - 2, 1))  # a tensor, because ONNX knows no remainder by a size
        index = index % period
        x = x.index_select(dim, torch.minimum(index, period - index))
    return x


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left height x width pixels."""
    if not exporting():
        return x[..., :height, :width]
    for dim, size in ((2, height), (3, width)):  # a slice would make the graph tell padded sizes from whole ones
        x = x.index_select(dim, torch.arange(size, device=x.device))
    return x


@register_in(ARCH_REGISTRY)
class DPARNTeacher(Network):
    """Teacher of DPARN: residual-dense groups of shifted-window transformer blocks.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) of any size (padded inside to whole windows, cropped on
    return), output (N, num_out_ch, upscale * H, upscale * W), not clamped. In training whole residual paths are
    dropped at random (``drop_path_rate``). ``layers[i]`` are the features for distillation, at the padded size.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk (DRCT: 180).
        num_block: number of residual-dense groups (DRCT: 6, DRCT-L: 12).
        upscale: scale factor r, one of 2, 3, 4.
        num_heads: heads H of a group's first block (DRCT: 6); a block of width w has H - (w mod H).
        window_size: side of the attention windows, even (DRCT: 16).
        num_grow_ch: channels that each block adds to the concatenation (DRCT: 32).
        mlp_ratio: width of the MLP of a group's first three blocks as a multiple of theirs; the last two have 1.
        drop_path_rate: probability at the end of the linear drop-path schedule (DRCT: 0.1).
        tail: 'paper', two convolutions and pixel shuffle, or 'drct', that of the official checkpoints.
    """

    marks = ('conv_first.weight', 'layers.0.swin1.attn.*', 'layers.0.adjust5.weight', 'conv_after_body.weight')
    unseen = ('drop_path_rate',)
    foreign = ('layers.0.swin1.attn.relative_position_index',)  # a buffer that only DRCT's own files hold
    ncnn = 'not converted whole by pnnx: maps of five dimensions in the windows'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 96,
        num_block: int = 4,
        upscale: Literal[2, 3, 4] = 4,
        num_heads: int = 4,
        window_size: int = 16,
        num_grow_ch: int = 32,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.1,
        tail: Literal['paper', 'drct'] = 'paper',
    ) -> None:
        super().__init__(locals(), centred=True)
        if window_size % 2:
            raise ValueError(f'DPARNTeacher: window_size must be even, as windows shift by half, got {window_size}')
        if not mlp_ratio * num_feat >= 1:
            raise ValueError(f'DPARNTeacher: mlp_ratio must leave at least one channel, got {mlp_ratio!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'DPARNTeacher: drop_path_rate must lie in [0, 1), got {drop_path_rate!r}')
        self.window_size = window_size
        self.tail = tail

        self.register_buffer('position_index', position_index(window_size), persistent=False)
        self.register_buffer('shift_masks', _shift_masks(window_size, window_size // 2), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=LayerNorm2d(num_feat)))
        steps = max(_NOMINAL_DEPTH * num_block - 1, 1)
        self.layers = nn.ModuleList(
            RDG(num_feat, num_grow_ch, num_heads, window_size, mlp_ratio, drop_path_rate * _NOMINAL_DEPTH * i / steps)
            for i in range(num_block)
        )
        self.norm = LayerNorm2d(num_feat)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(num_feat, _NUM_RECONSTRUCT, 3, padding=1), nn.LeakyReLU(inplace=True)
        )
        if tail == 'paper':
            self.upsampler = pixelshuffle_upsampler(_NUM_RECONSTRUCT, num_out_ch, upscale)
        else:
            steps_up = (2, 2) if upscale == 4 else (upscale,)
            self.upsample = nn.Sequential(
                *(layer for r in steps_up for layer in pixelshuffle_upsampler(_NUM_RECONSTRUCT, _NUM_RECONSTRUCT, r))
            )
            self.conv_last = nn.Conv2d(_NUM_RECONSTRUCT, num_out_ch, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Drops what official checkpoints store although it follows from the options, then loads as usual."""
        derived = ('.attn.relative_position_index', '.attn_mask')
        for key in [key for key in state_dict if key.startswith(f'{prefix}layers.') and key.endswith(derived)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        first, swin = state['conv_first.weight'], 'layers.0.swin1.'
        table = state[f'{swin}attn.relative_position_bias_table']
        options: Dict[str, Any] = {
            'num_in_ch': first.shape[1],
            'num_feat': first.shape[0],
            'num_block': count_numbers(state, r'layers\.(\d+)\.'),
            'num_heads': table.shape[1],
            'window_size': (math.isqrt(table.shape[0]) + 1) // 2,
            'num_grow_ch': state['layers.0.adjust1.weight'].shape[0],
        }
        ratio = state[f'{swin}mlp.fc1.weight'].shape[0] / first.shape[0]
        ratios = dict.fromkeys((round(ratio, 1), round(ratio, 2), ratio))  # hidden widths are rounded down
        outs = dict.fromkeys((first.shape[1], 3, 1))
        for mlp_ratio, tail, upscale, out in product(ratios, ('paper', 'drct'), (2, 3, 4), outs):
            yield {**options, 'mlp_ratio': mlp_ratio, 'tail': tail, 'upscale': upscale, 'num_out_ch': out}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        height, width = (self.upscale * side for side in x.shape[-2:])
        shallow = self.conv_first(reflect_to_multiple(x, self.window_size) - self.mean_in)
        deep = self.patch_embed(shallow)
        for group in self.layers:
            deep = group(deep, self.position_index, self.shift_masks)
        deep = self.conv_before_upsample(self.conv_after_body(self.norm(deep)) + shallow)
        out = self.upsampler(deep) if self.tail == 'paper' else self.conv_last(self.upsample(deep))
        return _crop(out + self.mean_out, height, width)
