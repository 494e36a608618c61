"""Forecast of a run from its option file."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.data.course import StagePlan, enlarge_ratio_for, epoch_at, iterations_that_run
from basicsr_effsr.options.problem import Context

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Course:
    """Forecast of a training."""

    asked: int  # iterations that the file asks for
    runs: int  # iterations that will run
    ratio: int  # dataset_enlarge_ratio with which all would run; that of the file where they do
    epochs: int  # started by then
    per_epoch: list[int]  # iterations of a whole epoch, one number per stage
    batches: list[int]  # patches per iteration on all GPUs together, one number per stage
    patches: int  # in all iterations on all GPUs together


def course_of(context: Context) -> Course | None:
    """What the training will go through; None if it cannot be said."""
    data, train = context.section('datasets', 'train'), context.section('train')
    images, total, batch = context.images.get('train'), train.get('total_iter'), data.get('batch_size_per_gpu')
    if not images or total is None or batch is None:
        return None
    ratio, world = data.get('dataset_enlarge_ratio', 1), context.opt.get('world_size') or 1
    try:
        plan = StagePlan(batch, train.get('progressive'), context.gpus_of_one_process)
    except (ValueError, TypeError):  # lists of several lengths, which stop the run
        return None
    arguments = (plan, images, ratio, world, batch, total)
    runs = iterations_that_run(*arguments)
    samples = math.ceil(images * ratio / world)
    begins = [0, *(min(stage.end, runs) for stage in plan.stages if stage.end is not None), runs]
    batches = [stage.batch * world for stage in plan.stages]
    return Course(
        asked=total,
        runs=runs,
        ratio=int(ratio) if runs >= total else enlarge_ratio_for(*arguments),
        epochs=epoch_at(plan, samples, runs - 1) + 1 if runs else 0,
        per_epoch=[samples // stage.batch for stage in plan.stages],
        batches=batches,
        patches=sum((end - begin) * of for of, (begin, end) in zip(batches, pairwise(begins), strict=True)),
    )


def forecast(context: Context) -> dict[str, Any]:
    """Name -> value of what a run will do, after all rules; what problems make unknowable is left out."""
    if not context.opt:
        return {}
    will: dict[str, Any] = {'option file for': 'training' if context.is_train else 'testing'}
    for key, net in context.nets.items():
        if net is not None:
            will |= _network_facts(context, key, net)
    will |= {f'images, {phase}': count for phase, count in context.images.items()}
    if context.is_train:
        will |= _training_facts(context)
    folder = Path('experiments' if context.is_train else 'results') / str(context.opt.get('name'))
    archived = f'{folder} (exists: it will be renamed to {folder}_archived_..., unless the run is resumed)'
    return {**will, 'output': archived if folder.exists() else str(folder)}


def _network_facts(context: Context, key: str, net: nn.Module) -> dict[str, Any]:
    from basicsr_effsr.utils.complexity import count_macs, count_params, lr_size_of_720p

    facts: dict[str, Any] = {key: type(net).__name__, f'{key}, parameters': count_params(net)}
    with suppress(Exception):  # a foreign network that cannot be counted; no scale
        height, width = lr_size_of_720p(context.scale or 0)
        macs = count_macs(net, (height, width), num_in_ch=context.opt[key].get('num_in_ch', 3)).total
        facts[f'{key}, multiply-adds at {width}x{height}'] = macs
    return facts


def _training_facts(context: Context) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    course = course_of(context)
    if course is not None:
        by_stage = {'patches per iteration': course.batches, 'iterations per epoch': course.per_epoch}
        facts = {
            'iterations asked for': course.asked,
            'iterations that will run': course.runs,
            **{name: numbers[0] if len(set(numbers)) == 1 else numbers for name, numbers in by_stage.items()},
            'epochs': course.epochs,
            'patches seen': course.patches,
        }
        for what, (section, key) in {
            'validations': ('val', 'val_freq'),
            'checkpoints': ('logger', 'save_checkpoint_freq'),
        }.items():
            if context.section(section).get(key):
                facts[what] = course.runs // context.section(section)[key]
    with suppress(Exception):  # a network that computes with values, an option that is missing
        facts['estimated memory per GPU, MiB'] = round(_training_memory(context) / 2**20)
    return facts


def _training_memory(context: Context) -> int:
    """Bytes of weights, gradients, Adam's two moments, the moving average, what backward needs, and the teacher.

    Raises whatever a network raises that cannot be built or run without memory.
    """
    from basicsr_effsr.utils.complexity import count_params, peak_memory, saved_for_backward

    opt, train, data = context.opt, context.section('train'), context.section('datasets', 'train')
    net: nn.Module = context.nets['network_g']
    teacher: Any = context.nets.get('network_t')
    parts, amp = train.get('accumulate') or 1, train.get('amp') or None
    taught = opt.get('network_t') is not None and 'distill' in getattr(context.model, 'train_keys', ())
    most = 0
    for stage in StagePlan(data['batch_size_per_gpu'], train.get('progressive')).stages:
        samples, side = max(stage.batch // parts, 1), (stage.gt_size or data['gt_size']) // opt['scale']
        channels = opt['network_g'].get('num_in_ch', 3)
        how = {'num_in_ch': channels, 'amp': amp, 'checkpointing': bool(train.get('use_checkpoint'))}
        needed = saved_for_backward(net, (side, side), batch=samples, **how)
        if taught:
            half = (train.get('distill') or {}).get('teacher_dtype') in ('bf16', 'fp16')
            weights = 4 * count_params(teacher)
            image = peak_memory(teacher, (side, side), num_in_ch=opt['network_t'].get('num_in_ch', 3)) - weights
            needed += (weights + samples * image) // (1 + half)
        most = max(most, needed)
    return 4 * (4 + bool(train.get('ema_decay'))) * count_params(net) + most
