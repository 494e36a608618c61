"""The order of the samples and their random draws, both repeatable.

The sampler can start anywhere, and its batches follow the plan of a run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from basicsr_effsr.data.course import StagePlan


class SampleIndex(int):
    """Index of an image that also knows which sample of the run it is.

    An ``int`` for everybody else; our data sets draw crop and flips from (seed, epoch, position), so the
    draws depend neither on workers nor on what was drawn before.
    """

    seed: int  # manual_seed of the run
    epoch: int
    position: int  # in the epoch, over all ranks
    gt_size: int | None  # side of the HR patch in this stage of the run; None leaves it to the data set

    def __new__(cls, index: int, seed: int, epoch: int, position: int, gt_size: int | None = None) -> SampleIndex:
        self = super().__new__(cls, index)
        self.seed, self.epoch, self.position, self.gt_size = seed, epoch, position, gt_size
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed, self.epoch, self.position, self.gt_size)


class Draw(NamedTuple):
    """Crop and symmetry of one sample: the LR corner, then flips and the transposition, in this order."""

    top: int
    left: int
    hflip: bool
    vflip: bool
    transpose: bool


def draw(index: int, lq_size: tuple[int, int], lq_patch: int, use_hflip: bool, use_rot: bool) -> Draw:
    """Draws a sample in the distribution of BasicSR: uniform corner, every allowed symmetry with chance 1/2.

    Of an ``int`` without history the draw is fresh, from Python's generator. ``lq_size`` is (H, W), ``lq_patch`` the
    side of the patch; ``use_rot`` allows vertical flips and transpositions.
    """
    seed = [index.seed, index.epoch, index.position] if isinstance(index, SampleIndex) else random.getrandbits(64)
    generator = np.random.default_rng(seed)
    top = int(generator.integers(lq_size[0] - lq_patch + 1))
    left = int(generator.integers(lq_size[1] - lq_patch + 1))
    hflip, vflip, transpose = (bool(value) for value in generator.integers(2, size=3))
    return Draw(top, left, hflip and use_hflip, vflip and use_rot, transpose and use_rot)


def cut(image: np.ndarray, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of an (H, W, C) image, turned as drawn; a view, the image is untouched.

    ``drawn`` and ``patch``, the side, are in LR pixels; ``scale`` is 1 for the LR image, the factor for the HR image.
    """
    top, left, side = drawn.top * scale, drawn.left * scale, patch * scale
    out = image[top : top + side, left : left + side]
    if drawn.hflip:
        out = out[:, ::-1]
    if drawn.vflip:
        out = out[::-1]
    return out.transpose(1, 0, 2) if drawn.transpose else out


class ResumableSampler(Sampler):
    """BasicSR's ``EnlargedSampler``, same arguments and order of images, whose indices know their place in the run.

    ``ratio`` repeats the data set within an epoch, ``seed`` is handed on to the draws of crops and flips.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float = 1, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.num_samples = math.ceil(len(dataset) * ratio / num_replicas)  # type: ignore[arg-type]
        self.total_size = self.num_samples * num_replicas
        # for loaders to seed their processes with; torch's own a resumed run would ask at other moments
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[SampleIndex]:
        order = torch.randperm(self.total_size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        size, epoch = len(self.dataset), self.epoch  # type: ignore[arg-type]
        for position in range(self.rank, self.total_size, self.num_replicas):
            yield SampleIndex(order[position] % size, self.seed, epoch, position)

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of every epoch."""
        self.epoch = epoch
        self.generator.manual_seed(hash((self.seed, epoch, self.rank)) % 2**63)


class PlannedBatches(Sampler):
    """Batches of a ``ResumableSampler`` after the plan, from any iteration on.

    Args:
        sampler: the source of the samples.
        plan: stages of the run.
        resumed: (epoch, iterations done) to start from.
        anchor: (epoch, iterations done before it) since which the data set and the plan have been these; the first
            epoch, unless a run was resumed with other options.

    Raises:
        ValueError: an epoch is too small for one batch.
    """

    def __init__(
        self,
        sampler: ResumableSampler,
        plan: StagePlan,
        resumed: tuple[int, int] = (0, 0),
        anchor: tuple[int, int] = (0, 0),
    ) -> None:
        largest = max(stage.batch for stage in plan.stages)
        if len(sampler) < largest:
            ratio = math.ceil(largest * sampler.num_replicas / len(sampler.dataset))  # type: ignore[arg-type]
            raise ValueError(
                f'an epoch has {len(sampler)} samples and a batch needs {largest}, so no iteration would run; set '
                f'dataset_enlarge_ratio to at least {ratio}'
            )
        self.sampler = sampler
        self.plan = plan
        self._start = resumed
        self._begins = {0: 0, anchor[0]: anchor[1]}  # epoch -> iterations done before it

    def _before(self, epoch: int) -> int:
        known = max(e for e in self._begins if e <= epoch)
        while known < epoch:
            done = self._begins[known]
            known += 1
            self._begins[known] = done + self.plan.iterations(len(self.sampler), done)
        return self._begins[epoch]

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        epoch = self.sampler.epoch
        done = self._before(epoch)
        skip = self._start[1] - done if epoch == self._start[0] else 0
        source = iter(self.sampler)
        for i in range(self.plan.iterations(len(self.sampler), done)):
            stage = self.plan.at(done + i)
            batch = [next(source) for _ in range(stage.batch)]
            if i >= skip:
                yield [SampleIndex(int(s), s.seed, s.epoch, s.position, stage.gt_size) for s in batch]

    def __len__(self) -> int:
        return self.plan.iterations(len(self.sampler), self._before(self.sampler.epoch))


def make_loader(
    dataset: Dataset, dataset_opt: dict[str, Any], batches: PlannedBatches, *, multiplier: int = 1
) -> torch.utils.data.DataLoader:
    """The training loader, with the keys of BasicSR's ``build_dataloader``: ``num_worker_per_gpu`` and so on.

    ``multiplier`` is the number of GPUs of one process without a launcher.
    """
    workers = dataset_opt['num_worker_per_gpu'] * multiplier
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        generator=batches.sampler.generator,
        pin_memory=dataset_opt.get('pin_memory', False),
        persistent_workers=bool(dataset_opt.get('persistent_workers', False)) and workers > 0,
    )
