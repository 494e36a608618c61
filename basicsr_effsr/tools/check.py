"""``effsr check``: what an option file will do, and what is wrong with it, before anything runs."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

TOP_LEVEL = {
    *('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'path', 'train', 'val', 'logger'),
    *('dist_params', 'find_unused_parameters'),
    *('dist', 'rank', 'world_size', 'auto_resume', 'is_train', 'root_path'),  # put there by parse_options
}
REQUIRED = ('name', 'model_type', 'scale', 'num_gpu', 'datasets', 'network_g', 'path')
NO_FOLDER = ('strict_load', 'pretrain_network', 'resume', 'param_key')  # host: every other key of path is made a folder
HOST_FOLDERS = {'experiments_root', 'results_root', 'models', 'training_states', 'log', 'visualization'}
NUMBER = re.compile(r'^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$')
SAMPLED_PAIRS = 64  # headers read per data set: a wrong scale or a stray file shows, a large set costs no time


@dataclass(frozen=True)
class Problem:
    """Something wrong with an option file.

    Attributes:
        where: place in the file, such as ``datasets.train.dataroot_gt``.
        text: what must hold, what was found, what to do.
        fatal: the run cannot do what the file says; otherwise a warning.
    """

    where: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f'{self.where}: {self.text}'


def _near(name: object, known: Any) -> str:
    near = get_close_matches(str(name), [str(k) for k in known], 1, 0.5)
    return f'did you mean {near[0]!r}?' if near else f'known are {sorted(map(str, known))[:20]}'


def _numbers_as_text(node: Any, where: str) -> Iterator[Problem]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _numbers_as_text(value, f'{where}.{key}' if where else str(key))
    elif isinstance(node, str) and NUMBER.match(node):
        yield Problem(
            where, f'must be a number, found the text {node!r} (YAML reads 1e-4 as text); write !!float {node}'
        )


def _registered(registry: Any, name: object) -> Any:
    """The class of that name, ours loaded if need be; None if nobody has it."""
    try:
        return registry.get(name)
    except KeyError:
        return None


def _names(registry: Any) -> list[str]:
    return [name for name, _ in registry if not name.endswith(('_effsr', '_basicsr'))]


def _class_options(section: Mapping, where: str, registry: Any, kind: str) -> Iterator[Problem]:
    """The ``type`` exists and takes the other keys."""
    found = _registered(registry, section.get('type'))
    if found is None:
        yield Problem(
            f'{where}.type',
            f'there is no {kind} {section.get("type")!r}; {_near(section.get("type"), _names(registry))}',
        )
        return
    parameters = inspect.signature(found).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in section:
        if key != 'type' and key not in parameters:
            yield Problem(f'{where}.{key}', f'{section["type"]} has no option {key!r}; {_near(key, parameters)}')
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and name not in section
            and parameter.kind is not parameter.VAR_POSITIONAL
        ):
            yield Problem(where, f'{section["type"]} needs the option {name!r}; give it')


def _networks(opt: Mapping, nets: dict[str, Any]) -> Iterator[Problem]:
    import torch
    from basicsr.utils.registry import ARCH_REGISTRY

    for key in (k for k in opt if str(k).startswith('network_')):
        section = opt[key]
        wrong = list(_class_options(section, key, ARCH_REGISTRY, 'network'))
        yield from wrong
        if wrong:
            continue
        options = {k: v for k, v in section.items() if k != 'type'}
        try:
            with torch.device('meta'):
                nets[key] = ARCH_REGISTRY.get(section['type'])(**options)
        except ValueError as error:
            yield Problem(key, str(error))
            continue
        except (NotImplementedError, RuntimeError):  # a foreign network that computes in its constructor
            continue
        upscale = section.get('upscale', section.get('scale', getattr(nets[key], 'upscale', None)))
        if upscale is not None and upscale != opt.get('scale'):
            yield Problem(
                f'{key}.upscale', f'must equal scale ({opt.get("scale")}), found {upscale}; correct one of them'
            )


def _weights(opt: Mapping, nets: Mapping[str, Any]) -> Iterator[Problem]:
    from basicsr_effsr.utils.checkpoint import CheckpointError, mismatch, read_state_dict

    path = opt.get('path') or {}
    if opt.get('auto_resume') or path.get('resume_state'):
        return
    for key, net in nets.items():
        name, suffix = f'pretrain_{key}', key.removeprefix('network_')
        if not path.get(name):
            continue
        try:
            state = read_state_dict(path[name], path.get(f'param_key_{suffix}', 'params'))
        except (CheckpointError, OSError) as error:
            yield Problem(f'path.{name}', str(error))
            continue
        try:
            net.load_state_dict({name: tensor.to('meta') for name, tensor in state.items()})
        except RuntimeError as error:
            reason = mismatch(net, state) or str(error)
        else:
            continue
        if path.get(f'strict_load_{suffix}', True):
            yield Problem(f'path.{name}', f'checkpoint {path[name]} does not fit {type(net).__name__}: {reason}')


def _size(file: Path) -> tuple[int, int]:
    """(width, height) from the header alone."""
    from PIL import Image

    with Image.open(file) as image:
        return image.size


def _spread(items: list, count: int) -> list:
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def _lmdb_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """key -> (width, height) of BasicSR's meta_info.txt."""
    sizes = {}
    for line in (folder / 'meta_info.txt').read_text(encoding='utf-8').splitlines():
        found = re.match(r'(\S+?)\.\w+ \((\d+),(\d+),\d+\)', line)
        if found:
            sizes[found[1]] = (int(found[3]), int(found[2]))
    return sizes


