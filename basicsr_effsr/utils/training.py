"""Parts of a training step: the moving average, gradients, activation checkpointing, random states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}  # what options call them


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, for all parameters at once; buffers are taken over.

    The same arithmetic as BasicSR's loop over parameters, hence the same bits; BasicSR leaves buffers
    (the statistics of batch norms) at their initial values.
    """
    now = dict(current.named_parameters())
    targets = dict(average.named_parameters())
    torch._foreach_mul_(list(targets.values()), decay)
    torch._foreach_add_(list(targets.values()), [now[name].detach() for name in targets], alpha=1 - decay)
    latest = dict(current.named_buffers())
    for name, buffer in average.named_buffers():
        buffer.copy_(latest[name])


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no tensor holds an infinity or a NaN, as a flag that is still on the device."""
    values = [tensor.detach() for tensor in tensors] or [torch.zeros(())]
    return torch.isfinite(torch.stack([norm.float() for norm in torch._foreach_norm(values)])).all()


def blocks_of(net: nn.Module) -> dict[str, nn.Module]:
    """The children of several layers with weights, also those in lists and sequences, by dotted name."""
    found: dict[str, nn.Module] = {}
    for name, child in net.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found |= {f'{name}.{inner}': block for inner, block in blocks_of(child).items()}
        elif sum(bool(part._parameters) for part in child.modules()) > 1:
            found[name] = child
    return found


def checkpoint_activations(net: nn.Module) -> None:
    """In training, of each block its input alone is kept; the backward pass computes the block once more.

    Same gradients, random numbers and statistics of batch norms; names and weights stay, and so does all that is
    computed without gradients or in eval mode.
    """
    for block in dict.fromkeys(blocks_of(net).values()):
        block.forward = partial(_checkpointed, block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_left(block)), **kwargs
    )


@contextmanager
def _statistics_left(block: nn.Module) -> Iterator[None]:
    """Batch norms, which have seen this batch, do not count it twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in kept:
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, loadable with ``weights_only=True``."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    states: dict[str, Any] = {
        'python': [version, list(internal), gauss],
        'numpy': [str(name), words, int(position), int(has_gauss), cached],
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts back what ``random_states`` took; GPU states only where the number of GPUs is the same."""
    version, internal, gauss = states['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states['torch'])
    if 'cuda' in states and len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])


def to_float(batch: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1]; anything else as it is."""
    return batch.float().div_(255) if batch.dtype == torch.uint8 else batch
