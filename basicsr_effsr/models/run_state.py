"""The state of a run beside its weights: saved in side files, compared with the option file on resume, restored."""

from __future__ import annotations

import copy
import errno
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from basicsr_effsr._registration import defaults_of
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import WriteError
from basicsr_effsr.utils.stored import CheckpointError, load_stored
from basicsr_effsr.weights.checkpoint import save_atomic

NO_EFFECT = {'name', 'num_worker_per_gpu', 'persistent_workers', 'pin_memory', 'prefetch_mode'}  # of the training data
REFUSED = re.compile(
    r'model_type|scale|network_(?!t\b)\w+.*|train\.optim_g\.type|train\.scheduler\.type|train\.distill\.feature_pairs.*'
)
ABSENT = 'nothing'
NEW_RUN = 'restore it, or start a new run (another name) from the weights with path.pretrain_network_g'


@dataclass(repr=False)
class RunState:
    """The state of a run, except weights, optimizers and schedules, which are in BasicSR's own files.

    The training loop (``host/loop.py``) puts it into the options as ``run_state``, which BasicSR passes to sampler,
    loader and model; the model saves it. ``of`` creates it where the loop does not.
    """

    seed: int | None = None  # manual_seed with which the run began; draws of crops follow from it
    # how samples are drawn (images, ratio, world_size, stages) and since when (anchor: epoch and iterations before it);
    # empty for data sets that are not ours
    sampling: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)  # what recipe gave at the latest start of the run
    random: dict[str, Any] = field(default_factory=dict)  # states of the random generators of this rank
    scaler: dict[str, Any] = field(default_factory=dict)  # of the loss under fp16
    best: dict[str, Any] = field(default_factory=dict)  # scores, by data set and metric
    validated: dict[str, Any] = field(default_factory=dict)  # the latest iteration, by data set
    nonfinite: int = 0  # iterations skipped in a row
    teacher: dict[str, Any] = field(default_factory=dict)  # its file and param_key
    networks: list[str] = field(default_factory=list)  # labels of the net_LABEL_N.pth saved with the state
    file: Path | None = None  # the state that is resumed; None for a new run. Not saved, as all that follows
    known: bool = True  # False if that state has no file of this class beside it
    resumed: dict[str, Any] | None = None  # what BasicSR stored in that state

    def __repr__(self) -> str:  # of a host that logs all options by itself
        return f'RunState(seed={self.seed!r}, file={self.file!r})'

    @classmethod
    def of(cls, opt: Mapping[str, Any]) -> RunState:
        """The run of these options.

        Raises:
            CheckpointError: as ``load``.
        """
        if 'run_state' in opt:
            return opt['run_state']
        state = (opt.get('path') or {}).get('resume_state')
        if state:
            return cls.load(Path(state), opt.get('rank', 0))
        return cls(seed=opt.get('manual_seed'), made_with=recipe(opt))

    @classmethod
    def load(cls, state: Path, rank: int = 0) -> RunState:
        """What was saved beside ``state``; a run that knows nothing if there is no such file.

        Raises:
            CheckpointError: the file cannot be read.
        """
        shared, own = read_side_file(side_file(state)), read_side_file(side_file(state, rank))
        return cls(**{**shared, 'random': own.get('random', {})}, file=state, known=bool(own))

    def save(self, state: Path, rank: int = 0) -> None:
        """Writes, all or nothing, the file that belongs to ``state``."""
        write({name: getattr(self, name) for name in SAVED}, side_file(state, rank))

    def compare(self, now: dict[str, Any]) -> list[str]:
        """A line for each setting that is taken over from the option file, of which ``recipe`` has given ``now``.

        Raises:
            UserError: a setting differs and the run cannot continue with it.
        """
        before, after = dict(leaves(self.made_with)), dict(leaves(now))
        places = sorted(before.keys() | after.keys()) if before else []
        changed = [(p, before.get(p, ABSENT), after.get(p, ABSENT)) for p in places if before.get(p) != after.get(p)]
        refused = [f'{p} was {was} and is now {now_is}' for p, was, now_is in changed if REFUSED.fullmatch(p)]
        if refused:
            raise UserError(f'path.resume_state: {self.file} is of another run, {"; ".join(refused)}; {NEW_RUN}')
        self.made_with = now
        return [f'{p}: using {now_is} from the option file; it was {was}' for p, was, now_is in changed]


# what a side file holds
SAVED = {n: type(v) for n, v in vars(RunState(seed=0)).items() if n not in ('file', 'known', 'resumed')}


def write(content: dict[str, Any], file: Path) -> None:
    """Writes a file of a run, all or nothing, into its folder, which is not made again if it has vanished.

    Raises:
        WriteError: the folder is gone, or the file cannot be written; what ``file`` held before is untouched.
    """
    if not file.parent.is_dir():
        raise WriteError.of(file, FileNotFoundError(errno.ENOENT, 'the folder of this run has vanished'))
    save_atomic(content, file)


def side_file(state: Path, rank: int = 0) -> Path:
    """The file of ``RunState`` that lies beside a state, one per rank."""
    return state.with_name(f'{state.stem}{f".rank{rank}" if rank else ""}.effsr')