Sizes = list[tuple[str, tuple[int, int], str, tuple[int, int]]]


def _pair_sizes(data: Mapping, where: str, found: dict[str, Any]) -> Iterator[Problem]:
    """Fills ``found`` with the number of pairs and (a sample of) their sizes."""
    from basicsr_effsr.data.paired_dataset import pairs_in_folders, pairs_in_meta_info

    gt, lq = Path(data['dataroot_gt']), Path(data['dataroot_lq'])
    for key, folder in (('dataroot_gt', gt), ('dataroot_lq', lq)):
        if not folder.is_dir():
            yield Problem(f'{where}.{key}', f'the folder {folder} does not exist; prepare it or correct the path')
    if not (gt.is_dir() and lq.is_dir()):
        return
    found['sizes'] = []
    if (data.get('io_backend') or {}).get('type') == 'lmdb':
        for key, folder in (('dataroot_gt', gt), ('dataroot_lq', lq)):
            if not (folder / 'meta_info.txt').is_file():
                yield Problem(
                    f'{where}.{key}', f'{folder} must be an LMDB with meta_info.txt; make it with datasets_prep lmdb'
                )
                return
        gt_sizes, lq_sizes = _lmdb_sizes(gt), _lmdb_sizes(lq)
        if gt_sizes.keys() != lq_sizes.keys():
            odd = sorted(gt_sizes.keys() ^ lq_sizes.keys())[0]
            yield Problem(where, f'{gt} and {lq} must have the same keys, they differ at {odd!r}; make them again')
            return
        found['count'] = len(gt_sizes)
        found['sizes'] = [(f'{gt}:{k}', gt_sizes[k], f'{lq}:{k}', lq_sizes[k]) for k in gt_sizes]
        return
    template = data.get('filename_tmpl', '{}')
    try:
        if data.get('meta_info_file'):
            pairs = pairs_in_meta_info(str(gt), str(lq), data['meta_info_file'], template)
        else:
            pairs = pairs_in_folders(str(gt), str(lq), template)
    except (OSError, ValueError) as error:
        yield Problem(where, str(error))
        return
    found['count'] = len(pairs)
    for pair in _spread(pairs, SAMPLED_PAIRS):
        sizes = []
        for path in (pair['gt_path'], pair['lq_path']):
            try:
                sizes.append(_size(Path(path)))
            except OSError as error:
                kind = 'does not exist' if isinstance(error, FileNotFoundError) else 'cannot be read as an image'
                yield Problem(where, f'{path} {kind}; replace it, or find all such files with datasets_prep verify')
        if len(sizes) == 2:
            found['sizes'].append((pair['gt_path'], sizes[0], pair['lq_path'], sizes[1]))


