"""Process groups on machines with and without GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from basicsr_effsr.utils.errors import one_line

MOST_PROCESSES = 10**6
LAUNCHERS = {  # -> what it puts into the environment, how to start with it
    'pytorch': ('RANK WORLD_SIZE MASTER_ADDR MASTER_PORT', 'torchrun --nproc_per_node=2 -m'),
    'slurm': ('SLURM_PROCID SLURM_NTASKS SLURM_NODELIST', 'srun --ntasks=2 python -m'),
}


def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
    """BasicSR's ``init_dist``, with its arguments; without a GPU the group of ``pytorch`` runs over gloo.

    Raises:
        SystemExit: the launcher's environment or a GPU is missing, a number is none, or the processes do not meet; the
            sentence says which.
    """
    from basicsr.utils import dist_util

    needed, start = LAUNCHERS.get(launcher, ('', ''))
    if missing := [name for name in needed.split() if not os.environ.get(name)]:
        raise SystemExit(
            f'--launcher {launcher}: {", ".join(missing)} of the environment not set; start with {start} '
            f'basicsr.train -opt ... --launcher {launcher}'
        )
    if needed:
        rank, world = needed.split()[:2]
        processes = _number(launcher, world, 1, MOST_PROCESSES)
        _number(launcher, rank, 0, processes - 1)
    if 'MASTER_PORT' in os.environ:
        _number(launcher, 'MASTER_PORT', 1, 2**16 - 1)
    if launcher != 'pytorch' and not torch.cuda.is_available():
        raise SystemExit(f'--launcher {launcher} needs a GPU, and none is visible; on CPUs use --launcher pytorch')
    try:
        if torch.cuda.is_available():
            dist_util.init_dist(launcher, backend, **kwargs)
            return
        if mp.get_start_method(allow_none=True) is None:
            mp.set_start_method('spawn')
        dist.init_process_group(backend='gloo')
    except RuntimeError as error:  # torch's own for a port that is taken, a host that is not there
        where = ':'.join(os.environ.get(name, '') for name in ('MASTER_ADDR', 'MASTER_PORT'))
        words = one_line(str(error).partition('\n')[0])
        raise SystemExit(f'--launcher {launcher}: the processes do not meet at {where} ({words[:200]})') from error


def _number(launcher: str, name: str, least: int, most: int) -> int:
    """A variable of the environment, which torch would wait for ever on if it lies outside."""
    text = os.environ[name]
    if not re.fullmatch('[0-9]{1,9}', text) or not least <= int(text) <= most:
        words = f'{name} of the environment must be from {least} to {most}, got {text[:40]!r}'
        raise SystemExit(f'--launcher {launcher}: {words}')
    return int(text)


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
    """True inside a process group of more than one."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first() -> bool:
    """True in rank 0 of a group, and outside a group."""
    return not active() or dist.get_rank() == 0


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the group has ended."""
    return active() and isinstance(error, RuntimeError) and bool(re.search('gloo|nccl', str(error), re.IGNORECASE))


def wait_for_all() -> None:
    """Returns once every rank has come here; at once outside a group."""
    if active():
        dist.barrier()


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Replaces each tensor by its mean over all ranks, in place; does nothing outside a group."""
    if active():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def from_rank_0(value: Any) -> Any:
    """What rank 0 holds; ``value`` itself outside a group."""
    box = [value]
    if active():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """What each rank holds, by rank, all of which must call it; ``value`` alone outside a group."""
    values = [value] * (dist.get_world_size() if active() else 1)
    if active():
        dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of the values of all ranks, which all must call it."""
    if not active():
        return value
    box = torch.tensor(value, device='cuda' if dist.get_backend() == 'nccl' else 'cpu')
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def same_on_all_ranks(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers that rank 0 has."""
    if active():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def true_everywhere(flags: Tensor) -> list[bool]:
    """Whether each of the flags is true on every rank; all ranks must call it. The one wait for the device."""
    flags = flags.float()
    if active():
        dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    return flags.bool().tolist()
