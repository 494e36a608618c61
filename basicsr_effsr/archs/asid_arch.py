"""ASID and ASID-D8: attention-sharing information distillation network.

Paper:        K. Park et al., "Efficient Attention-Sharing Information Distillation Transformer for
              Lightweight Single Image Super-Resolution", AAAI 2025.
Weights:      parameter names are those of saturnian77/ASID, whose checkpoints are raw state dicts.
Differences:  images are RGB in [0, 1] outside; the authors' range [-1, 1], in which the padding is
              mid-grey, is used inside. ASID-D8 is ``num_block=8``. The ablations of Tables 3 and 4 are
              options, read from their parameter counts (docs/paper-vs-code.md).
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar, Dict, Iterator, List, Literal, Mapping, Optional, Tuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESA,
    GatedDconvFFN,
    LayerNorm2d,
    Network,
    channels_last,
    check_input,
    cosines,
    exporting,
    pixelshuffle_upsampler,
    position_index,
    register_in,
    usual_options,
)

__all__ = ['ASID']

WINDOW = 8  # side of the groups of tokens; the position table and the padding follow it
Maps = List[Tensor]
Sides = Tuple[int, int, int, int]


def tokens_of(x: Tensor, sides: Sides, blocks: bool) -> Tensor:
    """Groups of pixels: (N, C, a b, c d) -> (N, groups, pixels, C), for ``sides`` = (a, b, c, d).

    A group is one of the ``blocks`` of b x d neighbours, or without them the a x c pixels at one place in every block.
    """
    n, c = x.shape[:2]
    if exporting():
        return _exported_tokens(x, sides, blocks)
    group, pixel = ((1, 3), (2, 4)) if blocks else ((2, 4), (1, 3))
    counts = [sides[i - 1] * sides[j - 1] for i, j in (group, pixel)]
    return x.permute(0, 2, 3, 1).reshape(n, *sides, c).permute(0, *group, *pixel, 5).reshape(n, *counts, c)


def image_of(tokens: Tensor, sides: Sides, blocks: bool) -> Tensor:
    """Undoes ``tokens_of``."""
    a, b, c, d = sides
    if exporting():
        return _exported_image(tokens, sides, blocks)
    apart = (a, c, b, d) if blocks else (b, d, a, c)
    order = (0, 1, 3, 2, 4, 5) if blocks else (0, 3, 1, 4, 2, 5)
    x = tokens.reshape(tokens.shape[0], *apart, tokens.shape[-1]).permute(*order)
    return x.reshape(tokens.shape[0], a * b, c * d, tokens.shape[-1]).permute(0, 3, 1, 2)


def _exported_tokens(x: Tensor, sides: Sides, blocks: bool) -> Tensor:
    """``tokens_of`` by maps of four dimensions at most, which is what ncnn has and more than enough for Core ML."""
    (n, ch), (a, b, c, d) = x.shape[:2], sides
    if blocks:
        x = x.reshape(n, ch * a * b, c, d).transpose(1, 2).reshape(n, c * ch, a, b * d).transpose(1, 2)
        return x.reshape(n, a * c, ch, b * d).transpose(2, 3)
    x = x.reshape(n, ch * a, b, c * d).transpose(1, 2).reshape(n, b, ch * a * c, d).transpose(2, 3)
    return x.reshape(n, b * d, ch, a * c).transpose(2, 3)


def _exported_image(tokens: Tensor, sides: Sides, blocks: bool) -> Tensor:
    """Undoes ``_exported_tokens``, step by step."""
    (n, ch), (a, b, c, d) = (tokens.shape[0], tokens.shape[-1]), sides
    x = tokens.transpose(2, 3)
    if blocks:
        x = x.reshape(n, a, c * ch, b * d).transpose(1, 2).reshape(n, c, ch * a * b, d).transpose(1, 2)
    else:
        x = x.reshape(n, b, d, ch * a * c).transpose(2, 3).reshape(n, b, ch * a, c * d).transpose(1, 2)
    return x.reshape(n, ch, a * b, c * d)


class SqueezeExcitation(nn.Module):
    """Gain per channel from the global mean.  (N, C, H, W) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 4, 1)
        self.gate = nn.Sequential(
            nn.Identity(),  # the mean, in the official names
            nn.Linear(dim, hidden, bias=False),
            nn.SiLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]


