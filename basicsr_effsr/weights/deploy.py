"""The deployed form of networks that have one (re-parameterised convolutions, folded BatchNorm)."""

from __future__ import annotations

import inspect

from torch import nn


def can_be_deployed(net: nn.Module) -> bool:
    """True if ``net`` is of the form that is trained and ``net.fuse(inplace=False)`` is a copy for deployment.

    A ``fuse()`` of others may change the network itself, or be something else altogether.
    """
    fuse = getattr(net, 'fuse', None)
    if not callable(fuse) or isinstance(fuse, nn.Module) or getattr(net, 'deploy', True):
        return False
    return 'inplace' in inspect.signature(fuse).parameters


def deployed(net: nn.Module) -> nn.Module:
    """The network in eval mode, and in its deployed form if it has one; ``net`` keeps its own form."""
    net = net.eval()
    return net.fuse(inplace=False).eval() if can_be_deployed(net) else net  # type: ignore[operator]
