"""Process groups on machines with and without GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
    """BasicSR's ``init_dist``; without a GPU the group runs over gloo.

    Args:
        launcher: ``pytorch`` (torchrun) or ``slurm``.
        backend: used with GPUs.
        kwargs: as the host's, ``port`` for slurm.
    """
    from basicsr.utils import dist_util

    if torch.cuda.is_available() or launcher != 'pytorch':
        dist_util.init_dist(launcher, backend, **kwargs)
        return
    if mp.get_start_method(allow_none=True) is None:
        mp.set_start_method('spawn')
    if 'RANK' not in os.environ:
        raise SystemExit('--launcher pytorch needs torchrun: torchrun --nproc_per_node=2 -m basicsr.train -opt ...')
    dist.init_process_group(backend='gloo')


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """What this process does within the ``with`` block it does without the other ranks, which may do something else."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def active() -> bool:
    """True inside a process group."""
    return not _alone and dist.is_available() and dist.is_initialized()


def wait_for_all() -> None:
    """Returns once every rank has come here; at once outside a group."""
    if active():
        dist.barrier()


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Replaces each tensor by its mean over all ranks, in place; does nothing outside a group."""
    if active() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def from_rank_0(value: Any) -> Any:
    """What rank 0 holds; ``value`` itself outside a group."""
    if not active() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def same_on_all_ranks(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers that rank 0 has."""
    if active() and dist.get_world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def true_everywhere(value: bool, device: torch.device) -> bool:
    """True if ``value`` is true on every rank; all ranks must call it."""
    if not active() or dist.get_world_size() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())
