"""The state that a run is resumed from: which file, whether all that belongs to it can be read, what it decides."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from basicsr_effsr.weights.checkpoint import CheckpointError, read_state_dict

Options = dict[str, Any]


def warn(message: str) -> None:
    logging.getLogger('basicsr').warning(message)
    print(f'basicsr_effsr: {message}', flush=True)  # noqa: T201 (the host's logger does not exist yet)


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f'resume_state {file} does not exist; check the path') from error
    except Exception as error:  # torch raises half a dozen types for a truncated file
        raise CheckpointError(
            f'training state {file} cannot be read ({type(error).__name__}), it is truncated'
        ) from error
    if not isinstance(state, dict) or not {'epoch', 'iter', 'optimizers', 'schedulers'} <= set(state):
        raise CheckpointError(f'training state {file} must hold epoch, iter, optimizers and schedulers')
    return state


def _check_companions(opt: Options, state: Path, iteration: int) -> None:
    """All that belongs to a state must be readable too: networks, adapters, the side file of every rank."""
    ignored = opt['path'].get('ignore_resume_networks') or []
    models = Path(opt['path']['models'])
    files = {models / f'net_{k.removeprefix("network_")}_{iteration}.pth' for k in opt if k.startswith('network_')}
    files -= {models / f'net_{k.removeprefix("network_")}_{iteration}.pth' for k in ignored}
    for file in sorted(files | set(models.glob(f'net_a_{iteration}.pth'))):
        read_state_dict(file)
    for side in (state.with_suffix('.effsr'), *sorted(state.parent.glob(f'{state.stem}.rank*.effsr'))):
        _read_side(side)


def side_of(state: Path) -> Options:
    """What EffSRModel wrote beside a state; empty for a run of the host's own model."""
    return _read_side(state.with_suffix('.effsr'))


def _read_side(side: Path) -> Options:
    if not side.is_file():
        return {}
    try:
        return torch.load(side, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a truncated file
        raise CheckpointError(f'side file {side} cannot be read ({type(error).__name__}), it is truncated') from error


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """BasicSR's function of this name; works without a GPU and steps back over a broken checkpoint.

    Raises:
        CheckpointError: ``path.resume_state`` cannot be read, or every state of the run is broken.
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
            if opt['auto_resume']:
                _check_companions(opt, file, state['iter'])
        except (CheckpointError, FileNotFoundError) as error:
            if not opt['auto_resume']:
                raise
            warn(f'{error}; going back to the checkpoint before it')
            continue
        opt['path']['resume_state'] = str(file)
        asked = {key: value for key, value in opt['path'].items() if key.startswith('param_key_')}
        check_resume(opt, state['iter'])
        _read_what_was_saved(opt, asked)
        _take_over_seed(opt, file)
        return state
    if files:
        raise CheckpointError(f'no state in {files[0].parent} can be read; move the folder away to start anew')
    return None


def _read_what_was_saved(opt: Options, asked: Options) -> None:
    """Keys of checkpoints: ``params`` for the run's own files, what was asked for elsewhere.

    The host puts ``params`` for ``params_ema`` alone, and everywhere. An empty key would then read the moving average
    into the network that is trained, and a key of a foreign file is in no file of the run.
    """
    ignored = opt['path'].get('ignore_resume_networks') or []
    for key, value in asked.items():
        opt['path'][key] = value if key.replace('param_key_', 'network_') in ignored else 'params'


def _take_over_seed(opt: Options, state: Path) -> None:
    """Draws of crops depend on the seed, and without ``manual_seed`` the host takes another in every start."""
    seed = side_of(state).get('seed')
    if seed is not None and seed != opt['manual_seed']:
        warn(f'the run goes on with manual_seed {seed}, with which it began')
        opt['manual_seed'] = seed
