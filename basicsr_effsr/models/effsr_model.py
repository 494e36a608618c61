"""EffSRModel: BasicSR's SRModel with more features, each enabled by its own key."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.models.run_state import RunState, recipe, restore, side_file, write
from basicsr_effsr.models.step import TrainingStep
from basicsr_effsr.models.validation import Validation
from basicsr_effsr.options.check import refuse
from basicsr_effsr.options.signatures import find
from basicsr_effsr.options.spec import LOGGED
from basicsr_effsr.utils import distributed
from basicsr_effsr.utils.errors import UserError, near
from basicsr_effsr.utils.stored import not_finite
from basicsr_effsr.utils.training import (
    checkpoint_activations,
    random_states,
    restore_random_states,
    to_float,
    update_average,
)
from basicsr_effsr.weights.checkpoint import COMPUTED, load_into, mismatch

__all__ = ['EffSRModel']


@register_in(MODEL_REGISTRY)
class EffSRModel(Validation):
    """BasicSR's SRModel; with none of the keys that ``docs/training.md`` adds, its weights bit for bit.

    Always: the moving average takes over buffers, logs cost no GPU synchronisation between prints, files are
    written all or nothing, a side file makes a resume exact, validation is shared among ranks, and a run that
    ends early is an error.

    Raises:
        ValueError: an option that this class does not understand, or weights that do not fit.
    """

    train_keys = frozenset(
        'total_iter warmup_iter ema_decay optim_g scheduler pixel_opt perceptual_opt losses amp channels_last compile '
        'use_checkpoint grad_clip accumulate max_nonfinite progressive'.split()
    )
    val_keys = frozenset('val_freq save_img suffix pbar metrics self_ensemble tile fuse engine log_images'.split())

    needs_losses = True
    reserved_terms: frozenset[str] = frozenset({'l_style'})  # log names that the class itself gives

    def __init__(self, opt: dict[str, Any]) -> None:
        self.iteration = 0
        self._saved = -1
        self._terms: dict[str, Tensor] = {}
        refuse(opt, type(self))
        self.run = RunState.of(opt)
        for line in self.run.compare(recipe(opt)) if opt.get('is_train') else ():
            get_root_logger().warning(line)
        if opt.get('val'):
            opt['val'].setdefault('suffix', None)  # the host reads it without a default when it saves test images
        super().__init__(opt)
        refuse(opt, type(self), net=self.get_bare_model(self.net_g))

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if (self.opt.get('train') or {}).get('channels_last'):
            net = net.to(memory_format=torch.channels_last)
        if self.opt['dist'] and not torch.cuda.is_available():  # the host asks CUDA for its device here
            unused = self.opt.get('find_unused_parameters', False)
            return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)
        return super().model_to_device(net)

    def print_network(self, net: nn.Module) -> None:
        """Name and size; the host logs every layer, too, hundreds of lines."""
        bare = self.get_bare_model(net)
        size = sum(p.numel() for p in bare.parameters())
        get_root_logger().info(f'Network: {type(bare).__name__}, with parameters: {size:,d}')

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Loads any layout of checkpoint; an error says what does not fit, the log which entry was read.

        ``strict`` False loads what fits and logs what does not; for ``param_key`` see ``open_checkpoint``.
        """
        bare, log = self.get_bare_model(net), get_root_logger()
        read = load_into(bare, load_path, param_key=param_key, strict=strict)
        file = f'from {load_path} [{".".join(read.entry) or "no entry"}]'
        log.info(f'Loaded {type(bare).__name__} {file}.')
        difference = '' if strict else mismatch(bare, read.state)
        if difference:
            log.warning(
                f'{type(bare).__name__} was partly loaded {file}, the rest keeps its initial values: {difference}'
            )

    def init_training_settings(self) -> None:
        train = self.opt['train']
        self.net_g.train()
        self.ema_decay = train.get('ema_decay') or 0
        if self.ema_decay > 0:
            self._init_ema()
        named = {name: train.get(key) for name, key in LOGGED.items()} | (train.get('losses') or {})
        losses = {name: build_loss(option) for name, option in named.items() if option}
        self.losses = nn.ModuleDict(losses).to(self.device)
        self.step = TrainingStep(train, self.device)
        self.setup_optimizers()
        self.setup_schedulers()
        if train.get('compile'):
            options = train['compile'] if isinstance(train['compile'], dict) else {}
            self.get_bare_model(self.net_g).compile(**options)
        if train.get('use_checkpoint'):
            checkpoint_activations(self.get_bare_model(self.net_g))

    def _init_ema(self) -> None:
        get_root_logger().info(f'Use Exponential Moving Average with decay: {self.ema_decay}')
        self.net_g_ema = build_network(self.opt['network_g']).to(self.device)
        path, key = self.opt['path'], self.opt['path'].get('param_key_g', 'params')
        if path.get('pretrain_network_g') is None:
            self.net_g_ema.load_state_dict(self.get_bare_model(self.net_g).state_dict())
        else:
            key, strict = 'params_ema' if key == 'params' else key, path.get('strict_load_g', True)
            self.load_network(self.net_g_ema, path['pretrain_network_g'], strict, key)
        self.net_g_ema.eval()

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer, known = find('OPTIMIZER', optim_type)
        if optimizer is None:
            raise ValueError(f'train.optim_g.type: there is no {optim_type!r} to use here; {near(optim_type, known)}')
        return optimizer(params, lr=lr, **kwargs)

    def feed_data(self, data: dict[str, Any]) -> None:
        for key in ('lq', 'gt'):
            if key in data:
                batch = to_float(data[key].to(self.device, non_blocking=True))
                if (self.opt.get('train') or {}).get('channels_last'):
                    batch = batch.contiguous(memory_format=torch.channels_last)
                setattr(self, key, batch)

    def forward_student(self, lq: Tensor) -> Tensor:
        """The network that is trained, in the precision of ``train.amp``; float32 comes out."""
        with self.step.autocast():
            output = self.net_g(lq)
        output = output.float() if self.step.dtype is not None else output
        self.output = output.detach()
        return output

    def loss_terms(self, lq: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Weighted terms of (N, C, H, W) and (N, C, rH, rW), by log name; subclasses add theirs."""
        return self.output_terms(self.forward_student(lq), gt)

    def output_terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The terms of ``train.losses``, ``pixel_opt`` and ``perceptual_opt``."""
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            value = loss(output, gt)
            # the host's PerceptualLoss gives content and style, either may be None
            content, style = value if isinstance(value, tuple) else (value, None)
            if content is not None:
                terms[name] = content
            if style is not None:
                terms['l_style'] = terms['l_style'] + style if 'l_style' in terms else style
        return terms

    def optimize_parameters(self, current_iter: int) -> None:
        self.iteration = current_iter
        self.optimizer_g.zero_grad()
        buffers = [b.clone() for b in self.net_g.buffers()] if self.step.max_nonfinite else []
        self._terms = self.step.backward(self.net_g, self.lq, self.gt, self.loss_terms)
        self._after_backward()
        if not self.step.finish(self.optimizer_g, self._terms, current_iter):
            for buffer, before in zip(self.net_g.buffers(), buffers, strict=True):
                buffer.copy_(before)  # statistics of batch norms have seen the NaN
        elif self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def _after_backward(self) -> None:
        """Hook for gradients that no wrapper averages over ranks."""

    def model_ema(self, decay: float = 0.999) -> None:
        update_average(self.net_g_ema, self.get_bare_model(self.net_g), decay)

    def get_current_log(self) -> dict[str, float]:
        """Terms of the latest iteration, averaged over ranks; only here they leave the device."""
        self.log_dict = self.reduce_loss_dict(OrderedDict(self._terms))
        return self.log_dict

    def validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
        super().validation(dataloader, current_iter, tb_logger, save_img)
        if self.is_train:
            self.run.validated[dataloader.dataset.opt['name']] = current_iter
            if self._saved == current_iter:
                self._save_run_state(current_iter)  # with the scores of this validation

    def validate_what_is_due(self, loaders: Any, tb_logger: Any) -> None:
        """Validations of the iteration that is resumed which a kill came before, as the host's loop does them."""
        val, iteration = self.opt.get('val'), self.iteration
        if self.run.resumed is None or not val or iteration % val['val_freq']:
            return
        if self._state_file(iteration).is_file():  # else it is of a run of another name
            self._saved = iteration
        for loader in loaders:
            if self.run.validated.get(loader.dataset.opt['name']) != iteration:
                self.validation(loader, iteration, tb_logger, val['save_img'])

    def save(self, epoch: int, current_iter: int) -> None:
        """Networks, then the side files, then the state that makes them count.

        Raises:
            UserError: the run ended before ``total_iter``; what was trained has been saved.
            OSError: a file could not be written; the checkpoint before this one is untouched.
            FloatingPointError: weights are infinite or NaN.
        """
        super().save(epoch, current_iter)
        total = int(self.opt['train']['total_iter'])
        if current_iter == -1 and self.iteration < total:
            words = f'training ended after {self.iteration} of {total} iterations, because every epoch drops its last'
            raise UserError(f'{words} incomplete batch; raise dataset_enlarge_ratio (see effsr check)')

    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """The host's file, written all or nothing; a failure to write stops the run instead of being ignored."""
        self.run.networks = sorted({*self.run.networks, net_label.removeprefix('net_')})
        if self.opt.get('rank', 0):
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        bare = {key: self.get_bare_model(one) for one, key in zip(nets, keys, strict=True)}
        stored = {
            key: OrderedDict((name, tensor.cpu()) for name, tensor in one.state_dict().items())
            for key, one in bare.items()
        }
        kept = {key: {n: t for n, t in one.items() if not n.endswith(COMPUTED)} for key, one in stored.items()}
        self._refuse_not_finite(net_label, kept)
        label = 'latest' if current_iter == -1 else current_iter
        write(stored, Path(self.opt['path']['models']) / f'{net_label}_{label}.pth')

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """The host's file, written all or nothing, after a side file of every rank."""
        if current_iter == -1:
            return
        self._save_run_state(current_iter)
        self._saved = current_iter
        distributed.wait_for_all()  # the state is written after the side files of all ranks
        if not self.opt.get('rank', 0):
            state: dict[str, Any] = {
                'epoch': epoch,
                'iter': current_iter,
                'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
                'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            }
            self._refuse_not_finite('the optimizer', [one['state'] for one in state['optimizers']])
            write(state, self._state_file(current_iter))

    def _refuse_not_finite(self, what: str, values: Any) -> None:
        """Nobody could go on from a file of these values, and no command would take it."""
        if bad := not_finite(values):
            words = f'{what} is infinite or NaN in {bad} and is not saved; earlier files are unchanged'
            fix = 'start again with a lower learning rate or train.grad_clip'
            raise FloatingPointError(f'iteration {self.iteration}: {words}; {fix}')

    def _save_run_state(self, iteration: int) -> None:
        run = self.run
        run.random, run.scaler, run.nonfinite = random_states(), self.step.scaler.state_dict(), self.step.nonfinite
        run.best = {
            name: {metric: {**record, 'val': float(record['val'])} for metric, record in found.items()}
            for name, found in getattr(self, 'best_metric_results', {}).items()
        }  # metrics give NumPy scalars, which a file without code cannot hold
        run.save(self._state_file(iteration), self.opt.get('rank', 0))

    def _state_file(self, iteration: int) -> Path:
        return Path(self.opt['path']['training_states']) / f'{iteration}.state'

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Goes on from a state, ``path.resume_state`` of the options; the log says what it overrules.

        Raises:
            UserError: the option file describes another run than the state's.
        """
        run, total = self.run, int(self.opt['train']['total_iter'])
        self.iteration = resume_state['iter']
        lines = restore(self.optimizers, self.schedulers, resume_state, total)
        if not run.known:
            side = side_file(self._state_file(self.iteration), self.opt.get('rank', 0))
            lines.append(f'{side} does not exist: the run continues, but not bit for bit')
        for line in lines:
            get_root_logger().warning(line)
        if run.scaler:
            self.step.scaler.load_state_dict(run.scaler)
        if run.best:
            self.best_metric_results = run.best
        self.step.nonfinite = run.nonfinite
        if run.random:
            restore_random_states(run.random)
