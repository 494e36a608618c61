"""The state that a run is resumed from: which file, whether all that belongs to it can be read, what it decides."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from basicsr_effsr.models.run_state import RunState, read_side_file, side_file
from basicsr_effsr.weights.checkpoint import CheckpointError, read_state_dict

Options = dict[str, Any]


def warn(message: str) -> None:
    logging.getLogger('basicsr').warning(message)
    print(f'basicsr_effsr: {message}', flush=True)  # noqa: T201 (the host's logger does not exist yet)


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
    if not isinstance(state, dict) or not all(type(state.get(key)) is int for key in ('epoch', 'iter')):
        return False
    kept = [state.get(kind) for kind in ('optimizers', 'schedulers')]
    if not all(isinstance(found, list) and all(isinstance(one, dict) for one in found) for found in kept):
        return False
    return all({'state', 'param_groups'} <= set(optimizer) for optimizer in state['optimizers'])


def _check_companions(opt: Options, state: Path, iteration: int) -> None:
    """All that belongs to a state must be readable too: networks, adapters, the side file of every rank."""
    ignored = opt['path'].get('ignore_resume_networks') or []
    models = Path(opt['path']['models'])
    files = {models / f'net_{k.removeprefix("network_")}_{iteration}.pth' for k in opt if k.startswith('network_')}
    files -= {models / f'net_{k.removeprefix("network_")}_{iteration}.pth' for k in ignored}
    for file in sorted(files | set(models.glob(f'net_a_{iteration}.pth'))):
        read_state_dict(file)
    for side in (side_file(state), *sorted(state.parent.glob(f'{state.stem}.rank*.effsr'))):
        read_side_file(side)


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
        _read_what_was_saved(opt, asked)
        if run.seed is not None and run.seed != opt['manual_seed']:  # without manual_seed BasicSR draws one anew
            warn(f'manual_seed: {run.seed} of the resumed state counts, and not {opt["manual_seed"]}')
            opt['manual_seed'] = run.seed
        run.seed = opt['manual_seed']
        run.resumed = state
        opt['run_state'] = run
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
