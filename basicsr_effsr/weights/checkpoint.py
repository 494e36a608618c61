"""Reads any checkpoint of an SR network; writes atomically."""

from __future__ import annotations

import copy
import inspect
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_effsr.utils.errors import nearest, needs
from basicsr_effsr.utils.files import atomic_path
from basicsr_effsr.utils.stored import CheckpointError, listed, load_stored, refuse_unusable

# entries that hold a network's parameters, in order of preference: moving averages first
CONTAINERS = (
    *('params_ema', 'params-ema', 'state_dict_ema', 'model_ema', 'net_g_ema', 'ema'),
    *('params', 'state_dict', 'model_state_dict', 'model', 'net_g', 'net', 'generator'),
)
EITHER = (None, 'params', 'params_ema')  # BasicSR's own two replace each other and entries of other programs
MAX_DEPTH = 4  # of entries in entries
MAX_SHOWN = 3
MAX_NAME = 120  # of a parameter; torch's own are far shorter
AVERAGED = ('generator_ema.', 'net_g_ema.', 'model_ema.', 'ema_model.', 'ema.')
WRAPPERS = (*AVERAGED, 'module.', 'net_g.', 'netG.', 'model.', 'net.', 'generator.')  # in front of names, by programs
MAX_WRAPPERS = 8  # of wrappers in wrappers
COMPILED = '_orig_mod.'  # torch.compile puts it in front of whatever was compiled, a part of a network too
COMPUTED = ('rel_pos_indices', 'relative_position_index', 'attn_mask', 'total_ops', 'total_params')


def views(state: Mapping[str, Tensor], depth: int = MAX_WRAPPERS) -> Iterator[dict[str, Tensor]]:
    """The state dict below every chain of wrappers, itself last.

    Moving averages come first, then the longest chain with most of the names.
    """
    plain = {name.replace(COMPILED, ''): tensor for name, tensor in state.items()}
    inner = [(p, {n.removeprefix(p): t for n, t in plain.items() if n.startswith(p)}) for p in WRAPPERS if depth]
    for _, inside in sorted(inner, key=lambda found: (found[0] not in AVERAGED, -len(found[1]))):
        if inside:
            yield from views(inside, depth - 1)
    yield plain


def renamed_by(renames: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> new name, for those that begin as ``renames`` says and whose new name is free."""
    found = {}
    for name in state:
        for old, ours in renames.items():
            if name.startswith(old) and ours + name.removeprefix(old) not in state:
                found[name] = ours + name.removeprefix(old)
    return found


def named_for(net: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A state dict under the names of a network.

    A network whose own names begin as a wrapper does keeps them. What it computes itself (position indices, masks,
    counts of profilers) is left out, and names that its class states in ``renames`` become its own.

    Returns:
        state, old name -> new name, names left out.
    """
    own = net.state_dict().keys()
    view = max(views(state), key=lambda view: len(own & view.keys()))
    dropped = [name for name in view if name not in own and name.endswith(COMPUTED)]
    renamed = renamed_by(getattr(net, 'renames', {}), {n: t for n, t in view.items() if n not in own})
    return {renamed.get(n, n): t for n, t in view.items() if n not in dropped}, renamed, dropped


@dataclass(frozen=True)
class Checkpoint:
    """Parameters as a network names them, and where they came from."""

    state: dict[str, Tensor]  # by name, on the CPU
    renamed: dict[str, str] = field(default_factory=dict)  # name in the file, without wrappers -> of the network
    dropped: list[str] = field(default_factory=list)  # names that were left out, which the network computes itself
    entry: tuple[str, ...] = ()  # of the file, from the outside in; empty for a bare state dict


def opened(stored: Any, key: str | None = None, depth: int = MAX_DEPTH) -> tuple[tuple[str, ...], dict] | None:
    """(entries from the outside in, the state dict they lead to) of what a file holds; ``key`` before the others.

    Numbers and strings that stand among the tensors are left out.
    """
    if not isinstance(stored, dict) or not depth:
        return None
    for name in dict.fromkeys((key, *CONTAINERS)):
        found = opened(stored.get(name), key, depth - 1)
        if found is not None:
            return (str(name), *found[0]), found[1]
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor) and isinstance(name, str)}
    others = [value for name, value in stored.items() if name not in tensors]
    if tensors and all(isinstance(value, int | float | str | None) for value in others):
        return (), tensors
    return None


