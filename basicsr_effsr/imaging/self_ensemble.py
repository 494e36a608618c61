"""Geometric self-ensemble: the mean over the eight flips and rotations of an image (EDSR's "+")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def self_ensemble(net: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
    """Runs ``net`` on the eight symmetric views of ``lq`` and averages the results, turned back.

    One view is in memory at a time. HASN's Table 1 is scored this way.

    Args:
        net: any function (N, C, H, W) -> (N, C', rH, rW).
        lq: (N, C, H, W).

    Returns:
        The mean, (N, C', rH, rW), in the precision of the net's output.
    """
    total: Tensor | None = None
    for quarter_turns in range(4):
        for mirrored in (False, True):
            view = torch.rot90(lq, quarter_turns, (-2, -1))
            view = view.flip(-1) if mirrored else view
            out = net(view.contiguous())
            out = out.flip(-1) if mirrored else out
            out = torch.rot90(out, -quarter_turns, (-2, -1))
            total = out if total is None else total + out
    assert total is not None
    return total / 8