def read_side_file(file: Path) -> dict[str, Any]:
    """What ``RunState.save`` wrote; empty if there is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not file.is_file():
        return {}
    stored = load_stored(file)
    fits = isinstance(stored, dict) and 'random' in stored and stored.keys() <= SAVED.keys()
    if not fits or any(not isinstance(v, SAVED[n]) for n, v in stored.items() if (n, v) != ('seed', None)):
        raise CheckpointError(f'side file {file} is not a file that a run wrote beside its state')
    return stored


def recipe(opt: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of an option file that make a run what it is, as plain values.

    Optimizer and schedule are there by class: their settings are in the state, and count from there. Must be called
    before the model is built, since BasicSR takes ``type`` out of both.
    """
    train, data = dict(opt.get('train') or {}), (opt.get('datasets') or {}).get('train') or {}
    kinds = {key: {'type': str((train.get(key) or {}).get('type'))} for key in ('optim_g', 'scheduler')}
    if kinds['scheduler']['type'] == 'MultiStepRestartLR':  # BasicSR has one class for both
        kinds['scheduler']['type'] = 'MultiStepLR'
    made_with = {
        'model_type': opt.get('model_type'),
        'scale': opt.get('scale'),
        **{name: _spelt_out(section) for name, section in opt.items() if section and name.startswith('network_')},
        'train': {**train, **kinds},
        'datasets': {'train': {key: value for key, value in data.items() if key not in NO_EFFECT}},
    }
    return _plain(made_with)


def _spelt_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options with its defaults, so that naming a default is no difference."""
    kind = network.get('type')
    if kind not in ARCH_REGISTRY:
        return dict(network)
    return defaults_of(ARCH_REGISTRY.get(kind)) | dict(network)


def _plain(value: Any) -> Any:
    """Without the types that a file without code cannot hold; a key without a value is as good as none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def leaves(section: Mapping[str, Any], place: str = '') -> Iterator[tuple[str, Any]]:
    """(place in the option file, value) of everything that is no section."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f'{place}{key}.')
        else:
            yield f'{place}{key}', value


def restore(optimizers: list[Any], schedulers: list[Any], state: Mapping[str, Any], total: int) -> list[str]:
    """Puts optimizers and schedules back from a state; a line for each setting of the option file that it overrules.

    Raises:
        UserError: the state is of other classes or parameters, or has a schedule that ends before ``total``.
    """
    lines = []
    for kind, own in (('optimizers', optimizers), ('schedulers', schedulers)):
        if len(own) != len(state[kind]):
            words = f'the state has {len(state[kind])} {kind}, a model of this class has {len(own)}'
            raise UserError(f'model_type: {words}; {NEW_RUN}')
        for one, saved in zip(own, state[kind], strict=True):
            left = total if state['iter'] < total else 0
            lines += _restore_optimizer(one, saved) if kind == 'optimizers' else _restore_schedule(one, saved, left)
    return lines


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> list[str]:
    """Tried on a copy first, so that nothing is loaded from a state that is refused."""
    counts = [[len(group['params']) for group in groups] for groups in (saved['param_groups'], optimizer.param_groups)]
    if counts[0] != counts[1]:
        words = f'the state has {counts[0]} parameters (by group) and the option file {counts[1]}'
        raise UserError(f'network_g or train.distill: {words}; {NEW_RUN}')
    trial = copy.deepcopy(optimizer)
    try:
        trial.load_state_dict(copy.deepcopy(saved))
        for parameter in (parameter for group in trial.param_groups for parameter in group['params']):
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except Exception as error:  # each optimizer misses other things in the state of another class
        why = f'of another optimizer or of other parameters ({type(error).__name__}: {one_line(error)})'
        words = f'{type(optimizer).__name__} cannot continue from the state, which is {why}'
        raise UserError(f'train.optim_g.type: {words}; {NEW_RUN}') from error
    asked = [_settings(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    groups = zip(asked, map(_settings, optimizer.param_groups), strict=True)
    return list(dict.fromkeys(line for pair in groups for line in _overruled('train.optim_g', *pair)))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a parameter group; ``lr`` is the rate that the schedule begins with."""
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
    found['lr'] = found.pop('initial_lr', found.get('lr'))
    del found['params']
    return found


def _restore_schedule(scheduler: Any, saved: dict[str, Any], total: int) -> list[str]:
    """``total`` is 0 if nothing is left to train."""
    asked, found = _public(vars(scheduler)), _public(saved)
    if asked.keys() != found.keys():
        words = f'the state has a schedule with {sorted(found)}, the option file one with {sorted(asked)}'
        raise UserError(f'train.scheduler.type: {words}; {NEW_RUN}')
    end = sum(found.get('periods', [])) + 1  # the last iteration of a cosine schedule
    if 'periods' in found and end < total:
        words = f'must reach total_iter ({total}), and those of the resumed state, which count, end after {end - 1}'
        fix = 'a cosine run cannot be extended, so lower total_iter, or start a new run with path.pretrain_network_g'
        raise UserError(f'train.scheduler.periods {words}; {fix}')
    scheduler.load_state_dict(saved)
    return _overruled('train.scheduler', asked, found)


def _public(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a schedule, without its position and what torch keeps in it."""
    private = {'optimizer', 'verbose', 'last_epoch', 'base_lrs', 'cumulative_period'}  # the rate is the optimizer's
    found = {key: value for key, value in state.items() if not key.startswith('_') and key not in private}
    counted = {key: sorted(value.elements()) for key, value in found.items() if isinstance(value, Counter)}
    return {**found, **counted, **{key: list(value) for key, value in found.items() if isinstance(value, tuple)}}


def _overruled(section: str, asked: Mapping[str, Any], counts: Mapping[str, Any]) -> list[str]:
    return [
        f'{section}.{key}: using {counts.get(key)} from the resumed state, not {asked[key]} from the option file'
        for key in sorted(asked)
        if asked[key] != counts.get(key)
    ]