def open_checkpoint(path: str | Path, param_key: str | None = None) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """(entries from the outside in, the state dict they lead to) of a file of any program, names as they are stored.

    No code of the file is executed. Containers are opened (``params_ema``, ``state_dict``, ``model`` ..., one inside
    another too), ``param_key`` before the others; None takes ``params_ema`` before ``params`` before the rest. These
    two stand in for each other and are not looked for in files of other programs; a bare file is taken whatever the
    key.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, lacks ``param_key``, or its tensors cannot be used.
    """
    path = Path(path).expanduser()
    stored = load_stored(path)
    if not isinstance(stored, dict):
        raise CheckpointError(f'checkpoint {path} must hold a dictionary of tensors, found {type(stored).__name__}')
    found = opened(stored, param_key)
    if param_key not in EITHER and (found is None or (found[0] and param_key not in found[0])):
        lack = f'holds no parameters under {param_key!r}' if param_key in stored else f'has no {param_key!r}'
        raise CheckpointError(f'checkpoint {path} {lack}; its entries are {listed(stored)}')
    if found is None:
        raise CheckpointError(f'checkpoint {path} holds no parameters, its entries are {listed(stored)}')
    refuse_unusable(path, {n: t for n, t in found[1].items() if not n.endswith(COMPUTED)})
    return found


def read_state_dict(path: str | Path, param_key: str | None = None, net: nn.Module | None = None) -> dict[str, Tensor]:
    """The parameters stored in ``path``, under the names of ``net`` if it is given; see :func:`open_checkpoint`.

    What programs put in front of names is taken away (``module.``, ``_orig_mod.``, ``net_g.``, ``model.`` ..., in any
    order); names beside such a prefix, as the buffers of a loss in Lightning's files, are not the network's.
    """
    _, state = open_checkpoint(path, param_key)
    return next(views(state)) if net is None else named_for(net, state)[0]


