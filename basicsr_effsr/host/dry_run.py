"""One dry step of a run on its real objects: whatever stops it would stop the run."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.data.draws import SampleIndex
from basicsr_effsr.host.undisturbed import undisturbed
from basicsr_effsr.options.problem import Problem, copied
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.memory import out_of_memory

Options = dict[str, Any]
SIDE = 16  # LR pixels of the patch, unless the file's patches are smaller or a network needs more
VAL_SIDE = 32  # LR pixels of the image of validation
TOO_MUCH = 1e12  # operations of a step on a CPU, about a minute of one core
MAKERS = {  # functions of the host and of our models that make or use what an option asks for
    'setup_optimizers': 'train.optim_g',
    'setup_schedulers': 'train.scheduler',
    '_init_ema': 'train.ema_decay',
    'compile': 'train.compile',
    '_build_teacher': 'network_t',
    '_build_adapters': 'train.distill',
    'build_network': 'network_g',
    'load_network': 'path.pretrain_network_g',
}
NAMED = re.compile(r'\b((?:train|val|datasets|path|logger|network_\w+)\.\w+(?:\.\w+)*)')
TARGETS = ('target', 'gt', 'hr', 'truth', 'label', 'reference')


class _StepError(Exception):
    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


class _FetchError(Exception):
    """A file that the run fetches at its start is not there yet."""


@contextmanager
def _offline() -> Iterator[None]:
    """Lets nothing be fetched through torch: a check waits for no half gigabyte."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise _FetchError(url)

    before, torch.hub.download_url_to_file = torch.hub.download_url_to_file, refuse
    try:
        yield
    finally:
        torch.hub.download_url_to_file = before


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
    with undisturbed(), _offline(), tempfile.TemporaryDirectory(prefix='effsr_dry_') as folder:
        found = _try(opt, is_train, Path(folder) / 'small', small=True)
        if any(problem.fatal for problem in found):  # a patch as large as the file's may be what it needs
            found = _try(opt, is_train, Path(folder) / 'whole', small=False)
    return found


def _try(opt: Mapping[str, Any], is_train: bool, folder: Path, *, small: bool) -> list[Problem]:
    step = _Step(folder, small)
    try:
        with step.at('option file'):
            step.begin(opt, is_train)
        if is_train:
            step.train()
        else:
            step.test()
    except _StepError as refused:
        return [*step.notes, Problem(refused.where, str(refused).replace(str(folder), '...'))]
    except _FetchError as fetch:
        return [Problem('train', f'the run fetches {fetch} first, so its first step was not tried', fatal=False)]
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


def _lend(source: str, target: Path) -> str:
    """A folder with links to the files of another, to read them and to delete as one likes."""
    target.mkdir(parents=True)
    for file in Path(source).glob('*') if Path(source).is_dir() else ():
        if file.is_file():
            try:
                os.symlink(file.resolve(), target / file.name)
            except OSError:  # not allowed on every system
                os.link(file, target / file.name)
    return str(target)


class _OneImage:
    """A validation loader of one image."""

    def __init__(self, dataset: Any, item: Options) -> None:
        self.dataset, self.item = dataset, item

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Options]:
        return iter([default_collate([self.item])])