def _pairs(opt: Mapping, phase: str, data: Mapping, found: dict[str, Any]) -> Iterator[Problem]:
    where, scale = f'datasets.{phase}', opt.get('scale')
    wrong = list(_pair_sizes(data, where, found))
    yield from wrong
    if wrong or not isinstance(scale, int):
        return
    train = phase == 'train'
    sizes: Sizes = found.get('sizes', [])
    for gt, (gt_w, gt_h), lq, (lq_w, lq_h) in sizes:
        fits = (gt_w, gt_h) == (lq_w * scale, lq_h * scale)
        larger = 0 <= gt_w - lq_w * scale < scale and 0 <= gt_h - lq_h * scale < scale  # the host crops when testing
        if not fits and (train or not larger):
            ratio = f'{gt_w / lq_w:.3g}'
            yield Problem(
                where,
                f'{gt} ({gt_w}x{gt_h}) must be {scale} times {lq} ({lq_w}x{lq_h}), found {ratio} times; check '
                'scale and dataroot_lq',
            )
            return
    if train and data.get('gt_size'):
        progressive = (opt.get('train') or {}).get('progressive') or {}
        largest = max([data['gt_size'], *progressive.get('gt_size', [])])
        if any(size % scale for size in [data['gt_size'], *progressive.get('gt_size', [])]):
            yield Problem(
                f'{where}.gt_size', f'must be a multiple of scale ({scale}), found {data["gt_size"]}; round it'
            )
        small = [s for s in sizes if min(s[1]) < largest]
        if small:
            yield Problem(
                f'{where}.gt_size',
                f'{small[0][0]} ({small[0][1][0]}x{small[0][1][1]}) is smaller than the patch of {largest}; lower '
                'gt_size or leave small images out',
            )


def _datasets(opt: Mapping, is_train: bool, found: dict[str, dict]) -> Iterator[Problem]:
    from basicsr.utils.registry import DATASET_REGISTRY

    sections = opt.get('datasets') or {}
    if is_train and 'train' not in sections:
        yield Problem('datasets', f'training needs a section train, found {sorted(sections)}; add it')
    for phase, data in sections.items():
        where = f'datasets.{phase}'
        kind = _registered(DATASET_REGISTRY, data.get('type'))
        if kind is None:
            near = _near(data.get('type'), _names(DATASET_REGISTRY))
            yield Problem(f'{where}.type', f'there is no data set {data.get("type")!r}; {near}')
            continue
        found[phase] = {}
        if kind.__name__ in ('PairedImageDataset', 'EffSRPairedDataset'):
            missing = [k for k in ('dataroot_gt', 'dataroot_lq', 'io_backend') if data.get(k) is None]
            if missing:
                yield Problem(where, f'{data["type"]} needs {" and ".join(missing)}; give it')
            else:
                yield from _pairs(opt, phase, data, found[phase])
        if data.get('persistent_workers') and (phase != 'train' or not data.get('num_worker_per_gpu')):
            if kind.__module__.startswith('basicsr_effsr.') and phase == 'train':
                continue
            yield Problem(f'{where}.persistent_workers', 'needs num_worker_per_gpu of at least 1; remove it here')


def _iterations(opt: Mapping, found: Mapping[str, dict]) -> Iterator[Problem]:
    from basicsr_effsr._loop import enlarge_ratio_for, iterations_that_run
    from basicsr_effsr.data.resumable_sampler import Plan

    data, count = opt['datasets'].get('train') or {}, found.get('train', {}).get('count')
    train = opt.get('train') or {}
    missing = [k for k in ('batch_size_per_gpu', 'num_worker_per_gpu', 'gt_size') if data.get(k) is None]
    if missing:
        yield Problem('datasets.train', f'needs {" and ".join(missing)}; give it')
        return
    if not count or not isinstance(train.get('total_iter'), (int, float)):
        return
    world = opt.get('world_size', 1)
    gpus = opt.get('num_gpu') if isinstance(opt.get('num_gpu'), int) and not opt.get('dist') else 1
    batch = data['batch_size_per_gpu'] * max(int(gpus or 1), 1)
    try:
        plan = Plan(batch, train.get('progressive'))
    except ValueError as error:
        yield Problem('train.progressive', str(error))
        return
    total, ratio = int(train['total_iter']), data.get('dataset_enlarge_ratio', 1)
    arguments = (plan, count, ratio, world, data['batch_size_per_gpu'])
    runs = iterations_that_run(*arguments, total)
    found['train']['iterations'] = runs
    found['train']['epochs'] = math.ceil(total / max(plan.iterations(math.ceil(count * ratio / world), 0), 1))
    if runs < total:
        yield Problem(
            'datasets.train.dataset_enlarge_ratio',
            f'training would end after {runs} of {total} iterations, because the last incomplete batch of every epoch '
            f'of {count} x {ratio} images is dropped; set it to {enlarge_ratio_for(*arguments, total)}',
        )


