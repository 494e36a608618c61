"""Which network a sub-command is about: from an option file, or from its name and weights."""

from __future__ import annotations

import copy
import inspect
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import yaml

from basicsr_effsr.options.file import read_option_file
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import build, scale_of
from basicsr_effsr.weights.engines import Engine
from basicsr_effsr.weights.zoo import model_file

if TYPE_CHECKING:
    from torch import nn

Arch = Annotated[str | None, typer.Option(help='Registered network, such as HASN, instead of an option file.')]
Scale = Annotated[int | None, typer.Option(help='Scale factor of the network.')]
Settings = Annotated[list[str] | None, typer.Option('--set', help='Network option, such as num_block=4; repeatable.')]
ParamKey = Annotated[str | None, typer.Option(help='Entry of the checkpoint: params, params_ema; default: the best.')]
REPEATABLE = ('opt', 'arch', 'weights', 'model')
Device = Annotated[str | None, typer.Option(help='cpu, cuda, cuda:1 ...; default: a GPU, if any.')]
SelfEnsemble = Annotated[bool, typer.Option('--self-ensemble', help='Mean over eight flips and rotations.')]
Computed = Annotated[
    Engine, typer.Option('--engine', help='Engine of the network; auto: the fastest with the same image.')
]


def read_options(file: Path) -> dict[str, Any]:
    """An option file, with the sections that the commands read."""
    opt = read_option_file(file)
    if 'network_g' not in opt:
        raise UserError(f'{file} must hold options with network_g')
    network = opt['network_g']
    if not isinstance(network, dict) or not isinstance(network.get('type'), str):
        raise UserError(f'{file}: network_g must be a section with type, the name of a network, got {network!r}')
    for name in ('path', 'datasets', 'val'):
        if not isinstance(opt.get(name), dict | None):
            raise UserError(f'{file}: {name} must be a section of options, got {opt[name]!r}')
        opt[name] = opt.get(name) or {}
    for name in ('pretrain_network_g', 'param_key_g'):
        if not isinstance(opt['path'].get(name), str | None):
            raise UserError(f'{file}: path.{name} must be a string, got {opt["path"][name]!r}')
    return opt


