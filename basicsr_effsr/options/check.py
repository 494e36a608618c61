"""Everything that can be known to be wrong with an option file before training starts."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.data.pairs import check_sizes, list_pairs, undecodable
from basicsr_effsr.options import spec as spec
from basicsr_effsr.options.problem import Problem
from basicsr_effsr.options.spec import Key, Section
from basicsr_effsr.utils.errors import near, one_line

if TYPE_CHECKING:
    from torch import nn

Options = Mapping[str, Any]
NONE: Section = MappingProxyType({})
BUILT_LOSSES = ('basicsr.losses.', 'basicsr_effsr.losses.')  # modules of losses whose constructors are tried
FEW_PAIRS = 2000  # of folders with more only a sample of headers is read when a run is about to start, without --all
SAMPLED_PAIRS = 24


def problems(opt: Any, is_train: bool, *, every_image: bool = False) -> list[Problem]:
    """What is wrong with the options, worst first; ``opt`` is not changed and nothing is written.

    Reads names of files, headers of images to train on, weights that are named, and decodes images of validation.

    Args:
        opt: as in the file, or as BasicSR has parsed it.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on, however many there are.
    """
    if not isinstance(opt, dict):
        return [Problem('option file', f'must hold sections such as network_g and datasets, found {plain(opt)}')]
    check = Check(copied(opt), is_train, every_image)
    check.run()
    return check.problems()


def network_on_meta(option: Options) -> nn.Module:
    """The network of the options, without memory for its weights."""
    import torch

    options = dict(option)
    cls, _ = lookup('ARCH', options.pop('type'))
    with torch.device('meta'):
        return cls(**options)


def plain(value: Any) -> Any:
    return f'a {type(value).__name__}' if isinstance(value, Mapping | list | tuple) else repr(value)


def _kinds_in_words(key: Key) -> str:
    words = {
        'int': 'a whole number',
        'number': 'a number',
        'bool': 'true or false',
        'str': 'a text',
        'list': 'a list',
        'dict': 'a section',
    }
    return ' or '.join(words[kind] for kind in key.kinds)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what torch writes about networks that cannot do without memory."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.disabled = before


def copied(value: Any) -> Any:
    """Sections and lists anew, so that what is ill-typed can be taken out; a ``dict`` for every mapping."""
    if isinstance(value, Mapping):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list | tuple) else value


def _keys_read(model: type) -> set[str]:
    """Options of ``train`` that the source of a model reads, as far as that can be seen."""
    keys: set[str] = set()
    for cls in model.__mro__[:-1]:
        try:
            source = inspect.getsource(cls)
        except (OSError, TypeError):  # made without a file
            continue
        keys |= set(re.findall(r"""(?:train_opt|opt\[['"]train['"]\])(?:\.get\(|\[)['"](\w+)['"]""", source))
    return keys


def _type_fix(value: Any, key: Key) -> str:
    if isinstance(value, str) and {'int', 'number'} & set(key.kinds):
        fixes: dict[type, str] = {int: f'; in quotes it is a text, write {value} without them'}
        if 'number' in key.kinds:
            fixes[float] = f'; YAML reads it as a text, write !!float {value}'
        for kind, fix in fixes.items():
            try:
                kind(value)
            except ValueError:
                continue
            return fix
    return ''


@dataclass(frozen=True)
class Course:
    """What a training will go through.

    Attributes:
        asked: iterations that the file asks for.
        runs: iterations that will run.
        ratio: ``dataset_enlarge_ratio`` with which all would run; that of the file where they do.
        epochs: epochs begun until then.
        per_epoch: iterations of a whole epoch, one number per stage.
        batches: patches per iteration on all GPUs together, one number per stage.
        patches: patches in all iterations on all GPUs together.
    """

    asked: int
    runs: int
    ratio: int
    epochs: int
    per_epoch: list[int]
    batches: list[int]
    patches: int


@dataclass
class Images:
    """What a data set was found to hold; sizes are (height, width)."""

    count: int = 0
    smallest_lq: tuple[int, int] | None = None


@dataclass
class Check:
    """A walk through a copy of the options; what is ill-typed is reported and taken out of it."""

    opt: dict[str, Any]
    is_train: bool
    every_image: bool
    nets: dict[str, Any] = field(default_factory=dict)
    found: list[Problem] = field(default_factory=list)
    images: dict[str, Images] = field(default_factory=dict)
    model_class: Any = None

    # ------------------------------------------------------------------ helpers

    def fatal(self, where: str, message: str) -> None:
        self.found.append(Problem(where, message))

    def warn(self, where: str, message: str) -> None:
        self.found.append(Problem(where, message, fatal=False))

    def missing(self, where: str, message: str) -> None:
        """Reports what is not there, unless it was ill-typed and has been taken out."""
        if all(problem.where != where for problem in self.found):
            self.fatal(where, f'is missing: {message}' if message else 'is missing')

    def problems(self) -> list[Problem]:
        """All that was found, worst first."""
        return sorted(dict.fromkeys(self.found), key=lambda p: not p.fatal)

    def section(self, name: str) -> dict[str, Any]:
        value = self.opt.get(name)
        return value if isinstance(value, dict) else {}

    def keys(
        self,
        where: str,
        given: dict[str, Any],
        known: Section,
        *,
        others: Iterable[str] = (),
        strict: bool,
        open_ended: bool = False,
    ) -> bool:
        """Unknown, missing and ill-typed keys of a section; ill-typed ones are taken out. True if nothing was fatal.

        An unknown key is fatal if it looks like a misspelling of one that is not given, or if ``strict``;
        otherwise a warning, or nothing at all if ``open_ended``.
        """
        names = [*known, *others]
        prefix = f'{where}.' if where else ''
        before = len(self.found)
        for name, value in list(given.items()):
            if name in known:
                if not self.value(f'{prefix}{name}', value, known[name]):
                    del given[name]
            elif name not in names:
                likely = get_close_matches(str(name), [n for n in names if n not in given], 1, 0.75)
                hint = f'did you mean {likely[0]!r}?' if likely else near(name, names)
                message = f'nothing reads this option; {hint}'
                if likely or not open_ended:
                    (self.fatal if strict or likely else self.warn)(f'{prefix}{name}', message)
        for name, key in known.items():
            if key.required and given.get(name) is None and name != 'type':
                self.missing(f'{prefix}{name}', key.doc[:1].lower() + key.doc[1:])
        return not any(problem.fatal for problem in self.found[before:])

    def value(self, where: str, value: Any, key: Key) -> bool:
        """True if it is of the kind, one of the choices and in the range of ``key``; else a problem is noted."""
        if not spec.fits(value, key):
            fix = _type_fix(value, key)
            elements = f' of {"whole " if key.of == spec.INT else ""}numbers' if key.of else ''
            got = value if key.of else plain(value)
            self.fatal(where, f'must be {_kinds_in_words(key)}{elements}, got {got}{fix}')
        elif key.choices and value is not None and value not in key.choices:
            self.fatal(where, f'must be one of {", ".join(map(str, key.choices))}, got {value!r}')
        elif not spec.in_range(value, key):
            shown = list(value) if isinstance(value, list | tuple) else value
            self.fatal(where, f'must be {spec.range_in_words(key)}, got {shown!r}')
        else:
            return True
        return False

    def built(self, where: str, registry: str, option: Any, *, extras: Section = NONE, skip: Iterable[str] = ()) -> Any:
        """Checks a section {type: ..., options}; the class or function, or None."""
        if not isinstance(option, dict) or not isinstance(option.get('type'), str):
            got = repr(option['type']) if isinstance(option, dict) and 'type' in option else plain(option)
            self.fatal(where, f'must be a section with a type, got {got}')
            return None
        target, known = lookup(registry, option['type'])
        if target is None:
            self.fatal(
                f'{where}.type', f'there is no {registry.lower()} {option["type"]!r}; {near(option["type"], known)}'
            )
            return None
        self.against_signature(where, option, target, extras=extras, skip=skip)
        return target

    def against_signature(
        self, where: str, option: dict[str, Any], target: Callable, *, extras: Section = NONE, skip: Iterable[str] = ()
    ) -> bool:
        keys, open_ended = spec.keys_of(target, tuple(skip))
        known = {**keys, 'type': Key(spec.STR, ''), **extras}
        return self.keys(where, option, known, strict=not open_ended, open_ended=open_ended)

    # ------------------------------------------------------------------ the whole

    def run(self) -> None:
        opt = self.opt
        networks = [k for k in opt if str(k).startswith('network_')]
        self.keys('', opt, spec.TOP, others=[*networks, *spec.AT_RUN_TIME], strict=False)
        self.nets = nets = {key: self.network(key) for key in networks if key in opt}
        self.model_class = model = self.model()
        self.scale(nets)
        self.path()
        self.weights(nets, model)
        self.gpus()
        for phase, data in self.section('datasets').items():
            self.dataset(str(phase), data)
        self.phases()
        self.channels(model)
        if self.opt.get('scale') is None and any(self.is_paired(d) for d in self.section('datasets').values()):
            self.missing('scale', 'the factor between the sizes of HR and LR images')
        if self.is_train:
            self.training(model, nets)
        self.least_input(nets.get('network_g'))
        self.validation(model)
        self.as_the_model_does(model, nets.get('network_g'))

    def model(self) -> Any:
        name = self.opt.get('model_type')
        if not isinstance(name, str):
            return None
        model, known = lookup('MODEL', name)
        if model is None:
            self.fatal('model_type', f'there is no model {name!r}; {near(name, known)}')
        return model

    def as_the_model_does(self, model: Any, net: Any) -> None:
        """What our models refuse at their start, asked of a model that is never begun, if nothing is known to be wrong.

        Args:
            model: the class.
            net: network_g, None if it could not be built.
        """
        if not hasattr(model, 'train_keys') or any(problem.fatal for problem in self.found):
            return
        idle = object.__new__(model)
        idle.opt = {**self.opt, 'is_train': self.is_train, 'dist': True}
        idle.net_g = net
        try:
            idle._check_options(idle.opt)
            if net is not None:
                idle._check_tile_fits()
        except Exception as error:  # whatever a model raises stops the run
            self.fatal('model_type', one_line(error))

    def network(self, key: str) -> Any:
        option = self.opt[key]
        if option is None:
            return None
        before = len(self.found)
        if self.built(key, 'ARCH', option) is None or len(self.found) > before:
            return None
        try:
            with quiet():
                return network_on_meta(option)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            self.fatal(key, one_line(error))
        except Exception:  # a foreign network that cannot be built without memory is not at fault
            return None
        return None

    def scale(self, nets: Mapping[str, Any]) -> None:
        scale = self.opt.get('scale')
        for key, net in nets.items():
            upscale = getattr(net, 'upscale', None)
            if isinstance(scale, int) and isinstance(upscale, int) and upscale != scale:
                self.fatal(
                    f'{key}.upscale', f'must equal scale, got {upscale} and {scale}; say it once: scale: &scale {scale}'
                )

    def gpus(self) -> None:
        number = self.opt.get('num_gpu')
        if number != 'auto' and not isinstance(number, int):
            if number is not None:
                self.fatal('num_gpu', f'must be auto or a whole number, got {number!r}')
            return
        gpus = self.gpus_of_one_process()
        if gpus > 1 and self.is_train:
            launch = f'torchrun --nproc_per_node={gpus} -m basicsr.train -opt ... --launcher pytorch'
            if 'distill' in getattr(self.model_class, 'train_keys', ()):
                report = self.fatal if 'rank' in self.opt else self.warn
                report('num_gpu', f'{gpus} GPUs of one process cannot be distilled on; use {launch}, or num_gpu: 1')
            else:
                self.warn(
                    'num_gpu',
                    f'{gpus} GPUs without a launcher multiply the batch by {gpus} in one process; {launch} is faster',
                )
        if number == 'auto':
            return
        import torch

        there = torch.cuda.device_count()
        if number > there:
            report = self.fatal if 'rank' in self.opt else self.warn
            report('num_gpu', f'asks for {number} GPUs and {there} are visible; use auto, or 0 for the CPU')

    # ------------------------------------------------------------------ weights

    def path(self) -> None:
        path = self.section('path')
        known = dict(spec.PATH)
        for key in self.opt:
            if str(key).startswith('network_'):
                label = key.removeprefix('network_')
                for stem in ('pretrain_network', 'param_key', 'strict_load'):
                    known[f'{stem}_{label}'] = spec.PATH[f'{stem}_g']
        for name, value in list(path.items()):
            harmless = any(part in str(name) for part in spec.HARMLESS_IN_PATH)
            if name in known:
                if not self.value(f'path.{name}', value, known[name]):
                    del path[name]
            elif name not in spec.PATH_AT_RUN_TIME:
                match = get_close_matches(str(name), known, 1)
                hint = f'did you mean {match[0]!r}?' if match else near(name, known)
                if harmless and not match:
                    self.warn(f'path.{name}', f'nothing reads this option; {hint}')
                else:
                    makes = '' if harmless else ' and BasicSR makes a folder of it'
                    self.fatal(f'path.{name}', f'nothing reads this option{makes}; {hint}')

    def resuming(self) -> bool:
        path = self.section('path')
        if path.get('resume_state'):
            return True
        states = path.get('training_states')
        return bool(self.opt.get('auto_resume') and isinstance(states, str) and any(Path(states).glob('*.state')))

    def weights(self, nets: Mapping[str, Any], model: Any) -> None:
        path = self.section('path')
        state = path.get('resume_state')
        if isinstance(state, str) and self.is_train and not Path(state).expanduser().is_file():
            self.fatal('path.resume_state', f'{state} does not exist; check the path, or use --auto_resume')
        for key, net in nets.items():
            if self.opt[key] is None:
                continue
            label = key.removeprefix('network_')
            where = f'path.pretrain_network_{label}'
            file = path.get(f'pretrain_network_{label}')
            if file is None:
                if label == 'g' and not self.is_train:
                    self.warn(where, 'is not given, so the test runs with random weights')
                elif label == 't' and self.is_train:
                    self.fatal(where, 'is missing: the teacher needs weights')
            elif isinstance(file, str) and not (label == 't' and not self.is_train):
                self.checkpoint(where, label, Path(file).expanduser(), net, model)

    def checkpoint(self, where: str, label: str, file: Path, net: Any, model: Any) -> None:
        from basicsr_effsr.weights.checkpoint import CheckpointError, mismatch, read_state_dict

        path = self.section('path')
        report = self.warn if self.is_train and self.resuming() else self.fatal
        param_key = path.get(f'param_key_{label}', 'params' if label == 'g' else None)
        try:
            state = read_state_dict(file, param_key, net)
        except FileNotFoundError:
            report(where, f'{file} does not exist; check the path, or train or download it first')
            return
        except CheckpointError as error:
            report(where, str(error))
            return
        if net is None:
            return
        misfit = mismatch(net, state)
        if not misfit:
            return
        if path.get(f'strict_load_{label}', True):
            report(where, f'{file} does not fit {type(net).__name__}: {misfit}')
            return
        own = net.state_dict()
        fitting = sum(n in own and own[n].shape == t.shape for n, t in state.items())
        if not fitting:
            report(where, f'{file} shares no parameter with {type(net).__name__}: check network_{label}.type')
        else:
            self.warn(where, f'{fitting} of {len(own)} parameters will be loaded, the others start anew ({misfit})')

    # ------------------------------------------------------------------ data

    def phases(self) -> None:
        if not isinstance(self.opt.get('datasets'), dict):
            return  # which has been reported
        phases = [str(phase).split('_')[0] for phase in self.section('datasets')]
        wanted = ('train', 'val') if self.is_train else ('test', 'val')
        listed = 'train, val, val_2 ...' if self.is_train else 'test, test_2 ..., val, val_2 ...'
        for phase, full in zip(phases, self.section('datasets'), strict=True):
            if phase not in wanted or (phase == 'train' and full != phase):
                self.fatal(f'datasets.{full}', f'must be one of {listed}')
        if self.is_train and 'train' not in phases:
            self.fatal('datasets.train', 'is missing: there is nothing to train on')
        if not self.is_train and not phases:
            self.fatal('datasets.test_1', 'is missing: there is nothing to test')

    def dataset(self, phase: str, data: Any) -> None:
        where = f'datasets.{phase}'
        training = phase.startswith('train')
        if not isinstance(data, dict):
            self.fatal(where, f'must be a section, got {plain(data)}')
            return
        name = data.get('type')
        cls, known = lookup('DATASET', name)
        if cls is None:
            self.fatal(f'{where}.type', f'there is no data set {name!r}; {near(name, known)}')
            return
        paired = self.is_paired(data)
        before = len(self.found)
        needed: set[str] = set()
        if paired:
            needed = {'dataroot_gt'} | ({'gt_size', 'batch_size_per_gpu', 'num_worker_per_gpu'} if training else set())
            if 'Packed' not in str(name):
                needed.add('io_backend')
            if training and name == 'PairedImageDataset':
                needed |= {'use_hflip', 'use_rot'}
            table = {k: replace(v, required=v.required or k in needed) for k, v in spec.DATASET.items()}
            self.keys(where, data, table, strict=False)
            self.normalisation(where, data)
            if training and data.get('dataset_enlarge_ratio', 1) is None:
                self.missing(f'{where}.dataset_enlarge_ratio', 'give a number, or leave it out for 1')
            if (
                derives_from_ours(cls)
                and data.get('uint8')
                and (data.get('color') == 'y' or data.get('mean') is not None)
            ):
                self.fatal(f'{where}.uint8', 'cannot be combined with color, mean or std; drop one')
        backend = data.get('io_backend')
        if isinstance(backend, dict) and cls.__module__.split('.')[0] in ('basicsr', 'basicsr_effsr'):
            self.keys(f'{where}.io_backend', backend, spec.IO_BACKEND, strict=True)
            if backend.get('type') is None and 'io_backend' in needed:
                self.missing(f'{where}.io_backend.type', 'disk for folders, lmdb for LMDB')
        if not training and data.get('persistent_workers'):
            self.fatal(f'{where}.persistent_workers', 'must be left out: validation reads without workers')
        if training:
            self.loader(where, data, ours=derives_from_ours(cls))
        of_pairs = ('filename_tmpl', 'io_backend', 'dataroot_gt', 'dataroot_lq', 'meta_info_file')
        bad = {problem.where.removeprefix(f'{where}.').split('.')[0] for problem in self.found[before:]}
        if paired and not bad.intersection(of_pairs):
            self.pairs(phase, where, data, training)

    @staticmethod
    def is_paired(data: Any) -> bool:
        """True for the data sets whose options we know."""
        return isinstance(data, dict) and str(data.get('type')).removesuffix('_effsr') in spec.PAIRED

    def normalisation(self, where: str, data: Options) -> None:
        mean, std = data.get('mean'), data.get('std')
        for name, other, value in (('mean', 'std', mean), ('std', 'mean', std)):
            if value is not None and data.get(other) is None:
                self.fatal(f'{where}.{name}', f'needs {other} beside it; give both or neither')
            elif value is not None and len(value) not in (1, 1 if data.get('color') == 'y' else 3):
                self.fatal(f'{where}.{name}', f'must hold one number per channel, got {list(value)}')

    def channels(self, model: Any) -> None:
        """Channels of the networks against those of the images, of data sets whose options we know."""
        own = hasattr(model, 'train_keys') or self.opt.get('model_type') == 'SRModel'
        report = self.fatal if own else self.warn  # a model of others may put its own channels beside the image
        for key, training in (('network_g', False), ('network_t', True)):
            option = self.opt.get(key)
            cls = lookup('ARCH', option.get('type'))[0] if isinstance(option, dict) else None
            if cls is None or not isinstance(option, dict):
                continue
            for name in ('num_in_ch', 'num_out_ch'):
                parameter = inspect.signature(cls).parameters.get(name)
                number = option.get(name, parameter.default if parameter else None)
                if isinstance(number, bool) or not isinstance(number, int):
                    continue
                for phase, data in self.section('datasets').items():
                    if not self.is_paired(data) or (training and phase != 'train'):
                        continue
                    wanted, what = (1, 'color: y') if data.get('color') == 'y' else (3, 'RGB')
                    if number != wanted:
                        other = '; or take color: y out' if wanted == 1 else '; or set color: y there' * (number == 1)
                        report(
                            f'{key}.{name}',
                            f'must be {wanted}, the channels of datasets.{phase} ({what}), got {number}{other}',
                        )
                        break

    def loader(self, where: str, data: Options, ours: bool) -> None:
        workers, batch = data.get('num_worker_per_gpu'), data.get('batch_size_per_gpu')
        if not isinstance(workers, int) or not isinstance(batch, int):
            return
        if workers == 0 and data.get('persistent_workers') and not ours:
            self.fatal(
                f'{where}.persistent_workers', 'needs workers; set num_worker_per_gpu to 1 or more, or leave it out'
            )
        if workers > 0 and not data.get('persistent_workers'):
            cost = 'every epoch starts them anew' if ours else 'every epoch starts them anew and repeats their draws'
            self.warn(f'{where}.persistent_workers', f'is not set with {workers} workers, so {cost}; set it to true')
        cores = os.cpu_count() or 1
        if workers > cores:
            self.warn(f'{where}.num_worker_per_gpu', f'is {workers}, this machine has {cores} cores')
        if workers == 0 and batch >= 16 and self.opt.get('num_gpu') != 0:
            self.warn(f'{where}.num_worker_per_gpu', f'is 0, so a GPU waits while {batch} patches are read')
        if data.get('prefetch_mode') == 'cuda' and not data.get('pin_memory'):
            self.fatal(f'{where}.prefetch_mode', 'cuda needs pin_memory: true')

    def pairs(self, phase: str, where: str, data: Options, training: bool) -> None:
        scale, side = self.opt.get('scale'), data.get('gt_size')
        try:
            pairs = list_pairs(where, data)
        except (OSError, ValueError) as error:
            self.fatal(*_split(str(error), where))
            return
        self.images[phase] = Images(len(pairs))
        if not isinstance(scale, int):
            return
        patch = side // scale if training and isinstance(side, int) else 1
        if training and isinstance(side, int) and side % scale:
            self.fatal(f'{where}.gt_size', f'must be a multiple of scale {scale}, got {side}')
        every = self.every_image or not training or len(pairs) <= FEW_PAIRS or pairs[0].known is not None
        step = 1 if every else len(pairs) // SAMPLED_PAIRS
        sizes = []
        for pair in pairs[::step]:
            try:
                gt, lq = pair.sizes()
            except (OSError, ValueError) as error:
                self.fatal(where, str(error))
                return
            try:
                check_sizes(pair.gt, pair.lq, gt, lq, scale, training=training)
            except ValueError as error:
                self.fatal(f'{where}.dataroot_lq', str(error))
                return
            sizes.append(lq)
        if not training:  # few images, each of which would stop the run in its first validation
            damaged = undecodable([file for pair in pairs if pair.known is None for file in (pair.gt, pair.lq)])
            if damaged:
                self.fatal(where, damaged)
                return
        smallest = (min(s[0] for s in sizes), min(s[1] for s in sizes)) if sizes else None
        self.images[phase].smallest_lq = smallest
        if smallest and min(smallest) < patch:
            self.fatal(
                f'{where}.gt_size',
                f'needs LR images of at least {patch} pixels a side, the smallest is {smallest[1]}x{smallest[0]}; '
                'lower gt_size or leave the image out',
            )

    # ------------------------------------------------------------------ training

    def training(self, model: Any, nets: Mapping[str, Any]) -> None:
        train = self.section('train')
        if not train:
            self.missing('train', 'it says how to train')
            return
        ours = getattr(model, 'train_keys', None)
        known = spec.TRAIN if ours is None else {k: v for k, v in spec.TRAIN.items() if k in ours}
        foreign = ours is None and model is not None and str(self.opt.get('model_type')) != 'SRModel'
        if ours is None:
            known = {k: v for k, v in spec.TRAIN.items() if ': EffSRModel' not in v.doc and ': Distill' not in v.doc}
        read = _keys_read(model) if foreign else set()
        self.keys('train', train, known, others=ours or read, strict=not foreign, open_ended=foreign)
        if not self.section('logger'):
            self.missing('logger', 'BasicSR reads print_freq, save_checkpoint_freq and use_tb_logger')
        else:
            self.keys('logger', self.section('logger'), spec.LOGGER, strict=False)
            if isinstance(self.section('logger').get('wandb'), dict):
                self.keys('logger.wandb', self.section('logger')['wandb'], spec.WANDB, strict=False)
        if isinstance(train.get('compile'), dict):
            self.keys('train.compile', train['compile'], spec.COMPILE, strict=True)
        self.losses(train, {*known, *read})
        for key in [k for k in train if str(k).startswith('optim_')]:
            self.optimizer(key, train[key], ours is not None)
        self.scheduler(train)
        self.stages(train)
        self.patch(train, nets)
        self.iterations(train)
        if isinstance(train.get('distill'), dict):
            self.distillation(train['distill'], nets)
        if 'debug' in str(self.opt.get('name')):
            self.warn('name', 'holds "debug", so BasicSR validates every 8 and prints every iteration')

    def losses(self, train: Options, known: Iterable[str]) -> None:
        """Every loss by its signature, and built once.

        Args:
            train: the section.
            known: its keys that the model is known to read.
        """
        named = {}
        for key, option in train.items():
            if not option or not str(key).endswith('_opt'):
                continue
            theirs = isinstance(option, dict) and lookup('LOSS', option.get('type'))[0] is not None
            if key in known or theirs:  # a section of a foreign model need not be a loss
                named[f'train.{key}'] = option
        group = train.get('losses')
        for name, option in group.items() if isinstance(group, Mapping) else ():
            if option is None:
                continue  # as the model does
            named[f'train.losses.{name}'] = option
            if not str(name).startswith('l_'):
                self.warn(f'train.losses.{name}', 'should start with l_, so that the loggers put it among the losses')
        if not named and not train.get('distill') and self.opt.get('model_type') in ('SRModel', 'EffSRModel'):
            self.fatal('train.losses', 'names no loss; give losses, or pixel_opt as BasicSR does')
        for where, option in named.items():
            self.loss(where, option)

    def loss(self, where: str, option: Any) -> None:
        before = len(self.found)
        cls = self.built(where, 'LOSS', option)
        if cls is None or any(problem.fatal for problem in self.found[before:]):
            return
        if not cls.__module__.startswith(BUILT_LOSSES) or cls.__name__ == 'PerceptualLoss':
            return  # it may fetch weights
        import torch

        arguments = {key: value for key, value in option.items() if key != 'type'}
        fetches = bool(arguments.get('download'))
        if fetches:
            arguments['download'] = False
        try:
            with torch.random.fork_rng(devices=[]):
                cls(**arguments)
        except FileNotFoundError as error:
            if not fetches:
                self.fatal(where, one_line(error))
        except Exception as error:  # whatever the constructor raises stops the run
            self.fatal(where, one_line(error))

    def optimizer(self, key: str, option: Any, ours: bool) -> None:
        """An optimizer by the signature of its class, and built once.

        Args:
            key: ``optim_g`` or another.
            option: its section.
            ours: the model takes any optimizer of torch.
        """
        where = f'train.{key}'
        if not isinstance(option, dict):
            if option is not None:
                self.fatal(where, f'must be a section with a type, got {plain(option)}')
            return
        import torch

        base = torch.optim.Optimizer
        classes = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base)}
        known = [name for name, cls in classes.items() if cls is not base]
        kind = option.get('type')
        if kind not in known:
            self.fatal(f'{where}.type', f'torch.optim has no {kind!r}; {near(kind, known)}')
            return
        cls = getattr(torch.optim, str(kind))
        if inspect.signature(cls.step).parameters['closure'].default is inspect.Parameter.empty:
            self.fatal(f'{where}.type', f'{kind} needs several backward passes per iteration; take Adam, AdamW or SGD')
            return
        accepted, _ = spec.keys_of(cls, ('params',))
        kinds = {k: spec.OPTIMIZER.get(k, Key((), '')) for k in accepted}
        if self.keys(where, option, {**kinds, 'type': Key(spec.STR, '')}, strict=True):
            arguments = {k: v for k, v in option.items() if k != 'type'}
            try:
                cls([torch.nn.Parameter(torch.zeros(1))], **arguments)
            except Exception as error:  # whatever the constructor raises stops the run
                self.fatal(where, f'{kind} cannot be made: {one_line(error)}')
        if not ours and kind != 'Adam':
            self.warn(f'{where}.type', f"{kind} works with BasicSR's head, its release 1.4.2 knows Adam only")

    def scheduler(self, train: Options) -> None:
        from basicsr.models import lr_scheduler

        option, total = train.get('scheduler'), train.get('total_iter')
        if not isinstance(option, dict):
            return
        kind = option.get('type')
        if not isinstance(kind, str) or kind not in spec.SCHEDULERS:
            self.fatal('train.scheduler.type', f'BasicSR has no {kind!r}; {near(kind, spec.SCHEDULERS)}')
            return
        target = getattr(lr_scheduler, spec.SCHEDULERS[str(kind)])
        accepted, _ = spec.keys_of(target, ('optimizer', 'last_epoch'))
        known = {k: replace(spec.SCHEDULE.get(k, key), required=key.required) for k, key in accepted.items()}
        if not self.keys('train.scheduler', option, {**known, 'type': Key(spec.STR, '')}, strict=True):
            return
        before = len(self.found)
        self.schedule(option, total)
        if not any(problem.fatal for problem in self.found[before:]):
            import torch

            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
            try:
                target(optimizer, **{k: v for k, v in option.items() if k != 'type'})
            except Exception as error:  # whatever the constructor raises stops the run
                self.fatal('train.scheduler', f'{kind} cannot be made: {one_line(error)}')

    def schedule(self, option: Options, total: Any) -> None:
        """Milestones and periods against the iterations of the run, weights against restarts."""
        if not isinstance(total, int | float):
            return
        milestones, periods = option.get('milestones'), option.get('periods')
        if isinstance(milestones, list) and [m for m in milestones if m >= total]:
            self.warn('train.scheduler.milestones', f'some are never reached in {total:g} iterations: {milestones}')
        if isinstance(periods, list) and sum(periods) < total:
            self.fatal('train.scheduler.periods', f'must sum up to total_iter {total:g} at least, got {sum(periods):g}')
        weights = option.get('restart_weights', [1])
        partner = periods if periods is not None else option.get('restarts', [0])
        if isinstance(weights, list) and isinstance(partner, list) and len(weights) != len(partner):
            name = 'periods' if periods is not None else 'restarts'
            self.fatal(
                'train.scheduler.restart_weights', f'must be as many as {name}, got {len(weights)} and {len(partner)}'
            )

    def stages(self, train: dict[str, Any]) -> None:
        """``train.progressive``; taken out if it cannot be followed."""
        from basicsr_effsr.data.course import Plan

        progressive = train.get('progressive')
        if not isinstance(progressive, dict):
            return
        source = self.training_set()
        if progressive and source is not None and not derives_from_ours(source):
            self.fatal('train.progressive', f'{source.__name__} cannot change its patches; use EffSRPairedDataset')
        fine = self.keys('train.progressive', progressive, spec.PROGRESSIVE, strict=True)
        try:
            if fine:
                Plan(1, progressive or {'gt_size': [], 'iters': []})
        except (ValueError, TypeError) as error:
            self.fatal('train.progressive', one_line(error).removeprefix('train.progressive').lstrip(': '))
            fine = False
        if not fine:
            del train['progressive']

    def training_set(self) -> Any:
        """The class of datasets.train, None if there is none of that name."""
        data = self.section('datasets').get('train')
        return lookup('DATASET', data.get('type'))[0] if isinstance(data, dict) else None

    def patch(self, train: Options, nets: Mapping[str, Any]) -> None:
        """Patches against the networks' least input, and against ``accumulate``."""
        data, scale = self.section('datasets').get('train'), self.opt.get('scale')
        if not isinstance(data, dict) or not isinstance(scale, int):
            return
        sides: list[Any] = [data.get('gt_size')]
        batches = [data.get('batch_size_per_gpu')]
        where = 'datasets.train.gt_size'
        progressive = train.get('progressive')
        if isinstance(progressive, dict):
            where, sides = 'train.progressive.gt_size', progressive['gt_size']
            batches = progressive.get('batch') or batches
        images = self.images.get('train')
        for side in sides if where.startswith('train') else ():
            if side % scale:
                self.fatal(where, f'must hold multiples of scale {scale}, got {side}')
            elif images and images.smallest_lq and min(images.smallest_lq) < side // scale:
                self.fatal(
                    where,
                    f'{side} needs LR images of at least {side // scale} pixels a side, the smallest is '
                    f'{images.smallest_lq[1]}x{images.smallest_lq[0]}; lower it or leave the image out',
                )
        smallest = min((s for s in sides if isinstance(s, int)), default=0) // scale
        for key, net in nets.items():
            least = getattr(net, 'min_size', 1)
            if net is not None and 0 < smallest < least:
                self.fatal(
                    where,
                    f'gives LR patches of {smallest} pixels, {type(net).__name__} ({key}) needs {least}; take at least '
                    f'{least * scale}',
                )
        parts = train.get('accumulate')
        for batch in batches:
            if isinstance(parts, int) and isinstance(batch, int) and batch % parts:
                self.fatal('train.accumulate', f'must divide the batch of {batch}, got {parts}')

    def least_input(self, net: Any) -> None:
        """Images of validation and testing against the network's least input."""
        least = getattr(net, 'min_size', 1)
        for phase, images in self.images.items():
            if phase.startswith('train') or images.smallest_lq is None or min(images.smallest_lq) >= least:
                continue
            self.fatal(
                f'datasets.{phase}.dataroot_lq',
                f'{type(net).__name__} needs LR images of at least {least} pixels a side, the smallest side is '
                f'{min(images.smallest_lq)}; leave the image out',
            )

    def gpus_of_one_process(self) -> int:
        """By so many BasicSR multiplies the batch of a loader: num_gpu, but not if a launcher starts the processes."""
        number = self.opt.get('num_gpu')
        if self.opt.get('dist'):
            return 1
        if number == 'auto':
            import torch

            number = torch.cuda.device_count()
        return max(number, 1) if isinstance(number, int) else 1

    def course(self) -> Course | None:
        """What the training will go through; None if it cannot be said."""
        data, train = self.section('datasets').get('train'), self.section('train')
        images, total = self.images.get('train'), train.get('total_iter')
        if not isinstance(data, Mapping) or images is None or not images.count or not isinstance(total, int | float):
            return None
        batch, ratio = data.get('batch_size_per_gpu'), data.get('dataset_enlarge_ratio', 1)
        if not isinstance(batch, int) or not isinstance(ratio, int | float):
            return None
        from basicsr_effsr.data.course import Plan, enlarge_ratio_for, iterations_that_run

        multiplier, progressive = self.gpus_of_one_process(), train.get('progressive')
        if isinstance(progressive, dict) and progressive.get('batch'):
            progressive = {**progressive, 'batch': [samples * multiplier for samples in progressive['batch']]}
        plan = Plan(batch * multiplier, progressive)
        world = self.opt.get('world_size')
        world = world if isinstance(world, int) and world > 0 else 1
        arguments = (plan, images.count, ratio, world, batch, int(total))
        runs = iterations_that_run(*arguments)
        samples = math.ceil(images.count * ratio / world)
        epochs = done = 0
        while done < runs:
            stage = plan.at(done)
            whole = samples // stage.batch
            alike = (min(stage.end or runs, runs) - done - 1) // whole if whole else 0  # within one stage
            done += alike * whole or plan.iterations(samples, done)
            epochs += max(alike, 1)
        begins = [0, *(min(stage.end, runs) for stage in plan.stages if stage.end is not None), runs]
        return Course(
            asked=int(total),
            runs=runs,
            ratio=int(ratio) if runs >= total else enlarge_ratio_for(*arguments),
            epochs=epochs,
            per_epoch=[samples // stage.batch for stage in plan.stages],
            batches=[stage.batch * world for stage in plan.stages],
            patches=sum(
                (end - begin) * stage.batch * world
                for stage, (begin, end) in zip(plan.stages, pairwise(begins), strict=True)
            ),
        )

    def iterations(self, train: Options) -> None:
        course, gpus = self.course(), self.gpus_of_one_process()
        if course is None:
            return
        images = self.images['train'].count
        least = math.ceil(max(course.batches) / images) if derives_from_ours(self.training_set()) else 1
        if course.runs < course.asked:
            reason = 'the last incomplete batch of every epoch is dropped'
            if gpus > 1:
                reason += f' and {gpus} GPUs of one process take {gpus} times the batch'
            self.fatal(
                'datasets.train.dataset_enlarge_ratio',
                f'with {images} images training would end after {course.runs} of {course.asked} iterations, because '
                f'{reason}; set it to {max(course.ratio, least)}',
            )
        elif not min(course.per_epoch) and derives_from_ours(self.training_set()):
            self.fatal(
                'datasets.train.dataset_enlarge_ratio',
                f'with {images} images an epoch has fewer than the {max(course.batches)} patches of the largest '
                f'batch, so a stage would have no iteration; set it to at least {least}',
            )
        progressive = train.get('progressive')
        if isinstance(progressive, dict) and sum(progressive['iters']) > course.asked:
            self.warn(
                'train.progressive.iters', f'sum up to {sum(progressive["iters"])}, the run ends after {course.asked}'
            )

    def distillation(self, distill: dict[str, Any], nets: Mapping[str, Any]) -> None:
        self.keys('train.distill', distill, spec.DISTILL, strict=True)
        if self.opt.get('network_t') is None:
            self.missing('network_t', 'train.distill needs a teacher')
        if distill.get('feature_loss') is not None:
            self.loss('train.distill.feature_loss', distill['feature_loss'])
        pairs = distill.get('feature_pairs')
        if not isinstance(pairs, Mapping):
            return
        for key, names in (('network_g', list(pairs)), ('network_t', list(pairs.values()))):
            net = nets.get(key)
            if net is None:
                continue
            modules = [name for name, _ in net.named_modules() if name]
            for name in names:
                if name not in modules:
                    self.fatal(
                        'train.distill.feature_pairs',
                        f'{type(net).__name__} ({key}) has no submodule {name!r}; {near(name, modules)}',
                    )

    # ------------------------------------------------------------------ validation

    def validation(self, model: Any) -> None:
        val = self.opt.get('val')
        phases = [str(phase) for phase in self.section('datasets') if not str(phase).startswith('train')]
        if not isinstance(val, dict):
            if not self.is_train:
                self.missing('val', 'it says what to measure and whether to save images')
            elif phases:
                self.warn('val', f'is missing, so {phases[0]} is never used')
            return
        ours = getattr(model, 'val_keys', None)
        known = {k: v for k, v in spec.VAL.items() if ours is None or k in ours}
        self.keys('val', val, known, others=ours or (), strict=ours is not None)
        if self.is_train and val.get('val_freq') is None:
            self.missing('val.val_freq', 'iterations between validations')
        if 'save_img' not in val:
            self.missing('val.save_img', 'true or false')
        if not self.is_train and val.get('save_img') and 'suffix' not in val and ours is None:
            self.missing('val.suffix', 'BasicSR reads it when it saves images; null is a value')
        tile = val.get('tile')
        if isinstance(tile, dict) and self.keys('val.tile', tile, spec.TILE, strict=True):
            overlap = tile.get('overlap') or 0
            if overlap >= tile['size'] and tile.get('blend') != 'halo':
                self.fatal('val.tile.overlap', f'must be less than size {tile["size"]}, got {overlap}')
        metrics = val.get('metrics')
        for name, option in metrics.items() if isinstance(metrics, dict) else ():
            where = f'val.metrics.{name}'
            extras = dict(spec.METRIC_EXTRAS)
            function = lookup('METRIC', option.get('type'))[0] if isinstance(option, dict) else None
            if function is not None and 'crop_border' in spec.keys_of(function)[0]:
                extras['crop_border'] = Key(spec.INT, 'pixels left out at every side', required=True, least=0)
            self.built(where, 'METRIC', option, extras=extras, skip=('img', 'img2'))
            if isinstance(option, dict) and isinstance(option.get('crop_border'), int):
                self.border(f'{where}.crop_border', option['crop_border'], phases)

    def border(self, where: str, border: int, phases: Iterable[str]) -> None:
        scale = self.opt.get('scale')
        if not isinstance(scale, int):
            return
        for phase in phases:
            images = self.images.get(phase)
            smallest = images.smallest_lq if images else None
            if smallest and 2 * border >= min(smallest) * scale:
                self.fatal(
                    where,
                    f'leaves nothing of an HR image of {smallest[1] * scale}x{smallest[0] * scale} in {phase}, got '
                    f'{border}; papers crop {scale} pixels, the scale',
                )
                return
        if border != scale:
            self.warn(where, f'is {border}; papers crop {scale} pixels, the scale')


def _split(message: str, where: str) -> tuple[str, str]:
    head, separator, rest = message.partition(': ')
    return (head, rest) if separator and head.startswith('datasets.') else (where, message)