def shapes_of(state: Mapping[str, Tensor], without: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes by name; names that end as one of ``without`` are left out."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(without)}


def _cast(net: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names whose integers or booleans torch would silently take for floating-point values."""
    own = net.state_dict()
    return [n for n, t in state.items() if n in own and own[n].is_floating_point() > t.is_floating_point()]


def _tried(net: nn.Module, state: Mapping[str, Tensor], strict: bool) -> Any:
    """What a copy of ``net`` without memory says to ``state``; None if it refuses it or cannot be copied.

    Networks may accept names they do not have (stored position indices) and do without some (counters of BatchNorm).
    """
    try:
        return copy.deepcopy(net).to('meta').load_state_dict(state, strict=strict, assign=True)
    except Exception:  # torch's RuntimeError, or whatever a foreign network raises
        return None


def can_be_fused(net: nn.Module) -> bool:
    """True if ``net`` is of the form that is trained and ``net.fuse(inplace=False)`` is its fused copy.

    A ``fuse()`` of others may change the network itself, or be something else altogether.
    """
    fuse = getattr(net, 'fuse', None)
    if not callable(fuse) or isinstance(fuse, nn.Module) or getattr(net, 'deploy', True):
        return False
    return 'inplace' in inspect.signature(fuse).parameters


def fused(net: nn.Module) -> nn.Module:
    """The network in eval mode, and in its fused form if it has one; ``net`` keeps its own form."""
    net = net.eval()
    return net.fuse(inplace=False).eval() if can_be_fused(net) else net  # type: ignore[operator]


def mismatch(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why ``net`` does not load ``state`` strictly, in words; empty if it does."""
    state = {name if len(name) < MAX_NAME else f'{name[:MAX_NAME]} ...': tensor for name, tensor in state.items()}
    wanted, given = shapes_of(net.state_dict()), shapes_of(state)
    cast = _cast(net, state)
    if cast:
        shown = ', '.join(f'{name} is {state[name].dtype}' for name in cast[:MAX_SHOWN])
        return f'{len(cast)} not of floating point ({shown}); the checkpoint is quantised or damaged'
    if wanted == given or _tried(net, state, strict=True) is not None:
        return ''
    shapes = [name for name in wanted if name in given and wanted[name] != given[name]]
    loaded = _tried(net, {name: tensor for name, tensor in state.items() if name not in shapes}, strict=False)
    lacked, unexpected = (wanted, given) if loaded is None else (set(loaded.missing_keys), set(loaded.unexpected_keys))
    missing = [n for n in wanted if n not in given and n in lacked]
    surplus = [n for n in given if n not in wanted and n in unexpected]
    parts = []
    if shapes:
        shown = ', '.join(f'{n} is {given[n]} and must be {wanted[n]}' for n in shapes[:MAX_SHOWN])
        parts.append(f'{len(shapes)} of another shape ({shown})')
    if missing:
        parts.append(f'{len(missing)} missing ({", ".join(missing[:MAX_SHOWN])})')
    if surplus:
        close = ((n, nearest(n, missing)) for n in surplus[:MAX_SHOWN])
        parts.append(f'{len(surplus)} unexpected ({", ".join(n + (f", near {m}" if m else "") for n, m in close)})')
    if len(missing) == len(wanted) or len(surplus) == len(given):
        cause = 'the checkpoint is of another network: check type'
    elif all(name.startswith('up') for name in (*shapes, *missing, *surplus)):  # up_deep, upsampler, upsample.2 ...
        cause = 'the checkpoint is of another scale: set upscale to the one it was trained for'
    elif can_be_fused(net) and shapes_of(fused(copy.deepcopy(net).to('meta')).state_dict()) == given:
        cause = 'the checkpoint is of the fused form: set deploy: true'
    else:
        trained = 'of the form that is trained, ' if getattr(net, 'deploy', False) else ''
        cause = f'the checkpoint is {trained}of another network or of other options'
    return f'{"; ".join(parts) or "the values do not load"}; {cause}'


def load_into(net: nn.Module, path: str | Path, *, param_key: str | None = None, strict: bool = True) -> Checkpoint:
    """Loads a checkpoint into the bare ``net`` and returns what was read; for ``param_key`` see ``open_checkpoint``.

    ``strict`` False loads what fits by name and shape and leaves the rest as it is.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read or, if ``strict``, does not fit; nothing was loaded.
    """
    entry, stored = open_checkpoint(path, param_key)
    read = Checkpoint(*named_for(net, stored), entry=entry)
    state, own, cast = read.state, net.state_dict(), _cast(net, read.state)
    problem = mismatch(net, state) if strict else ''
    if problem:
        raise CheckpointError(f'checkpoint {path} does not fit {type(net).__name__}: {problem}')
    if not strict:
        state = {n: t for n, t in state.items() if n in own and own[n].shape == t.shape and n not in cast}
    if not state:
        raise CheckpointError(f'checkpoint {path} shares no parameter with {type(net).__name__}: check type')
    net.load_state_dict(state, strict=strict)
    return read


def _canonical(value: Any) -> Any:
    """The same content, each container an object of its own and each string one: pickle writes an object only once."""
    if type(value) in (dict, OrderedDict):
        return type(value)([(_canonical(key), _canonical(item)) for key, item in value.items()])
    if type(value) in (list, tuple):
        return type(value)(map(_canonical, value))
    return sys.intern(value) if type(value) is str else value


def as_pth(obj: Any) -> bytes:
    """What ``torch.save`` writes; equal content gives equal bytes, as no name of a file gets into them."""
    buffer = io.BytesIO()
    torch.save(_canonical(obj), buffer)
    return buffer.getvalue()


def as_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in order, which the library puts down in any."""
    data = needs('safetensors.torch').save({name: t.contiguous() for name, t in state.items()}, dict(metadata))
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:end])
    header = {'__metadata__': dict(sorted(header.pop('__metadata__', {}).items())), **header}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text + data[end:]


def save_atomic(obj: Any, path: str | Path) -> None:
    """``torch.save`` that is all or nothing: put together in memory, written beside ``path``, read back, renamed.

    Raises:
        WriteError: it could not be written; what ``path`` held before is untouched.
        CheckpointError: what was written does not read back.
    """
    with atomic_path(Path(path), sync=True) as part:
        part.write_bytes(as_pth(obj))
        load_stored(part)
