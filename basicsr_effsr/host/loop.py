"""What replaces functions of BasicSR's training loop when an option file names our classes; and the folder of a run.

The host's loop lives in ``basicsr/train.py`` and takes these names from its own globals;
``adapt.py`` puts ours there. Reasons:

* ``load_resume_state``: the host needs a GPU to resume (1.4.2 and head), picks the newest state even
  if it is truncated, and looks for a frozen teacher among the run's own checkpoints.
* ``EnlargedSampler``, ``build_dataloader``: the host starts an epoch again after a resume, its workers
  repeat their draws in every epoch, and it silently ends a run early.
* ``init_tb_logger``: what it cannot write ends the host in two tracebacks that name no file.
* ``init_wandb_logger``: the host asks wandb for a function that current versions do not have.
* ``CPUPrefetcher``, ``CUDAPrefetcher``: a signal ends the host in a traceback, with nothing saved.
* ``MessageLogger``: the host gives tensorboard no learning rates, and a negative ETA at the end.
* ``dict2str``: the host logs all options, and the run is one of them.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import weakref
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.data.course import StagePlan, enlarge_ratio_for, epoch_at, iterations_that_run
from basicsr_effsr.data.sampler import PlannedBatches, ResumableSampler, make_loader
from basicsr_effsr.host.ending import event_logger, stoppable
from basicsr_effsr.host.watch import init_wandb_logger, with_rates
from basicsr_effsr.models.run_state import RunState, leaves, read_side_file, recipe, side_file
from basicsr_effsr.options.problem import Problem
from basicsr_effsr.utils.distributed import active, first, from_all
from basicsr_effsr.utils.files import read_text, sweep_parts
from basicsr_effsr.utils.stored import CheckpointError, load_stored, not_finite
from basicsr_effsr.weights.checkpoint import read_state_dict

Options = dict[str, Any]


def warn(message: str) -> None:
    """Said once, however many ranks there are."""
    if first():
        logging.getLogger('basicsr').warning(message)
        print(f'basicsr_effsr: {message}', flush=True)  # noqa: T201 (the host's logger does not exist yet)


def take_folder(opt: Options) -> list[Problem]:
    """Makes this process the one that writes the folder of a run, and removes what a killed one left in it.

    It is so until ``opt`` is dropped or the process ends, however it ends. The lock lies beside the folder, which
    BasicSR renames when a run begins. Reading is free. Gives a problem if another process writes the folder, or nobody
    can.
    """
    folder = Path(opt['path']['experiments_root' if opt['is_train'] else 'results_root']).absolute()
    lock = FileLock(folder.with_name(f'.{folder.name}.lock'), blocking=False, thread_local=False, is_singleton=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        who = 'another process'
        with suppress(OSError, ValueError):  # not readable on Windows; or not written by us
            who = read_text(lock.lock_file).strip() or who
        return [Problem('name', f'{folder} is being written by {who}; wait for it, stop it, or choose another name')]
    except OSError as error:
        return [Problem('name', f'{folder} cannot be written: {error}')]
    with suppress(OSError):
        Path(lock.lock_file).write_text(f'process {os.getpid()} on {platform.node()}', encoding='utf-8')
    atexit.register(weakref.finalize(opt, _leave_folder, lock, os.getpid()))  # before filelock's own end of a process
    sweep_parts(folder)
    return []


def _leave_folder(lock: BaseFileLock, owner: int) -> None:
    if os.getpid() == owner:  # and not a loader process, which a fork gave the same objects
        with suppress(OSError):  # Windows removes no open file
            if lock.lock_counter == 1:
                Path(lock.lock_file).unlink()
        lock.release()


def _read_state(file: Path) -> dict[str, Any]:
    fix = 'give a whole file of training_states/; weights belong in path.pretrain_network_g'
    try:
        state = load_stored(file)
    except (CheckpointError, FileNotFoundError) as error:
        raise CheckpointError(f'path.resume_state: {error}; {fix}') from error
    match state:
        case {'epoch': int(), 'iter': int(), 'optimizers': [*optimizers], 'schedulers': [*schedulers]} if all(
            isinstance(one, dict) and {'state', 'param_groups'} <= one.keys() for one in optimizers
        ) and all(isinstance(one, dict) for one in schedulers):
            if bad := not_finite([one['state'] for one in optimizers]):
                raise CheckpointError(f'path.resume_state: {file} is NaN or infinite in optimizers.{bad}; {fix}')
            return state
    found = sorted(map(str, state))[:4] if isinstance(state, dict) else type(state).__name__
    words = f'must hold epoch, iter, optimizers and schedulers, and holds {found}'
    raise CheckpointError(f'path.resume_state: {file} {words}; {fix}')


def _check_companions(opt: Options, state: Path, iteration: int) -> None:
    """All that belongs to a state must be readable too: networks, adapters, the side file of every rank."""
    labels = {key.removeprefix('network_') for key in opt if key.startswith('network_')}
    sides = [side_file(state), *sorted(state.parent.glob(f'{state.stem}.rank*.effsr'))]
    if not sides[0].is_file():  # lost; those of the run's other checkpoints name the same networks
        sides += sorted(state.parent.glob('*.effsr'))
    for side in sides:
        labels |= set(read_side_file(side).get('networks', ()))
    ignored = {key.removeprefix('network_') for key in opt['path'].get('ignore_resume_networks') or ()}
    for label in sorted(labels - ignored):
        read_state_dict(Path(opt['path']['models']) / f'net_{label}_{iteration}.pth')


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """BasicSR's function of this name; works without a GPU and steps back over a broken checkpoint.

    Puts the run that is resumed into the options, as ``run_state``.

    Raises:
        CheckpointError, FileNotFoundError: ``path.resume_state`` or what belongs to it cannot be read, or every state
            of the run is broken.
    """
    from basicsr.utils import check_resume

    if 'network_t' in opt:
        ignored = opt['path'].get('ignore_resume_networks') or []
        opt['path']['ignore_resume_networks'] = sorted({*ignored, 'network_t'})
    named, files = opt['path'].get('resume_state'), []
    if opt['auto_resume']:
        states = Path(opt['path']['training_states']).glob('*.state')
        mine = [file for file in states if re.fullmatch('[0-9]+', file.stem)]  # not a user's copies
        files = sorted(mine, key=lambda file: int(file.stem), reverse=True)
    elif named:
        files = [Path(named)]
    for file in files:
        try:
            state = _read_state(file)
            _check_companions(opt, file, state['iter'])
            run = RunState.load(file, opt.get('rank', 0))
        except (CheckpointError, FileNotFoundError) as error:
            if not opt['auto_resume']:
                raise
            warn(f'{error}; using the checkpoint before it')
            continue
        opt['path']['resume_state'] = str(file)
        asked = {key: value for key, value in opt['path'].items() if key.startswith('param_key_')}
        check_resume(opt, state['iter'])
        ignored = opt['path'].get('ignore_resume_networks') or []
        for key, value in asked.items():  # the host puts params for params_ema alone, and everywhere
            opt['path'][key] = value if key.replace('param_key_', 'network_') in ignored else 'params'
        if run.seed is not None and run.seed != opt['manual_seed']:  # without manual_seed BasicSR draws another
            warn(f'manual_seed: using {run.seed} from the resumed state, not {opt["manual_seed"]}')
            opt['manual_seed'] = run.seed
        run.seed, run.resumed, opt['run_state'] = opt['manual_seed'], state, run
        return state
    if files:
        raise CheckpointError(f'no state in {files[0].parent} can be read; move the folder away to start again')
    return None


def _settle(run: RunState, sampling: Options, plan: StagePlan, samples: int) -> tuple[int, int]:
    """(epoch, iterations before it) since which samples have been drawn like this; remembered in ``run.sampling``.

    Where they were drawn otherwise before, epochs have another length now. The host ends a run after a number of
    epochs, so the run goes on in the epoch that the new plan has reached at its iteration. The host takes the epoch
    from the resumed state, and only after the data set is known: it is put right there. ``sampling`` is empty for a
    data set of the host, which starts again; ``samples`` are those of an epoch and rank.
    """
    state, anchor = run.resumed, (0, 0)
    before = {key: value for key, value in run.sampling.items() if key != 'anchor'}
    if state is not None and sampling and before == sampling:
        anchor = tuple(run.sampling['anchor'])
    elif state is not None:
        epoch, done = epoch_at(plan, samples, state['iter']), state['iter']
        # BasicSR's own model does not save how samples were drawn; its state may fit what is drawn now
        known = sampling and not before and done and state['epoch'] == epoch_at(plan, samples, done - 1)
        if not known:
            anchor, state['epoch'] = (epoch, done), epoch
            changed = [key for key in sampling if before.get(key) != sampling[key]]
            had, has = ({key: of.get(key) for key in changed} for of in (before, sampling))
            reason = 'its data set starts the epoch again, where EffSRPairedDataset continues'
            reason = f'it had {had} and now has {has}' if sampling else reason
            if done:
                warn(f'the run continues with the first sample of epoch {epoch}, not exactly: {reason}')
    run.sampling = {**sampling, 'anchor': list(anchor)} if sampling else {}
    return anchor


def _same_on_all_ranks(opt: Options, phase: str, dataset: Any) -> None:
    """Compares options, state and images, which machines may have each its own of."""
    if not active():
        return
    names = getattr(dataset, 'paths', None) or getattr(dataset, 'pairs', None)
    facts = dict(leaves({**recipe(opt), 'train': opt.get('train') or {}}))
    facts['path.resume_state: iteration'] = (opt['run_state'].resumed or {}).get('iter')
    facts[f'datasets.{phase}: number of images'] = len(dataset)
    facts[f'datasets.{phase}: checksum of their names'] = zlib.crc32(repr(names).encode(errors='replace'))
    ranks = from_all(facts)
    for rank, found in enumerate(ranks):
        for what in {**ranks[0], **found}:
            here, there = ranks[0].get(what), found.get(what)
            if here != there:
                words = f'{what} is {here} on rank 0 and {there} on rank {rank}'
                raise ValueError(f'{words}; all need the same option file, images and experiments/')


def replacements(opt: Options) -> dict[str, Any]:
    """Name in ``basicsr.train`` -> what to put there, for a run with these options.

    The run itself (``RunState``) becomes the entry ``run_state`` of the options.
    """
    from basicsr.data import build_dataloader as host_loader
    from basicsr.data.data_sampler import EnlargedSampler as HostSampler
    from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
    from basicsr.utils import MessageLogger
    from basicsr.utils.options import dict2str

    opt['run_state'] = RunState(seed=opt['manual_seed'], made_with=recipe(opt))

    def sampler(dataset: Any, num_replicas: int, rank: int, ratio: float = 1) -> Any:
        if not derives_from_ours(type(dataset)):
            return HostSampler(dataset, num_replicas, rank, ratio)
        return ResumableSampler(dataset, num_replicas, rank, ratio, seed=opt['manual_seed'])

    def loader(dataset: Any, dataset_opt: Options, num_gpu: int = 1, dist: bool = False, **others: Any) -> Any:
        phase, ours = dataset_opt['phase'], derives_from_ours(type(dataset))
        _same_on_all_ranks(opt, phase, dataset)
        if dataset_opt.get('uint8') and lookup('MODEL', opt['model_type'])[0].__module__.startswith('basicsr.'):
            words = f'{opt["model_type"]} of BasicSR cannot read bytes; use EffSRModel, or remove uint8'
            raise ValueError(f'datasets.{phase}.uint8: {words}')
        if phase != 'train':
            return host_loader(dataset, dataset_opt, num_gpu=num_gpu, dist=dist, **others)
        stages = opt['train'].get('progressive')
        if not ours and stages:
            words = f'{type(dataset).__name__} cannot change its patch size; use EffSRPairedDataset'
            raise ValueError(f'train.progressive: {words}')
        run: RunState = opt['run_state']  # a resumed one has taken the place of the new one
        for line in run.compare(recipe(opt)):
            warn(line)
        multiplier = 1 if dist else max(num_gpu, 1)
        plan = StagePlan(dataset_opt['batch_size_per_gpu'], stages, multiplier)
        source, total = others['sampler'], int(opt['train']['total_iter'])
        ratio, world = dataset_opt.get('dataset_enlarge_ratio', 1), source.num_replicas
        arguments = (plan, len(dataset), ratio, world, dataset_opt['batch_size_per_gpu'])
        if ours:
            PlannedBatches(source, plan)  # refuses an epoch without a batch, in words
        sampling = {'images': len(dataset), 'ratio': ratio, 'world_size': world, 'stages': str(plan.stages)}
        anchor = _settle(run, sampling if ours else {}, plan, len(source))
        runs = iterations_that_run(*arguments, total, anchor)
        if runs < total:
            words = f'training would end after {runs} of {total} iterations, because every epoch drops its last'
            ratio = enlarge_ratio_for(*arguments, total)
            raise ValueError(f'{words} incomplete batch; set dataset_enlarge_ratio to {ratio}')
        if not ours:
            return host_loader(dataset, dataset_opt, num_gpu=num_gpu, dist=dist, **others)
        if dataset_opt.get('prefetch_mode') == 'cpu':
            warn('datasets.train.prefetch_mode: cpu adds no queue to loader processes; set num_worker_per_gpu')
        at = (run.resumed['epoch'], run.resumed['iter']) if run.resumed else (0, 0)
        return make_loader(dataset, dataset_opt, PlannedBatches(source, plan, at, anchor), multiplier=multiplier)

    return {
        'load_resume_state': load_resume_state,
        'EnlargedSampler': sampler,
        'build_dataloader': loader,
        'init_tb_logger': event_logger,
        'init_wandb_logger': init_wandb_logger,
        'CPUPrefetcher': stoppable(CPUPrefetcher),
        'CUDAPrefetcher': stoppable(CUDAPrefetcher),
        'MessageLogger': with_rates(MessageLogger),
        'dict2str': lambda options: dict2str({k: v for k, v in options.items() if k != 'run_state'}),
    }
