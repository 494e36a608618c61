"""Identifies the network and options of a checkpoint, and maps its names to the network's.

The class of a network, ours or another's, states:

    options_of(state)   static method: options that weights with these names may be of, the likeliest first
    marks               names that its weights always hold; one that ends in ``*`` is the beginning of a name
    unseen              options that leave no trace in the weights
    variants            published name, the key of its row in a paper's table -> options; the class itself is the row
                        of its own name with the options it has by default
    renames             beginning of a name in files of other programs -> beginning of ours
    foreign             names that only files of other programs hold, which spandrel is to load itself
    ncnn                what pnnx and ncnn did with it
    supports_half       False: visibly another image in fp16 and bf16

Only ``options_of`` is needed.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from basicsr_effsr._registration import defaults_of, lookup, register
from basicsr_effsr._version import __version__
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import digest_of
from basicsr_effsr.utils.stored import listed, read_metadata
from basicsr_effsr.weights.build import MAX_PARTS, build, on_meta, scale_of
from basicsr_effsr.weights.checkpoint import (
    COMPUTED,
    Checkpoint,
    can_be_fused,
    mismatch,
    named_for,
    open_checkpoint,
    renamed_by,
    shapes_of,
    views,
)

State = Mapping[str, Tensor]
Options = dict[str, Any]

MAX_TRIED = 64  # networks that are built, without memory, to find one that fits
# the counters of batch norms: files of other programs may lack them, and torch fills them in
NOT_COMPARED = (*COMPUTED, 'num_batches_tracked')


def known_networks() -> dict[str, Any]:
    """Registered name -> class, for every network that states how its options are found from weights."""
    from basicsr.utils.registry import ARCH_REGISTRY

    register('arch')
    found: dict[str, Any] = {}
    for name, cls in ARCH_REGISTRY:
        if hasattr(cls, 'options_of') and cls not in found.values():  # ours are there twice, under an alias too
            found[name] = cls
    return found


def variant_of(cls: Any, options: Mapping[str, Any]) -> str | None:
    """The published variant that these options make; options that weights do not show are not looked at."""
    given, unseen = {**defaults_of(cls), **options}, getattr(cls, 'unseen', ())
    for name, wanted in getattr(cls, 'variants', {}).items():
        if all(given.get(key) == value for key, value in wanted.items() if key not in unseen):
            return str(name)
    return None


def method_of(cls: Any, options: Mapping[str, Any]) -> str | None:
    """The published network that these options make: a variant, or the class as it is by default at any scale.

    None for a network of one's own making, as for classes without ``options_of``.
    """
    usual = defaults_of(cls)
    free = {'type', 'upscale', 'deploy', *getattr(cls, 'unseen', ())}
    plain = all(value == usual.get(key) for key, value in options.items() if key not in free)
    return variant_of(cls, options) or (cls.__name__ if plain and hasattr(cls, 'options_of') else None)


def candidates(name: str, cls: Any, state: State) -> list[Options]:
    """``type`` and options that weights with the names of a network may be of, the likeliest first."""
    found: list[Options] = []
    with suppress(KeyError, IndexError, ZeroDivisionError):  # layers that every such network has are missing or empty
        for options in islice(cls.options_of(state), MAX_TRIED):
            variant = getattr(cls, 'variants', {}).get(variant_of(cls, options), {})
            hidden = {key: value for key, value in variant.items() if key in getattr(cls, 'unseen', ())}
            found.append({'type': name, **options, **hidden})
    return found


def likely(state: State) -> Iterator[tuple[str, Any, dict[str, Tensor]]]:
    """(name, class, the state dict under its names) of the networks that a state dict looks like."""
    networks = known_networks()
    for view in views(state):
        for name, cls in networks.items():
            renamed = renamed_by(getattr(cls, 'renames', {}), view)
            ours = {renamed.get(n, n): tensor for n, tensor in view.items()}
            if all(mark in ours or fnmatch.filter(ours, mark) for mark in getattr(cls, 'marks', ())):
                yield name, cls, ours


def most_parts(state: State) -> int:
    """How many layers and tensors a network may have whose weights are ``state``; a fused one has few tensors."""
    return min(1000 + 20 * len(state), MAX_PARTS)


def identify(state: State) -> Options | None:
    """``type`` and options of the network that ``state`` loads into with ``strict=True``; None if there is none.

    Options that leave no trace in the weights (``unseen``) have their default values, or those of a published variant.
    Where several values give the same layers (8 // 3 == 8 // 4), one of them is found, the default if it is among
    them.
    """
    for name, cls, ours in likely(state):
        shapes = shapes_of(ours, NOT_COMPARED)
        for option in candidates(name, cls, ours):
            with suppress(ValueError, TypeError):
                if shapes_of(on_meta(option, most_parts(state)).state_dict(), NOT_COMPARED) == shapes:
                    return option
    return None


def as_yaml(value: Any) -> str:
    """A value as an option file has it."""
    return json.dumps(value).replace('"', '') if not isinstance(value, str) else value


def described(network: Mapping[str, Any]) -> str:
    options = ', '.join(f'{k}: {as_yaml(v)}' for k, v in network.items() if k != 'type')
    return f'{network["type"]} ({options})'


@dataclass(frozen=True, kw_only=True)
class Recognised(Checkpoint):
    """Parameters of a file and the network they are of."""

    net: nn.Module  # with these parameters, in eval mode on the CPU and in the form that they are of
    network: Options  # type and options
    assumed: Options  # options that neither the weights nor the caller show, with the values they were taken to have


def _stated(source: Path) -> Options:
    """Network and options that a safetensors file of ours states in its header; empty if it states none."""
    facts = read_metadata(source)
    with suppress(KeyError, ValueError, RecursionError):
        options = json.loads(facts['options'])
        if facts['network'] in known_networks() and isinstance(options, dict):
            return {**options, 'type': facts['network']}
    return {}


def _fitting(
    network: Mapping[str, Any], given: Mapping[str, Any], stored: Mapping[str, Tensor], entry: tuple[str, ...] = ()
) -> tuple[Recognised | None, str]:
    """What was recognised if ``stored`` loads strictly into the network, and if not, why it does not."""
    net = build(network, fuse=False, parts=most_parts(stored))
    state, renamed, dropped = named_for(net, stored)
    problem = mismatch(net, state)
    if not problem:
        net.load_state_dict(state, strict=True)
        usual = defaults_of(lookup('ARCH', network['type'])[0])
        unseen = [name for name in getattr(net, 'unseen', ()) if name not in given]
        assumed = {name: network.get(name, usual[name]) for name in unseen}
        return Recognised(state, renamed, dropped, entry, net=net, network=dict(network), assumed=assumed), ''
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
    for option, given in ((header, header), (identify(stored), {})):
        with suppress(ValueError):
            found = _fitting(option, given, stored, entry)[0] if option else None
            if found is not None:
                return found
    for name, cls, state in likely(stored):
        problem = 'no form of it can be built'
        for option in (*candidates(name, cls, state), {'type': name}):  # the likeliest form, or the published one
            with suppress(ValueError):
                problem = _fitting(option, {}, state)[1]
                break
        raise UserError(f'{source} looks like {name} and does not fit it: {problem}; give --arch and --set')
    first = listed(next(views(stored)), 4)
    raise UserError(
        f'{source}: unrecognised architecture, its names begin {first}; known from weights are '
        f'{", ".join(known_networks())}, for another one give --arch'
    )


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
        facts |= {'source': weights.name, 'source sha256': digest_of(weights)}
    return facts
