"""HASN: hybrid attention separable network.

Paper:        W. Cao et al., "HASN: Hybrid Attention Separable Network for Efficient Image
              Super-Resolution", 2024.
Weights:      the authors' x4 checkpoint loads with ``strict=True``; parameter names are theirs.
Differences:  from the paper's text, the authors' code is followed: the depth-wise convolutions have
              no point-wise partner, the input of a block is added after its second depth-wise
              convolution (Eq. 6), the channel attention squeezes to ``num_feat // 30`` channels.
              From the code: the width 156 is ``mlp_ratio * num_feat``, so every width works.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Dict, Iterator, Literal, Mapping, Tuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESA,
    UPSAMPLER_NAMES,
    LayerNorm2d,
    Network,
    bottleneck_gate,
    channels_last,
    check_input,
    divisor,
    eager_on_cpu,
    infers_on_cpu,
    pixelshuffle_upsampler,
    register_in,
    unobserved,
    usual_options,
)

__all__ = ['HASN']

STRIP = 512  # pixels whose wide maps fit a core's cache
LARGE = 4096  # pixels from which strips pay


def _conv(*args, **kwargs) -> nn.Sequential:
    """A convolution under the official key ``<name>.conv``."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(*args, **kwargs)))


class ChannelAttention(nn.Module):
    """Gain per channel from the global mean.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), *bottleneck_gate(num_feat, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class CAB(nn.Sequential):
    """Channel attention block, Fig. 3 (b): squeeze, expand, channel attention.  (N, C, H, W) -> same."""

    def __init__(self, num_feat: int, compress_ratio: int, squeeze_factor: int) -> None:
        mid = max(num_feat // compress_ratio, 1)
        squeeze, expand = nn.Conv2d(num_feat, mid, 3, padding=1), nn.Conv2d(mid, num_feat, 3, padding=1)
        attention = ChannelAttention(num_feat, max(num_feat // squeeze_factor, 1))
        super().__init__(OrderedDict(cab=nn.Sequential(squeeze, nn.GELU(), expand, attention)))


class HASB(nn.Module):
    """Hybrid attention separable block, Eq. 6 and Fig. 3 (a).  (N, C, H, W) -> same.

    Without ESA the third fully connected layer goes too; without both attentions this is the
    paper's convolutional block CB (Tables 2, 4 and 7).
    """

    def __init__(
        self,
        num_feat: int,
        kernel_size: int,
        mlp_ratio: int,
        esa_channels: int,
        compress_ratio: int,
        squeeze_factor: int,
        use_esa: bool,
        use_cab: bool,
    ) -> None:
        super().__init__()
        hidden, padding = mlp_ratio * num_feat, kernel_size // 2
        self.dwconv = _conv(num_feat, num_feat, kernel_size, padding=padding, groups=num_feat)
        self.ln = LayerNorm2d(num_feat)
        self.f1 = _conv(num_feat, hidden, 1)
        self.f2 = _conv(num_feat, hidden, 1)
        self.f3 = _conv(num_feat, hidden, 1) if use_esa else None
        self.g = _conv(hidden, num_feat, 1)
        self.dwconv2 = _conv(num_feat, num_feat, kernel_size, padding=padding, groups=num_feat)
        self.esa = ESA(hidden, esa_channels) if use_esa else None
        self.cab = CAB(num_feat, compress_ratio, squeeze_factor) if use_cab else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln(self.dwconv(x))
        if self.esa is None or self.f3 is None:
            mixed = self.g(F.relu6(self.f1(normed)) * self.f2(normed))
        elif infers_on_cpu(x, LARGE, self):
            mixed = self.mixed_in_strips(normed, self.f3, self.esa)
        else:
            gated = F.relu6(self.f1(normed)) * self.f2(normed)
            reduced = _reduced(normed, self.f3, self.esa) if eager_on_cpu(x) and unobserved(self) else None
            mixed = self.g(gated.add_(self.esa(self.f3(normed), reduced)))
        out = self.dwconv2(mixed) + x
        return out if self.cab is None else self.cab(out)

    def mixed_in_strips(self, normed: Tensor, f3: nn.Module, esa: ESA) -> Tensor:
        """The same without gradients, in strips of pixels, so that the wide maps never leave the cache."""
        context = esa.context(_reduced(normed, f3, esa))
        layers = [_matrix(layer) for layer in (self.f1, self.f2, f3)]
        weight, bias = (torch.cat(parts) for parts in zip(*layers))  # noqa: B905 (Python 3.8)
        (mask, mask_bias), (merge, merge_bias) = _matrix(esa.conv4), _matrix(self.g)
        pixels, around = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (normed, context))
        out = torch.empty_like(pixels)
        step = STRIP * torch.get_num_threads()
        for at in range(0, len(pixels), step):
            strip = slice(at, at + step)
            one, two, three = F.linear(pixels[strip], weight, bias).chunk(3, dim=1)
            gain = F.linear(around[strip], mask, mask_bias).sigmoid_()
            gated = one.clamp_(0, 6).mul_(two).addcmul_(three, gain)
            out[strip] = F.linear(gated, merge, merge_bias)
        return out.unflatten(0, (normed.shape[0], *normed.shape[2:])).permute(0, 3, 1, 2)


def _matrix(layer: nn.Module) -> Tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out) of a 1 x 1 convolution."""
    weight, bias = layer.parameters()
    return weight.flatten(1), bias


