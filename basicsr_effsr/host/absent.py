"""What our commands do if BasicSR is missing or incomplete."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

from basicsr_effsr.host import REGISTRY
from basicsr_effsr.utils.errors import UserError, one_line

HOW_TO_GET_IT = 'run effsr host install, or run this in the folder of a clone or fork that holds basicsr/'


def look_here() -> None:
    """Puts the current directory on the path as ``python -m basicsr.train`` has it, so that both use one BasicSR."""
    if not getattr(sys.flags, 'safe_path', False) and not {'', os.getcwd()} & set(sys.path[:1]):
        sys.path.insert(0, os.getcwd())


def absent() -> bool:
    """True if there is no BasicSR, or only our stand-in for its registry."""
    return isinstance(sys.modules.get(REGISTRY), _StandIn) or importlib.util.find_spec('basicsr') is None


def need(name: str) -> Any:
    """A module of BasicSR.

    Raises:
        UserError: BasicSR is not installed, or does not import.
    """
    if absent():
        raise UserError(f'BasicSR is needed and not installed: {HOW_TO_GET_IT}')
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a fork raises at import
        raise UserError(
            f'{name} does not import ({type(error).__name__}: {one_line(error)}); see effsr doctor'
        ) from error


def start(pipeline: str) -> None:
    """Runs the host's ``train`` or ``test`` pipeline with this folder as root; exit code 2 without BasicSR."""
    try:
        host = need(f'basicsr.{pipeline}')
    except UserError as error:
        sys.stderr.write(f'basicsr_effsr.{pipeline}: {error}\n')
        raise SystemExit(2) from error
    getattr(host, f'{pipeline}_pipeline')(os.getcwd())


class _StandIn(ModuleType):
    """A module that takes the place of one of BasicSR."""


class Registry(dict[str, Any]):
    """As much of BasicSR's class as our networks need: it gives pairs, and ``get`` raises KeyError."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._obj_map = name, self

    def __iter__(self) -> Any:
        return iter(self.items())

    _do_register = dict.__setitem__
    get = dict.__getitem__  # type: ignore[assignment]


def stand_in() -> None:
    """Where there is no BasicSR, gives this process its registries, the one thing that our networks import of it."""
    if not absent():
        return
    for name in ('basicsr', 'basicsr.utils', REGISTRY):
        module = sys.modules[name] = _StandIn(name)
        module.__path__ = []  # a package, so that what it lacks is a ModuleNotFoundError
        parent, _, own = name.rpartition('.')
        if parent:
            setattr(sys.modules[parent], own, module)
    for kind in ('arch', 'loss', 'dataset', 'model', 'metric'):
        setattr(module, f'{kind.upper()}_REGISTRY', Registry(kind))
    module.__dict__['Registry'] = Registry
