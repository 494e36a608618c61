"""RLFN and SPAN, the baselines of the NTIRE efficient-SR challenges: yardsticks for latency; RLFN is not registered.

Paper: F. Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPRW 2022, in
       the pruned form (46 of 48 channels, 4 blocks) that the challenges of 2022 to 2024 took as baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import ESA, pixelshuffle_upsampler
from basicsr_effsr.archs.span_arch import SPAN_effsr


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

    Input (N, 3, H, W) in [0, 1] with H, W >= ``min_size``, output (N, 3, rH, rW); other channels to stand beside a
    network that has them.
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


YARDSTICKS: dict[str, Callable[..., nn.Module]] = {'SPAN': SPAN_effsr, 'RLFN': RLFN}  # ratios are to the last
BASELINES: dict[str, Callable[[], nn.Module]] = {
    'RLFN': RLFN,
    'SPAN': partial(SPAN_effsr, num_feat=28),
}  # of challenges
