"""The folder of a run: that nobody else writes it, and the state in it from which the run goes on."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout

from basicsr_effsr.models.run_state import RunState, read_side_file, side_file
from basicsr_effsr.options.problem import Problem
from basicsr_effsr.utils.distributed import first
from basicsr_effsr.utils.files import sweep_parts
from basicsr_effsr.weights.checkpoint import CheckpointError, read_state_dict

Options = dict[str, Any]


def warn(message: str) -> None:
    """Said once, however many ranks there are."""
    if first():
        logging.getLogger('basicsr').warning(message)
        print(f'basicsr_effsr: {message}', flush=True)  # noqa: T201 (the host's logger does not exist yet)


def take_folder(opt: Options) -> list[Problem]:
    """Makes this process the one that writes the run's folder, and sweeps what a killed one left in it.

    It is so until ``opt`` is dropped or the process ends, however it ends. The lock lies beside the folder, which
    BasicSR renames when a run begins. Reading is free.

    Args:
        opt: as BasicSR has parsed it, of a class that can be referred to weakly.

    Returns:
        a problem if another process writes the folder, or nobody can.
    """
    folder = Path(opt['path']['experiments_root']).absolute()
    lock = FileLock(folder.with_name(f'.{folder.name}.lock'), blocking=False, thread_local=False, is_singleton=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        who = 'another process'
        with suppress(OSError):  # Windows lets nobody read it
            who = Path(lock.lock_file).read_text(encoding='utf-8') or who
        return [Problem('name', f'{folder} is being written by {who}; wait for it, stop it, or take another name')]
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
    if not file.is_file():
        raise CheckpointError(f'path.resume_state: {file} does not exist; give a file of training_states/')
    try:
        state = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a truncated or foreign file
        raise CheckpointError(
            f'path.resume_state: {file} cannot be read ({type(error).__name__}), it is truncated or of another kind; '
            'give a whole file of training_states/'
        ) from error
    if not _is_state(state):
        found = sorted(map(str, state))[:4] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f'path.resume_state: {file} must be a file of training_states/ with epoch, iter, optimizers and '
            f'schedulers, and holds {found}; weights belong in path.pretrain_network_g'
        )
    return state


def _is_state(state: Any) -> bool:
    match state:
        case {'epoch': int(), 'iter': int(), 'optimizers': [*optimizers], 'schedulers': [*schedulers]}:
            fields = [one for one in optimizers if isinstance(one, dict) and {'state', 'param_groups'} <= one.keys()]
            return len(fields) == len(optimizers) and all(isinstance(one, dict) for one in schedulers)
    return False


def _check_companions(opt: Options, state: Path, iteration: int) -> None:
    """All that belongs to a state must be readable too: networks, adapters, the side file of every rank."""
    labels = {key.removeprefix('network_') for key in opt if key.startswith('network_')}
    for side in (side_file(state), *sorted(state.parent.glob(f'{state.stem}.rank*.effsr'))):
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
    if opt['auto_resume']:
        folder = Path(opt['path']['training_states'])
        states = [file for file in folder.glob('*.state') if re.fullmatch('[0-9]+', file.stem)]  # not a user's copies
        files = sorted(states, key=lambda file: int(file.stem), reverse=True)
    else:
        named = opt['path'].get('resume_state')
        files = [Path(named)] if named else []
    for file in files:
        try:
            state = _read_state(file)
            _check_companions(opt, file, state['iter'])
            run = RunState.load(file, opt.get('rank', 0))
        except (CheckpointError, FileNotFoundError) as error:
            if not opt['auto_resume']:
                raise
            warn(f'{error}; going back to the checkpoint before it')
            continue
        opt['path']['resume_state'] = str(file)
        asked = {key: value for key, value in opt['path'].items() if key.startswith('param_key_')}
        check_resume(opt, state['iter'])
        ignored = opt['path'].get('ignore_resume_networks') or []
        for (
            key,
            value,
        ) in asked.items():  # the host puts params for params_ema alone, and everywhere
            opt['path'][key] = value if key.replace('param_key_', 'network_') in ignored else 'params'
        if run.seed is not None and run.seed != opt['manual_seed']:  # without manual_seed BasicSR draws another
            warn(f'manual_seed: {run.seed} of the resumed state counts, and not {opt["manual_seed"]}')
            opt['manual_seed'] = run.seed
        run.seed = opt['manual_seed']
        run.resumed = state
        opt['run_state'] = run
        return state
    if files:
        raise CheckpointError(f'no state in {files[0].parent} can be read; move the folder away to begin again')
    return None
