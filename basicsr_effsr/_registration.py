"""Putting our classes into BasicSR's registries without ever taking a name away from anybody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules

ALIAS_SUFFIX = '_effsr'
ROOMS = {'arch': 'archs', 'loss': 'losses', 'dataset': 'data', 'model': 'models'}  # registry -> our folder


@contextmanager
def free_names_only() -> Iterator[None]:
    """Within this scope a registration under a taken name is passed over instead of being an error.

    Each class is also registered under ``<name>_effsr``, so that ours can be had beside a fork's own.
    BasicSR's registries assert that a name is new; an arch file copied into a fork would otherwise
    stop our whole package from loading there.
    """
    from basicsr.utils.registry import Registry

    original = Registry._do_register

    def register_if_free(self, name, obj, *args, **kwargs):
        if name not in self:
            original(self, name, obj, *args, **kwargs)
        if name + ALIAS_SUFFIX not in self:
            original(self, name + ALIAS_SUFFIX, obj)

    Registry._do_register = register_if_free
    try:
        yield
    finally:
        Registry._do_register = original


def import_all(package: str, path: Iterable[str], suffix: str) -> None:
    """Imports every module of ``package`` whose name ends in ``suffix``, in the scope above."""
    with free_names_only():
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
