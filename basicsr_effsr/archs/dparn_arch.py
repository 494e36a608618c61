"""DPARN: dual path attention and re-parameterization network (the student; its teacher has a file of its own).

Paper:        Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution".
Weights:      none published; parameter names are ours.
Differences:  no code is public, so what the paper leaves open is chosen here. The 1 x 1 of the ReRB keeps the
              width (``expansion=1``): the only reading whose size fits Table 1. No ReLU stands before the
              sigmoid of the parameter-free path (text of Section 3.2 over Eq. 9). The ReRB pads before its
              1 x 1, or it could not merge exactly at the border. Options give the other readings.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any, Dict, Iterator, Literal, Mapping, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import (
    ESA,
    ESARFDN,
    UPSAMPLER_NAMES,
    Fusable,
    channels_last,
    check_input,
    conv_like,
    pixelshuffle_upsampler,
    register_in,
    usual_options,
)

__all__ = ['DPARN']


class ReRB(nn.Module):
    """Re-parameterization residual block, Eq. 10: 3x3 + 3x3(1x1) + 1x3 + 3x1 + identity, all linear.

    Equal, borders included, to one zero-padded 3 x 3 convolution. That one convolution is what runs, its
    kernel computed from the branches inside the graph: same gradients, cost and memory of a plain layer.
    The identity exists only where input and output have the same channels. For the options see DPARN.
    (N, in_ch, H, W) -> (N, out_ch, H, W).
    """

    summed = ('conv', 'squeeze', 'horizontal', 'vertical')  # layers whose outputs, biases included, are added
    identity: Tensor | None

    def __init__(self, in_ch: int, out_ch: int, expansion: int, expand_bias: bool, merged_training: bool) -> None:
        super().__init__()
        self.merged_training = merged_training
        self.conv = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.expand = nn.Conv2d(in_ch, expansion * in_ch, 1, bias=expand_bias)
        self.squeeze = nn.Conv2d(expansion * in_ch, out_ch, 3)
        self.horizontal = nn.Conv2d(in_ch, out_ch, (1, 3), padding=(0, 1))
        self.vertical = nn.Conv2d(in_ch, out_ch, (3, 1), padding=(1, 0))
        identity = F.pad(torch.eye(in_ch)[:, :, None, None], (1, 1, 1, 1)) if in_ch == out_ch else None
        self.register_buffer('identity', identity, persistent=False)

    def merged(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Kernel (out_ch, in_ch, 3, 3) and bias (out_ch) of the one equal convolution, computed in ``dtype``."""
        expand, squeeze = self.expand.weight[:, :, 0, 0].to(dtype), self.squeeze.weight.to(dtype)
        weight = self.conv.weight.to(dtype) + torch.einsum('omuv,mi->oiuv', squeeze, expand)
        weight = weight + F.pad(self.horizontal.weight.to(dtype), (0, 0, 1, 1))
        weight = weight + F.pad(self.vertical.weight.to(dtype), (1, 1, 0, 0))
        if self.identity is not None:
            weight = weight + self.identity.to(dtype)
        bias = torch.stack([getattr(self, name).bias.to(dtype) for name in self.summed]).sum(0)
        if self.expand.bias is not None:
            bias = bias + torch.einsum('omuv,m->o', squeeze, self.expand.bias.to(dtype))
        return weight, bias

    def branches(self, x: Tensor) -> Tensor:
        """Eq. 10 as it reads; slower, for proof and comparison."""
        # Padding before the 1 x 1 leaves its bias in the ring; padding after it would leave zeros, and no single
        # zero-padded kernel could reproduce that at the border.
        out = self.conv(x) + self.squeeze(self.expand(F.pad(x, (1, 1, 1, 1)))) + self.horizontal(x) + self.vertical(x)
        return out if self.identity is None else out + x

    def forward(self, x: Tensor) -> Tensor:
        if not self.merged_training:
            return self.branches(x)
        dtype = self.conv.weight.dtype
        with torch.autocast(x.device.type, enabled=False):  # sums of kernels in half precision would lose digits
            weight, bias = self.merged(torch.promote_types(dtype, torch.float32))
        return F.conv2d(x, weight.to(dtype), bias.to(dtype), padding=1)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The equal plain convolution, added up in float64; this block is left as it was."""
        return conv_like(self.conv, *self.merged(torch.float64))


class ESABranch(nn.Module):
    """Left path of Eq. 9: three convolutions with activation, the input added, then ESA.  (N, C, H, W) -> same."""

    def __init__(self, convs: nn.ModuleList, act: nn.Module, esa: nn.Module) -> None:
        super().__init__()
        self.convs = convs
        self.act = act
        self.esa = esa

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = self.act(conv(y))
        return self.esa(y + x)


class SPABranch(nn.Module):
    """Right path of Eq. 9: sigma(y) * (y + x), y from three convolutions.  (N, C, H, W) -> same.

    The activation stands between them, with ``last_act`` after the third too; ``zero_mean`` gates with sigma(y) - 1/2.
    """

    def __init__(self, convs: nn.ModuleList, act: nn.Module, last_act: bool, zero_mean: bool) -> None:
        super().__init__()
        self.convs = convs
        self.act = act
        self.last_act = last_act
        self.zero_mean = zero_mean

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[2](self.act(self.convs[1](self.act(self.convs[0](x)))))
        if self.last_act:
            y = self.act(y)
        gate = torch.sigmoid(y)
        if self.zero_mean:
            gate = gate - 0.5
        return gate * (y + x)


class DPAB(nn.Module):
    """Dual path attention block, Fig. 2 (a): one path per half of the channels.  (N, C, H, W) -> same.

    The halves meet by ``mix``: 'none' (concatenation), 'swap' (concatenation, right half first), 'shuffle' (channels
    interleaved) or 'conv' (concatenation and a 1 x 1 convolution).
    """

    def __init__(self, left: nn.Module, right: nn.Module, mix: str, num_feat: int) -> None:
        super().__init__()
        self.left = left
        self.right = right
        self.mix = mix
        self.fuse_conv = nn.Conv2d(num_feat, num_feat, 1) if mix == 'conv' else None

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        left, right = self.left(left), self.right(right)
        if self.mix == 'swap':
            return torch.cat((right, left), dim=1)
        if self.mix == 'shuffle':
            return torch.stack((left, right), dim=2).flatten(1, 2)
        out = torch.cat((left, right), dim=1)
        return out if self.fuse_conv is None else self.fuse_conv(out)


@register_in(ARCH_REGISTRY)
class DPARN(Fusable):
    """Dual path attention and re-parameterization network for efficient super-resolution.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W) with H, W >= ``min_size``, output
    (N, num_out_ch, upscale * H, upscale * W), not clamped. Train and eval mode compute the same. Train in the
    default form, deploy the result of ``fuse()``. ``body[i]`` are the features for distillation.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk, even (Section 4.1: 52).
        num_block: number of DPABs (Section 4.1: 4).
        upscale: scale factor r, one of 2, 3, 4.
        num_rerb: how many of the three convolutions of a path are ReRBs, first ones first (Fig. 2: 3); 0 trains
            without re-parameterization (Table 5).
        expansion: hidden channels of a ReRB's second branch as a multiple of its input's (fitted: 1).
        expand_bias: give the 1 x 1 of a ReRB a bias.
        merged_training: False runs the five branches of a ReRB one by one; same values and gradients, slower.
        branches: the two paths, each 'esa' or 'spa' (Table 2).
        esa_type: 'rlfn' or 'rfdn', the two published forms of ESA.
        esa_channels: channels of ESA's mask branch (RLFN: 16).
        branch_ratio: width inside a path as a multiple of its half (1); 2 widens to C and back.
        zero_mean: gate the parameter-free path with sigma - 1/2 as SPAN does; without its concatenations the path
            then starts nearly dead.
        last_act: use the activation before the gate's sigmoid too, as Eq. 9 reads literally.
        mix: how the halves meet after a block, 'none' (paper), 'swap', 'shuffle' or 'conv' (1 x 1).
        act: 'relu' (paper) or 'silu' (SPAN).
        image_skip: resized input added to the output: 'none' (paper), 'nearest' or 'bilinear'.
        two_layer_tail: put the text's second learnable layer, LeakyReLU and a 1 x 1 convolution, before the pixel
            shuffle, where the teacher has it too (Section 3.1).
        deploy: build the fused form, for checkpoints saved from a fused net.

    Attributes:
        halo: LR pixels of context that make a tile exact; None with ESA, which sees the whole map.
    """

    marks = ('head.weight', 'body.0.left.convs.0.*', 'body.0.right.convs.0.*', 'upsampler.0.weight')
    unseen = ('mix', 'act', 'image_skip', 'zero_mean', 'last_act', 'merged_training')
    renames = UPSAMPLER_NAMES
    parts = (ReRB,)
    ncnn = 'runs, by pnnx from --form torchscript, at any size'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 52,
        num_block: int = 4,
        upscale: Literal[2, 3, 4] = 4,
        num_rerb: Literal[0, 1, 2, 3] = 3,
        expansion: int = 1,
        expand_bias: bool = True,
        merged_training: bool = True,
        branches: Sequence[str] = ('esa', 'spa'),
        esa_type: Literal['rlfn', 'rfdn'] = 'rlfn',
        esa_channels: int = 16,
        branch_ratio: int = 1,
        zero_mean: bool = False,
        last_act: bool = False,
        mix: Literal['none', 'swap', 'shuffle', 'conv'] = 'none',
        act: Literal['relu', 'silu'] = 'relu',
        image_skip: Literal['none', 'nearest', 'bilinear'] = 'none',
        two_layer_tail: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__(locals(), centred=True)
        if num_feat % 2:
            raise ValueError(f'DPARN: num_feat must be even, because each path takes half of it, got {num_feat}')
        pair = isinstance(branches, Sequence) and len(branches) == 2
        if not pair or any(branch not in ('esa', 'spa') for branch in branches):
            raise ValueError(f"DPARN: branches must be two of 'esa' and 'spa', such as [esa, spa], got {branches!r}")
        if image_skip != 'none' and num_in_ch != num_out_ch:
            raise ValueError(
                f'DPARN: image_skip adds the input to the output, so num_in_ch must equal num_out_ch, '
                f'got {num_in_ch} and {num_out_ch}'
            )
        self.deploy = deploy
        self.image_skip = image_skip
        self.min_size = ESA.min_size if 'esa' in branches else 1
        self.halo = None if 'esa' in branches else 3 * num_block + 3  # one pixel per 3 x 3 in sequence

        half = num_feat // 2
        widths = (half, half * branch_ratio, half * branch_ratio, half)

        def path(kind: str) -> nn.Module:
            convs = nn.ModuleList(
                ReRB(widths[i], widths[i + 1], expansion, expand_bias, merged_training)
                if i < num_rerb and not deploy
                else nn.Conv2d(widths[i], widths[i + 1], 3, padding=1)
                for i in range(3)
            )
            activation = nn.ReLU() if act == 'relu' else nn.SiLU()
            if kind == 'esa':
                esa = ESA if esa_type == 'rlfn' else ESARFDN
                return ESABranch(convs, activation, esa(half, esa_channels))
            return SPABranch(convs, activation, last_act, zero_mean)

        self.head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(
            *(DPAB(path(branches[0]), path(branches[1]), mix, num_feat) for _ in range(num_block))
        )
        self.tail = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)
        if two_layer_tail:
            conv, shuffle = self.upsampler
            channels = num_out_ch * upscale**2
            second = nn.Conv2d(channels, channels, 1)
            self.upsampler = nn.Sequential(conv, nn.LeakyReLU(), second, shuffle)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        half, left, right = len(state['head.weight']) // 2, 'body.0.left.', 'body.0.right.'
        paths = [side for side in (left, right) if f'{side}esa.conv1.weight' in state]
        options: Dict[str, Any] = {'branches': tuple('esa' if side in paths else 'spa' for side in (left, right))}
        if paths:
            options['esa_channels'] = len(state[f'{paths[0]}esa.conv1.weight'])
        merged = {n for n in state if re.fullmatch(r'body\.0\.(left|right)\.convs\.\d\.expand\.weight', n)}
        if merged:
            expand = state[min(merged)]
            options['expansion'] = len(expand) // expand.shape[1]
            options['expand_bias'] = min(merged).replace('.weight', '.bias') in state
            options['num_rerb'] = len(merged) // 2
        else:
            options['deploy'] = True
        last = state.get(f'{left}convs.2.expand.weight', state.get(f'{left}convs.2.weight'))
        if last is not None:
            options['branch_ratio'] = last.shape[1] // half
        options['two_layer_tail'] = 'upsampler.2.weight' in state
        usual = list(usual_options(state, 'head.weight', r'body\.(\d+)\.', 'upsampler.0.weight'))
        for esa, mix, each in product(('rlfn', 'rfdn'), ('none', 'conv'), usual):
            yield {**each, **options, 'esa_type': esa, **({} if mix == 'none' else {'mix': mix})}

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.head(channels_last(x - self.mean_in))
        out = self.upsampler(self.tail(self.body(shallow)) + shallow) + self.mean_out
        if self.image_skip == 'none':
            return out
        return out + F.interpolate(x - self.mean_in, scale_factor=float(self.upscale), mode=self.image_skip)
