"""SPAN: swift parameter-free attention network, in its fused form; the yardstick of ``effsr benchmark``.

Paper:        C. Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution",
              CVPR Workshops 2024.
Weights:      the authors' files hold the form with three layers per convolution, which spandrel reads.
Differences:  trains as it runs, one 3 x 3 where the authors train three layers and merge them. Registered as
              ``SPAN_effsr`` only: the name SPAN is that of other packages.
"""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Iterator, Literal, Mapping, Tuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from .effsr_blocks import Network, check_input, pixelshuffle_upsampler, register_in, usual_options

__all__ = ['SPAN_effsr']


class SPAB(nn.Module):
    """Three 3 x 3 convolutions and an attention without parameters.  (N, C, H, W) -> output, first convolution."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        first = self.c1_r(x)
        y = self.c3_r(F.silu(self.c2_r(F.silu(first))))
        return (y + x) * (torch.sigmoid(y) - 0.5), first


@register_in(ARCH_REGISTRY)
class SPAN_effsr(Network):  # noqa: N801
    """Swift parameter-free attention network.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W), output (N, num_out_ch, upscale * H,
    upscale * W), not clamped. Train and eval mode compute the same.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk (52; 48 and 28 in the NTIRE challenges).
        num_block: number of SPABs (6).
        upscale: scale factor r, one of 2, 3, 4.
    """

    marks = ('conv_cat.weight', 'blocks.0.c1_r.weight', 'upsampler.0.weight')
    variants: ClassVar[Dict[str, Dict[str, int]]] = {'SPAN': {'num_feat': 52, 'num_block': 6}}

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 52,
        num_block: int = 6,
        upscale: Literal[2, 3, 4] = 4,
    ) -> None:
        super().__init__(locals(), centred=True)
        self.halo = 3 * num_block + 3  # SPABs, then conv_1, conv_2 and the tail
        self.conv_1 = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.blocks = nn.ModuleList(SPAB(num_feat) for _ in range(num_block))
        self.conv_2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_cat = nn.Conv2d(4 * num_feat, num_feat, 1)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        return usual_options(state, 'conv_1.weight', r'blocks\.(\d+)\.', 'upsampler.0.weight')

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        out = shallow = self.conv_1((x - self.mean_in) * 255)
        outputs = []
        for block in self.blocks:
            out, inner = block(out)
            outputs.append(out)
        return self.upsampler(self.conv_cat(torch.cat([shallow, self.conv_2(out), outputs[0], inner], dim=1)))