def _losses(train: Mapping) -> Iterator[Problem]:
    from basicsr.utils.registry import LOSS_REGISTRY

    named = {f'train.{k}': v for k, v in train.items() if k.endswith('_opt') and isinstance(v, Mapping)}
    named |= {f'train.losses.{k}': v for k, v in (train.get('losses') or {}).items()}
    distill = train.get('distill')
    if isinstance(distill, Mapping) and isinstance(distill.get('feature_loss'), Mapping):
        named['train.distill.feature_loss'] = distill['feature_loss']
    for where, section in named.items():
        yield from _class_options(section, where, LOSS_REGISTRY, 'loss')


def _features(opt: Mapping, nets: Mapping[str, Any]) -> Iterator[Problem]:
    pairs = ((opt.get('train') or {}).get('distill') or {}).get('feature_pairs') or {}
    for key, names in (('network_g', pairs.keys()), ('network_t', pairs.values())):
        if key in nets:
            modules = dict(nets[key].named_modules())
            for name in names:
                if name not in modules:
                    yield Problem(
                        'train.distill.feature_pairs',
                        f'{type(nets[key]).__name__} has no submodule {name!r}; {_near(name, modules)}',
                    )


def _model(opt: Mapping, is_train: bool) -> Iterator[Problem]:
    from basicsr.utils.registry import MODEL_REGISTRY

    model = _registered(MODEL_REGISTRY, opt.get('model_type'))
    if model is None:
        yield Problem(
            'model_type',
            f'there is no model {opt.get("model_type")!r}; {_near(opt.get("model_type"), _names(MODEL_REGISTRY))}',
        )
        return
    for section, keys in (('train', getattr(model, 'train_keys', None)), ('val', getattr(model, 'val_keys', None))):
        for key in opt.get(section) or {}:
            if keys is not None and key not in keys:
                yield Problem(f'{section}.{key}', f'{opt["model_type"]} does not read this key; {_near(key, keys)}')
    if is_train:
        for key in ('total_iter', 'optim_g', 'scheduler'):
            if key not in (opt.get('train') or {}):
                yield Problem('train', f'needs {key}; give it')
        for key in ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'):
            if key not in (opt.get('logger') or {}):
                yield Problem('logger', f'needs {key}, which BasicSR reads without a default; give it')


def _metrics(opt: Mapping) -> Iterator[Problem]:
    from basicsr.utils.registry import METRIC_REGISTRY

    val = opt.get('val') or {}
    if val and 'save_img' not in val:
        yield Problem('val', 'needs save_img, which BasicSR reads without a default; give it')
    for name, metric in (val.get('metrics') or {}).items():
        where = f'val.metrics.{name}'
        if _registered(METRIC_REGISTRY, metric.get('type')) is None:
            yield Problem(
                f'{where}.type',
                f'there is no metric {metric.get("type")!r}; {_near(metric.get("type"), _names(METRIC_REGISTRY))}',
            )
        elif metric.get('crop_border', opt.get('scale')) != opt.get('scale'):
            text = f'papers crop as many pixels as the scale ({opt.get("scale")}), found {metric["crop_border"]}'
            yield Problem(f'{where}.crop_border', text, fatal=False)


def problems(opt: Mapping[str, Any], is_train: bool, facts: dict[str, Any] | None = None) -> list[Problem]:
    """Everything that is wrong with ``opt``, in the order of the file; nothing is created or changed.

    Args:
        opt: an option file, as it is or after BasicSR's ``parse_options``.
        is_train: check what training needs, otherwise what testing needs.
        facts: filled with what was found on the way (``nets``, ``datasets``), for the report.
    """
    import basicsr  # noqa: F401 (fills the registries)

    facts = {} if facts is None else facts
    nets: dict[str, Any] = facts.setdefault('nets', {})
    found: dict[str, dict] = facts.setdefault('datasets', {})
    missing = [key for key in REQUIRED if opt.get(key) is None]
    if missing:
        return [Problem('option file', f'needs {" and ".join(missing)}; give it')]
    result: list[Problem] = []
    for key in opt:
        if key not in TOP_LEVEL and not str(key).startswith('network_'):
            result.append(Problem(str(key), f'nobody reads this key; {_near(key, TOP_LEVEL)}', fatal=False))
    for section in ('datasets', 'network_g', 'train', 'val'):
        result += _numbers_as_text(opt.get(section) or {}, section)
    result += _model(opt, is_train)
    result += _networks(opt, nets)
    for key in opt.get('path') or {}:
        if not any(part in str(key) for part in NO_FOLDER) and key not in HOST_FOLDERS:
            result.append(Problem(f'path.{key}', 'BasicSR makes a folder of this name; remove it', fatal=False))
    result += _datasets(opt, is_train, found)
    if is_train:
        result += _iterations(opt, found)
        result += _losses(opt.get('train') or {})
        result += _features(opt, nets)
    result += _metrics(opt)
    result += _weights(opt, nets)
    return result


