"""One optimizer step: half precision, backward in parts, loss scale, clipping, iterations that are skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr_effsr.utils import distributed
from basicsr_effsr.utils.training import gradients_are_finite

LEAST_SCALE = 1.0  # of the loss under fp16; a gradient that overflows without being scaled up is a real infinity
HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class TrainingStep:
    """What ``train.amp``, ``accumulate``, ``grad_clip`` and ``max_nonfinite`` ask of an iteration.

    Args:
        train: the section of the option file.
        device: where the network is.

    Attributes:
        dtype: of the forward pass; None is the network's own.
        scaler: of the loss, under fp16.
        nonfinite: iterations skipped in a row.
    """

    def __init__(self, train: Mapping[str, Any], device: torch.device) -> None:
        self.device = device
        self.dtype = HALF.get(train.get('amp') or '')
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype is torch.float16 else None
        self.parts: int = train.get('accumulate') or 1
        self.largest_norm: float = train.get('grad_clip') or 0
        self.max_nonfinite: int = train.get('max_nonfinite') or 0
        self.nonfinite = 0

    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def backward(
        self, net: Any, lq: Tensor, gt: Tensor, loss_terms: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Adds the gradients of a batch, part by part; returns the mean of each term over the parts, detached.

        Args:
            net: the network, whose wrapper averages gradients over ranks after the last part alone.
            lq: (N, C, H, W).
            gt: (N, C, rH, rW).
            loss_terms: (lq, gt) of a part -> weighted terms.

        Raises:
            ValueError: the parts do not divide the batch.
        """
        if len(lq) % self.parts:
            raise ValueError(f'train.accumulate: {self.parts} parts do not divide a batch of {len(lq)}')
        means: dict[str, Tensor] = {}
        for i, pair in enumerate(zip(lq.chunk(self.parts), gt.chunk(self.parts), strict=True), 1):
            waiting = isinstance(net, DistributedDataParallel) and i < self.parts
            with net.no_sync() if waiting else nullcontext():
                terms = loss_terms(*pair)
                total: Any = sum(terms.values())
                total = total / self.parts if self.parts > 1 else total
                (self.scaler.scale(total) if self.scaler else total).backward()
            for name, value in terms.items():
                value = value.detach() / self.parts if self.parts > 1 else value.detach()
                means[name] = means[name] + value if name in means else value
        return means

    def finish(self, optimizer: torch.optim.Optimizer, terms: Mapping[str, Tensor], iteration: int) -> bool:
        """Clips and steps; False if the iteration was skipped.

        Raises:
            FloatingPointError: ``max_nonfinite`` iterations in a row had an infinite or NaN loss or gradient.
        """
        params = [p for group in optimizer.param_groups for p in group['params']]
        if self.scaler and (self.largest_norm or self.max_nonfinite):
            self.scaler.unscale_(optimizer)
        if self.largest_norm:
            torch.nn.utils.clip_grad_norm_(params, self.largest_norm)
        failure = self._not_finite(params, terms) if self.max_nonfinite else ''
        if failure:
            self._skip(failure, iteration)
            return False
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        self.nonfinite = 0
        return True

    def _not_finite(self, params: list[nn.Parameter], terms: Mapping[str, Tensor]) -> str:
        """``loss`` or ``gradient``, whichever is infinite or NaN on any rank; empty if neither is."""
        loss = bool(torch.isfinite(torch.stack(list(terms.values()))).all())
        if distributed.true_everywhere(loss and gradients_are_finite(params), self.device):
            return ''
        return 'gradient' if distributed.true_everywhere(loss, self.device) else 'loss'

    def _skip(self, failure: str, iteration: int) -> None:
        message = f'iteration {iteration}: {failure} is not finite'
        if self.scaler:
            scale = self.scaler.get_scale()
            self.scaler.update()  # halves it if the gradient is not finite
            if self.scaler.get_scale() < LEAST_SCALE:
                self.scaler.update(LEAST_SCALE)
            if failure == 'gradient' and scale > LEAST_SCALE:  # how a scaler finds its scale, no sign of divergence
                get_root_logger().info(f'{message} at the loss scale {scale:g}; skipped, with a smaller one next')
                return
        self.nonfinite += 1
        if self.nonfinite >= self.max_nonfinite:
            raise FloatingPointError(
                f'{message}, {self.nonfinite} times in a row; lower the learning rate, set train.grad_clip, or '
                'use amp: bf16 instead of fp16'
            )
        get_root_logger().warning(f'{message}; skipped ({self.nonfinite} in a row)')
