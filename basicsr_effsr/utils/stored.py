"""Files of tensors, of any program: read by one function that executes no code and checks every claimed size."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from basicsr_effsr.utils.errors import UserError, needs
from basicsr_effsr.utils.files import open_regular


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the network; the message says why and what to do."""


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Some names of a file, which may hold many, long and unprintable ones."""
    return ', '.join(ascii(str(name)[:80]) for name, _ in zip(names, range(most)))  # noqa: B905 (the first few)


def _kind(file: BinaryIO) -> str:
    """'safetensors', or 'torch' for what ``torch.save`` writes, by content and not by name."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(9)
    if head[8:] == b'{' and int.from_bytes(head[:8], 'little') <= size:
        return 'safetensors'
    if head.startswith(b'PK'):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        names = [entry.filename.partition('/')[2] for entry in entries]
        if 'data.pkl' not in names or any(name.startswith('code/') for name in names):
            kind = 'a TorchScript program' if 'constants.pkl' in names else 'an archive of another kind'
            raise CheckpointError(f'is {kind}, must hold weights; save the state dict of the network with torch.save')
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError('claims more bytes than it has; copy or download it again')
    return 'torch'


def stored_in(file: BinaryIO) -> Any:
    """What ``torch.save`` or safetensors put into a file, on the CPU; executes no code of it.

    Raises:
        CheckpointError: it claims more than it has, or is of another kind.
        Exception: whatever torch and safetensors raise; see ``load_stored``.
    """
    kind = _kind(file)
    file.seek(0)
    if kind == 'safetensors':
        return needs('safetensors.torch').load(file.read())
    return torch.load(file, map_location='cpu', weights_only=True)


def load_stored(path: Path) -> Any:
    """:func:`stored_in` of a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is none of theirs, damaged, or would call something.
    """
    try:
        if not path.exists():
            raise FileNotFoundError(f'checkpoint {path} does not exist; check the path, or train or download it first')
        if not path.is_file():
            raise CheckpointError(f'is {"a folder" if path.is_dir() else "no regular file"}, must be a file')
        with open_regular(path) as file:
            return stored_in(file)
    except FileNotFoundError:
        raise
    except (CheckpointError, UserError) as error:
        raise CheckpointError(f'checkpoint {path} {error}') from error
    except OSError as error:
        raise CheckpointError(f'checkpoint {path} cannot be read ({error.strerror or error})') from error
    except (Exception, RecursionError) as error:  # torch raises half a dozen types, safetensors one of its own
        wanted = re.search(r'GLOBAL ([\w.]+)', str(error))
        if wanted:
            raise CheckpointError(
                f'checkpoint {path} cannot be read safely: it must hold tensors only, and would call {wanted[1]}; '
                'if you trust its source, save its state dict alone with torch.save'
            ) from error
        raise CheckpointError(
            f'checkpoint {path} cannot be read: it must be a file of torch.save holding tensors only, or safetensors, '
            f'and is truncated or in another format ({type(error).__name__}); copy or download it again'
        ) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a safetensors file; none for other files, or if it cannot be read."""
    try:
        with open_regular(path) as file:
            if _kind(file) != 'safetensors':
                return {}
        with needs('safetensors').safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except Exception:  # reading the tensors raises the error
        return {}


def not_finite(value: Any, place: str = '') -> str:
    """The place of the first infinity or NaN in dictionaries and lists of tensors and numbers; empty if none is there.

    Looks at values, where a norm of large ones may overflow.
    """
    if isinstance(value, Tensor):
        return place if value.is_floating_point() and not torch.isfinite(value).all() else ''
    if isinstance(value, float):
        return '' if math.isfinite(value) else place
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(filter(None, (not_finite(part, f'{place}.{key}'.lstrip('.')) for key, part in inner)), '')


def refuse_unusable(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuses tensors that no network can be run with."""
    for name, tensor in state.items():
        kind = ''
        if tensor.is_quantized:
            kind = 'quantised'
        elif tensor.layout is not torch.strided:
            kind = 'sparse'
        elif tensor.is_meta:
            kind = 'without values'
        elif tensor.is_complex():
            kind = 'complex'
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            kind = f'of shape {tuple(tensor.shape)}, of which the file holds {tensor.untyped_storage().nbytes()} bytes'
        elif tensor.is_floating_point():
            bad = (~torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)).sum().item()
            kind = f'NaN or infinite in {bad} of {tensor.numel()} values' if bad else ''
        if kind:
            raise CheckpointError(
                f'checkpoint {path} holds a tensor {listed([name])} that is {kind}; weights must be plain and finite'
            )
