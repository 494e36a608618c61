"""Putting our classes into BasicSR's registries without ever taking a name away from anybody."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules

ALIAS_SUFFIX = '_effsr'
ROOMS = {'arch': 'archs', 'loss': 'losses', 'dataset': 'data', 'model': 'models'}  # registry -> our folder


def import_all(package: str, path: Iterable[str], suffix: str) -> None:
    """Imports every module of ``package`` whose name ends in ``suffix``; what they register takes free names only."""
    from basicsr.utils.registry import Registry

    from basicsr_effsr._host import free_names_only

    free_names_only(Registry)
    for module in iter_modules(path):
        if module.name.endswith(suffix):
            import_module(f'{package}.{module.name}')


def register(registry: str | None = None) -> None:
    """Registers the networks, losses, data sets and model classes of this package with BasicSR.

    Safe to call again. Names that a fork or another plugin owns stay theirs; ours are always
    reachable with the suffix ``_effsr`` (``HASN_effsr``).

    Args:
        registry: ``arch``, ``loss``, ``dataset`` or ``model`` for one kind only; None for all. A
            registry we have nothing for (``metric``) is no error.
    """
    rooms = ROOMS.values() if registry is None else filter(None, [ROOMS.get(registry)])
    for room in rooms:
        import_module(f'basicsr_effsr.{room}')
