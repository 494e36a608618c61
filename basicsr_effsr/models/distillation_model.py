"""DistillationModel: a student learns from the ground truth, a teacher's images and a teacher's features."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.models.effsr_model import EffSRModel
from basicsr_effsr.utils import distributed
from basicsr_effsr.utils.feature_tap import FeatureTap, as_map, semi_orthogonal_conv1x1
from basicsr_effsr.utils.training import DTYPES

__all__ = ['DistillationModel']

DEFAULTS = {'alpha': 0.5, 'beta': 0.5, 'gamma': 10 / 255}
PROBE_SIDE = 32  # LR pixels of the image that is run through both networks once, at start


@register_in(MODEL_REGISTRY)
class DistillationModel(EffSRModel):
    """EffSRModel with a frozen teacher: DPARN, Eq. 6 to 8.

    loss = alpha * L1(student, teacher) + beta * L1(student, HR) + gamma * sum over pairs of the feature loss, beside
    whatever ``train.losses`` names. Logged as ``l_teacher``, ``l_hr`` and ``l_feat``, weights included.

    Options beyond EffSRModel: ``network_t``, its weights in ``path``, and ``train.distill`` (``docs/training.md``).
    Defaults of the weights are FAKD's 0.5, 0.5 and 10 for images in [0, 255], which is 10 / 255 = 0.039 for [0, 1]: L1
    grows with the range of the images, affinities do not. Tokens (N, HW, C) are laid out as maps; maps of a teacher
    that pads to whole windows are cropped to the image. ``adapter``, left out, is what a loss with an option of this
    name says (FAKDLoss: conv1x1), else none.

    The teacher is in eval mode, gets no gradient and is never saved. Adapters are trained by the student's optimizer
    and saved as ``net_a_*.pth``.

    Raises:
        ValueError, KeyError: an option is missing, unknown or without effect; a submodule does not exist.
    """

    train_keys = EffSRModel.train_keys | {'distill'}
    reserved_terms = EffSRModel.reserved_terms | {'l_teacher', 'l_hr', 'l_feat'}
    needs_losses = False  # the distillation terms are losses enough

    def init_training_settings(self) -> None:
        distill = DEFAULTS | (self.opt['train'].get('distill') or {})
        self.pairs: dict[str, str] = dict(distill.get('feature_pairs') or {})
        self.alpha, self.beta = float(distill['alpha']), float(distill['beta'])
        self.gamma = float(distill['gamma']) if self.pairs else 0.0
        self.net_t = self._build_teacher(DTYPES[distill.get('teacher_dtype') or 'fp32'])
        self.tap_g = FeatureTap(self.get_bare_model(self.net_g), self.pairs)
        self.tap_t = FeatureTap(self.net_t, self.pairs.values())
        self.feature_loss: Any = build_loss(distill['feature_loss']).to(self.device) if self.pairs else None
        self.adapters = self._build_adapters(distill.get('adapter') or getattr(self.feature_loss, 'adapter', None))
        super().init_training_settings()

    def _build_teacher(self, dtype: torch.dtype) -> nn.Module:
        """The frozen network; the log says where a resumed run had other weights."""
        path, run = self.opt['path'], self.run
        asked = {'file': str(path['pretrain_network_t']), 'param_key': path.get('param_key_t')}
        for key, place in (('file', 'path.pretrain_network_t'), ('param_key', 'path.param_key_t')):
            if run.teacher and asked[key] != run.teacher[key]:
                get_root_logger().warning(
                    f'{place}: using {asked[key]} from the option file; it was {run.teacher[key]}'
                )
        run.teacher = asked
        net: nn.Module = build_network(self.opt['network_t']).to(self.device)
        self.load_network(net, asked['file'], path.get('strict_load_t', True), asked['param_key'])
        if self.opt['train'].get('channels_last'):
            net = net.to(memory_format=torch.channels_last)
        return net.to(dtype=dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def _build_adapters(self, kind: str | None) -> nn.ModuleList:
        """One convolution per pair, its channels found by running a small image through both networks."""
        student = self.get_bare_model(self.net_g)
        side = max(PROBE_SIDE, *(getattr(net, 'min_size', 1) for net in (student, self.net_t)))
        lq = torch.zeros(1, self.opt['network_g'].get('num_in_ch', 3), side, side, device=self.device)
        training = student.training
        student.eval()
        with self.tap_g.recording():
            out = student(lq)
        student.train(training)
        target, features_t = self._ask_teacher(lq)
        if out.shape != target.shape:
            words = f'must give images of {tuple(out.shape)} like the student, got {tuple(target.shape)}'
            raise ValueError(f'{type(self).__name__}: the teacher {words}; check upscale and num_out_ch of network_t')
        adapters = []
        for name, teacher in zip(self.pairs, features_t, strict=True):
            features = as_map(self.tap_g.take(name), (side, side))
            if kind == 'conv1x1':
                adapters.append(semi_orthogonal_conv1x1(features.shape[1], teacher.shape[1]).to(self.device))
                features = adapters[-1](features.float())
            self._try_feature_loss(name, features.float(), teacher)
        modules = nn.ModuleList(adapters)
        distributed.same_on_all_ranks(modules)
        return modules

    def _try_feature_loss(self, name: str, student: Tensor, teacher: Tensor) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings('error', 'Using a target size')  # torch would broadcast
                self.feature_loss(student, teacher)
        except (RuntimeError, UserWarning) as error:
            shapes = f'{tuple(student.shape)} and {tuple(teacher.shape)}'
            pair = f'{name} with {self.pairs[name]}, which have the shapes {shapes}'
            raise ValueError(
                f'{type(self).__name__}: {type(self.feature_loss).__name__} must be able to compare {pair}; set '
                'train.distill.adapter: conv1x1 where channels differ, choose other feature_pairs, or use FAKDLoss'
            ) from error

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        if len(self.adapters):
            self.optimizer_g.add_param_group({'params': list(self.adapters.parameters())})

    @torch.no_grad()
    def _ask_teacher(self, lq: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's image, and per pair its features as maps on the grid of ``lq``; float32."""
        with self.tap_t.recording():
            target = self.net_t(lq.to(next(self.net_t.parameters()).dtype)).float()
        grid = (lq.shape[-2], lq.shape[-1])
        window = getattr(self.net_t, 'window_size', 1)
        padded = (-(-grid[0] // window) * window, -(-grid[1] // window) * window)
        taken = {name: self.tap_t.take(name).float() for name in set(self.pairs.values())}
        maps = []
        for name in self.pairs.values():
            features = as_map(as_map(taken[name], grid), padded)
            maps.append(features[..., : grid[0], : grid[1]] if features.shape[-2:] == padded else features)
        return target, maps

    def loss_terms(self, lq: Tensor, gt: Tensor) -> dict[str, Tensor]:
        with self.tap_g.recording():
            output = self.forward_student(lq)
        terms = self.output_terms(output, gt)
        if self.beta:
            terms['l_hr'] = self.beta * F.l1_loss(output, gt)
        if self.alpha or self.gamma:
            target, features_t = self._ask_teacher(lq)
            if self.alpha:
                terms['l_teacher'] = self.alpha * F.l1_loss(output, target)
            if self.gamma:
                values = []
                for i, (name, teacher) in enumerate(zip(self.pairs, features_t, strict=True)):
                    student = as_map(self.tap_g.take(name), (lq.shape[-2], lq.shape[-1])).float()
                    student = self.adapters[i](student) if len(self.adapters) else student
                    values.append(self.feature_loss(student, teacher))
                terms['l_feat'] = self.gamma * torch.stack(values).sum()
        return terms

    def _after_backward(self) -> None:
        """Adapters stand outside the student's DDP wrapper, so their gradients are averaged here."""
        distributed.mean_over_ranks([p.grad for p in self.adapters.parameters() if p.grad is not None])

    def save(self, epoch: int, current_iter: int) -> None:
        if len(self.adapters):
            self.save_network(self.adapters, 'net_a', current_iter)
        super().save(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if len(self.adapters):
            file = Path(self.opt['path']['models']) / f'net_a_{resume_state["iter"]}.pth'
            get_root_logger().info(f'Loading the adapters from {file}.')
            self.load_network(self.adapters, str(file))
