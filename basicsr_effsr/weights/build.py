"""A network out of its options and, if there are some, its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr._registration import lookup
from basicsr_effsr.utils.errors import UserError, near

if TYPE_CHECKING:
    from torch import nn


def build(
    network: dict[str, Any], weights: Path | None, param_key: str | None = None, *, fuse: bool = True
) -> nn.Module:
    """The network in eval mode on the CPU, fused if it offers ``fuse()``.

    Args:
        network: ``type`` and its options.
        weights: checkpoint; None leaves the network as it was initialised.
        param_key: entry of the checkpoint.
        fuse: return the fused form where there is one.

    Raises:
        UserError: no such network, or an option it does not have.
        ValueError, FileNotFoundError: an option out of its range, a checkpoint that does not fit.
    """
    from basicsr_effsr.weights.checkpoint import load_into
    from basicsr_effsr.weights.fuse import fused

    options = dict(network)
    name = options.pop('type')
    found, known = lookup('ARCH', name)
    if found is None:
        raise UserError(f'there is no network {name!r}; {near(name, known)}')
    try:
        net: nn.Module = found(**options)
    except (TypeError, RuntimeError, AssertionError) as error:  # those of the host check little and raise what they hit
        raise UserError(f'{network["type"]}: {error}; correct its options') from error
    if weights is not None:
        load_into(net, weights, param_key=param_key)
    return fused(net) if fuse else net.eval()


def on_meta(option: Mapping[str, Any]) -> nn.Module:
    """A network without memory for its weights."""
    import torch

    with torch.device('meta'):
        return build(dict(option), None, fuse=False)


def scale_of(net: nn.Module, network: Mapping[str, Any], told: Any = None) -> int:
    """The scale factor of a network.

    Args:
        net: the network; ours state ``upscale``.
        network: its options.
        told: ``scale`` of the option file, if there is one.

    Raises:
        UserError: nothing says it.
    """
    found, _ = lookup('ARCH', network['type'])
    parameters = inspect.signature(found).parameters
    defaults = [parameters[key].default for key in ('upscale', 'scale') if key in parameters]
    for value in (getattr(net, 'upscale', None), told, network.get('upscale'), network.get('scale'), *defaults):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise UserError(f'{network["type"]} does not say its scale factor; give an option file with scale')
