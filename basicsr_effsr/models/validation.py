"""Validation and testing: the fused network, by an engine, in tiles, over flips and rotations, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from basicsr_effsr.imaging.tiling import self_ensemble, tiled_forward
from basicsr_effsr.utils.training import random_states, restore_random_states
from basicsr_effsr.weights.checkpoint import fused
from basicsr_effsr.weights.engines import engine_for


class Validation(SRModel):
    """BasicSR's SRModel with the keys of ``val`` that ``docs/training.md`` adds."""

    _forward: Callable[[Tensor], Tensor] | None = None  # what computes the validation that is going on
    _to_show: tuple[int, Any, str, int] | None = None  # images for tensorboard in all, logger, their name, iteration
    _sharing = False  # each rank computes its share: what it finds is no result yet

    def validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
        net = getattr(self, 'net_g_ema', None) or self.get_bare_model(self.net_g)
        training, states = net.training, random_states()
        if tb_logger and (wanted := self.opt['val'].get('log_images')):
            self._to_show = wanted, tb_logger, f'images/{dataloader.dataset.opt["name"]}', current_iter
        self._seen = 0
        try:
            self._forward = self._computer(fused(net) if self.opt['val'].get('fuse', True) else net.eval())
            super().validation(dataloader, current_iter, tb_logger, save_img)
        finally:
            self._forward, self._to_show = None, None
            net.train(training)
            restore_random_states(states)  # loaders and new layers draw; a run resumed after this validation does not

    def _computer(self, net: nn.Module) -> Callable[[Tensor], Tensor]:
        """What ``val.engine`` says, for a network in eval mode as it is now."""
        engine = self.opt['val'].get('engine') or 'torch'
        if engine == 'torch' or (engine == 'auto' and self.is_train):  # in a training each validation has new weights
            return net.forward  # not a compiled call of a training: every image has another size
        found = engine_for(net, engine, device=self.device, keep=not self.is_train)
        if words := found.words():
            get_root_logger().info(f'{type(net).__name__}: {words}')
        return found

    def test(self) -> None:
        net = getattr(self, 'net_g_ema', None) or self.get_bare_model(self.net_g)
        val, tile = self.opt['val'], self.opt['val'].get('tile')
        forward: Callable[[Tensor], Tensor] = self._forward or net.forward
        if tile:
            overlap, blend = tile.get('overlap', 0), tile.get('blend', 'mean')
            sizes = {'upscale': self.opt['scale'], 'tile': tile['size'], 'overlap': overlap, 'blend': blend}
            forward = partial(tiled_forward, forward, **sizes)
        was_training = net.training
        net.eval()
        with torch.no_grad():
            self.output = self_ensemble(forward, self.lq) if val.get('self_ensemble') else forward(self.lq)
        net.train(was_training)

    def get_current_visuals(self) -> dict[str, Tensor]:
        """Of the first images of a validation, tensorboard gets LR enlarged, SR and HR, side by side."""
        visuals = super().get_current_visuals()
        if self._to_show is not None and self._seen < self._to_show[0]:
            _, tb_logger, name, iteration = self._to_show
            size = visuals['result'].shape[-2:]
            lq = torch.nn.functional.interpolate(visuals['lq'], size=size, mode='nearest')
            row = [lq, visuals['result'], *([visuals['gt']] if 'gt' in visuals else [])]
            tb_logger.add_image(f'{name}/{self._seen}', torch.cat(row, dim=3)[0].clamp(0, 1), iteration)
            self._seen += 1
        return visuals

    def dist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Every rank takes its share of the images; scores are averaged over all of them."""
        dataset, metrics = dataloader.dataset, self.opt['val'].get('metrics')
        share: Any = torch.utils.data.Subset(dataset, range(self.opt['rank'], len(dataset), self.opt['world_size']))
        share.opt = dataset.opt
        self._sharing = True
        try:
            if len(share):
                self.nondist_validation(torch.utils.data.DataLoader(share), current_iter, tb_logger, save_img)
        finally:
            self._sharing = False
        if not metrics:
            return
        found = getattr(self, 'metric_results', {}) if len(share) else {}
        sums = [*(found.get(metric, 0.0) * len(share) for metric in metrics), len(share)]
        shared = torch.tensor(sums, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(shared)
        *totals, images = shared.tolist()
        name = dataset.opt['name']
        self._initialize_best_metric_results(name)
        self.metric_results = {metric: total / images for metric, total in zip(metrics, totals, strict=True)}
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(name, metric, value, current_iter)
        if self.opt['rank'] == 0:
            self._log_validation_metric_values(current_iter, name, tb_logger)

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """Also gives a record to metrics that were added since the scores of a resumed run were saved."""
        before = getattr(self, 'best_metric_results', {}).pop(dataset_name, {})
        super()._initialize_best_metric_results(dataset_name)
        self.best_metric_results[dataset_name].update(before)

    def _update_best_metric_result(self, dataset_name: str, metric: str, val: float, current_iter: Any) -> None:
        if not self._sharing:
            super()._update_best_metric_result(dataset_name, metric, val, current_iter)

    def _log_validation_metric_values(self, current_iter: Any, dataset_name: str, tb_logger: Any) -> None:
        if not self._sharing:
            super()._log_validation_metric_values(current_iter, dataset_name, tb_logger)
