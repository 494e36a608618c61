"""Which network a sub-command is about: from an option file, or from its name and weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from basicsr_effsr.utils.errors import UserError, one_line

OptFile = Annotated[Path | None, typer.Option('-opt', '--opt', help='Option file that names network and weights.')]
Arch = Annotated[str | None, typer.Option(help='Registered network, instead of an option file: HASN, AGDN ...')]
Scale = Annotated[int | None, typer.Option(help='Scale factor of the network.')]
Weights = Annotated[Path | None, typer.Option(help='Checkpoint; replaces the one of the option file.')]
Settings = Annotated[list[str] | None, typer.Option('--set', help='Network option, such as num_block=4; repeatable.')]
ParamKey = Annotated[str | None, typer.Option(help='Entry of the checkpoint: params, params_ema; default: the best.')]
Device = Annotated[str | None, typer.Option(help='cpu, cuda, cuda:1 ...; default: a GPU if there is one.')]


def stop(command: str, error: Exception) -> typer.Exit:
    """Prints the one sentence of ``error`` and gives the exit to raise."""
    typer.echo(f'effsr {command}: {one_line(error)}', err=True)
    return typer.Exit(2)


def read_options(file: Path) -> dict[str, Any]:
    """An option file as a dictionary.

    Raises:
        UserError: it does not exist, holds no options, or a section that the tools read is of another kind.
    """
    if not file.is_file():
        raise UserError(f'no option file {file}; give one of options/test/')
    try:
        opt = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'{file} is not YAML in UTF-8: {one_line(error)}') from error
    if not isinstance(opt, dict) or 'network_g' not in opt:
        raise UserError(f'{file} must hold options with network_g')
    network = opt['network_g']
    if not isinstance(network, dict) or not isinstance(network.get('type'), str):
        raise UserError(f'{file}: network_g must be a section with type, the name of a network, got {network!r}')
    for name in ('path', 'datasets', 'val'):
        if not isinstance(opt.get(name), dict | None):
            raise UserError(f'{file}: {name} must be a section of options, got {opt[name]!r}')
    path = opt.get('path') or {}
    for name in ('pretrain_network_g', 'param_key_g'):
        if not isinstance(path.get(name), str | None):
            raise UserError(f'{file}: path.{name} must be a text, got {path[name]!r}')
    return opt


def check_folder(folder: Path) -> None:
    """That results can be written into a folder, asked before the work that leads to them; creates nothing.

    Raises:
        UserError: it, or what of its path exists, is no folder or cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f'{there} is a file, must be a folder to write into; give another --out')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'the folder {there} cannot be written; give another --out')


def describe(
    opt_file: Path | None,
    arch: str | None,
    scale: int | None,
    weights: Path | None,
    settings: Iterable[str] | None,
    param_key: str | None,
) -> tuple[dict[str, Any], Path | None, str | None]:
    """Network options, checkpoint and its key, from what the command line gave.

    Raises:
        UserError: neither or both of option file and name, or an ill-formed setting.
    """
    if (opt_file is None) == (arch is None):
        raise UserError('give either an option file (-opt) or a network (--arch), one of the two')
    if opt_file is not None:
        opt = read_options(opt_file)
        network = dict(opt['network_g'])
        path = opt.get('path') or {}
        if weights is None and path.get('pretrain_network_g'):
            weights = Path(path['pretrain_network_g'])
            param_key = param_key or path.get('param_key_g', 'params')
    else:
        network = {'type': arch}
    if scale is not None:
        network['upscale'] = scale
    for entry in settings or []:
        key, found, value = entry.partition('=')
        if not found:
            raise UserError(f'--set must be key=value, got {entry!r}')
        try:
            network[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f'--set {key} must be a value as in an option file, got {value!r}') from error
    return network, weights, param_key


def pick_device(wanted: str | None) -> Any:
    """The torch device to work on.

    Raises:
        UserError: it is not there.
    """
    import torch

    try:
        device = torch.device(wanted or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {wanted!r} cannot be used: {str(error).splitlines()[0]}') from error
    return device