def _memory(net: Any, batch: int, size: int) -> dict[str, float]:
    """MiB in float32: weights with gradients and Adam's two moments, and what the backward pass keeps."""
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            holders.append(tensor)
        return tensor

    holders: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = net.train()(torch.empty(batch, getattr(net, 'num_in_ch', 3), size, size, device='meta'))
        del out
    weights = sum(p.numel() for p in net.parameters()) * 4 * 4
    return {'weights, gradients, Adam': weights / 2**20, 'activations': sum(kept.values()) / 2**20}


def forecast(opt: Mapping[str, Any], is_train: bool, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the run will be: networks, data, iterations, memory."""
    told: dict[str, Any] = {'name': opt.get('name'), 'model': opt.get('model_type'), 'scale': opt.get('scale')}
    for key, net in facts['nets'].items():
        told[key] = f'{type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters'
    for phase, data in facts['datasets'].items():
        if 'count' in data:
            told[f'datasets.{phase}'] = f'{data["count"]} pairs'
    train = facts['datasets'].get('train', {})
    if is_train and 'iterations' in train:
        told['iterations'] = train['iterations']
        told['epochs'] = train['epochs']
        data = opt['datasets']['train']
        if 'network_g' in facts['nets']:
            try:
                memory = _memory(
                    facts['nets']['network_g'], data['batch_size_per_gpu'], data['gt_size'] // opt['scale']
                )
            except (NotImplementedError, RuntimeError):
                memory = {}
            for key, value in memory.items():
                told[f'memory, {key} (estimated, per GPU)'] = f'{value:,.1f} MiB'
    return told


def command(
    opt: Annotated[Path | None, typer.Option('-opt', '--opt', help='Option file to check.')] = None,
    test: Annotated[
        bool, typer.Option('--test', help='Check for basicsr.test; default: by the sections it has.')
    ] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print the result as JSON.')] = False,
) -> None:
    """Check an option file and say what it will do, without running it; exit code 1 if something is fatal."""
    import yaml

    if opt is None or not opt.is_file():
        typer.echo(f'effsr check: no option file {opt}; give one with -opt', err=True)
        raise typer.Exit(2)
    try:
        loaded = yaml.safe_load(opt.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        typer.echo(f'effsr check: {opt} is not YAML: {" ".join(str(error).split())}', err=True)
        raise typer.Exit(2) from error
    if not isinstance(loaded, dict):
        typer.echo(f'effsr check: {opt} must hold a mapping of options, found {type(loaded).__name__}', err=True)
        raise typer.Exit(2)
    is_train = 'train' in loaded and not test
    facts: dict[str, Any] = {}
    found = problems(loaded, is_train, facts)
    told = forecast(loaded, is_train, facts)
    fatal = any(problem.fatal for problem in found)
    if as_json:
        typer.echo(json.dumps({'problems': [asdict(p) for p in found], 'forecast': told}, indent=2))
        raise typer.Exit(1 if fatal else 0)
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, title=f'{"Training" if is_train else "Testing"} with {opt}', title_justify='left')
    for key, value in told.items():
        table.add_row(key, str(value))
    console.print(table)
    for problem in found:
        style, label = ('red', 'fatal') if problem.fatal else ('yellow', 'warning')
        console.print(f'{label}: {problem}', style=style, markup=False, soft_wrap=True)
    if not found:
        console.print('Nothing is wrong with it.', style='green')
    raise typer.Exit(1 if fatal else 0)
