"""Rules of the check on data sets: their keys, their loaders, their images."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.data.pairs import Pair, check_sizes, list_pairs, lmdbs_opened_twice, undecodable
from basicsr_effsr.options import spec
from basicsr_effsr.options.context import Context, Images, is_paired
from basicsr_effsr.options.problem import Problem, plain, warning
from basicsr_effsr.options.validate import missing, validate
from basicsr_effsr.utils.errors import near

FEW_PAIRS = 2000  # of folders with more only a sample of headers is read when a run is about to start, without --all
SAMPLED_PAIRS = 24
OF_PAIRS = ('filename_tmpl', 'io_backend', 'dataroot_gt', 'dataroot_lq', 'meta_info_file')


def phases(context: Context) -> Iterator[Problem]:
    """Which data sets there are, and that no two of validation or testing share a name."""
    if not context.fine('datasets'):
        return
    data_sets = context.section('datasets')
    wanted = ('train', 'val') if context.is_train else ('test', 'val')
    listed = 'train, val, val_2 ...' if context.is_train else 'test, test_2 ..., val, val_2 ...'
    names: dict[Any, str] = {}
    for full, data in data_sets.items():
        phase = str(full).split('_')[0]
        if phase not in wanted or (phase == 'train' and full != phase):
            yield Problem(f'datasets.{full}', f'must be one of {listed}')
        name = data.get('name') if isinstance(data, dict) else None
        if phase != 'train' and isinstance(name, str):
            if name in names:
                words = f'{name!r} is the name of datasets.{names[name]} too; they would share scores and saved images'
                yield Problem(f'datasets.{full}.name', words)
            names.setdefault(name, str(full))
    if context.is_train and 'train' not in map(str, data_sets):
        yield Problem('datasets.train', 'is missing: there is nothing to train on')
    if not context.is_train and not data_sets:
        yield Problem('datasets.test_1', 'is missing: there is nothing to test')
    if context.opt.get('scale') is None and context.fine('scale') and any(map(is_paired, data_sets.values())):
        yield Problem('scale', 'is missing: the factor between the sizes of HR and LR images')


def data_sets(context: Context) -> Iterator[Problem]:
    """The keys of every data set."""
    for phase, data in context.section('datasets').items():
        where, training = f'datasets.{phase}', str(phase).startswith('train')
        if not isinstance(data, dict):
            yield Problem(where, f'must be a section, got {plain(data)}')
            continue
        kind = data.get('type')
        cls, known = lookup('DATASET', kind)
        if cls is None:
            yield Problem(f'{where}.type', f'there is no data set {plain(kind)}; {near(kind, known)}')
            continue
        ours = derives_from_ours(cls)
        if is_paired(data):
            unread = [] if training else [k for k in spec.TRAINING_ONLY if data.get(k, '') is None]
            others = [*unread, *spec.AT_RUN_TIME[spec.Dataset]]
            yield from validate(where, data, spec.Dataset, unread=unread, others=others, strict=False)
            for key in spec.needed_by(str(kind), training):
                lacks = key not in data or (key == 'io_backend' and data[key] is None)
                if lacks and context.fine(f'{where}.{key}'):
                    yield Problem(f'{where}.{key}', missing(spec.fields(spec.Dataset)[key].description or ''))
            yield from _channels_of_images(where, data, ours)
        if isinstance(data.get('io_backend'), dict) and cls.__module__.startswith(('basicsr.', 'basicsr_effsr.')):
            set_by_host = spec.AT_RUN_TIME[spec.IOBackend]
            yield from validate(f'{where}.io_backend', data['io_backend'], spec.IOBackend, others=set_by_host)
        if not training and data.get('persistent_workers'):
            yield Problem(f'{where}.persistent_workers', 'must be left out: validation reads without workers')
        if training:
            yield from _loader(context, where, data, ours)


def _channels_of_images(where: str, data: dict[str, Any], ours: bool) -> Iterator[Problem]:
    mean, std = data.get('mean'), data.get('std')
    for name, other, value in (('mean', 'std', mean), ('std', 'mean', std)):
        if value is not None and data.get(other) is None:
            yield Problem(f'{where}.{name}', f'needs {other} beside it; give both or neither')
        elif value is not None and len(value) not in (1, 1 if data.get('color') == 'y' else 3):
            yield Problem(f'{where}.{name}', f'must hold one number per channel, got {value}')
    if ours and data.get('uint8') and (data.get('color') == 'y' or mean is not None):
        yield Problem(f'{where}.uint8', 'cannot be combined with color, mean or std; drop one')


def _loader(context: Context, where: str, data: dict[str, Any], ours: bool) -> Iterator[Problem]:
    workers, batch = data.get('num_worker_per_gpu'), data.get('batch_size_per_gpu')
    if data.get('prefetch_mode') == 'cuda':
        import torch

        if not data.get('pin_memory'):
            yield Problem(f'{where}.prefetch_mode', 'cuda needs pin_memory: true')
        elif not torch.cuda.is_available():
            yield Problem(f'{where}.prefetch_mode', 'cuda needs a GPU, none is visible', fatal=context.without_gpu)
    if not isinstance(workers, int) or not isinstance(batch, int):
        return
    keep = data.get('persistent_workers')
    if workers == 0 and keep and not ours:
        words = 'needs workers; set num_worker_per_gpu to 1 or more, or leave it out'
        yield Problem(f'{where}.persistent_workers', words)
    if workers > 0 and not keep:
        cost = 'every epoch starts them again' if ours else 'every epoch starts them again and repeats their draws'
        yield warning(f'{where}.persistent_workers', f'is not set with {workers} workers, so {cost}; set it to true')
    cores = os.cpu_count() or 1
    if workers > cores:
        yield warning(f'{where}.num_worker_per_gpu', f'is {workers}, this machine has {cores} cores')
    if workers == 0 and batch >= 16 and context.opt.get('num_gpu') != 0:
        yield warning(f'{where}.num_worker_per_gpu', f'is 0, so a GPU waits while {batch} patches are read')


def pairs(context: Context) -> Iterator[Problem]:
    """The images: pairs, sizes, and of validation that they can be decoded."""
    for where, message in lmdbs_opened_twice(context.section('datasets')):
        yield Problem(where, message)
    for phase, data in context.section('datasets').items():
        where = f'datasets.{phase}'
        if not is_paired(data) or not context.fine(f'{where}.type', *(f'{where}.{key}' for key in OF_PAIRS)):
            continue
        try:
            found = list_pairs(where, data)
        except (OSError, ValueError) as error:
            yield Problem(*_split(str(error), where))
            continue
        context.images[str(phase)] = Images(len(found))
        if isinstance(context.opt.get('scale'), int):
            yield from _sizes(context, str(phase), data, found)


def _sizes(context: Context, phase: str, data: dict[str, Any], found: list[Pair]) -> Iterator[Problem]:
    where, scale, training = f'datasets.{phase}', context.opt['scale'], phase.startswith('train')
    side = data.get('gt_size') if training else None
    if side is not None and side % scale:
        yield Problem(f'{where}.gt_size', f'must be a multiple of scale {scale}, got {side}')
    every = context.every_image or not training or len(found) <= FEW_PAIRS or found[0].known is not None
    sizes = []
    for pair in found[:: 1 if every else len(found) // SAMPLED_PAIRS]:
        try:
            gt, lq = pair.sizes()
        except (OSError, ValueError) as error:
            yield Problem(where, str(error))
            return
        try:
            check_sizes(pair.gt, pair.lq, gt, lq, scale, training=training)
        except ValueError as error:
            yield Problem(f'{where}.dataroot_lq', str(error))
            return
        sizes.append(lq)
    if not training:  # few images, each of which would stop the run in its first validation
        damaged = undecodable([file for pair in found if pair.known is None for file in (pair.gt, pair.lq)])
        if damaged:
            yield Problem(where, damaged)
            return
    if sizes:
        smallest = context.images[phase].smallest_lq = (min(s[0] for s in sizes), min(s[1] for s in sizes))
        yield from too_small(f'{where}.gt_size', (side or 1) // scale, smallest)


def too_small(where: str, patch: int, smallest: tuple[int, int]) -> Iterator[Problem]:
    """Patches that do not fit in the smallest LR image."""
    if min(smallest) < patch:
        yield Problem(
            where,
            f'needs LR images of at least {patch} pixels a side, the smallest is {smallest[1]}x{smallest[0]}; '
            'lower gt_size or leave the image out',
        )


def channels(context: Context) -> Iterator[Problem]:
    """Channels of the networks against those of the images."""
    # a model of others may put its own channels beside the image
    fatal = hasattr(context.model, 'train_keys') or context.opt.get('model_type') == 'SRModel'
    for key, training in (('network_g', False), ('network_t', True)):
        option = context.section(key)
        cls = lookup('ARCH', option.get('type'))[0]
        for name in ('num_in_ch', 'num_out_ch') if cls is not None else ():
            parameter = inspect.signature(cls).parameters.get(name)
            number = option.get(name, parameter.default if parameter else None)
            if isinstance(number, bool) or not isinstance(number, int):
                continue
            for phase, data in context.section('datasets').items():
                if not is_paired(data) or (training and phase != 'train'):
                    continue
                wanted, what = (1, 'color: y') if data.get('color') == 'y' else (3, 'RGB')
                if number != wanted:
                    other = '; or take color: y out' if wanted == 1 else '; or set color: y there' * (number == 1)
                    words = f'must be {wanted}, the channels of datasets.{phase} ({what}), got {number}{other}'
                    yield Problem(f'{key}.{name}', words, fatal)
                    break


def _split(message: str, where: str) -> tuple[str, str]:
    head, separator, rest = message.partition(': ')
    return (head, rest) if separator and head.startswith('datasets.') else (where, message)