def check_folder(folder: Path) -> None:
    """That results can be written into a folder, asked before the work that leads to them; creates nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f'{there} is a file, must be a folder to write into; give another --out')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'the folder {there} cannot be written; give another --out')


def check_file(file: Path, *endings: str) -> None:
    """That a result can be written into a file of one of the endings, as :func:`check_folder` asks it of a folder."""
    if file.suffix.lower() not in endings:
        raise UserError(f'--out must end in {" or ".join(endings)}, got {file}')
    if file.is_dir():
        raise UserError(f'--out must be a file, {file} is a folder')
    check_folder(file.parent)


@dataclass(frozen=True)
class Chosen:
    """The network that a command is about."""

    net: nn.Module  # in eval mode on the CPU, in the form its weights are of
    network: dict[str, Any]  # type and options
    weights: Path | None  # the checkpoint that was loaded; None for a network as it was initialised
    scale: int
    options: dict[str, Any]  # the option file, with sections path, datasets and val; these are empty without one
    device: Any  # the torch device to work on
    name: str  # what it is called beside others: LABEL=, a published variant, its class


def settings_of(scale: int | None, settings: list[str] | None) -> dict[str, Any]:
    """Network options of ``--scale`` and ``--set``; UserError: an ill-formed setting."""
    network: dict[str, Any] = {} if scale is None else {'upscale': scale}
    for entry in settings or []:
        key, found, value = entry.partition('=')
        if not found:
            raise UserError(f'--set must be key=value, got {entry!r}')
        try:
            network[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f'--set {key} must be a value as in an option file, got {value!r}') from error
    return network


def choose(
    opt: Annotated[
        Path | None, typer.Option('-opt', '--opt', help='Option file that names network and weights.')
    ] = None,
    arch: Arch = None,
    scale: Scale = None,
    weights: Annotated[Path | None, typer.Option(help='Checkpoint; replaces the one of the option file.')] = None,
    settings: Settings = None,
    param_key: ParamKey = None,
    model: Annotated[
        str | None,
        typer.Option(help='Model of the zoo (effsr zoo lists them), or a checkpoint of a known network.'),
    ] = None,
    *,
    device: str | None = 'cpu',
    without: str | None = None,
) -> Chosen:
    """The network of a command: a model of the zoo, from an option file, its name, or its weights alone.

    The positional arguments are options of the commands; ``settings`` go before the option file and before what
    weights show.

    Args:
        device: where the command will work; None for a GPU if there is one and the option file does not say
            ``num_gpu: 0``. The network stays on the CPU.
        without: whether a network may do without weights: None, no; ``'missing'``, if nothing names a file, or an
            option file one that is not there; ``'always'``, none are read.
    """
    from basicsr_effsr.weights.recognise import recognise, variant_of

    if opt is not None and arch is not None:
        raise UserError('-opt and --arch cannot be combined; give an option file or a network')
    if model is not None and (opt, arch, weights) != (None, None, None):
        raise UserError('--model names network and weights; leave out -opt, --arch and --weights')
    label = ''
    if model is not None and not os.path.exists(model):
        label, _, model = model.rpartition('=')
    options = read_options(opt) if opt is not None else {'path': {}, 'datasets': {}, 'val': {}}
    where = pick_device('cpu' if device is None and options.get('num_gpu') == 0 else device)
    given = settings_of(scale, settings)
    network = {**options['network_g'], **given} if opt is not None else {'type': arch, **given} if arch else None
    if weights is None and options['path'].get('pretrain_network_g'):
        weights = Path(options['path']['pretrain_network_g'])
        param_key = param_key or options['path'].get('param_key_g', 'params')
        if without == 'missing' and not weights.is_file():
            weights = None
    if without == 'always':
        weights = None
    elif model is not None or weights is not None:
        weights = model_file(model or str(weights), say=partial(say, err=True))
    if weights is None:
        if network is None:
            raise UserError('give a model (--model), weights (--weights), a network (--arch), or an option file (-opt)')
        if without is None:
            lack = f'{opt}: path.pretrain_network_g must name the weights; or' if opt is not None else 'no weights;'
            raise UserError(f'{lack} give --weights')
        net = build(network, fuse=False)
    else:
        if network is None and given:
            network = {**recognise(weights, None, param_key).network, **given}
        known = recognise(weights, network, param_key)
        net, network = known.net, known.network
    factor = scale_of(net, network, None if scale is not None else options.get('scale'))
    name = label or variant_of(type(net), network) or type(net).__name__
    return Chosen(net, network, weights, factor, options, where, name)


def choose_several(*, device: str | None = 'cpu', without: str | None = None, **named: Any) -> list[Chosen]:
    """The networks of a command, of one scale, each with a name of its own; arguments are those of :func:`choose`.

    Those of ``REPEATABLE`` are lists: the first of each belong together, the second of each ..., and what is given
    once goes for all.
    """
    lists = {name: given for name in REPEATABLE if (given := named.pop(name, None))}
    count = max(map(len, lists.values()), default=1)
    if any(len(given) not in (1, count) for given in lists.values()):
        counts = ', '.join(f'--{name} {len(given)}' for name, given in lists.items())
        raise UserError(f'--model, --weights, --arch or -opt must be given equally often, got {counts}')
    one_each = ({name: given[i % len(given)] for name, given in lists.items()} for i in range(count))
    return _side_by_side([choose(**named, **one, device=device, without=without) for one in one_each])


def choose_from(models: Any, device: str | None = None) -> list[Chosen]:
    """The networks that Python names, as :func:`choose_several` gives those of a command.

    ``models`` are as in ``basicsr_effsr.evaluate``; ``device`` None is a GPU if there is one.
    """
    from torch import nn

    from basicsr_effsr.weights.recognise import variant_of

    several = models if isinstance(models, list | tuple | Mapping) else [models]
    named = several.items() if isinstance(several, Mapping) else [('', model) for model in several]
    chosen = []
    for label, model in named:
        if isinstance(model, nn.Module):
            network = {**getattr(model, '_options', {}), 'type': type(model).__name__}
            scale = getattr(model, 'upscale', None)
            if not isinstance(scale, int):
                raise UserError(f'{network["type"]} must state its scale factor as upscale, an integer')
            nothing: dict[str, Any] = {'path': {}, 'datasets': {}, 'val': {}}
            name = label or variant_of(type(model), network) or network['type']
            chosen.append(Chosen(model.eval(), network, None, scale, nothing, pick_device(device), name))
        else:
            one = choose(model=str(model), device=device)
            chosen.append(replace(one, name=label) if label else one)
    if not chosen:
        raise UserError('give at least one model')
    return _side_by_side(chosen)


def _side_by_side(chosen: list[Chosen]) -> list[Chosen]:
    if len({one.scale for one in chosen}) > 1:
        scales = ', '.join(f'{one.name} is x{one.scale}' for one in chosen)
        raise UserError(f'networks that are compared must have the same scale; {scales}')
    names = _apart([one.name for one in chosen], [one.weights.stem if one.weights else '' for one in chosen])
    names = _apart(names, [str(place) for place in range(1, len(chosen) + 1)])
    return [replace(one, name=name) for one, name in zip(chosen, names, strict=True)]


def _apart(names: list[str], more: list[str]) -> list[str]:
    often = Counter(names)
    return [f'{name}, {extra}' if extra and often[name] > 1 else name for name, extra in zip(names, more, strict=True)]


def names_network(command: Callable[..., None], *, several: bool = False) -> Callable[..., None]:
    """Gives a command the options that name its network, the positional parameters of :func:`choose`.

    The command takes ``choose`` with those bound as its first argument; with ``several``, :func:`choose_several`, and
    the options of ``REPEATABLE`` may be given more than once.
    """
    (_, *own), named = (inspect.signature(each, eval_str=True).parameters.values() for each in (command, choose))
    shared = [each for each in named if each.kind is not each.KEYWORD_ONLY]
    if several:
        shared = [_repeatable(each) if each.name in REPEATABLE else each for each in shared]

    @wraps(command)
    def called(**given: Any) -> None:
        bound = {each.name: given.pop(each.name) for each in shared}
        command(partial(choose_several if several else choose, **bound), **given)

    options = [each.replace(kind=each.KEYWORD_ONLY) for each in (*shared, *own)]
    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in options}
    return called


names_networks = partial(names_network, several=True)


def _repeatable(option: inspect.Parameter) -> inspect.Parameter:
    kind, shown = get_args(option.annotation)
    shown = copy.copy(shown)
    shown.help = f'{shown.help.removesuffix(".")}; repeatable.'
    one = get_args(kind)[0]
    return option.replace(annotation=Annotated[list[one] | None, shown])  # type: ignore[valid-type]


def pick_device(wanted: str | None) -> Any:
    """The torch device to work on; None is a GPU if there is one, of several that of this process under torchrun."""
    import torch

    try:
        if wanted in (None, 'cuda') and torch.cuda.is_available():
            wanted = f'cuda:{int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()}'
        device = torch.device(wanted or 'cpu')
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {wanted!r} cannot be used: {str(error).splitlines()[0]}') from error
    return device
