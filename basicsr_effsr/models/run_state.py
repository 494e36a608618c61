"""What a run is beside its weights: kept in a file next to every state, compared with the option file on resume."""

from __future__ import annotations

import copy
import errno
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import WriteError
from basicsr_effsr.weights.checkpoint import CheckpointError, save_atomic

NO_EFFECT = {'name', 'num_worker_per_gpu', 'persistent_workers', 'pin_memory', 'prefetch_mode'}  # of the training data
REFUSED = re.compile(
    r'model_type|scale|network_(?!t\b)\w+.*|train\.optim_g\.type|train\.scheduler\.type|train\.distill\.feature_pairs.*'
)
ABSENT = 'nothing'
NEW_RUN = 'put it back, or begin a new run (another name) from the weights with path.pretrain_network_g'


@dataclass
class RunState:
    """A run beside its weights, optimizers and schedules, which are in BasicSR's own files.

    The training loop (``host/loop.py``) puts it into the options as ``run_state``, the one thing that BasicSR hands to
    sampler, loader and model alike; the model saves it. Where another's loop does not, ``of`` makes it.

    Attributes:
        seed: ``manual_seed`` with which the run began; draws of crops follow from it.
        sampling: how samples are drawn (images, ratio, world_size, stages) and since when (``anchor``: epoch and
            iterations before it); empty for data sets that are not ours.
        made_with: what ``recipe`` gave at the latest start of the run.
        random: states of the random generators of this rank.
        scaler: of the loss under fp16.
        best: best scores, by data set and metric.
        nonfinite: iterations skipped in a row.
        teacher: its ``file`` and ``param_key``.
        networks: labels of the ``net_LABEL_N.pth`` that were saved with the state.
        file: the state that is resumed; None for a new run. Not saved, as all that follows.
        known: False if that state has no file of this class beside it.
        resumed: what BasicSR stored in that state.
    """

    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict, repr=False)  # BasicSR prints all options into its log
    made_with: dict[str, Any] = field(default_factory=dict, repr=False)
    random: dict[str, Any] = field(default_factory=dict, repr=False)
    scaler: dict[str, Any] = field(default_factory=dict, repr=False)
    best: dict[str, Any] = field(default_factory=dict, repr=False)
    nonfinite: int = field(default=0, repr=False)
    teacher: dict[str, Any] = field(default_factory=dict, repr=False)
    networks: list[str] = field(default_factory=list, repr=False)
    file: Path | None = None
    known: bool = field(default=True, repr=False)
    resumed: dict[str, Any] | None = field(default=None, repr=False)

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
        """A line for each setting that is taken over from the option file; from here on the run is made with ``now``.

        Args:
            now: what ``recipe`` gives for the option file.

        Raises:
            UserError: a setting differs with which the run cannot go on.
        """
        before, after = dict(_leaves(self.made_with)), dict(_leaves(now))
        places = sorted(before.keys() | after.keys()) if before else []
        changed = {p: (before.get(p, ABSENT), after.get(p, ABSENT)) for p in places}
        changed = {place: values for place, values in changed.items() if values[0] != values[1]}
        refused = [f'{p} was {was} and is now {now_is}' for p, (was, now_is) in changed.items() if REFUSED.fullmatch(p)]
        if refused:
            raise UserError(f'path.resume_state: {self.file} is of another run, {"; ".join(refused)}; {NEW_RUN}')
        self.made_with = now
        return [f'{p}: {now_is} of the option file counts, it was {was}' for p, (was, now_is) in changed.items()]


SAVED = {name: type(value) for name, value in vars(RunState(seed=0)).items()}  # of what a side file holds
for own in ('file', 'known', 'resumed'):
    del SAVED[own]


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
    try:
        stored = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a truncated file
        raise CheckpointError(f'side file {file} cannot be read ({type(error).__name__}), it is truncated') from error
    if (
        not isinstance(stored, dict)
        or 'random' not in stored
        or not stored.keys() <= SAVED.keys()
        or any(not isinstance(value, SAVED[name]) for name, value in stored.items() if (name, value) != ('seed', None))
    ):
        raise CheckpointError(f'side file {file} must be what a run wrote beside its state, and is something else')
    return stored


