"""The fused form of networks that have one, for inference."""

from __future__ import annotations

import inspect

from torch import nn


def can_be_fused(net: nn.Module) -> bool:
    """True if ``net`` is of the form that is trained and ``net.fuse(inplace=False)`` is its fused copy.

    A ``fuse()`` of others may change the network itself, or be something else altogether.
    """
    fuse = getattr(net, 'fuse', None)
    if not callable(fuse) or isinstance(fuse, nn.Module) or getattr(net, 'deploy', True):
        return False
    return 'inplace' in inspect.signature(fuse).parameters


def fused(net: nn.Module) -> nn.Module:
    """The network in eval mode, and in its fused form if it has one; ``net`` keeps its own form."""
    net = net.eval()
    return net.fuse(inplace=False).eval() if can_be_fused(net) else net  # type: ignore[operator]
