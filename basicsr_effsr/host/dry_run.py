"""One dry step of a run on its real objects, without side effects in this process: what stops it would stop the run."""

from __future__ import annotations

import gc
import inspect
import io
import logging
import math
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate

from basicsr_effsr._registration import derives_from_ours
from basicsr_effsr.data.sampler import SampleIndex
from basicsr_effsr.host.loop import replacements
from basicsr_effsr.options.problem import Problem, copied, warning
from basicsr_effsr.options.spec import losses_of
from basicsr_effsr.utils.distributed import alone
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.files import scratch_folder
from basicsr_effsr.utils.memory import out_of_memory
from basicsr_effsr.utils.training import random_states, restore_random_states

Options = dict[str, Any]
SIDE = 16  # LR pixels of the patch, unless the file's patches are smaller or a network needs more
VAL_SIDE = 32  # LR pixels of the image of validation
TOO_MUCH = 1e12  # operations of a step on a CPU, about a minute of one core
# attributes of models -> what asked for them; network_x asked for net_x
PLACES = {'feature_loss': 'train.distill.feature_loss', 'adapters': 'train.distill'}
HOST_LOSSES = {'l_pix': 'cri_pix', 'l_percep': 'cri_perceptual'}  # log name -> attribute of BasicSR's SRModel
MAKERS = {  # functions of the host and of our models that make or use what an option asks for
    'setup_optimizers': 'train.optim_g',
    'setup_schedulers': 'train.scheduler',
    '_init_ema': 'train.ema_decay',
    'compile': 'train.compile',
    '_build_teacher': 'network_t',
    '_build_adapters': 'train.distill',
    'build_network': 'network_g',
}
NAMED = re.compile(r'((?:train|val|datasets|path|logger|network_\w+)\.\w+(?:\.\w+)*)')


class _StepError(Exception):
    """(option, what is wrong with it, False if the run would not fail of it)."""


def _no_fetch(url: str, *_: Any, **__: Any) -> None:
    """Replaces torch's download, since a check must not wait for half a gigabyte."""
    raise _StepError('train', f'the run first downloads {url}, so its first step was not tried', False)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, arguments and the host's logger are afterwards what they were before.

    Nothing is printed, logged or fetched through torch meanwhile, and in a process group this process counts as alone.
    """
    from basicsr.utils import logger as host

    states, log = random_states(), logging.getLogger('basicsr')
    with (
        patch.object(sys, 'argv', list(sys.argv)),
        patch.object(torch.hub, 'download_url_to_file', _no_fetch),
        patch.dict(host.initialized_logger, basicsr=True),  # the host would keep its log open
        patch.multiple(log, handlers=[logging.NullHandler()], propagate=False),
        alone(),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            gc.collect()  # closes LMDBs and packs, which the run opens again
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            restore_random_states(states)


def dry_step(opt: Mapping[str, Any], is_train: bool) -> list[Problem]:
    """Builds what a run builds and takes one small step of it; the process is left as it was, and no file stays.

    A step is: a batch and one image per data set, losses, backward pass, optimizer, learning rates of the whole run,
    log, validation, saving into a temporary folder, resuming from that. Training runs as it will on one process,
    without ``torch.compile``.

    Args:
        opt: as in the file, or as BasicSR has parsed it; must have passed the check. It is not changed.
        is_train: for training; False for testing.

    Returns:
        what stopped the step, or what was left out of it; empty if the run is ready.
    """
    with undisturbed(), scratch_folder() as folder:
        found = _try(opt, is_train, folder / 'small', small=True)
        if any(problem.fatal for problem in found):  # a patch as large as the file's may be what it needs
            found = _try(opt, is_train, folder / 'whole', small=False)
    return found


def _try(opt: Mapping[str, Any], is_train: bool, folder: Path, *, small: bool) -> list[Problem]:
    step = _Step(folder, small)
    try:
        with step.at('option file'):
            step.begin(opt, is_train)
        (step.train if is_train else step.test)()
    except _StepError as stopped:
        where, words, *fatal = stopped.args
        step.notes.append(Problem(where, words.replace(str(folder), '...'), *fatal))
    return step.notes


def _parsed(opt: Mapping[str, Any], is_train: bool, folder: Path) -> Options:
    """What the host's ``parse_options`` makes of an option file."""
    import yaml
    from basicsr.utils import options

    file = folder / 'options.yml'
    file.write_text(yaml.safe_dump(copied(opt), sort_keys=False), encoding='utf-8')
    sys.argv = ['train', '-opt', str(file)]
    parse = inspect.unwrap(options.parse_options)
    found = copied(parse(str(folder), is_train=is_train)[0])
    found['num_gpu'] = min(found['num_gpu'], torch.cuda.device_count())  # on this machine, which may have none
    return found


