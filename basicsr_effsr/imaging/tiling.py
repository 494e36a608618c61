"""Running a network over an image tile by tile, or over its eight flips and rotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

BLENDS = ('mean', 'feather', 'halo')
Progress = Callable[[int, int], None]  # called with (tiles done, tiles in all)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis: steps of ``tile - overlap``, the last tile flush.

    >>> tile_starts(150, 64, 24)
    [0, 40, 80, 86]
    >>> tile_starts(50, 64, 24)
    [0]
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _feather(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights along one side of a tile: rising over the overlap, flat in the middle, falling again."""
    position = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    edge = torch.minimum(position, length - position)
    return (edge / max(overlap, 1)).clamp(max=1)


def _spans(length: int, tile: int, overlap: int, blend: str) -> Iterator[tuple[int, int, int, int]]:
    """(first, last) pixel read and (first, last) pixel of the result kept, per tile along one axis."""
    if blend == 'halo':
        for start in range(0, length, tile):
            stop = min(start + tile, length)
            yield max(start - overlap, 0), min(stop + overlap, length), start, stop
    else:
        for start in tile_starts(length, tile, overlap):
            stop = min(start + tile, length)
            yield start, stop, start, stop


def tiled_bands(
    net: Callable[[Tensor], Tensor],
    lq: Tensor,
    *,
    upscale: int,
    tile: int,
    overlap: int,
    blend: str = 'mean',
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """What :func:`tiled_forward` returns as bands from top to bottom, each given as soon as no later tile changes it.

    Never more than one row of tiles is held, so the memory needed does not grow with the height of the image.

    Yields:
        (N, C', h, rW); the heights h add up to rH.
    """
    if blend not in BLENDS:
        raise ValueError(f'tiled_forward: blend must be one of {list(BLENDS)}, got {blend!r}')
    if tile < 1 or overlap < 0 or (overlap >= tile and blend != 'halo'):
        raise ValueError(
            f'tiled_forward: tile must be at least 1 and overlap from 0 to tile - 1, got tile={tile}, overlap={overlap}'
        )
    height, width = lq.shape[-2:]
    if blend == 'mean' and overlap < min(height, width):
        tile = min(tile, height, width)
    rows = list(_spans(height, tile, overlap, blend))
    columns = list(_spans(width, tile, overlap, blend))
    carried: tuple[Tensor, Tensor] | None = None
    done = 0
    for i, (top, bottom, keep_top, keep_bottom) in enumerate(rows):
        total: Tensor | None = None
        weight: Tensor | None = None
        dtype = lq.dtype
        for left, right, keep_left, keep_right in columns:
            out = net(lq[..., top:bottom, left:right].contiguous())
            if total is None or weight is None:
                dtype = out.dtype
                exact = torch.promote_types(dtype, torch.float32)
                size = (upscale * (keep_bottom - keep_top), upscale * width)
                total = torch.zeros(*out.shape[:2], *size, device=out.device, dtype=exact)
                weight = torch.zeros(size, device=out.device, dtype=exact)
                if carried is not None:
                    shared = carried[1].shape[0]
                    total[..., :shared, :], weight[:shared] = carried
            out = out[
                ...,
                upscale * (keep_top - top) : upscale * (keep_bottom - top),
                upscale * (keep_left - left) : upscale * (keep_right - left),
            ].to(total.dtype)
            share = torch.ones(out.shape[-2:], device=out.device, dtype=out.dtype)
            if blend == 'feather':
                share = torch.outer(
                    _feather(out.shape[-2], upscale * overlap, out), _feather(out.shape[-1], upscale * overlap, out)
                )
            where = slice(upscale * keep_left, upscale * keep_right)
            total[..., where] += out * share
            weight[:, where] += share
            done += 1
            if progress is not None:
                progress(done, len(rows) * len(columns))
        assert total is not None
        assert weight is not None
        following = rows[i + 1][2] if i + 1 < len(rows) else keep_bottom
        final = upscale * (following - keep_top)
        yield (total[..., :final, :] / weight[:final]).to(dtype)
        carried = total[..., final:, :], weight[final:]


def tiled_forward(
    net: Callable[[Tensor], Tensor], lq: Tensor, *, upscale: int, tile: int, overlap: int, blend: str = 'mean'
) -> Tensor:
    """Runs ``net`` on tiles of ``lq`` and puts the results together.

    ``mean`` averages overlapping tiles plainly, and they stay square: their side is the shorter one of an image that is
    smaller. With tile 64 and overlap 24 this is how the scores of the ASID paper were measured. ``feather`` lets a tile
    fade out over its overlap, which hides seams of networks whose result depends on the whole tile. ``halo`` reads
    ``overlap`` pixels around every tile and throws them away again: with ``overlap >= net.halo`` of a convolutional
    network the result equals the untiled one.

    Args:
        net: a function (N, C, h, w) -> (N, C', r h, r w).
        lq: (N, C, H, W).
        upscale: the factor r of ``net``.
        tile: side of a tile in LR pixels; for ``halo`` without its halo.
        overlap: LR pixels that neighbouring tiles share; for ``halo`` the width of the halo.
        blend: ``mean``, ``feather`` or ``halo``.

    Returns:
        (N, C', rH, rW) in the precision of the net's output.

    Raises:
        ValueError: an option is out of its range.
    """
    return torch.cat(list(tiled_bands(net, lq, upscale=upscale, tile=tile, overlap=overlap, blend=blend)), dim=-2)


def self_ensemble(net: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
    """The mean of ``net`` over the eight flips and rotations of ``lq``, turned back (EDSR's "+").

    One view is in memory at a time. HASN's Table 1 is scored this way. (N, C, H, W) becomes (N, C', rH, rW), in the
    precision of the net's output.
    """
    total: Tensor | None = None
    for quarter_turns, mirrored in product(range(4), (False, True)):
        view = torch.rot90(lq, quarter_turns, (-2, -1))
        out = net((view.flip(-1) if mirrored else view).contiguous())
        out = torch.rot90(out.flip(-1) if mirrored else out, -quarter_turns, (-2, -1))
        total = out if total is None else total + out
    assert total is not None
    return total / 8
