"""Whose parameters a checkpoint holds: under our names, with the network and the options they are of."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import on_meta
from basicsr_effsr.weights.names import COMPUTED

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 4


def to_official_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Names of our networks for those of other programs: (state, old name -> new name, names left out).

    Buffers that are computed (position indices, attention masks, counts of profilers) are left out.
    """
    renamed, dropped, out = {}, [], {}
    for name, tensor in state.items():
        if name.endswith(COMPUTED):
            dropped.append(name)
            continue
        new = name
        for old, ours in (('upsampler.up.', 'upsampler.'), ('to_img.', 'upsampler.')):
            if name.startswith(old) and not any(n.startswith('upsampler.0.') for n in state):
                new = ours + name.removeprefix(old)
        if new != name:
            renamed[name] = new
        out[new] = tensor
    return out, renamed, dropped


def misfit(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Every name and shape that does not fit, with the closest match; empty if all do."""
    from basicsr_effsr.weights.identify import shapes_of

    wanted, given = shapes_of(net.state_dict()), shapes_of(state)
    missing = [name for name in wanted if name not in given]
    lines = [f'{n} is {given[n]}, must be {wanted[n]}' for n in wanted if n in given and given[n] != wanted[n]]
    for name in given:
        if name not in wanted:
            close = get_close_matches(name, missing, 1)
            missing = [other for other in missing if other not in close]
            lines.append(f'{name} is unknown' + (f', nearest {close[0]}' if close else ''))
    lines += [f'{name} is missing' for name in missing]
    more = f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
    return '; '.join(lines[:SHOWN]) + more


def as_yaml(value: Any) -> str:
    """A value as an option file has it."""
    return json.dumps(value).replace('"', '') if not isinstance(value, str) else value


def described(network: Mapping[str, Any]) -> str:
    options = ', '.join(f'{k}: {as_yaml(v)}' for k, v in network.items() if k != 'type')
    return f'{network["type"]} ({options})'


def stated(source: Path) -> dict[str, Any] | None:
    """Network and options that a safetensors file of ours states in its header; None if it states none."""
    from basicsr_effsr.weights.checkpoint import read_metadata
    from basicsr_effsr.weights.identify import NETWORKS

    facts = read_metadata(source)
    try:
        options = json.loads(facts['options'])
    except (KeyError, ValueError):
        return None
    if facts.get('network') not in NETWORKS or not isinstance(options, dict):
        return None
    return {**options, 'type': facts['network']}


def assumed_of(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that weights say nothing about and ``given`` neither, with the values they were taken to have."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from basicsr_effsr.weights.identify import UNSEEN

    known = inspect.signature(ARCH_REGISTRY.get(found['type'])).parameters
    unseen = [name for name in UNSEEN.get(found['type'], ()) if name not in given]
    return {name: found.get(name, known[name].default) for name in unseen}


def recognise(
    source: Path, network: Mapping[str, Any] | None, param_key: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str], list[str]]:
    """Parameters of a file under our names, and the network they are of.

    Args:
        source: the checkpoint.
        network: ``type`` and options; None finds out, from the header of a safetensors file of ours, otherwise from
            names and shapes.
        param_key: entry of the file.

    Returns:
        state, network option, old name -> new name, names left out.

    Raises:
        UserError: no network of ours, or not the given one; the message lists what does not fit.
    """
    from basicsr_effsr.weights.checkpoint import read_state_dict
    from basicsr_effsr.weights.fuse import can_be_fused
    from basicsr_effsr.weights.identify import NETWORKS, candidates, identify, looks_like

    state, renamed, dropped = to_official_names(read_state_dict(source, param_key))
    if network is not None:
        net = on_meta(network)
        problem = misfit(net, state)
        if problem and can_be_fused(net) and not misfit(on_meta({**network, 'deploy': True}), state):
            return state, {**network, 'deploy': True}, renamed, dropped
        if problem:
            own = identify(state, on_meta)
            if own is not None:
                problem = f'by its weights it is {described(own)}'
            raise UserError(f'{source} does not fit {network["type"]} with the given options: {problem}')
        return state, dict(network), renamed, dropped
    header = stated(source)
    if header is not None:
        try:
            if not misfit(on_meta(header), state):
                return state, header, renamed, dropped
        except ValueError:
            pass  # a header of other versions or by other hands; the weights decide
    found = identify(state, on_meta)
    if found is not None:
        return state, found, renamed, dropped
    for likely in NETWORKS:
        if looks_like(likely, state):
            problem = _nearest(likely, candidates(likely, state), state)
            raise UserError(f'{source} looks like {likely} and does not fit it: {problem}; give --arch and --set')
    raise UserError(
        f'{source} is of none of our networks ({", ".join(NETWORKS)}); its names begin {", ".join(list(state)[:4])}'
    )


def _nearest(network: str, options: list[dict[str, Any]], state: Mapping[str, Tensor]) -> str:
    """What does not fit the likeliest form that can be built, or the published one."""
    for option in [*options, {'type': network}]:
        try:
            return misfit(on_meta(option), state)
        except ValueError:
            continue
    return 'no form of it can be built'