@dataclass
class _Step:
    """The parts of a run, made one after the other."""

    folder: Path  # temporary; gets all that the step writes
    small: bool  # take the smallest patch and batch that the networks allow, not the file's
    opt: Options = field(default_factory=dict)
    notes: list[Problem] = field(default_factory=list)
    hooks: dict[str, Callable] = field(default_factory=dict)  # what stands for the host's functions of these names
    owners: dict[int, str] = field(default_factory=dict)  # id of an object -> the option that asked for it
    made: dict[str, Any] = field(default_factory=dict)  # data sets by phase
    model: Any = None
    done: int = 0  # iterations before the step

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Whatever is raised within becomes a refusal at the option that it belongs to, ``where`` if none is known."""
        try:
            yield
        except _StepError:
            raise
        except (Exception, SystemExit) as error:
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            ours = frames[-1].f_globals.get('__name__', '').startswith('basicsr_effsr.')
            text = one_line(error)
            named = NAMED.match(text) if ours else None  # a message may end with other options, to mend it by
            place = named[1] if named else next(filter(None, map(self._place, reversed(frames))), where)
            if isinstance(error, FloatingPointError):
                place = 'train.optim_g'  # whose rate the message says to lower
            if out_of_memory(error):
                text = 'even one small step does not fit into memory'
            elif place.startswith('path.pretrain') and not (ours or isinstance(error, FileNotFoundError)):
                text = f'BasicSR cannot load it ({type(error).__name__}: {text}); effsr convert writes what it reads'
            elif not (ours and isinstance(error, (ValueError, OSError))):
                text = f'the run would stop with {type(error).__name__}: {text}; correct or remove this option'
            raise _StepError(place, text.removeprefix(f'{place}: ')) from error

    def _place(self, frame: FrameType) -> str | None:
        """The option that a function which was running belongs to, if that can be known."""
        name, seen = frame.f_code.co_name, frame.f_locals
        if name == 'nondist_validation' and 'opt_' in seen:
            return f'val.metrics.{seen["name"]}'
        if name == 'build_loss':
            asked = {**seen['opt'], 'type': seen.get('loss_type')}
            return next((place for place, _, option in losses_of(self.opt['train']) if option == asked), None)
        if name == 'load_network':
            files = {file: key for key, file in self.opt['path'].items() if key.startswith('pretrain_network')}
            return f'path.{files.get(seen.get("load_path"), "pretrain_network_g")}'
        return self.owners.get(id(seen.get('self'))) or MAKERS.get(name)

    def begin(self, opt: Mapping[str, Any], is_train: bool) -> None:
        self.folder.mkdir()
        self.opt = opt = copied(opt) if 'is_train' in opt else _parsed(opt, is_train, self.folder)
        opt.update(dist=False, rank=0, world_size=1, num_gpu=min(opt['num_gpu'], 1))
        with self.at('name'):
            (self.folder / opt['name']).mkdir()
        for key in ('visualization', 'log', 'experiments_root', 'results_root'):
            if key in opt['path']:
                opt['path'][key] = str(self.folder / key)
        self.hooks = replacements(opt)

    def datasets(self) -> None:
        """Every data set, and its loader made once."""
        from basicsr.data import build_dataset

        for phase, option in self.opt['datasets'].items():
            with self.at(f'datasets.{phase}'):
                self.made[phase] = dataset = build_dataset(option)
                sampler = None
                if phase == 'train':
                    sampler = self.hooks['EnlargedSampler'](dataset, 1, 0, option.get('dataset_enlarge_ratio', 1))
                place = {'num_gpu': self.opt['num_gpu'], 'dist': False, 'seed': self.opt['manual_seed']}
                self.hooks['build_dataloader'](dataset, option, sampler=sampler, **place)

    def build(self) -> None:
        from basicsr.models import build_model

        from basicsr_effsr.weights.build import MAX_PARTS, bounded

        with self.at('model_type'), bounded(4 * MAX_PARTS):  # of all its networks and losses
            self.model = model = build_model(self.opt)
        for name, part in vars(model).items():
            if isinstance(part, nn.Module):
                self._belongs(part, PLACES.get(name, name.replace('net_', 'network_', 1)))
        self.owners |= dict.fromkeys(map(id, model.optimizers), 'train.optim_g')
        self.owners |= dict.fromkeys(map(id, model.schedulers), 'train.scheduler')
        own = getattr(model, 'losses', {})
        for where, name, _ in losses_of(self.opt.get('train') or {}):
            loss = own[name] if name in own else getattr(model, HOST_LOSSES.get(name, ''), None)
            if loss is not None:
                self._belongs(loss, where)
                loss.register_forward_hook(_refuse_what_compares_nothing(where))
        if hasattr(model, 'net_g'):
            model.get_bare_model(model.net_g)._compiled_call_impl = None

    def _belongs(self, module: nn.Module, where: str) -> None:
        self.owners |= dict.fromkeys(map(id, module.modules()), where)

    def train(self) -> None:
        opt, path = self.opt, self.opt['path']
        self.loggers()
        with self.at('path.resume_state'):
            state = self.hooks['load_resume_state'](opt)
        self.datasets()
        data = opt['datasets']['train']
        if data.get('prefetch_mode') == 'cuda' and not (torch.cuda.is_available() and data.get('pin_memory')):
            raise _StepError('datasets.train.prefetch_mode', 'cuda needs a visible GPU and pin_memory: true')
        self.build()
        if state:
            with self.at('path.resume_state'):
                self.model.resume_training(state)
                self.done = int(state['iter'])
        for key in ('models', 'training_states'):  # until here those of the run, to read
            path[key] = self.model.opt['path'][key] = str(self.folder / 'written' / key)
            Path(path[key]).mkdir(parents=True)
        if self.done < int(opt['train']['total_iter']) and not self.too_much():
            self.iteration()
        if opt.get('val') is not None:
            self.validate()
        self.save()
        with self.at('train.scheduler'):
            self.rates()

    def test(self) -> None:
        self.datasets()
        self.build()
        self.validate()

    def loggers(self) -> None:
        """What the host's loggers need, without making them: Weights & Biases would begin a run."""
        logger = {} if 'debug' in self.opt['name'] else self.opt['logger']
        if (logger.get('wandb') or {}).get('project') is not None:
            with self.at('logger.wandb'):
                if logger.get('use_tb_logger') is not True:
                    raise _StepError('logger.wandb', 'needs use_tb_logger: true, whose files it uploads')
                import_module('wandb')
        if logger.get('use_tb_logger'):
            with self.at('logger.use_tb_logger'):
                import_module('torch.utils.tensorboard')

    def side(self, least: int) -> int:
        """LR pixels a side of an image that is cropped to ``least`` or as much more as the networks need."""
        nets = [net for name, net in vars(self.model).items() if name.startswith('net_') and isinstance(net, nn.Module)]
        return max(least, *(getattr(self.model.get_bare_model(net), 'min_size', 1) for net in nets), 1)

    def too_much(self) -> bool:
        side = self.side(SIDE) if self.small else self.opt['datasets']['train'].get('gt_size', 0)
        weights = sum(p.numel() for p in self.model.net_g.parameters()) if hasattr(self.model, 'net_g') else 0
        if 6 * weights * side**2 < TOO_MUCH or self.opt['num_gpu']:
            return False
        self.notes.append(warning('network_g', 'is too large for a step on this CPU, so its training was not tried'))
        return True

    def batch(self) -> Options:
        dataset, option, train = self.made['train'], self.opt['datasets']['train'], self.opt['train']
        stages = train.get('progressive') or {}
        gt_size = min(stages['gt_size']) if stages else None
        number = min(stages.get('batch') or [option.get('batch_size_per_gpu', 1)])
        number = min(train.get('accumulate') or 1, number) if self.small else number
        indices = [SampleIndex(i % len(dataset), self.opt['manual_seed'], 0, i, gt_size) for i in range(number)]
        knows = derives_from_ours(type(dataset))
        return default_collate([self.cropped(dataset[i if knows else int(i)], SIDE) for i in indices])

    def cropped(self, item: Options, least: int) -> Options:
        """A small step's item: the same pair with a small LR image, if it is a pair."""
        lq, gt, scale = item.get('lq'), item.get('gt'), self.opt.get('scale')
        if not self.small or not isinstance(lq, torch.Tensor) or lq.dim() != 3:
            return item
        side = self.side(least)
        if gt is None:
            return {**item, 'lq': lq[..., :side, :side]}
        if not scale or gt.shape[1:] != (lq.shape[1] * scale, lq.shape[2] * scale):
            return item
        return {**item, 'lq': lq[..., :side, :side], 'gt': gt[..., : side * scale, : side * scale]}

    def iteration(self) -> None:
        from basicsr.utils import MessageLogger

        opt, model, number = self.opt, self.model, self.done + 1
        with self.at('datasets.train'):
            batch = self.batch()
        with self.at('train.warmup_iter'):
            model.update_learning_rate(number, warmup_iter=opt['train'].get('warmup_iter', -1))
        with self.at('train'):
            model.feed_data(batch)
            model.optimize_parameters(number)
        with self.at('logger'):
            log = {'epoch': 0, 'iter': number, 'lrs': model.get_current_learning_rate(), 'time': 0.0, 'data_time': 0.0}
            quiet = {**opt, 'logger': {**opt['logger'], 'use_tb_logger': False}}
            MessageLogger(quiet, number)({**log, **model.get_current_log()})

    def validate(self) -> None:
        val = self.opt['val']
        for phase, dataset in self.made.items():
            if phase == 'train':
                continue
            with self.at(f'datasets.{phase}'):
                item = dataset[0]
            if not isinstance(item.get('lq'), torch.Tensor) or item['lq'].dim() != 3:
                self.notes.append(warning(f'datasets.{phase}', 'holds no single images, so no validation was tried'))
                continue
            vars(self.model).pop('gt', None)  # of the batch; metrics that compare must miss what this set does not have
            one: Any = Subset([self.cropped(item, VAL_SIDE)], [0])  # type: ignore[arg-type]
            one.opt = dataset.opt
            with self.at('val'):
                name = self.done + 1 if self.opt['is_train'] else self.opt['name']
                self.model.validation(DataLoader(one), name, None, val['save_img'])

    def save(self) -> None:
        opt, model, number = self.opt, self.model, self.done + 1
        with self.at('train'):
            model.save(0, number)
            state = Path(opt['path']['training_states']) / f'{number}.state'
            if state.is_file():  # else a model that writes none
                opt['path']['resume_state'] = model.opt['path']['resume_state'] = str(state)
                model.resume_training(self.hooks['load_resume_state']({**opt, 'auto_resume': False}))

    def rates(self) -> None:
        """The learning rate at every turn of its schedule."""
        total = int(self.opt['train']['total_iter'])
        for scheduler in self.model.schedulers:
            for group in scheduler.optimizer.param_groups:
                group['lr'] = group['initial_lr']
            turns = {total - 1}
            for name in ('milestones', 'restarts', 'cumulative_period'):
                turns |= set(map(int, getattr(scheduler, name, ())))
            for turn in sorted(turn for turn in turns if 0 < turn < total):
                scheduler.last_epoch = turn - 1
                scheduler.step()
                for rate in scheduler.get_last_lr():
                    if not (math.isfinite(rate) and rate >= 0):
                        raise _StepError('train.scheduler', f'gives the learning rate {rate} at iteration {turn}')


