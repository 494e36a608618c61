"""Parts of a training step: the moving average, gradients, random states."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
