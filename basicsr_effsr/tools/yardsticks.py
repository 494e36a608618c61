"""RLFN and SPAN, the baselines of the NTIRE efficient-SR challenges: yardsticks for latency, not registered.

Papers: F. Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPRW 2022, in
        the pruned form (46 of 48 channels, 4 blocks) that the challenges of 2022 to 2024 took as baseline.
        C. Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPRW 2024,
        in its fused form (every training convolution one 3x3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import ESA, pixelshuffle_upsampler, rgb_mean


class RLFB(nn.Module):
    """Three 3x3 convolutions with a residual, then 1x1 and spatial attention.  (N, 46, H, W) -> same."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise((46, 48, 48, 46)))
        self.c5 = nn.Conv2d(46, 46, 1)
        self.esa = ESA(46, 16)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self.convs:
            out = F.leaky_relu(conv(out), 0.05)
        return self.esa(self.c5(out + x))


class RLFN(nn.Module):
    """Residual local feature network, pruned: 0.317218 M parameters at x4.

    Input (N, 3, H, W) in [0, 1] with H, W >= ``min_size``, output (N, 3, rH, rW).

    Args:
        upscale: scale factor r.
        num_in_ch: channels of the input, to stand beside a network that has other than 3.
        num_out_ch: channels of the output.
    """

    min_size = ESA.min_size

    def __init__(self, *, upscale: int = 4, num_in_ch: int = 3, num_out_ch: int = 3) -> None:
        super().__init__()
        self.upscale = upscale
        self.conv_1 = nn.Conv2d(num_in_ch, 46, 3, padding=1)
        self.blocks = nn.Sequential(*(RLFB() for _ in range(4)))
        self.conv_2 = nn.Conv2d(46, 46, 3, padding=1)
        self.upsampler = pixelshuffle_upsampler(46, num_out_ch, upscale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        return self.upsampler(self.conv_2(self.blocks(shallow)) + shallow)


class SPAB(nn.Module):
    """Three 3x3 convolutions and an attention without parameters.  (N, C, H, W) -> output, first convolution."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.c1_r(x)
        y = self.c3_r(F.silu(self.c2_r(F.silu(first))))
        return (y + x) * (torch.sigmoid(y) - 0.5), first


class SPAN(nn.Module):
    """Swift parameter-free attention network, fused form: 498,208 parameters at x4 and 52 channels.

    Input (N, 3, H, W) in [0, 1], output (N, 3, rH, rW).

    Args:
        upscale: scale factor r.
        num_in_ch: channels of the input, to stand beside a network that has other than 3.
        num_out_ch: channels of the output.
        num_feat: channels of the trunk.
    """

    min_size = 1
    mean: Tensor

    def __init__(self, *, upscale: int = 4, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 52) -> None:
        super().__init__()
        self.upscale = upscale
        self.register_buffer('mean', rgb_mean(num_in_ch), persistent=False)
        self.conv_1 = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.blocks = nn.ModuleList(SPAB(num_feat) for _ in range(6))
        self.conv_2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_cat = nn.Conv2d(4 * num_feat, num_feat, 1)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1((x - self.mean) * 255)
        out, inner = shallow, shallow
        outputs = []
        for block in self.blocks:
            out, inner = block(out)
            outputs.append(out)
        return self.upsampler(self.conv_cat(torch.cat([shallow, self.conv_2(out), outputs[0], inner], dim=1)))


YARDSTICKS: dict[str, Callable[..., nn.Module]] = {'SPAN': SPAN, 'RLFN': RLFN}  # ratios are to the last
BASELINES: dict[str, Callable[[], nn.Module]] = {'RLFN': RLFN, 'SPAN': partial(SPAN, num_feat=28)}  # of challenges
