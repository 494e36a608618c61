"""Builds a network from its options and, if there are some, its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr._registration import defaults_of, lookup
from basicsr_effsr.utils.errors import UserError, near

if TYPE_CHECKING:
    from torch import nn


MAX_PARTS = 8_000  # layers and tensors of a network
MAX_VALUES = 2**30


@contextmanager
def bounded(parts: int = MAX_PARTS) -> Iterator[None]:
    """Stops the building of a network of absurd size, whatever option makes it so, before it costs time or memory.

    Raises:
        UserError: it has more than ``parts`` layers and tensors, or more than 2^30 values.
    """
    from torch.nn.modules.module import (
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )

    count = values = 0

    def counted(_: Any, name: str, new: Any) -> None:
        nonlocal count, values
        count += 1
        values += getattr(new, 'numel', int)()
        if count > parts or values > MAX_VALUES:
            raise UserError(f'these options make more than {parts:,} layers or {MAX_VALUES:,} values')

    with register_module_module_registration_hook(counted), register_module_parameter_registration_hook(counted):
        yield


def build(
    network: Mapping[str, Any],
    weights: Path | None = None,
    param_key: str | None = None,
    *,
    fuse: bool = True,
    parts: int = MAX_PARTS,
) -> nn.Module:
    """The network in eval mode on the CPU, fused if it offers ``fuse()``; ``parts`` layers and tensors at most.

    Raises:
        UserError: no such network, or an option it does not have.
        ValueError, FileNotFoundError: an option out of its range, a checkpoint that does not fit.
    """
    from basicsr_effsr.weights.checkpoint import fused, load_into

    name = network['type']
    found, known = lookup('ARCH', name)
    if found is None:
        raise UserError(f'there is no network {name!r}; {near(name, known)}')
    try:
        with bounded(parts):
            net: nn.Module = found(**{option: value for option, value in network.items() if option != 'type'})
    except (UserError, TypeError, RuntimeError, AssertionError, MemoryError, OverflowError) as error:
        # networks of the host check little and raise what they hit
        raise UserError(f'{name}: {error}; correct its options') from error
    if weights is not None:
        load_into(net, weights, param_key=param_key)
    return fused(net) if fuse else net.eval()


def on_meta(option: Mapping[str, Any], parts: int = MAX_PARTS) -> nn.Module:
    """A network without memory for its weights."""
    import torch

    with torch.device('meta'):
        return build(option, fuse=False, parts=parts)


def scale_of(net: nn.Module, network: Mapping[str, Any], stated: Any = None) -> int:
    """The scale factor: ``upscale`` of the network, ``scale`` of an option file (``stated``), or an option of it.

    Raises:
        UserError: nothing says it.
    """
    found, _ = lookup('ARCH', network['type'])
    usual, names = defaults_of(found), ('upscale', 'scale')
    for value in (getattr(net, 'upscale', None), stated, *map(network.get, names), *map(usual.get, names)):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise UserError(f'{network["type"]} does not say its scale factor; give an option file with scale')