@dataclass
class _Step:
    """The parts of a run, made one after the other.

    Attributes:
        folder: temporary; gets all that the step writes.
        small: take the smallest patch and batch that the networks allow, not the file's.
        owners: id of an object -> the option that asked for it.
    """

    folder: Path
    small: bool
    opt: Options = field(default_factory=dict)
    notes: list[Problem] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)
    model: Any = None
    done: int = 0  # iterations before the step

    # ------------------------------------------------------------------ where something fails

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Whatever is raised within becomes a refusal at the option that it belongs to, ``where`` if none is known."""
        try:
            yield
        except (_StepError, _FetchError):
            raise
        except (Exception, SystemExit) as error:
            if out_of_memory(error):
                message = 'even one small step needs more memory than there is'
            elif isinstance(error, ValueError) and self._ours(error):
                message = one_line(error)
            else:
                text = one_line(error)  # type: ignore[arg-type]
                message = f'the run would stop with {type(error).__name__}: {text}; correct or leave out this option'
            place = self._place(error, where)
            raise _StepError(place, message.removeprefix(f'{place}: ')) from error

    @staticmethod
    def _ours(error: BaseException) -> bool:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        return bool(frames) and frames[-1].f_globals.get('__name__', '').startswith('basicsr_effsr.')

    def _place(self, error: BaseException, where: str) -> str:
        named = NAMED.search(str(error)) if self._ours(error) else None
        if named:
            return named[1]
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        for frame, outer in zip(reversed(frames), [*reversed(frames[:-1]), None], strict=True):
            name, seen = frame.f_code.co_name, frame.f_locals
            if id(seen.get('self')) in self.owners:
                return self.owners[id(seen['self'])]
            if name == 'calculate_metric' and outer is not None and isinstance(outer.f_locals.get('name'), str):
                return f'val.metrics.{outer.f_locals["name"]}'
            if name == 'build_loss':
                kinds = {option.get('type'): place for place, option in self._losses()}
                return kinds.get(seen.get('loss_type'), where)
            if name in MAKERS:
                return MAKERS[name]
        return where

    def _losses(self) -> Iterator[tuple[str, Options]]:
        """(place, option) of every loss that is called with an output and a target."""
        train = self.opt.get('train') or {}
        named = {f'train.{key}': train.get(key) for key in ('pixel_opt', 'perceptual_opt')}
        named |= {f'train.losses.{key}': option for key, option in (train.get('losses') or {}).items()}
        named['train.distill.feature_loss'] = (train.get('distill') or {}).get('feature_loss')
        yield from ((place, option) for place, option in named.items() if option)

    # ------------------------------------------------------------------ making the parts

    def begin(self, opt: Mapping[str, Any], is_train: bool) -> None:
        self.folder.mkdir()
        self.opt = opt = copied(opt) if 'is_train' in opt else _parsed(opt, is_train, self.folder)
        opt.update(dist=False, rank=0, world_size=1, num_gpu=min(opt['num_gpu'], 1))
        path = opt['path']
        for key in ('models', 'training_states', 'visualization', 'log', 'experiments_root', 'results_root'):
            if key in path:
                lent = key in ('models', 'training_states')
                path[key] = _lend(path[key], self.folder / key) if lent else str(self.folder / key)

    def datasets(self, hooks: Mapping[str, Callable]) -> dict[str, Any]:
        """Every data set, and its loader made once."""
        from basicsr.data import build_dataset

        made = {}
        for phase, option in self.opt['datasets'].items():
            with self.at(f'datasets.{phase}'):
                made[phase] = dataset = build_dataset(option)
                workerless = {**option, 'num_worker_per_gpu': 0, 'persistent_workers': False}
                sampler = None
                if phase == 'train':
                    sampler = hooks['EnlargedSampler'](dataset, 1, 0, option.get('dataset_enlarge_ratio', 1))
                hooks['build_dataloader'](
                    dataset,
                    workerless,
                    num_gpu=self.opt['num_gpu'],
                    dist=False,
                    sampler=sampler,
                    seed=self.opt['manual_seed'],
                )
        return made

    def build(self) -> None:
        from basicsr.models import build_model

        for where, option in self._losses():
            self._refuse_other_calls(where, option)
        with self.at('model_type'):
            self.model = model = build_model(self.opt)
        for name in vars(model):
            net = getattr(model, name)
            if isinstance(net, nn.Module):
                self.owners |= dict.fromkeys(map(id, net.modules()), name.replace('net_', 'network_', 1))
        self.owners |= dict.fromkeys(map(id, model.optimizers), 'train.optim_g')
        self.owners |= dict.fromkeys(map(id, model.schedulers), 'train.scheduler')
        losses = {
            'pixel_opt': getattr(model, 'cri_pix', None),
            'perceptual_opt': getattr(model, 'cri_perceptual', None),
        }
        for name, loss in (getattr(model, 'losses', None) or nn.ModuleDict()).items():
            train = self.opt['train']
            host = {'l_pix': 'pixel_opt', 'l_percep': 'perceptual_opt'}.get(name)
            losses[host if host and train.get(host) else f'losses.{name}'] = loss
        for where, loss in losses.items():
            if isinstance(loss, nn.Module):
                self.owners |= dict.fromkeys(map(id, loss.modules()), f'train.{where}')
                loss.register_forward_hook(self._refuse_maps(f'train.{where}'))
        net = getattr(model, 'net_g', None)
        if net is not None:
            model.get_bare_model(net)._compiled_call_impl = None

    @staticmethod
    def _refuse_other_calls(where: str, option: Options) -> None:
        """A loss is called with an output and a target; its second parameter must be one, and no third be needed."""
        cls, _ = lookup('LOSS', option.get('type'))
        forward = getattr(cls, 'forward', None)
        if forward is None:
            return
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = list(inspect.signature(forward).parameters.values())
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            return
        taken = [p for p in parameters if p.kind in kinds][1:]
        needed = [p for p in parameters[1:] if p.default is p.empty and p.kind is not inspect.Parameter.VAR_KEYWORD]
        second = taken[1] if len(taken) > 1 else None
        optional = second is not None and second.default is not second.empty
        flag = second is not None and ('_is_' in f'_{second.name}' or second.annotation in (bool, 'bool'))
        if second is None or flag or len(needed) > 2 or (optional and not second.name.lower().startswith(TARGETS)):
            raise _StepError(
                f'{where}.type',
                f'{cls.__name__} must be callable with (output, target), it has {inspect.signature(forward)}; take '
                'another loss',
            )

    @staticmethod
    def _refuse_maps(where: str) -> Callable:
        def hook(module: nn.Module, _: Any, out: Any) -> None:
            for part in out if isinstance(out, tuple) else (out,):
                if isinstance(part, torch.Tensor) and part.numel() != 1:
                    raise _StepError(
                        where,
                        f'{type(module).__name__} must give one number, it gives {tuple(part.shape)}; set reduction: '
                        'mean or sum',
                    )

        return hook

    # ------------------------------------------------------------------ the step

    def train(self) -> None:
        from basicsr_effsr.host.loop import replacements

        opt, path = self.opt, self.opt['path']
        with self.at('train'):
            hooks = replacements(opt)
        self.loggers()
        with self.at('path.resume_state'):
            state = hooks['load_resume_state'](opt)
        made = self.datasets(hooks)
        self.prefetcher()
        self.build()
        if state:
            with self.at('path.resume_state'):
                self.model.resume_training(state)
                self.done = int(state['iter'])
        for key in ('models', 'training_states'):  # what was lent is not written to
            path[key] = self.model.opt['path'][key] = str(self.folder / 'written' / key)
            Path(path[key]).mkdir(parents=True)
        if self.done < int(opt['train']['total_iter']) and not self.too_much():
            self.iteration(made['train'])
        if opt.get('val') is not None:
            self.validate(made)
        self.save(hooks)
        with self.at('train.scheduler'):
            self.rates()

    def test(self) -> None:
        made = self.datasets(_hooks_of_testing())
        self.build()
        self.validate(made)

    def loggers(self) -> None:
        """What the host's loggers need, without making them: Weights & Biases would begin a run."""
        logger, name = self.opt['logger'], self.opt['name']
        if 'debug' in name:
            return
        if (logger.get('wandb') or {}).get('project') is not None:
            with self.at('logger.wandb'):
                if logger.get('use_tb_logger') is not True:
                    raise _StepError(
                        'logger.wandb', 'needs use_tb_logger: true, whose files it sends; set it, or project: ~'
                    )
                import wandb  # noqa: F401
        if logger.get('use_tb_logger'):
            with self.at('logger.use_tb_logger'):
                from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    def prefetcher(self) -> None:
        if self.opt['datasets']['train'].get('prefetch_mode') == 'cuda' and not torch.cuda.is_available():
            raise _StepError('datasets.train.prefetch_mode', 'cuda needs a GPU, and none is visible; leave it out')

    def least(self) -> int:
        """LR pixels a side that every network takes."""
        nets = [net for name, net in vars(self.model).items() if name.startswith('net_') and isinstance(net, nn.Module)]
        return max(getattr(self.model.get_bare_model(net), 'min_size', 1) for net in nets)

    def too_much(self) -> bool:
        side = max(SIDE, self.least()) if self.small else self.opt['datasets']['train'].get('gt_size', 0)
        weights = sum(p.numel() for p in self.model.net_g.parameters()) if hasattr(self.model, 'net_g') else 0
        if 6 * weights * side**2 < TOO_MUCH or self.opt['num_gpu']:
            return False
        self.notes.append(
            Problem('network_g', 'is too large for a step on this CPU, so its training was not tried', fatal=False)
        )
        return True

    def batch(self, dataset: Any) -> Options:
        option, train = self.opt['datasets']['train'], self.opt['train']
        stages = train.get('progressive') or {}
        gt_size = min(stages['gt_size']) if stages else None
        batch = min(stages.get('batch') or [option.get('batch_size_per_gpu', 1)])
        number = min(train.get('accumulate') or 1, batch) if self.small else batch
        samples = []
        for i in range(number):
            index = SampleIndex(i % len(dataset), self.opt['manual_seed'], 0, i, gt_size)
            item = dataset[index if derives_from_ours(type(dataset)) else int(index)]
            samples.append(self.cropped(item, max(SIDE, self.least())) if self.small else item)
        return default_collate(samples)

    def cropped(self, item: Options, side: int) -> Options:
        """The same pair with an LR image of at most this side, if it is a pair."""
        lq, gt, scale = item.get('lq'), item.get('gt'), self.opt.get('scale')
        if not isinstance(lq, torch.Tensor) or lq.dim() != 3:
            return item
        cut = {'lq': lq[..., :side, :side]}
        if gt is not None:
            if not scale or gt.shape[1:] != (lq.shape[1] * scale, lq.shape[2] * scale):
                return item
            cut['gt'] = gt[..., : side * scale, : side * scale]
        return {**item, **cut}

    def iteration(self, dataset: Any) -> None:
        from basicsr.utils import MessageLogger

        opt, model, number = self.opt, self.model, self.done + 1
        warmup = opt['train'].get('warmup_iter', -1)
        with self.at('datasets.train'):
            batch = self.batch(dataset)
        with self.at('train.warmup_iter'):
            model.update_learning_rate(number, warmup_iter=warmup)
        with self.at('train'):
            model.feed_data(batch)
            model.optimize_parameters(number)
        with self.at('logger'):
            log = {'epoch': 0, 'iter': number, 'lrs': model.get_current_learning_rate(), 'time': 0.0, 'data_time': 0.0}
            quiet = {**opt, 'logger': {**opt['logger'], 'use_tb_logger': False}}
            MessageLogger(quiet, number)({**log, **model.get_current_log()})
            for key in ('print_freq', 'save_checkpoint_freq'):
                number % opt['logger'][key]
        if number < int(opt['train']['total_iter']):
            with self.at('train.warmup_iter'):
                model.update_learning_rate(number + 1, warmup_iter=warmup)

    def validate(self, made: Mapping[str, Any]) -> None:
        val = self.opt['val']
        for phase, dataset in made.items():
            if phase == 'train':
                continue
            with self.at(f'datasets.{phase}'):
                item = dataset[0]
            if not isinstance(item.get('lq'), torch.Tensor) or item['lq'].dim() != 3:
                self.notes.append(
                    Problem(f'datasets.{phase}', 'holds no single images, so no validation was tried', False)
                )
                continue
            if 'gt' not in item:
                self._refuse_metrics_of_pairs(phase)
            if self.small:
                item = self.cropped(item, max(VAL_SIDE, self.least()))
            with self.at('val'):
                name = self.done + 1 if self.opt['is_train'] else self.opt['name']
                self.model.validation(_OneImage(dataset, item), name, None, val['save_img'])

    def _refuse_metrics_of_pairs(self, phase: str) -> None:
        for name, option in (self.opt['val'].get('metrics') or {}).items():
            function, _ = lookup('METRIC', option.get('type'))
            second = inspect.signature(function).parameters.get('img2') if function else None
            if second is not None and second.default is second.empty:
                raise _StepError(
                    f'val.metrics.{name}',
                    f'{option["type"]} compares with HR images, which datasets.{phase} does not have; take this metric '
                    'out, or give the data set dataroot_gt',
                )

    def save(self, hooks: Mapping[str, Callable]) -> None:
        opt, model, number = self.opt, self.model, self.done + 1
        with self.at('train'):
            model.save(0, number)
            if not (Path(opt['path']['training_states']) / f'{number}.state').is_file():
                return  # a model that writes no state
            opt['path']['resume_state'] = str(Path(opt['path']['training_states']) / f'{number}.state')
            model.opt['path']['resume_state'] = opt['path']['resume_state']
            model.resume_training(hooks['load_resume_state']({**opt, 'auto_resume': False}))

    def rates(self) -> None:
        """The learning rate at every turn of its schedule."""
        total = int(self.opt['train']['total_iter'])
        for scheduler in self.model.schedulers:
            for group in scheduler.optimizer.param_groups:
                group['lr'] = group['initial_lr']
            turns = {total - 1}
            for name in ('milestones', 'restarts', 'cumulative_period'):
                turns |= {int(turn) for turn in getattr(scheduler, name, ())}
            for turn in sorted(turn for turn in turns if 0 < turn < total):
                scheduler.last_epoch = turn - 1
                scheduler.step()
                for rate in scheduler.get_last_lr():
                    if not (math.isfinite(rate) and rate >= 0):
                        raise _StepError('train.scheduler', f'gives the learning rate {rate} at iteration {turn}')


def _hooks_of_testing() -> dict[str, Callable]:
    from basicsr.data import build_dataloader

    return {'build_dataloader': build_dataloader}
