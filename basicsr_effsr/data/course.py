"""How long a run is: its stages, its epochs, and the iterations after which the host's loop ends it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

MOST_RATIOS = 100_000  # candidates of dataset_enlarge_ratio, tried in less than a second


@dataclass(frozen=True)
class Stage:
    """A stage of a run, with patches of one size."""

    end: int | None  # iteration after which the next stage begins; None for the last
    batch: int  # samples per iteration and rank
    gt_size: int | None = None  # side of the HR patch; None leaves it to the data set


class StagePlan:
    """The stages of a run, from ``train.progressive`` or one stage for all of it.

    ``train.progressive: {gt_size: [64, 128], iters: [1000, 500], batch: [16, 8]}`` gives the side of the
    HR patch, the iterations and the samples per rank of each stage; after the last, the last goes on.

    Args:
        batch: samples of a loader per iteration, for stages that name none.
        progressive: the section, None for one stage.
        loaders: GPUs of one process, by which BasicSR multiplies the samples.

    Raises:
        ValueError: the lists differ in length.
    """

    def __init__(self, batch: int, progressive: Mapping[str, Any] | None = None, loaders: int = 1) -> None:
        stages: Mapping[str, Any] = progressive or {'gt_size': [None], 'iters': [0]}
        sizes, ends = stages['gt_size'], accumulate(stages['iters'])
        batches = stages.get('batch') or [batch] * len(sizes)
        lists = zip(ends, batches, sizes, strict=True)
        self.stages = [Stage(end, samples * loaders, side) for end, samples, side in lists]
        self.stages[-1] = replace(self.stages[-1], end=None)

    def at(self, done: int) -> Stage:
        """The stage of the iteration that follows ``done`` finished ones."""
        return next(stage for stage in self.stages if stage.end is None or done < stage.end)

    def iterations(self, samples: int, done: int) -> int:
        """Iterations that an epoch of ``samples`` samples per rank gives after ``done`` finished ones."""
        start = done
        while True:
            stage = self.at(done)
            count = samples // stage.batch
            if stage.end is not None:
                count = min(count, stage.end - done)
            if count == 0:
                return done - start
            done += count
            samples -= count * stage.batch

    def epochs(self, samples: int, done: int = 0) -> Iterator[tuple[float, int]]:
        """(how many epochs, iterations of each) after ``done`` finished iterations, alike ones together.

        The last number is infinite; where an epoch has no batch they end.
        """
        while True:
            stage = self.at(done)
            each = samples // stage.batch
            if stage.end is None:
                if each:
                    yield math.inf, each
                return
            count = (stage.end - done - 1) // each if each else 0  # that lie in one stage
            if not count:
                count, each = 1, self.iterations(samples, done)
            if not each:
                return
            yield count, each
            done += count * each


def iterations_that_run(
    plan: StagePlan, length: int, ratio: float, world: int, batch: int, total: int, start: tuple[int, int] = (0, 0)
) -> int:
    """Iterations after which the host's loop stops: it counts epochs rounded up, loaders give them rounded down.

    ``length`` are images of the data set, ``ratio`` its ``dataset_enlarge_ratio``, ``world`` ranks, ``batch`` is
    ``batch_size_per_gpu``, ``total`` is ``total_iter``, and ``start`` is the (epoch, iterations done before it) from
    which on the run has these options.
    """
    samples = math.ceil(length * ratio / world)
    left = math.ceil(total / math.ceil(length * ratio / (batch * world))) + 1 - start[0]
    done = start[1]
    for count, each in plan.epochs(samples, done):
        run = max(min(count, left), 0)
        done += int(run) * each
        left -= int(run)
        if not left or done >= total:
            break
    return min(done, total)


def enlarge_ratio_for(plan: StagePlan, length: int, ratio: float, world: int, batch: int, total: int) -> int:
    """The smallest integer ``dataset_enlarge_ratio`` with which a run of ``total`` iterations reaches its end.

    A larger one may be too small again, so all are tried; where more than ``MOST_RATIOS`` would have to be, one that
    suffices.
    """
    largest = max(stage.batch for stage in plan.stages)
    least = math.ceil(((largest - 1) * world + 1) / length)  # with fewer samples an epoch has no batch of that size

    def reaches(ratio: int) -> bool:
        return iterations_that_run(plan, length, ratio, world, batch, total) >= total

    for candidate in range(least, least + MOST_RATIOS):
        if reaches(candidate):
            return candidate
    enough = max(least + MOST_RATIOS, math.ceil(ratio))
    while not reaches(enough):
        enough += enough // 8
    return enough


def epoch_at(plan: StagePlan, samples: int, done: int) -> int:
    """The epoch in which a run of this plan from its first iteration on would be."""
    epoch = before = 0
    for count, each in plan.epochs(samples):
        whole = int(min(count, (done - before) // each))
        epoch, before = epoch + whole, before + whole * each
        if whole < count:
            break
    return epoch