class LocalModule(nn.Module):
    """LM: a residual block of 1 x 1, depth-wise 3 x 3 and channel gain.  (N, C, H, W) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        block = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            SqueezeExcitation(dim),
            nn.Conv2d(dim, dim, 1),
        )
        self.net = nn.ModuleDict({'fn': block})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net['fn'](x)


class SharedAttention(nn.Module):
    """One head of width C over 64 tokens, Eq. 8.  (N, G, 64, C) -> same, and the map (N, G, 64, 64).

    With ``own_map`` it computes the map from the tokens and a table of relative positions, else takes the given one.
    """

    index: Tensor

    def __init__(self, dim: int, own_map: bool) -> None:
        super().__init__()
        self.own_map = own_map
        if own_map:
            self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
            self.rel_pos_bias = nn.Embedding((2 * WINDOW - 1) ** 2, 1)
            self.register_buffer('index', position_index(WINDOW), persistent=False)
        else:
            self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False))

    def forward(self, tokens: Tensor, given: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        if self.own_map:
            q, k, v = self.to_qkv(tokens).chunk(3, dim=-1)
            position = self.rel_pos_bias(self.index).squeeze(-1)
            attention = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + position, dim=-1)
        else:
            assert given is not None
            v, attention = self.to_v(tokens), given
        return self.to_out(attention @ v), attention


class SpatialLayer(nn.Module):
    """SLA (neighbouring pixels) or SGA (pixels spread over the image): attention, then a gated FFN.

    (N, C, 8 rows, 8 columns) -> same, and the attention map. SGA (``spread``) groups pixels with the pitch
    rows x columns.
    """

    def __init__(self, dim: int, spread: bool, own_map: bool) -> None:
        super().__init__()
        self.spread = spread
        self.norm = nn.LayerNorm(dim)
        self.attn = SharedAttention(dim, own_map)
        self.cnorm = LayerNorm2d(dim, eps=1e-6)
        self.gfn = GatedDconvFFN(dim, dim)

    def forward(self, x: Tensor, grid: Tuple[int, int], given: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        rows, columns = grid
        sides = (WINDOW, rows, WINDOW, columns) if self.spread else (rows, WINDOW, columns, WINDOW)
        tokens = tokens_of(x, sides, not self.spread)
        out, attention = self.attn(self.norm(tokens), given)
        x = image_of(out + tokens, sides, not self.spread)
        return self.gfn(self.cnorm(x)) + x, attention


class TransposedAttention(nn.Module):
    """Transposed attention inside groups of pixels; the channels are the tokens.  (N, C, 8 rows, 8 columns) -> same.

    A group holds one block of 8 x 8 or, with ``spread``, the pixels of one offset in every block.
    """

    def __init__(self, dim: int, spread: bool) -> None:
        super().__init__()
        self.spread = spread
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        sides = grid[0], WINDOW, grid[1], WINDOW
        q, k, v = tokens_of(self.qkv_dwconv(self.qkv(x)), sides, not self.spread).chunk(3, dim=-1)
        # the channels are the tokens: maps of (N, groups, C, C)
        scores = cosines(q.transpose(-1, -2), k.transpose(-1, -2)) * self.temperature
        out = image_of(v @ torch.softmax(scores, dim=-1).transpose(-1, -2), sides, not self.spread)
        return self.project_out(out)


class CAM(nn.Module):
    """Channel attention module: blocks, then offsets, a gated FFN after each.  (N, C, 8 rows, 8 columns) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.canorm1 = LayerNorm2d(dim, eps=1e-6)
        self.cttn1 = TransposedAttention(dim, spread=False)
        self.cnorm1 = LayerNorm2d(dim, eps=1e-6)
        self.gfn1 = GatedDconvFFN(dim, dim)
        self.canorm2 = LayerNorm2d(dim, eps=1e-6)
        self.cttn2 = TransposedAttention(dim, spread=True)
        self.cnorm2 = LayerNorm2d(dim, eps=1e-6)
        self.gfn2 = GatedDconvFFN(dim, dim)

    def forward(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        x = self.cttn1(self.canorm1(x), grid) + x
        x = self.gfn1(self.cnorm1(x)) + x
        x = self.cttn2(self.canorm2(x), grid) + x
        return self.gfn2(self.cnorm2(x)) + x


class IDB(nn.Module):
    """Information distillation block, Eq. 4: three units of local module and spatial attention, then CAM.

    (N, C, 8 rows, 8 columns), C a multiple of 4, and the maps to use -> same, and the maps of this block. With
    ``channel_split`` a quarter of the channels passes by each attention. ``sharing`` is 'first' (computes six maps),
    'given' (takes six), 'inside' (the first unit computes two, which the others take) or 'none' (computes six, hands
    none on).
    """

    def __init__(self, num_feat: int, sharing: str, channel_split: bool) -> None:
        super().__init__()
        self.quarter = quarter = num_feat // 4
        self.channel_split = channel_split
        self.sharing = sharing
        for i in range(3):
            width = num_feat - i * quarter
            self.add_module(f'LB{i + 1}', LocalModule(width))
            inner = width - quarter if channel_split else width
            own = sharing in ('first', 'none') or (sharing == 'inside' and i == 0)
            self.add_module(f'SLA{i + 1}', SpatialLayer(inner, spread=False, own_map=own))
            self.add_module(f'SGA{i + 1}', SpatialLayer(inner, spread=True, own_map=own))
        self.BlockC = CAM(num_feat)
        if channel_split:
            self.pw1 = nn.Conv2d(num_feat, num_feat, 1)
            self.pw2 = nn.Conv2d(num_feat - quarter, num_feat - quarter, 1)
        self.pw3 = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor, grid: Tuple[int, int], given: Maps) -> Tuple[Tensor, Maps]:
        quarter = self.quarter
        kept: List[Tensor] = []
        maps: Maps = []
        for i in range(3):
            x = self.get_submodule(f'LB{i + 1}')(x)
            beside: List[Tensor] = []
            if self.channel_split:
                beside, x = [x[:, :quarter]], x[:, quarter:]
            source = given[2 * i : 2 * i + 2] if self.sharing == 'given' else maps[:2]
            for j, name in enumerate((f'SLA{i + 1}', f'SGA{i + 1}')):
                x, attention = self.get_submodule(name)(x, grid, source[j] if j < len(source) else None)
                maps.append(attention)
            x = torch.cat((x, *beside), dim=1)
            if i < 2:
                x = self.get_submodule(f'pw{i + 1}')(x) if self.channel_split else x
                kept.append(x[:, :quarter])
                x = x[:, quarter:]
        return self.BlockC(self.pw3(torch.cat((*kept, x), dim=1)), grid), maps


