"""The rules of the check: what can be known to be wrong with an option file before anything is built.

A rule gives types, ranges, unknown keys, and what would be silently wrong. What would fail is found by failing: see
``host/dry_run.py``. Those on data sets are in ``data_rules.py``.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from basicsr_effsr.options import data_rules, spec
from basicsr_effsr.options.forecast import course_of
from basicsr_effsr.options.problem import Context, Problem, adopt, copied, plain, warning
from basicsr_effsr.options.signatures import find, read_by
from basicsr_effsr.options.validate import validate, validate_typed
from basicsr_effsr.utils.errors import near
from basicsr_effsr.weights.build import on_meta
from basicsr_effsr.weights.zoo import located, named

LAUNCH = 'torchrun --nproc_per_node={} -m basicsr.train -opt ... --launcher pytorch'


def top(context: Context) -> Iterator[Problem]:
    """The keys of the file, and the model."""
    others, name = [key for key in context.opt if str(key).startswith('network_')], context.opt.get('model_type')
    if name is not None:
        context.model, known = find('MODEL', name)
        if context.model is None:
            yield Problem('model_type', f'there is no model {name!r}; {near(name, known)}')
        elif not _is_known(context):
            others += read_by(context.model)
    yield from validate('', context.opt, spec.Top, others=[*others, *spec.AT_RUN_TIME[spec.Top]], strict=False)
    if context.is_train and 'debug' in str(context.opt.get('name')):
        yield warning('name', 'contains "debug", so BasicSR validates every 8 and prints every iteration')


def networks(context: Context) -> Iterator[Problem]:
    """Every network by its signature, and built without memory for its weights."""
    for key, option in context.opt.items():
        if not str(key).startswith('network_') or option is None:
            continue
        cls, found = validate_typed(key, 'ARCH', option)
        yield from found
        net = context.nets[key] = None
        if cls is not None and not found:
            with suppress(Exception):  # a foreign one may need memory; what is at fault the dry step says
                net = context.nets[key] = on_meta(option)
        upscale, scale = getattr(net, 'upscale', None), context.scale
        if isinstance(upscale, int) and scale is not None and upscale != scale:
            yield Problem(f'{key}.upscale', f'must equal scale {scale}, got {upscale}; write it once (&scale, *scale)')


def gpus(context: Context) -> Iterator[Problem]:
    import torch

    number, several, there = context.opt.get('num_gpu'), context.gpus_of_one_process, torch.cuda.device_count()
    launch, about_to_run = LAUNCH.format(several), 'rank' in context.opt  # on the machine that is to follow the file
    if several > 1 and context.is_train and _distils(context):
        words = f'features cannot be read on {several} GPUs of one process; use {launch}, or num_gpu: 1'
        yield Problem('num_gpu', words, fatal=about_to_run)
    elif several > 1 and context.is_train:
        yield warning('num_gpu', f'{several} GPUs of one process multiply the batch by {several}; {launch} is faster')
    if isinstance(number, int) and number > there:
        words = f'asks for {number} GPUs and {there} are visible; use auto, or 0 for the CPU'
        yield Problem('num_gpu', words, fatal=about_to_run)


def path(context: Context) -> Iterator[Problem]:
    """Keys of ``path``, of which BasicSR makes a folder where it does not know them; names of the zoo become files."""
    labels = [str(key).removeprefix('network_') for key in context.opt if str(key).startswith('network_')]
    others = [f'{stem}_{label}' for stem in ('pretrain_network', 'param_key', 'strict_load') for label in labels]
    section = context.section('path')
    yield from validate('path', section, spec.Path, others=[*others, *spec.AT_RUN_TIME[spec.Path]])
    for key in [key for key, value in section.items() if str(key).startswith('pretrain_network') and named(value)]:
        said: list[str] = []
        try:
            section[key] = str(located(section[key], say=said.append))
        except (OSError, ValueError) as error:
            yield Problem(f'path.{key}', str(error))
        yield from (warning(f'path.{key}', line) for line in said)
    if not context.is_train and section.get('pretrain_network_g') is None:
        yield warning('path.pretrain_network_g', 'is not given, so the test runs with random weights')


def logger(context: Context) -> Iterator[Problem]:
    section = context.section('logger')
    if section:
        yield from validate('logger', section, spec.Logger, strict=False)
    elif context.fine('logger'):
        yield Problem('logger', 'is missing: BasicSR reads print_freq, save_checkpoint_freq and use_tb_logger')


def train(context: Context) -> Iterator[Problem]:
    """The keys of ``train`` and of its sections; a model of others may read any."""
    from basicsr_effsr.utils.training import blocks_of

    section = context.section('train')
    if section:
        read = getattr(context.model, 'train_keys', spec.HOST_TRAIN if _is_known(context) else None)
        yield from validate('train', section, spec.Train, read=read, open_ended=not _is_known(context))
        lengths = {len(values) for values in (section.get('progressive') or {}).values() if values is not None}
        if len(lengths) > 1:
            yield Problem('train.progressive', f'must hold lists of one length, got {sorted(lengths)}')
        if not context.fine('train.progressive'):
            section.pop('progressive', None)
        net = context.nets.get('network_g')
        if section.get('use_checkpoint') and section.get('compile'):
            words = 'cannot be combined with train.compile, which chooses itself what to recompute; remove one of them'
            yield Problem('train.use_checkpoint', words)
        elif section.get('use_checkpoint') and net is not None and not blocks_of(net):
            words = f'would change nothing, as {type(net).__name__} has no blocks of several layers; remove it'
            yield Problem('train.use_checkpoint', words)
        if section.get('amp') and not getattr(net, 'supports_half', True):
            yield warning('train.amp', f'{type(net).__name__} gives visibly different images in half precision')
    elif context.fine('train'):
        yield Problem('train', 'is missing: it says how to train')


def _is_known(context: Context) -> bool:
    """True for our models and SRModel, of which every key is known."""
    return hasattr(context.model, 'train_keys') or context.opt.get('model_type') == 'SRModel'


def _distils(context: Context) -> bool:
    return 'distill' in getattr(context.model, 'train_keys', ())


def loss_names(context: Context) -> Iterator[Problem]:
    """Names that the loggers put among the losses and nobody else has, and that there is a loss at all."""
    section = context.section('train')
    logged = {*getattr(context.model, 'reserved_terms', ()), *(n for n, key in spec.LOGGED.items() if section.get(key))}
    for name in context.section('train', 'losses'):
        if not re.fullmatch(r'l_\w+', str(name)):
            yield Problem(f'train.losses.{name}', 'must be named l_ and letters or digits, such as l_edge')
        elif name in logged:
            yield Problem(f'train.losses.{name}', 'must have another name; the model logs a term under this one')
    keys = [f'train.{key}' for key in spec.LOSSES]
    needs = getattr(context.model, 'needs_losses', context.opt.get('model_type') == 'SRModel')
    if section and needs and not any(map(section.get, spec.LOSSES)) and context.fine(*keys):
        yield Problem('train.losses', 'names no loss; give losses, or pixel_opt as BasicSR does')


def parts(context: Context) -> Iterator[Problem]:
    """Every loss and optimizer by its signature."""
    train = context.section('train')
    for where, _, option in spec.losses_of(train):
        of_host = where.removeprefix('train.') in spec.LOGGED.values()
        # a section of a foreign model need not be a loss
        if of_host or not where.endswith('_opt') or find('LOSS', isinstance(option, dict) and option.get('type'))[0]:
            yield from validate_typed(where, 'LOSS', option)[1]
    for key, option in train.items():
        if str(key).startswith('optim_') and option is not None:
            yield from validate_typed(f'train.{key}', 'OPTIMIZER', option)[1]


def scheduler(context: Context) -> Iterator[Problem]:
    """The schedule by its signature, and against the iterations of the run."""
    option, where = context.section('train').get('scheduler'), 'train.scheduler'
    total = context.section('train').get('total_iter')
    found = [] if option is None else validate_typed(where, 'SCHEDULER', option)[1]
    yield from found
    if found or option is None or total is None:
        return
    if 'periods' in option and sum(option['periods']) < total:
        yield Problem(f'{where}.periods', f'must sum up to total_iter {total} or more, got {sum(option["periods"]):g}')
    if 'milestones' in option:
        if any(milestone >= total for milestone in option['milestones']):
            yield warning(f'{where}.milestones', f'some are never reached in {total} iterations')
        yield from _warm_up(context, option['milestones'], option.get('restarts', [0]))


def _warm_up(context: Context, milestones: list[float], restarts: list[float]) -> Iterator[Problem]:
    """MultiStepLR continues from the last rate of the warm-up, lr * (warmup_iter - 1) / warmup_iter."""
    section, rate = context.section('train'), context.section('train', 'optim_g').get('lr')
    total, warmup = section['total_iter'], section.get('warmup_iter', -1)
    if warmup < 1 or rate is None or any(restart >= warmup for restart in restarts):
        return
    lost = [milestone for milestone in milestones if 0 < milestone < warmup - 1]
    if lost:
        yield warning('train.scheduler.milestones', f'{plain(lost)} lie within the warm-up and change nothing')
    reached = rate * min(warmup - 1, total) / warmup
    if reached < 0.99 * rate:
        yield warning(
            'train.warmup_iter', f'ends before lr {rate:g} is reached, MultiStepLR continues from {reached:g}'
        )


def iterations(context: Context) -> Iterator[Problem]:
    """That the run does not end early, that parts divide every batch, and that every stage is reached."""
    section, progressive = context.section('train'), context.section('train', 'progressive')
    parts, batch = section.get('accumulate') or 1, context.section('datasets', 'train').get('batch_size_per_gpu')
    for samples in progressive.get('batch') or [batch]:
        if isinstance(samples, int) and samples % parts:
            yield Problem('train.accumulate', f'must divide the batch of {samples}, got {parts}')
    course = course_of(context)
    if course is None:
        return
    if course.runs < course.asked or not min(course.per_epoch):
        images, most = context.images['train'], max(course.batches)
        yield Problem(
            'datasets.train.dataset_enlarge_ratio',
            f'with {images} images and {most} patches per iteration {course.runs} of {course.asked} iterations would '
            'run, or none in a stage, because the last incomplete batch of every epoch is dropped; set it to '
            f'{max(course.ratio, math.ceil(most / images))}',
        )
    asked = sum(progressive.get('iters', ()))
    if asked > course.asked:
        yield warning('train.progressive.iters', f'sum up to {asked}, the run ends after {course.asked}')


def distillation(context: Context) -> Iterator[Problem]:
    """``train.distill``: a teacher, something to learn from it, and names that exist."""
    if not _distils(context):
        return
    section, distill, where = context.section('train'), context.section('train', 'distill'), 'train.distill'
    pairs, loss, gamma = (distill.get(key) for key in ('feature_pairs', 'feature_loss', 'gamma'))
    for place, value, text in (
        ('network_t', context.opt.get('network_t'), 'the teacher'),
        ('path.pretrain_network_t', context.section('path').get('pretrain_network_t'), 'the weights of the teacher'),
    ):
        if not value and context.fine('network_t', place):
            yield Problem(place, f'is missing: {text}; or use model_type: EffSRModel to train without a teacher')
    if bool(pairs) != bool(loss):
        yield Problem(where, 'needs both feature_pairs and feature_loss, or neither')
    if gamma and not pairs:
        yield Problem(f'{where}.gamma', 'is the weight of feature_pairs, which are missing; give them, or gamma: 0')
    kinds = {kind for kind in (distill.get('adapter'), isinstance(loss, dict) and loss.get('adapter')) if kind}
    if len(kinds) > 1:
        yield Problem(f'{where}.adapter', f'must agree with {where}.feature_loss.adapter; give one of them')
    weights = [distill.get('alpha', 1), distill.get('beta', 1), distill.get('gamma', 1) if pairs else 0]
    if not any(weights) and not any(map(section.get, spec.LOSSES)):
        yield Problem(where, 'leaves nothing to train on; give alpha, beta or gamma a weight, or name train.losses')
    if section.get('pixel_opt') and distill.get('beta', 1):
        words = f'is added to the L1 loss to HR that {where}.beta weighs; remove one of them (beta: 0)'
        yield warning('train.pixel_opt', words)
    for key, names in (('network_g', pairs or {}), ('network_t', (pairs or {}).values())):
        net = context.nets.get(key)
        modules = [name for name, _ in net.named_modules() if name] if net is not None else []
        for name in names if net is not None else ():
            if name not in modules:
                words = f'{type(net).__name__} ({key}) has no submodule {name!r}; {near(name, modules)}'
                yield Problem(f'{where}.feature_pairs', words)


def val(context: Context) -> Iterator[Problem]:
    """The keys of ``val``, and that what is validated or tested says how."""
    section = context.opt.get('val')
    if section is not None:
        read = getattr(context.model, 'val_keys', spec.HOST_VAL if _is_known(context) else None)
        yield from validate('val', section, spec.Val, read=read, strict=_is_known(context))
        if context.is_train and section.get('val_freq') is None and context.fine('val.val_freq'):
            yield Problem('val.val_freq', 'is missing: it sets the iterations between validations')
        tile = section.get('tile') or {}
        if 'size' in tile and tile.get('overlap', 0) >= tile['size'] and tile.get('blend') != 'halo':
            yield Problem('val.tile.overlap', f'must be less than size {tile["size"]}, got {tile["overlap"]}')
    elif context.fine('val') and not context.is_train:
        yield Problem('val', 'is missing: it says what to measure and whether to save images')
    elif context.fine('val') and len(context.section('datasets')) > 1:
        yield warning('val', 'is missing, so only the training data are used')


def metrics(context: Context) -> Iterator[Problem]:
    """Every metric by its signature, and its border against the images."""
    scale = context.scale
    for name, option in context.section('val', 'metrics').items():
        where, section = f'val.metrics.{name}', option if isinstance(option, dict) else {}
        function = find('METRIC', section.get('type'))[0]
        cropped = function is not None and 'crop_border' in inspect.signature(function).parameters
        yield from validate_typed(where, 'METRIC', option, beside=spec.CroppedMetric if cropped else spec.Metric)[1]
        border = section.get('crop_border')
        if border is None or scale is None or not context.fine(where):
            continue
        sides = [min(size) for phase, (_, size) in context.smallest.items() if phase != 'train']
        least = scale * min(sides, default=2 * border + 1)
        if 2 * border >= least:
            yield Problem(
                f'{where}.crop_border', f'leaves nothing of {least} pixels, got {border}; papers crop {scale}'
            )
        elif border != scale:
            yield warning(f'{where}.crop_border', f'is {border}; papers crop {scale} pixels, the scale')


# In this order: what is ill-typed is taken out of the options before others read them, networks and images are learnt.
SECTIONS = (top, networks, path, gpus, data_rules.phases, data_rules.data_sets)
TRAINING = (train, logger, loss_names, parts, scheduler)
AFTER = (val, data_rules.pairs, data_rules.sizes, metrics)
AFTER_TRAINING = (distillation, iterations)


def inspected(opt: Mapping[str, Any], is_train: bool, *, every_image: bool = False) -> Context:
    """What is wrong with the options, worst first, and what was learnt; ``opt`` is not changed and nothing is written.

    Reads names of files, headers of images to train on, and decodes images of validation; fetches zoo://NAME.

    ``opt`` is as in the file, or as BasicSR has parsed it; ``every_image`` reads all headers of images to train on,
    however many there are.
    """
    context = Context(copied(opt), is_train, every_image)
    _apply(context, (*SECTIONS, *TRAINING * is_train, *AFTER, *AFTER_TRAINING * is_train))
    context.found = sorted(dict.fromkeys(context.found), key=lambda problem: not problem.fatal)
    return context


def refuse(opt: dict[str, Any], model: type, *, net: Any = None) -> None:
    """The rules on what a model class itself reads, for callers that build one without checking the whole file.

    Args:
        opt: as BasicSR has parsed it; whole floats become integers where counts are asked for.
        model: a class with ``train_keys`` and ``val_keys``.
        net: ``network_g``, once it is built: then patches and tiles are held against its least input.

    Raises:
        ValueError: names the first option that is wrong.
    """
    context = Context(copied(opt), bool(opt.get('is_train')), model=model, nets={'network_g': net})
    own = (train, loss_names, distillation) * context.is_train
    _apply(context, (*own, val) if net is None else (data_rules.sizes,))
    for problem in context.found:
        if problem.fatal:
            raise ValueError(f'{model.__name__}: {problem}')
    adopt(opt, context.opt)


def _apply(context: Context, those: tuple[Callable[[Context], Iterator[Problem]], ...]) -> None:
    for rule in those:
        for problem in rule(context):  # one by one, as rules ask what has been found
            context.found.append(problem)
