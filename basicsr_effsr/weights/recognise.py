"""Whose parameters a checkpoint holds: under our names, with the network and the options they are of."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from basicsr_effsr._registration import lookup
from basicsr_effsr._version import __version__
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import build, scale_of
from basicsr_effsr.weights.checkpoint import listed, mismatch, open_checkpoint, read_metadata
from basicsr_effsr.weights.fuse import can_be_fused
from basicsr_effsr.weights.identify import candidates, identify, known_networks, likely, most_parts
from basicsr_effsr.weights.names import named_for, views


def as_yaml(value: Any) -> str:
    """A value as an option file has it."""
    return json.dumps(value).replace('"', '') if not isinstance(value, str) else value


def described(network: Mapping[str, Any]) -> str:
    options = ', '.join(f'{k}: {as_yaml(v)}' for k, v in network.items() if k != 'type')
    return f'{network["type"]} ({options})'


@dataclass(frozen=True)
class Recognised:
    """Parameters of a file and the network they are of.

    Attributes:
        net: the network with these parameters, in eval mode on the CPU and in the form that they are of.
        network: ``type`` and options.
        state: parameters under the names of that network.
        renamed: name in the file -> name of the network.
        dropped: names that were left out, as they are computed.
        assumed: options that neither the weights nor the caller show, with the values they were taken to have.
        entry: the entries of the file they lay in, from the outside in.
    """

    net: nn.Module
    network: dict[str, Any]
    state: dict[str, Tensor]
    renamed: dict[str, str]
    dropped: list[str]
    assumed: dict[str, Any]
    entry: tuple[str, ...] = ()


def _stated(source: Path) -> dict[str, Any] | None:
    """Network and options that a safetensors file of ours states in its header; None if it states none."""
    facts = read_metadata(source)
    try:
        options = json.loads(facts['options'])
    except (KeyError, ValueError, RecursionError):
        return None
    if facts.get('network') not in known_networks() or not isinstance(options, dict):
        return None
    return {**options, 'type': facts['network']}


def _assumed(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that weights say nothing about and ``given`` neither, with the values they were taken to have."""
    cls, _ = lookup('ARCH', found['type'])
    usual = inspect.signature(cls).parameters
    unseen = [name for name in getattr(cls, 'unseen', ()) if name not in given]
    return {name: found.get(name, usual[name].default) for name in unseen}


def _fitting(
    network: Mapping[str, Any], given: Mapping[str, Any], stored: Mapping[str, Tensor], entry: tuple[str, ...] = ()
) -> tuple[Recognised | None, str]:
    """What was recognised if ``stored`` loads strictly into the network, and if not, why it does not."""
    net = build(network, fuse=False, parts=most_parts(stored))
    state, renamed, dropped = named_for(net, stored)
    problem = mismatch(net, state)
    if not problem:
        net.load_state_dict(state, strict=True)
        return Recognised(net, dict(network), state, renamed, dropped, _assumed(network, given), entry), ''
    if can_be_fused(net):
        found, _ = _fitting({**network, 'deploy': True}, given, stored, entry)
        return found, problem
    return None, problem


def recognise(source: Path, network: Mapping[str, Any] | None = None, param_key: str | None = None) -> Recognised:
    """Whose parameters a file holds, and the file's parameters under the names of that network.

    Args:
        source: the checkpoint.
        network: ``type`` and options; None finds out, from the header of a safetensors file of ours, otherwise from
            names and shapes.
        param_key: entry of the file.

    Raises:
        UserError: no network that is known, or not the given one; the message lists what does not fit.
    """
    entry, stored = open_checkpoint(source, param_key)
    if network is not None:
        found, problem = _fitting(network, network, stored, entry)
        if found is None:
            own = identify(stored)
            if own is not None:
                itself = f'by its weights it is {described(own)}'
                problem = f'{problem}; {itself}' if own['type'] == network['type'] else itself
            raise UserError(f'{source} does not fit {network["type"]} with the given options: {problem}')
        return found
    header = _stated(source)  # of other versions or by other hands it may be wrong; then the weights decide
    for option, given in ((header, header or {}), (identify(stored), {})):
        try:
            found = _fitting(option, given, stored, entry)[0] if option is not None else None
        except ValueError:
            continue
        if found is not None:
            return found
    for name, cls, state in likely(stored):
        problem = _nearest(name, candidates(name, cls, state), state)
        raise UserError(f'{source} looks like {name} and does not fit it: {problem}; give --arch and --set')
    first = listed(next(views(stored)), 4)
    raise UserError(
        f'{source}: unrecognised architecture, its names begin {first}; known from weights are '
        f'{", ".join(known_networks())}, for another one give --arch'
    )


def _nearest(network: str, options: list[dict[str, Any]], state: Mapping[str, Tensor]) -> str:
    """What does not fit the likeliest form that can be built, or the published one."""
    for option in [*options, {'type': network}]:
        try:
            return _fitting(option, {}, state)[1]
        except ValueError:
            continue
    return 'no form of it can be built'


def metadata_of(network: dict[str, Any], net: nn.Module, weights: Path | None, dtype: str) -> dict[str, str]:
    """Network, options, scale, form and the hash of the source, as strings."""
    facts = {
        'network': str(network['type']),
        'options': json.dumps({k: v for k, v in network.items() if k != 'type'}, sort_keys=True),
        'scale': str(scale_of(net, network)),
        'fused': str(bool(getattr(net, 'deploy', False))).lower(),
        'dtype': dtype,
        'range': 'RGB in [0, 1]',
        'made by': f'basicsr_effsr {__version__}',
    }
    if weights is not None:
        facts |= {'source': weights.name, 'source sha256': hashlib.sha256(weights.read_bytes()).hexdigest()}
    return facts
