"""One optimizer step: half precision, backward in parts, loss scale, clipping, iterations that are skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from basicsr_effsr.options.spec import MAX_NONFINITE
from basicsr_effsr.utils import distributed
from basicsr_effsr.utils.training import DTYPES, all_finite

LEAST_SCALE = 1.0  # of the loss under fp16; a gradient that overflows without being scaled up is a real infinity


class TrainingStep:
    """What ``train.amp``, ``accumulate``, ``grad_clip`` and ``max_nonfinite`` ask of an iteration."""

    def __init__(self, train: Mapping[str, Any], device: torch.device) -> None:
        self.device = device
        self.dtype = DTYPES[train['amp']] if train.get('amp') else None  # of the forward pass; None: the network's
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.parts: int = train.get('accumulate') or 1
        self.largest_norm: float = train.get('grad_clip') or 0
        asked = train.get('max_nonfinite')
        self.max_nonfinite: int = MAX_NONFINITE if asked is None else asked
        self.nonfinite = 0  # iterations skipped in a row

    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def backward(
        self, net: Any, lq: Tensor, gt: Tensor, loss_terms: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Adds the gradients of a batch, part by part; returns the mean of each term over the parts, detached.

        The wrapper of ``net`` averages gradients over ranks after the last part alone; ``loss_terms`` makes weighted
        terms of a part of ``lq``, (N, C, H, W), and ``gt``, (N, C, rH, rW).

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
                self.scaler.scale(total).backward()
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
        if self.largest_norm or self.max_nonfinite:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params, self.largest_norm) if self.largest_norm else None
        if self.max_nonfinite:
            loss = [torch.isfinite(value).all() for value in terms.values()]
            grads = (p.grad for p in params if p.grad is not None)
            gradient = all_finite(grads) if norm is None else torch.isfinite(norm)
            *finite, last = distributed.true_everywhere(torch.stack([*loss, gradient]))
            bad = [name for name, fine in zip(terms, finite, strict=True) if not fine]
            if bad or not last:
                self._skip(bad, iteration)
                return False
        self.scaler.step(optimizer)
        self.scaler.update()
        self.nonfinite = 0
        return True

    def _skip(self, bad: list[str], iteration: int) -> None:
        """Counts the iteration, in which losses of these names were not finite or, if none, the gradient was not."""
        message = f'iteration {iteration}: {" and ".join(bad) or "the gradient"} not finite'
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            self.scaler.update()  # halves it if the gradient is not finite
            if self.scaler.get_scale() < LEAST_SCALE:
                self.scaler.update(LEAST_SCALE)
            if not bad and scale > LEAST_SCALE:  # how a scaler finds its scale, no sign of divergence
                get_root_logger().info(f'{message} at the loss scale {scale:g}; skipped, with a smaller one next')
                return
        self.nonfinite += 1
        if self.nonfinite >= self.max_nonfinite:
            fix = 'continue (--auto_resume) from the checkpoint before with train.grad_clip, or amp: bf16, not fp16'
            words = f'{message}, {self.nonfinite} times in a row (train.max_nonfinite)'
            raise FloatingPointError(f'{words}; {fix}; or start again with a lower learning rate')
        get_root_logger().warning(f'{message}; skipped ({self.nonfinite} in a row)')
