"""IMDN: information multi-distillation network, the baseline that fine-tuning with DPARN's losses starts from.

Paper:        Z. Hui et al., "Lightweight Image Super-Resolution with Information Multi-distillation
              Network", ACM Multimedia 2019.
Weights:      the authors' checkpoints load with ``strict=True`` once ``module.`` is taken off their keys.
Differences:  none in the function.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Literal, Mapping

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from .effsr_blocks import (
    IMDB,
    UPSAMPLER_NAMES,
    Network,
    check_input,
    pixelshuffle_upsampler,
    register_in,
    usual_options,
)

__all__ = ['IMDN']


@register_in(ARCH_REGISTRY)
class IMDN(Network):
    """Information multi-distillation network.

    Images are RGB in [0, 1]; input (N, num_in_ch, H, W), output (N, num_out_ch, upscale * H,
    upscale * W), not clamped. Train and eval mode compute the same.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        num_feat: channels C of the trunk, a multiple of 4 (64).
        num_block: number of IMDBs (6).
        upscale: scale factor r, one of 2, 3, 4.
    """

    marks = ('fea_conv.weight', 'IMDB1.c1.weight', 'IMDB1.cca.conv_du.0.weight', 'upsampler.0.weight')
    renames = UPSAMPLER_NAMES
    ncnn = 'runs, by pnnx from --form torchscript, at any size'

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 6,
        upscale: Literal[2, 3, 4] = 4,
    ) -> None:
        super().__init__(locals())
        if num_feat % 4:
            raise ValueError(f'IMDN: num_feat must be a multiple of 4, got {num_feat}')
        self.num_block = num_block
        self.fea_conv = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        for i in range(1, num_block + 1):
            self.add_module(f'IMDB{i}', IMDB(num_feat))
        self.c = nn.Sequential(nn.Conv2d(num_feat * num_block, num_feat, 1), nn.LeakyReLU(0.05, inplace=True))
        self.LR_conv = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = pixelshuffle_upsampler(num_feat, num_out_ch, upscale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> Iterator[Dict[str, Any]]:
        """Options that weights with these names may be of, the likeliest first."""
        return usual_options(state, 'fea_conv.weight', r'IMDB(\d+)\.', 'upsampler.0.weight')

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_in_ch)
        shallow = self.fea_conv(x)
        deep, levels = shallow, []
        for i in range(1, self.num_block + 1):
            deep = self.get_submodule(f'IMDB{i}')(deep)
            levels.append(deep)
        return self.upsampler(self.LR_conv(self.c(torch.cat(levels, dim=1))) + shallow)