def _reduced(normed: Tensor, f3: nn.Module, esa: ESA) -> Tensor:
    """ESA's first 1 x 1 after f3, both linear, as one that does without the wide map between them.

    (N, C, H, W) -> (N, esa_channels, H, W).
    """
    (wide, wide_bias), (narrow, bias) = _matrix(f3), _matrix(esa.conv1)
    return F.conv2d(normed, (narrow @ wide)[:, :, None, None], narrow @ wide_bias + bias)


@register_in(ARCH_REGISTRY)
class HASN(Network):
    """Hybrid attention separable network for efficient super-resolution.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= ``min_size``, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. Train and eval mode compute the same.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk (Section 4.2: 52).
        num_block: number of HASBs (Table 3: 6).
        upscale: scale factor r, one of 2, 3, 4.
        kernel_size: side of the depth-wise kernels, odd (Table 4: 7).
        mlp_ratio: width of the fully connected layers as a multiple of ``num_feat`` (code: 3).
        esa_channels: channels of the spatial attention's mask branch (code: 16).
        compress_ratio: CAB works on ``num_feat // compress_ratio`` channels (code: 3).
        squeeze_factor: the channel attention squeezes to ``num_feat // squeeze_factor`` (code: 30).
        use_esa: keep the ESA branch (Table 7).
        use_cab: keep the channel attention block (Table 7).

    Attributes:
        halo: LR pixels of context that make a tile exact; None with ESA or CAB, which see the whole map.
    """

    marks = ('conv_1.weight', 'block_1.dwconv.conv.weight', 'block_1.dwconv2.conv.weight', 'upsampler.0.weight')
    renames = UPSAMPLER_NAMES
    ncnn = 'runs, by pnnx from --form torchscript, at any size'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 52,
        num_block: int = 6,
        upscale: Literal[2, 3, 4] = 4,
        kernel_size: int = 7,
        mlp_ratio: int = 3,
        esa_channels: int = 16,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        use_esa: bool = True,
        use_cab: bool = True,
    ) -> None:
        super().__init__(locals())
        if kernel_size % 2 == 0:
            raise ValueError(f'HASN: kernel_size must be odd, got {kernel_size}')
        self.min_size = ESA.min_size if use_esa else 1
        # two depth-wise convolutions per block, and the three 3 x 3 outside
        self.halo = None if use_esa or use_cab else 2 * num_block * (kernel_size // 2) + 3
        self.num_block = num_block
        self.conv_1 = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        for i in range(1, num_block + 1):
            block = HASB(
                num_feat, kernel_size, mlp_ratio, esa_channels, compress_ratio, squeeze_factor, use_esa, use_cab
            )
            self.add_module(f'block_{i}', block)
        self.conv_2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        width, block = len(state['conv_1.weight']), 'block_1.'
        options: Dict[str, Any] = {
            'kernel_size': state[f'{block}dwconv.conv.weight'].shape[-1],
            'mlp_ratio': len(state[f'{block}f1.conv.weight']) // width,
            'use_esa': f'{block}esa.conv1.weight' in state,
            'use_cab': f'{block}cab.cab.0.weight' in state,
        }
        if options['use_esa']:
            options['esa_channels'] = len(state[f'{block}esa.conv1.weight'])
        if options['use_cab']:
            options['compress_ratio'] = divisor(width, len(state[f'{block}cab.cab.0.weight']), 3)
            options['squeeze_factor'] = divisor(width, len(state[f'{block}cab.cab.3.attention.1.weight']), 30)
        for usual in usual_options(state, 'conv_1.weight', r'block_(\d+)\.', 'upsampler.0.weight'):
            yield {**usual, **options}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.conv_1(channels_last(x))
        deep = shallow
        for i in range(1, self.num_block + 1):
            deep = self.get_submodule(f'block_{i}')(deep)
        return self.upsampler(self.conv_2(deep) + shallow)
