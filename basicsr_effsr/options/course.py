"""What a training will go through, from its options and the number of its images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from basicsr_effsr.data.course import StagePlan, enlarge_ratio_for, iterations_that_run
from basicsr_effsr.options.context import Context


@dataclass(frozen=True)
class Course:
    """What a training will go through.

    Attributes:
        asked: iterations that the file asks for.
        runs: iterations that will run.
        ratio: ``dataset_enlarge_ratio`` with which all would run; that of the file where they do.
        epochs: epochs begun until then.
        per_epoch: iterations of a whole epoch, one number per stage.
        batches: patches per iteration on all GPUs together, one number per stage.
        patches: patches in all iterations on all GPUs together.
    """

    asked: int
    runs: int
    ratio: int
    epochs: int
    per_epoch: list[int]
    batches: list[int]
    patches: int


def course_of(context: Context) -> Course | None:
    """What the training will go through; None if it cannot be said."""
    data, train = context.section('datasets', 'train'), context.section('train')
    images, total = context.images.get('train'), train.get('total_iter')
    if images is None or not images.count or not isinstance(total, int | float):
        return None
    batch, ratio = data.get('batch_size_per_gpu'), data.get('dataset_enlarge_ratio', 1)
    if not isinstance(batch, int) or not isinstance(ratio, int | float):
        return None
    times, progressive = context.gpus_of_one_process, train.get('progressive')
    if progressive and progressive.get('batch'):
        progressive = {**progressive, 'batch': [samples * times for samples in progressive['batch']]}
    plan = StagePlan(batch * times, progressive)
    world = context.opt.get('world_size')
    world = world if isinstance(world, int) and world > 0 else 1
    arguments = (plan, images.count, ratio, world, batch, int(total))
    runs = iterations_that_run(*arguments)
    samples = math.ceil(images.count * ratio / world)
    epochs = done = 0
    while done < runs:
        stage = plan.at(done)
        whole = samples // stage.batch
        alike = (min(stage.end or runs, runs) - done - 1) // whole if whole else 0  # within one stage
        done += alike * whole or plan.iterations(samples, done)
        epochs += max(alike, 1)
    begins = [0, *(min(stage.end, runs) for stage in plan.stages if stage.end is not None), runs]
    return Course(
        asked=int(total),
        runs=runs,
        ratio=int(ratio) if runs >= total else enlarge_ratio_for(*arguments),
        epochs=epochs,
        per_epoch=[samples // stage.batch for stage in plan.stages],
        batches=[stage.batch * world for stage in plan.stages],
        patches=sum(
            (end - begin) * stage.batch * world
            for stage, (begin, end) in zip(plan.stages, pairwise(begins), strict=True)
        ),
    )
