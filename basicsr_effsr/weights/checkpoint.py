"""Reading any checkpoint of an SR network, and writing so that nothing is ever half there."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_effsr.utils.files import write_atomic
from basicsr_effsr.weights.fuse import can_be_fused, fused
from basicsr_effsr.weights.names import named_for, views

# entries that hold a network's parameters, in order of preference
CONTAINERS = (
    'params_ema',
    'params-ema',
    'params',
    'state_dict',
    'model_state_dict',
    'model',
    'net_g',
    'net',
    'generator',
)
EITHER = (None, 'params', 'params_ema')  # BasicSR's own two stand in for each other and for entries of other programs
MAX_SHOWN = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the network; the message says why and what to do."""


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist; check the path, or train or download it first')
    if path.suffix == '.safetensors':
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise CheckpointError(f'reading {path} needs safetensors: pip install basicsr_effsr[export]') from error
        try:
            return load_file(path)
        except Exception as error:  # the library has an error of its own
            raise CheckpointError(
                f'checkpoint {path} cannot be read: it must be a safetensors file, and is truncated or of another kind '
                f'({" ".join(str(error).split())[:80]}); copy or download it again'
            ) from error
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a truncated or foreign file
        wanted = re.search(r'GLOBAL ([\w.]+)', str(error))
        if wanted:
            raise CheckpointError(
                f'checkpoint {path} cannot be read safely: it must hold tensors only, and would call {wanted[1]}; '
                'if you trust its source, save its state dict alone with torch.save'
            ) from error
        raise CheckpointError(
            f'checkpoint {path} cannot be read: it must be a file of torch.save holding tensors only, and is truncated '
            f'or of another kind ({type(error).__name__}); copy or download it again'
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """Parameters as a network names them, and where they came from.

    Attributes:
        state: parameters by name, on the CPU.
        renamed: name in the file, without wrappers -> name of the network.
        dropped: names that were left out, as they are computed.
        entry: the entries of the file they lay in, from the outside in; empty for a bare state dict.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    entry: tuple[str, ...] = ()


def opened(stored: Any, key: str | None = None) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """(entries from the outside in, the state dict they lead to) of what a file holds; ``key`` before the others."""
    if not isinstance(stored, dict) or not stored:
        return None
    for name in dict.fromkeys((key, *CONTAINERS)):
        found = opened(stored.get(name), key)
        if found is not None:
            return (str(name), *found[0]), found[1]
    if all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items()):
        return (), stored
    return None


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a safetensors file; none for other files, or if it cannot be read."""
    path = Path(path)
    if path.suffix != '.safetensors':
        return {}
    try:
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except Exception:  # whoever reads the tensors gets the sentence
        return {}


def open_checkpoint(path: str | Path, param_key: str | None = None) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """(entries from the outside in, the state dict they lead to) of a file, names as they are stored.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, or lacks ``param_key``.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path} is a folder, must be a file; name one of the files in it')
    stored = _load(path)
    if not isinstance(stored, dict):
        raise CheckpointError(f'checkpoint {path} must hold a dictionary of tensors, found {type(stored).__name__}')
    found = opened(stored, param_key)
    if param_key not in EITHER and (found is None or (found[0] and param_key not in found[0])):
        raise CheckpointError(f'checkpoint {path} has no {param_key!r}, it has {sorted(map(str, stored))}')
    if found is None:
        raise CheckpointError(f'checkpoint {path} holds no parameters, it has {sorted(map(str, stored))[:8]}')
    return found


def read_checkpoint(path: str | Path, param_key: str | None = None, net: nn.Module | None = None) -> Checkpoint:
    """The parameters stored in ``path``, whatever program wrote it. Never executes code from the file.

    Containers are opened (``params_ema``, ``state_dict``, ``model`` ..., one inside another too), and what programs
    put in front of names is taken away (``module.``, ``_orig_mod.``, ``net_g.``, ``model.`` ..., in any order); names
    that stand beside such a prefix, as the buffers of a loss do in Lightning's files, are not the network's.

    Args:
        path: a file of ``torch.save``, or safetensors.
        param_key: take this entry; None takes ``params_ema`` before ``params`` before the others. ``params`` and
            ``params_ema`` stand in for each other and are not looked for in files of other programs; a bare file is
            taken whatever the key.
        net: the network that the parameters are for; those that it names otherwise get its names.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, or lacks ``param_key``.
    """
    entry, state = open_checkpoint(path, param_key)
    if net is None:
        return Checkpoint(next(views(state)), entry=entry)
    return Checkpoint(*named_for(net, state), entry=entry)


def read_state_dict(path: str | Path, param_key: str | None = None, net: nn.Module | None = None) -> dict[str, Tensor]:
    """The parameters alone; see :func:`read_checkpoint`."""
    return read_checkpoint(path, param_key, net).state


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _tried(net: nn.Module, state: Mapping[str, Tensor], strict: bool) -> Any:
    """What a copy of ``net`` without memory says to ``state``; None if it refuses it or cannot be copied.

    Networks may accept names they do not have (stored position indices) and do without some (counters of BatchNorm).
    """
    try:
        return copy.deepcopy(net).to('meta').load_state_dict(state, strict=strict, assign=True)
    except Exception:  # torch's RuntimeError, or whatever a foreign network raises
        return None


def _fits_fused(net: nn.Module, given: Mapping[str, tuple[int, ...]]) -> bool:
    return can_be_fused(net) and _shapes(fused(copy.deepcopy(net).to('meta')).state_dict()) == given


def mismatch(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why ``net`` does not load ``state`` strictly, in words; empty if it does."""
    wanted, given = _shapes(net.state_dict()), _shapes(state)
    if wanted == given or _tried(net, state, strict=True) is not None:
        return ''
    shapes = [name for name in wanted if name in given and wanted[name] != given[name]]
    told = _tried(net, {name: tensor for name, tensor in state.items() if name not in shapes}, strict=False)
    missing = [n for n in wanted if n not in given and (told is None or n in told.missing_keys)]
    surplus = [n for n in given if n not in wanted and (told is None or n in told.unexpected_keys)]
    parts = []
    if shapes:
        shown = ', '.join(f'{n} is {given[n]} and must be {wanted[n]}' for n in shapes[:MAX_SHOWN])
        parts.append(f'{len(shapes)} of other shape ({shown})')
    if missing:
        parts.append(f'{len(missing)} missing ({", ".join(missing[:MAX_SHOWN])})')
    if surplus:
        close = [(n, get_close_matches(n, missing, 1)) for n in surplus[:MAX_SHOWN]]
        parts.append(f'{len(surplus)} unknown ({", ".join(n + (f", near {m[0]}" if m else "") for n, m in close)})')
    if len(missing) == len(wanted) or len(surplus) == len(given):
        cause = 'the checkpoint is of another network: check type'
    elif all(name.startswith('up') for name in (*shapes, *missing, *surplus)):  # up_deep, upsampler, upsample.2 ...
        cause = 'the checkpoint is of another scale: set upscale to the one it was trained for'
    elif _fits_fused(net, given):
        cause = 'the checkpoint is of the fused form: set deploy: true'
    elif getattr(net, 'deploy', False):
        cause = 'the checkpoint is of the form that is trained, of another network or of other options: check network_g'
    else:
        cause = 'the checkpoint is of another network or of other options: check network_g'
    return f'{"; ".join(parts) or "the values do not load"}; {cause}'


def load_into(net: nn.Module, path: str | Path, *, param_key: str | None = None, strict: bool = True) -> Checkpoint:
    """Loads a checkpoint into ``net`` and returns what was read.

    Args:
        net: the bare network.
        path: the checkpoint.
        param_key: see ``read_state_dict``.
        strict: False loads what fits by name and shape and leaves the rest as it is.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read or, if ``strict``, does not fit; nothing was loaded.
    """
    read = read_checkpoint(path, param_key, net)
    state = read.state
    if strict:
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        try:
            net.load_state_dict(state, strict=True)
        except RuntimeError as error:
            net.load_state_dict(before)  # torch has copied what did fit
            reason = mismatch(net, state) or str(error)
            raise CheckpointError(f'checkpoint {path} does not fit {type(net).__name__}: {reason}') from error
    else:
        own = net.state_dict()
        fitting = {n: t for n, t in state.items() if n in own and own[n].shape == t.shape}
        if not fitting:
            raise CheckpointError(f'checkpoint {path} shares no parameter with {type(net).__name__}: check type')
        net.load_state_dict(fitting, strict=False)
    return read


def save_atomic(obj: Any, path: str | Path) -> None:
    """``torch.save`` that is all or nothing, and gives equal bytes for equal content, whatever the file is called.

    Written beside ``path``, read back, then renamed.

    Raises:
        OSError: it could not be written; what ``path`` held before is untouched.
        CheckpointError: what was written does not read back.
    """
    stored = io.BytesIO()  # into a file torch would write that file's name
    torch.save(_canonical(obj), stored)

    def write(temporary: Path) -> None:
        temporary.write_bytes(stored.getbuffer())
        _load(temporary)

    write_atomic(path, write)


def _canonical(value: Any) -> Any:
    """The same content, each container an object of its own and each string one: pickle writes an object only once."""
    if type(value) in (dict, OrderedDict):
        return type(value)([(_canonical(key), _canonical(item)) for key, item in value.items()])
    if type(value) in (list, tuple):
        return type(value)(map(_canonical, value))
    return sys.intern(value) if type(value) is str else value