def _refuse_what_compares_nothing(where: str) -> Callable:
    """A hook on a loss: it gives one number, which depends on the target and is least where the output equals it."""

    @torch.no_grad()
    def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        name, (output, target) = type(module).__name__, given[:2]

        def number(out: Any) -> float:  # the host's PerceptualLoss gives two, either of which may be missing
            parts = [part for part in (out if isinstance(out, tuple) else (out,)) if isinstance(part, torch.Tensor)]
            wrong = [tuple(part.shape) for part in parts if part.numel() != 1]
            if wrong:
                raise _StepError(where, f'{name} must give one number, it gives {wrong[0]}; set reduction: mean or sum')
            return float(sum(parts))

        number(out)
        if output.shape != target.shape:  # which torch would broadcast
            words = f'gives images of {tuple(output.shape)}, HR images are of {tuple(target.shape)}'
            raise _StepError('network_g', f'{words}; check its channels and upscale')
        one, other = torch.rand(2, *target.shape, generator=torch.Generator().manual_seed(0)).to(target)
        flat = torch.full_like(one, 0.5)
        reached, far, moved = (number(module.forward(*pair)) for pair in ((one, one), (flat, one), (one, other)))
        if reached > far + 1e-6 * abs(far) or reached == moved != 0:
            words = 'but its value is not smaller when the output equals the target; use another loss'
            raise _StepError(f'{where}.type', f'{name} must be a loss of (output, target), {words}')

    return hook
