"""Rules of the check on training: keys, losses, optimizers, schedules, stages, distillation."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.options import spec
from basicsr_effsr.options.context import Context, built_from
from basicsr_effsr.options.course import course_of
from basicsr_effsr.options.data_rules import too_small
from basicsr_effsr.options.problem import Problem, plain, warning
from basicsr_effsr.options.signatures import options_of
from basicsr_effsr.options.validate import validate
from basicsr_effsr.utils.errors import near, one_line

BUILT_LOSSES = ('basicsr.losses.', 'basicsr_effsr.losses.')  # modules of losses whose constructors are tried
NEEDS_GPU = ('capturable', 'fused')  # options of optimizers that a CPU cannot try


def _source_reads(model: Any) -> set[str]:
    """Options of ``train`` that the source of a model of others reads, as far as that can be seen."""
    keys: set[str] = set()
    for cls in getattr(model, '__mro__', (object,))[:-1]:
        try:
            source = inspect.getsource(cls)
        except (OSError, TypeError):  # made without a file
            continue
        keys |= set(re.findall(r"""(?:train_opt|opt\[['"]train['"]\])(?:\.get\(|\[)['"](\w+)['"]""", source))
    return keys


def section(context: Context) -> Iterator[Problem]:
    """The keys of ``train`` and of its sections."""
    train = context.section('train')
    if not train:
        if context.fine('train'):
            yield Problem('train', 'is missing: it says how to train')
        return
    foreign = _is_foreign(context)
    read = getattr(context.model, 'train_keys', spec.HOST_TRAIN if context.model else spec.fields(spec.Train))
    others = [*read, *(_source_reads(context.model) if foreign else ())]
    unread = [key for key in spec.fields(spec.Train) if key not in read]
    yield from validate(
        'train', train, spec.Train, unread=unread, others=others, strict=not foreign, open_ended=foreign
    )
    progressive = train.get('progressive')
    if progressive:
        lengths = [len(values) for values in progressive.values() if values is not None]
        if len(set(lengths)) != 1:
            yield Problem('train.progressive', f'must hold lists of one length, got {lengths}')
    if not context.fine('train.progressive') or not progressive:
        train.pop('progressive', None)


def _is_foreign(context: Context) -> bool:
    known = hasattr(context.model, 'train_keys') or context.opt.get('model_type') == 'SRModel'
    return context.model is not None and not known


def loss_names(context: Context) -> Iterator[Problem]:
    """Names of losses that the log and torch can bear, and that there is a loss at all."""
    from torch import nn

    train, model = context.section('train'), context.model
    # the log of the host and torch's ModuleDict have these
    taken = {'epoch', 'iter', 'lrs', 'time', 'data_time', *dir(nn.ModuleDict())}
    by_host = {'l_pix': 'pixel_opt', 'l_percep': 'perceptual_opt'}
    logged = {*getattr(model, 'reserved_terms', ()), *(name for name, key in by_host.items() if train.get(key))}
    for name in context.section('train', 'losses'):
        where = f'train.losses.{name}'
        if not isinstance(name, str) or not name or '.' in name or name in taken:
            yield Problem(where, 'must have a name without a dot that neither the log nor torch has, such as l_edge')
        elif name in logged:
            yield Problem(where, f'must have another name, {by_host.get(name, "the model")} logs a term under it')
        elif not name.startswith('l_'):
            yield warning(where, 'should start with l_, so that the loggers put it among the losses')
    asked = [option for key in ('losses', *by_host.values()) for option in [train.get(key)] if option]
    needs = getattr(model, 'needs_losses', context.opt.get('model_type') == 'SRModel')
    if train and needs and not asked and context.fine('train.losses', 'train.pixel_opt', 'train.perceptual_opt'):
        yield Problem('train.losses', 'names no loss; give losses, or pixel_opt as BasicSR does')


def losses(context: Context) -> Iterator[Problem]:
    """Every loss by its signature, and built once."""
    train = context.section('train')
    known = {'pixel_opt', 'perceptual_opt', *(_source_reads(context.model) if _is_foreign(context) else ())}
    named = {}
    for key, option in train.items():
        theirs = isinstance(option, dict) and lookup('LOSS', option.get('type'))[0] is not None
        # a section of a foreign model need not be a loss
        if option and str(key).endswith('_opt') and (key in known or theirs):
            named[f'train.{key}'] = option
    named |= {f'train.losses.{n}': o for n, o in context.section('train', 'losses').items() if o is not None}
    named |= {
        f'train.distill.{k}': o for k, o in context.section('train', 'distill').items() if k == 'feature_loss' and o
    }
    for where, option in named.items():
        yield from _loss(where, option)


def _loss(where: str, option: Any) -> Iterator[Problem]:
    cls, found = built_from(where, 'LOSS', option)
    yield from found
    if cls is None or any(problem.fatal for problem in found):
        return
    if option.get('reduction') == 'none':
        yield Problem(f'{where}.reduction', 'must give one number to train on: mean or sum, got none')
        return
    if not cls.__module__.startswith(BUILT_LOSSES) or cls.__name__ == 'PerceptualLoss':
        return  # it may fetch weights
    import torch

    arguments = {key: value for key, value in option.items() if key != 'type'}
    fetches = bool(arguments.get('download'))
    if fetches:
        arguments['download'] = False
    try:
        with torch.random.fork_rng(devices=[]):
            cls(**arguments)
    except FileNotFoundError as error:
        if not fetches:
            yield Problem(where, one_line(error))
    except Exception as error:  # whatever the constructor raises stops the run
        yield Problem(where, one_line(error))


def optimizers(context: Context) -> Iterator[Problem]:
    """Every optimizer by its signature, and one step with it."""
    import torch

    base = torch.optim.Optimizer
    known = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
    for key, option in context.section('train').items():
        where = f'train.{key}'
        if not str(key).startswith('optim_') or option is None:
            continue
        kind = option.get('type') if isinstance(option, dict) else None
        if not isinstance(option, dict):
            yield Problem(where, f'must be a section with a type, got {plain(option)}')
            continue
        if kind not in known:
            yield Problem(f'{where}.type', f'torch.optim has no {plain(kind)}; {near(kind, known)}')
            continue
        cls = getattr(torch.optim, str(kind))
        if inspect.signature(cls.step).parameters['closure'].default is inspect.Parameter.empty:
            words = f'{kind} needs several backward passes per iteration; take Adam, AdamW or SGD'
            yield Problem(f'{where}.type', words)
            continue
        options, _ = options_of(cls, known=spec.Optimizer, skip=('params',))
        found = validate(where, option, options)
        yield from found or _step(context, where, cls, option)
        if not hasattr(context.model, 'train_keys') and kind != 'Adam':
            yield warning(f'{where}.type', f"{kind} works with BasicSR's head, its release 1.4.2 knows Adam only")


def _step(context: Context, where: str, cls: Any, option: dict[str, Any]) -> Iterator[Problem]:
    """An optimizer of these options moves a parameter, on the CPU."""
    import torch

    arguments = {key: value for key, value in option.items() if key != 'type'}
    if not context.without_gpu:
        arguments = {key: value for key, value in arguments.items() if key not in NEEDS_GPU}
    weight = torch.nn.Parameter(torch.zeros(1, 1, 1, 1))  # of a convolution
    weight.grad = torch.zeros_like(weight)
    try:
        cls([weight], **arguments).step()
    except Exception as error:  # whatever it raises stops the run
        yield Problem(where, f'{cls.__name__} cannot train with these options: {one_line(error)}')


def scheduler(context: Context) -> Iterator[Problem]:
    """The schedule by its signature, built once, and against the iterations of the run."""
    import torch
    from basicsr.models import lr_scheduler

    option = context.section('train').get('scheduler')
    if not isinstance(option, dict):
        return
    kind, where = option.get('type'), 'train.scheduler'
    if not isinstance(kind, str) or kind not in spec.SCHEDULERS:
        yield Problem(f'{where}.type', f'BasicSR has no {plain(kind)}; {near(kind, spec.SCHEDULERS)}')
        return
    cls = getattr(lr_scheduler, spec.SCHEDULERS[kind])
    options, _ = options_of(cls, known=spec.Scheduler, skip=('optimizer', 'last_epoch'))
    found = validate(where, option, options) or list(_schedule(context, option))
    yield from found
    if any(problem.fatal for problem in found):
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    try:
        cls(optimizer, **{key: value for key, value in option.items() if key != 'type'})
    except Exception as error:  # whatever the constructor raises stops the run
        yield Problem(where, f'{kind} cannot be built: {one_line(error)}')


def _schedule(context: Context, option: dict[str, Any]) -> Iterator[Problem]:
    """Milestones and periods against the iterations of the run, weights against restarts."""
    total, where = context.section('train').get('total_iter'), 'train.scheduler'
    milestones, periods = option.get('milestones'), option.get('periods')
    name = 'restarts' if periods is None else 'periods'
    parts, weights = option.get(name, [0]), option.get('restart_weights', [1])
    if len(weights) != len(parts):
        words = f'must be as many as {name}, got {len(weights)} and {len(parts)}'
        yield Problem(f'{where}.restart_weights', words)
    if total is None:
        return
    if periods is not None and sum(periods) < total:
        words = f'must sum up to at least total_iter {total:g}, got {sum(periods):g}'
        yield Problem(f'{where}.periods', words)
    if milestones is None:
        return
    if any(milestone >= total for milestone in milestones):
        yield warning(f'{where}.milestones', f'some are never reached in {total:g} iterations: {milestones}')
    yield from _warm_up(context, milestones, option.get('restarts', [0]))


def _warm_up(context: Context, milestones: list[float], restarts: list[float]) -> Iterator[Problem]:
    """MultiStepLR goes on from the last rate of the warm-up, lr * (warmup_iter - 1) / warmup_iter."""
    train = context.section('train')
    total, warmup, rate = (
        train['total_iter'],
        train.get('warmup_iter', -1),
        context.section('train', 'optim_g').get('lr'),
    )
    if warmup < 1 or not isinstance(rate, int | float) or any(restart >= warmup for restart in restarts):
        return
    lost = [milestone for milestone in milestones if 0 < milestone < warmup - 1]
    if lost:
        yield warning('train.scheduler.milestones', f'{plain(lost)} lie within the warm-up and change nothing')
    reached = rate * min(warmup - 1, total) / warmup
    if reached < 0.99 * rate:
        words = f'MultiStepLR goes on from where the warm-up ends, so lr {rate:g} is never reached, but {reached:g}'
        yield warning('train.warmup_iter', words)


def patches(context: Context) -> Iterator[Problem]:
    """Patches against the networks' least input, and against ``accumulate``."""
    train, data, scale = context.section('train'), context.section('datasets', 'train'), context.opt.get('scale')
    progressive = train.get('progressive')
    source = lookup('DATASET', data.get('type'))[0]
    if progressive and source is not None and not derives_from_ours(source):
        words = f'{source.__name__} cannot change its patches; use EffSRPairedDataset'
        yield Problem('train.progressive', words)
    if not isinstance(scale, int):
        return
    where, sides, batches = 'datasets.train.gt_size', [data.get('gt_size')], [data.get('batch_size_per_gpu')]
    if progressive:
        where, sides = 'train.progressive.gt_size', progressive['gt_size']
        batches = progressive.get('batch') or batches
        images = context.images.get('train')
        for side in sides:
            if side % scale:
                yield Problem(where, f'must hold multiples of scale {scale}, got {side}')
            elif images and images.smallest_lq:
                yield from too_small(where, side // scale, images.smallest_lq)
    smallest = min((side for side in sides if isinstance(side, int)), default=0) // scale
    for key, net in context.nets.items():
        least = getattr(net, 'min_size', 1)
        if 0 < smallest < least:
            words = f'gives LR patches of {smallest} pixels, {type(net).__name__} ({key}) needs {least}'
            yield Problem(where, f'{words}; take at least {least * scale}')
    parts = train.get('accumulate') or 1
    for batch in batches:
        if isinstance(batch, int) and batch % parts:
            yield Problem('train.accumulate', f'must divide the batch of {batch}, got {parts}')


def iterations(context: Context) -> Iterator[Problem]:
    """That the run does not end early."""
    course, several = course_of(context), context.gpus_of_one_process
    if course is None:
        return
    images, where = context.images['train'].count, 'datasets.train.dataset_enlarge_ratio'
    ours = derives_from_ours(lookup('DATASET', context.section('datasets', 'train').get('type'))[0])
    least = math.ceil(max(course.batches) / images) if ours else 1
    if course.runs < course.asked:
        reason = 'the last incomplete batch of every epoch is dropped'
        if several > 1:
            reason += f' and {several} GPUs of one process take {several} times the batch'
        yield Problem(
            where,
            f'with {images} images training would end after {course.runs} of {course.asked} iterations, because '
            f'{reason}; set it to {max(course.ratio, least)}',
        )
    elif not min(course.per_epoch) and ours:
        yield Problem(
            where,
            f'with {images} images an epoch has fewer than the {max(course.batches)} patches of the largest batch, so '
            f'a stage would have no iteration; set it to at least {least}',
        )
    progressive = context.section('train', 'progressive')
    if progressive and sum(progressive['iters']) > course.asked:
        words = f'sum up to {sum(progressive["iters"])}, the run ends after {course.asked}'
        yield warning('train.progressive.iters', words)


def distillation(context: Context) -> Iterator[Problem]:
    """``train.distill``: a teacher, something to learn from it, and names that exist."""
    if 'distill' not in getattr(context.model, 'train_keys', ()):
        return
    train, distill, where = context.section('train'), context.section('train', 'distill'), 'train.distill'
    pairs, loss, gamma = (distill.get(key) for key in ('feature_pairs', 'feature_loss', 'gamma'))
    instead = 'or use model_type: EffSRModel to train without a teacher'
    if context.opt.get('network_t') is None and context.fine('network_t'):
        yield Problem('network_t', f'is missing: the teacher; {instead}')
    elif not context.section('path').get('pretrain_network_t') and context.fine('path.pretrain_network_t'):
        yield Problem('path.pretrain_network_t', f'is missing: the weights of the teacher; {instead}')
    several = context.gpus_of_one_process
    if several > 1:
        launch = f'torchrun --nproc_per_node={several} -m basicsr.train -opt ... --launcher pytorch'
        words = f'features cannot be read on {several} GPUs of one process; use {launch}, or num_gpu: 1'
        yield Problem('num_gpu', words, fatal=context.about_to_run)
    if bool(pairs) != bool(loss):
        yield Problem(where, 'needs both feature_pairs and feature_loss, or neither')
    if gamma and not pairs:
        yield Problem(f'{where}.gamma', 'is the weight of feature_pairs, which are missing; give them, or gamma: 0')
    kinds = [kind for kind in (distill.get('adapter'), loss.get('adapter') if isinstance(loss, dict) else None) if kind]
    if len(set(kinds)) > 1:
        words = f'must agree with {where}.feature_loss.adapter, got {kinds[0]} and {kinds[1]}; give one of them'
        yield Problem(f'{where}.adapter', words)
    weights = [distill.get('alpha', 1), distill.get('beta', 1), distill.get('gamma', 1) if pairs else 0]
    if not any(weights) and not any(train.get(key) for key in ('losses', 'pixel_opt', 'perceptual_opt')):
        yield Problem(where, 'leaves nothing to train on; give alpha, beta or gamma a weight, or name train.losses')
    for key, names in (('network_g', list(pairs or {})), ('network_t', list((pairs or {}).values()))):
        net = context.nets.get(key)
        modules = [name for name, _ in net.named_modules() if name] if net is not None else []
        for name in names if net is not None else ():
            if name not in modules:
                words = f'{type(net).__name__} ({key}) has no submodule {name!r}; {near(name, modules)}'
                yield Problem(f'{where}.feature_pairs', words)