def recipe(opt: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of an option file that make a run what it is, as plain values.

    Optimizer and schedule are there by class: their settings are in the state, and count from there. Must be called
    before the model is built, since BasicSR takes ``type`` out of both.
    """
    train = dict(opt.get('train') or {})
    optimizer, schedule = train.pop('optim_g', None) or {}, train.pop('scheduler', None) or {}
    data = (opt.get('datasets') or {}).get('train') or {}
    kind = str(schedule.get('type')).replace('MultiStepRestartLR', 'MultiStepLR')  # BasicSR has one class for both
    made_with = {
        'model_type': opt.get('model_type'),
        'scale': opt.get('scale'),
        **{name: _spelt_out(section) for name, section in opt.items() if section and name.startswith('network_')},
        'train': {**train, 'optim_g': {'type': optimizer.get('type')}, 'scheduler': {'type': kind}},
        'datasets': {'train': {key: value for key, value in data.items() if key not in NO_EFFECT}},
    }
    return _plain(made_with)


def _spelt_out(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options with its defaults, so that naming a default is no difference."""
    kind = network.get('type')
    if kind not in ARCH_REGISTRY:
        return dict(network)
    parameters = inspect.signature(ARCH_REGISTRY.get(kind)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(network)


def _plain(value: Any) -> Any:
    """Without the types that a file without code cannot hold; a key without a value is as good as none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _leaves(section: Mapping[str, Any], place: str = '') -> Iterator[tuple[str, Any]]:
    """(place in the option file, value) of everything that is no section."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f'{place}{key}.')
        else:
            yield f'{place}{key}', value


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> list[str]:
    """Loads ``saved``; a line for each setting of the option file that the state overrules.

    Raises:
        UserError: the state is of an optimizer of another class, or of other parameters; nothing was loaded.
    """
    counts = [[len(group['params']) for group in groups] for groups in (saved['param_groups'], optimizer.param_groups)]
    if counts[0] != counts[1]:
        raise UserError(
            f'network_g or train.distill: the optimizer of the state moves {counts[0]} parameters (by group) and that '
            f'of the option file {counts[1]}; {NEW_RUN}'
        )
    trial = copy.deepcopy(optimizer)
    try:
        trial.load_state_dict(copy.deepcopy(saved))
        for group in trial.param_groups:
            for parameter in group['params']:
                parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except Exception as error:  # each optimizer misses other things in the state of another class
        raise UserError(
            f'train.optim_g.type: {type(optimizer).__name__} cannot go on from the state, which is of another '
            f'optimizer or of other parameters ({type(error).__name__}: {one_line(error)}); {NEW_RUN}'
        ) from error
    asked = [_settings(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    lines = []
    for before, group in zip(asked, optimizer.param_groups, strict=True):
        after = _settings(group)
        lines += [_overruled(f'train.optim_g.{k}', after[k], before[k]) for k in before if before[k] != after.get(k)]
    return list(dict.fromkeys(lines))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a parameter group; ``lr`` is the rate that the schedule begins with."""
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
    found['lr'] = found.pop('initial_lr', found.get('lr'))
    del found['params']
    return found


def restore_schedule(scheduler: Any, saved: dict[str, Any], total: int) -> list[str]:
    """Loads ``saved``; a line for each setting of the option file that the state overrules.

    Args:
        scheduler: one of BasicSR's.
        saved: its state.
        total: ``total_iter`` if there is something left to train, else 0.

    Raises:
        UserError: the state is of a schedule of another class, or one that ends before ``total``.
    """
    asked, found = _public(vars(scheduler)), _public(saved)
    if asked.keys() != found.keys():
        raise UserError(
            f'train.scheduler.type: the state has a schedule of another class, with {sorted(found)}, where that of the '
            f'option file has {sorted(asked)}; {NEW_RUN}'
        )
    end = sum(found.get('periods', [])) + 1  # the last iteration of a cosine schedule
    if 'periods' in found and end < total:
        raise UserError(
            f'train.scheduler.periods must reach total_iter ({total}), and those of the resumed state, which count, '
            f'end after {end - 1} iterations; a cosine run cannot be extended, so begin a new one with '
            'path.pretrain_network_g, or lower total_iter'
        )
    scheduler.load_state_dict(saved)
    return [_overruled(f'train.scheduler.{k}', found[k], asked[k]) for k in sorted(asked) if asked[k] != found[k]]


def _public(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a schedule, without its position and what torch keeps in it."""
    private = {'optimizer', 'verbose', 'last_epoch', 'base_lrs', 'cumulative_period'}  # the rate is the optimizer's
    found = {key: value for key, value in state.items() if not key.startswith('_') and key not in private}
    for key, value in found.items():
        if isinstance(value, Counter):
            found[key] = sorted(value.elements())
        elif isinstance(value, tuple):
            found[key] = list(value)
    return found


def _overruled(place: str, counts: Any, asked: Any) -> str:
    return f'{place}: {counts} of the resumed state counts, and not {asked} of the option file'
