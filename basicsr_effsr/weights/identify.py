"""Which registered network a state dict is of, and with which options, from its names and shapes alone.

What a network is stands in its class, ours or anybody's:

    options_of(state)   static method: options that weights with these names may be of, the likeliest first
    marks               names that its weights always hold; one that ends in ``*`` is the beginning of a name
    unseen              options that leave no trace in the weights
    variants            published name, the key of its row in a paper's table -> options
    renames             beginning of a name in files of other programs -> beginning of ours
    foreign             names that only files of other programs hold, which spandrel is to load itself
    ncnn                what pnnx and ncnn did with it
    supports_half       False: visibly another image in fp16 and bf16

Only ``options_of`` is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from basicsr_effsr._registration import register
from basicsr_effsr.weights.build import MAX_PARTS, on_meta
from basicsr_effsr.weights.names import COMPUTED, renamed_by, views

State = Mapping[str, Tensor]
Options = dict[str, Any]

MAX_TRIED = 64  # networks that are built, without memory, to find one that fits
COUNTERS = 'num_batches_tracked'  # of batch norms; files of other programs may lack them, and torch fills them in


def known_networks() -> dict[str, Any]:
    """Registered name -> class, for every network that states how to tell its options from weights."""
    from basicsr.utils.registry import ARCH_REGISTRY

    register('arch')
    found: dict[str, Any] = {}
    for name, cls in ARCH_REGISTRY:
        if hasattr(cls, 'options_of') and cls not in found.values():  # ours are there twice, under an alias too
            found[name] = cls
    return found


def looks_like(cls: Any, state: State) -> bool:
    """True if ``state`` has the names that every checkpoint of a network has."""
    for mark in getattr(cls, 'marks', ()):
        prefix = mark.removesuffix('*')
        if mark not in state and not (prefix != mark and any(name.startswith(prefix) for name in state)):
            return False
    return True


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without the counters of batch norms."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTERS)}


def variant_of(cls: Any, options: Mapping[str, Any]) -> str | None:
    """The published variant that these options make; options that weights do not show are not looked at."""
    usual = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    given, unseen = {**usual, **options}, getattr(cls, 'unseen', ())
    for name, wanted in getattr(cls, 'variants', {}).items():
        if all(given.get(key) == value for key, value in wanted.items() if key not in unseen):
            return str(name)
    return None


def candidates(name: str, cls: Any, state: State) -> list[Options]:
    """``type`` and options that weights with the names of a network may be of, the likeliest first."""
    found: list[Options] = []
    try:
        for options in islice(cls.options_of(state), MAX_TRIED):
            variant = getattr(cls, 'variants', {}).get(variant_of(cls, options), {})
            hidden = {key: value for key, value in variant.items() if key in getattr(cls, 'unseen', ())}
            found.append({'type': name, **options, **hidden})
    except (KeyError, IndexError, ZeroDivisionError):  # layers that every such network has are missing or empty
        pass
    return found


def likely(state: State) -> Iterator[tuple[str, Any, dict[str, Tensor]]]:
    """(name, class, the state dict under its names) of the networks that a state dict looks like."""
    networks = known_networks()
    for view in views(state):
        for name, cls in networks.items():
            renamed = renamed_by(getattr(cls, 'renames', {}), view)
            ours = {renamed.get(n, n): tensor for n, tensor in view.items()}
            if looks_like(cls, ours):
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
        shapes = {n: s for n, s in shapes_of(ours).items() if not n.endswith(COMPUTED)}
        for option in candidates(name, cls, ours):
            try:
                own = shapes_of(on_meta(option, most_parts(state)).state_dict())
            except (ValueError, TypeError):
                continue
            if {n: s for n, s in own.items() if not n.endswith(COMPUTED)} == shapes:
                return option
    return None
