"""Multiply-adds by the rules of the counters that the papers used; written from what those tools do, without them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from basicsr_effsr.archs.asid_arch import SharedAttention
from basicsr_effsr.archs.effsr_blocks import CCALayer


def _count(net: nn.Module, lr_size: tuple[int, int], cost: Callable[[nn.Module, Tensor, Tensor], int]) -> float:
    """The sum of ``cost(layer, input, output)`` over all calls, in 10^9, on tensors without content."""
    total = 0

    def count(layer: nn.Module, inputs: tuple, out) -> None:
        nonlocal total
        total += cost(layer, inputs[0], out)

    hooks = [layer.register_forward_hook(count) for layer in net.modules()]
    try:
        with torch.no_grad():
            net.eval()(torch.empty(1, 3, *lr_size, device='meta'))
    finally:
        for hook in hooks:
            hook.remove()
    return total / 1e9


def thop_macs(net: nn.Module, lr_size: tuple[int, int]) -> float:
    """Multiply-adds in 10^9 by the rule of thop, which AGDN's and ASID's papers follow.

    Convolutions and linear layers, and of the layers of ``torch.nn`` that the authors' networks call as modules: 4 per
    element of a layer norm, 3 d - 1 per row of d of a softmax, H W + 1 per channel of a global mean. Products of two
    activations and norms of the authors' own are not counted.

    Args:
        net: on the meta device.
        lr_size: H, W of the input.
    """

    def cost(layer: nn.Module, x: Tensor, out) -> int:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            return out.numel() * math.prod(layer.weight.shape[1:])
        if type(layer) is nn.LayerNorm:
            return 4 * out.numel()
        if isinstance(layer, CCALayer):
            return (x.shape[2] * x.shape[3] + 1) * x.shape[1]
        if isinstance(layer, SharedAttention) and layer.own_map:
            rows = out[1]
            return rows.numel() // rows.shape[-1] * (3 * rows.shape[-1] - 1)
        return 0

    return _count(net, lr_size, cost)


def torchsummaryx_macs(net: nn.Module, lr_size: tuple[int, int]) -> float:
    """Multiply-adds in 10^9 by the rule of torchsummaryX, which EFRDN's paper follows.

    At each call of a layer: a convolution counts its weight's elements times its output's pixels, any other layer its
    weight's elements once. So a linear layer is not multiplied by the tokens that go through it, and products of two
    activations (all of attention) are not counted.

    Args:
        net: on the meta device.
        lr_size: H, W of the input.
    """

    def cost(layer: nn.Module, x: Tensor, out: Tensor) -> int:
        weight = getattr(layer, 'weight', None)
        if weight is None or list(layer.children()):
            return 0
        return weight.numel() * (math.prod(out.shape[2:]) if isinstance(layer, nn.Conv2d) else 1)

    return _count(net, lr_size, cost)
