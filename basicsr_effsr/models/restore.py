"""Putting optimizers and schedules back from a state, which decides their settings."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from basicsr_effsr.models.run_state import NEW_RUN
from basicsr_effsr.utils.errors import UserError, one_line


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