class SerialBlock(nn.Module):
    """The paper's baseline (Table 3): local module, spatial attention and CAM in series.  (N, C, 8 rows, 8 columns)."""

    def __init__(self, num_feat: int, sharing: str) -> None:
        super().__init__()
        self.LB1 = LocalModule(num_feat)
        own = sharing != 'given'
        self.SLA1 = SpatialLayer(num_feat, spread=False, own_map=own)
        self.SGA1 = SpatialLayer(num_feat, spread=True, own_map=own)
        self.BlockC = CAM(num_feat)
        self.sharing = sharing

    def forward(self, x: Tensor, grid: Tuple[int, int], given: Maps) -> Tuple[Tensor, Maps]:
        source = given if self.sharing == 'given' else [None, None]
        x, meso = self.SLA1(self.LB1(x), grid, source[0])
        x, spread = self.SGA1(x, grid, source[1])
        return self.BlockC(x, grid), [meso, spread]


class ASIDBlock(nn.Module):
    """ESA(conv(IDB(x)) + x), Eq. 5.  (N, C, 8 rows, 8 columns) and maps -> same, and maps.

    The official first block has its layer under ``residual_layer.0``.
    """

    def __init__(self, num_feat: int, layer: nn.Module, first: bool) -> None:
        super().__init__()
        self.first = first
        self.residual_layer = nn.ModuleList([layer]) if first else layer
        self.res_end = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = ESA(num_feat, max(num_feat // 4, 16))

    def forward(self, x: Tensor, grid: Tuple[int, int], given: Maps) -> Tuple[Tensor, Maps]:
        layer = self.residual_layer[0] if self.first else self.residual_layer  # type: ignore[index]
        out, maps = layer(x, grid, given)
        return self.esa(self.res_end(out) + x), maps


@register_in(ARCH_REGISTRY)
class ASID(Network):
    """Attention-sharing information distillation network; ``num_block=8`` is ASID-D8.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= 9, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. Train and eval mode compute the same. Grid attention
    spans the whole image, so the published scores, which come from 64 x 64 tiles, need tiles too
    (``val: tile: {size: 64, overlap: 24}``).

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk, a multiple of 4 (code: 48).
        num_block: number of information distillation blocks (3; ASID-D8: 8).
        upscale: scale factor r, one of 2, 3, 4.
        attention_sharing: 'inter' (the first block's maps serve all, the paper's), 'intra' (in every block the
            first unit's maps serve the others, Table 4) or 'none' (Table 3).
        information_distillation: False puts local module, attention and CAM in series (Table 3, baseline).
        channel_split: False lets the attention see all channels of its unit (Table 3).
    """

    min_size = 9  # 8 and less pad to 8, too small for ESA
    halo = None
    marks = ('input.weight', 'block0.esa.conv1.weight', 'block0.res_end.weight', 'up.0.weight')
    variants: ClassVar[Dict[str, Dict[str, int]]] = {'ASID-D8': {'num_feat': 48, 'num_block': 8}}
    ncnn = 'runs, by pnnx from --form torchscript, at any size; name two sizes with other numbers of 8 x 8 blocks'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 48,
        num_block: int = 3,
        upscale: Literal[2, 3, 4] = 4,
        attention_sharing: Literal['inter', 'intra', 'none'] = 'inter',
        information_distillation: bool = True,
        channel_split: bool = True,
    ) -> None:
        super().__init__(locals())
        if num_feat % 4:
            raise ValueError(f'ASID: num_feat must be a multiple of 4, as quarters are split off, got {num_feat}')
        if not information_distillation and (attention_sharing == 'intra' or channel_split):
            raise ValueError(
                'ASID: without information_distillation a block has one unit, so attention_sharing must be inter or '
                f'none and channel_split false, got {attention_sharing!r} and {channel_split}'
            )
        self.num_block = num_block
        self.input = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        for i in range(num_block):
            own = {'inter': 'given' if i else 'first', 'intra': 'inside', 'none': 'none'}[attention_sharing]
            if information_distillation:
                layer: nn.Module = IDB(num_feat, own, channel_split)
            else:
                layer = SerialBlock(num_feat, own)
            self.add_module(f'block{i}', ASIDBlock(num_feat, layer, first=i == 0))
        self.output = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.up = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        usual = list(usual_options(state, 'input.weight', r'block(\d+)\.', 'up.0.weight'))
        for sharing, distil, split, each in product(('inter', 'intra', 'none'), (True, False), (True, False), usual):
            how = {'attention_sharing': sharing, 'information_distillation': distil, 'channel_split': split}
            yield {**each, **how}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        height, width = x.shape[-2:]
        grid = (height + WINDOW - 1) // WINDOW, (width + WINDOW - 1) // WINDOW
        right, below = WINDOW * grid[1] - width, WINDOW * grid[0] - height
        if torch.jit.is_tracing():  # ncnn pads by numbers alone
            right = below = WINDOW - 1
        x = F.pad(2 * x - 1, (0, right, 0, below))  # mid-grey, in the code too
        if torch.jit.is_tracing():
            x = x[:, :, : WINDOW * grid[0], : WINDOW * grid[1]]
        shallow = deep = self.input(channels_last(x))
        maps: Maps = []
        for i in range(self.num_block):
            deep, computed = self.get_submodule(f'block{i}')(deep, grid, maps)
            maps = maps or computed
        out = self.up(self.output(deep) + shallow)
        return (out[:, :, : self.upscale * height, : self.upscale * width] + 1) / 2
