"""Putting our classes into BasicSR's registries without ever taking a name away from anybody, and finding any there."""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

ALIAS_SUFFIX = '_effsr'
ROOMS = {  # registry -> our folder, and the ending of the files in it that register something
    'arch': ('archs', '_arch'),
    'loss': ('losses', '_loss'),
    'dataset': ('data', '_dataset'),
    'model': ('models', '_model'),
}


def is_ours(obj: Any) -> bool:
    """True for a class or function that this package defines."""
    return getattr(obj, '__module__', '').startswith('basicsr_effsr.')


def derives_from_ours(cls: Any) -> bool:
    """True for a class of this package and for what a user derives from one."""
    return any(is_ours(base) for base in getattr(cls, '__mro__', ()))


def free_names_only(registry: Any) -> None:
    """Lets our classes take free names only, and gives a name of ours to whoever registers it later.

    Reason: BasicSR's registries refuse a name a second time, so an arch file copied into a fork would stop our whole
    package from loading there, and whoever registers a ``HASN`` after ours was loaded would die. Each of our classes
    is registered under ``<name>_effsr``, too, so that it can be had beside a fork's own. Condition: every version.

    Args:
        registry: the host's class ``Registry``.
    """
    original = registry._do_register
    if getattr(original, '_effsr', False):
        return

    @wraps(original)
    def do_register(self, name, obj, suffix=None):
        if is_ours(obj):
            for free in (name, name + ALIAS_SUFFIX):
                if free not in self:
                    original(self, free, obj)
            return
        full = f'{name}_{suffix}' if isinstance(suffix, str) else name
        if is_ours(self._obj_map.get(full)):
            del self._obj_map[full]
        original(self, name, obj, *([suffix] if suffix is not None else []))

    do_register._effsr = True  # type: ignore[attr-defined]
    registry._do_register = do_register


def register(registry: str | None = None) -> None:
    """Registers the networks, losses, data sets and model classes of this package with BasicSR.

    Safe to call again. Names that a fork or another plugin owns stay theirs; ours are always
    reachable with the suffix ``_effsr`` (``HASN_effsr``).

    Args:
        registry: ``arch``, ``loss``, ``dataset`` or ``model`` for one kind only; None for all. A
            registry we have nothing for (``metric``) is no error.
    """
    from basicsr.utils.registry import Registry

    free_names_only(Registry)
    rooms = ROOMS.values() if registry is None else filter(None, [ROOMS.get(registry)])
    for room, ending in rooms:
        package = import_module(f'basicsr_effsr.{room}')
        for module in iter_modules(package.__path__):
            if module.name.endswith(ending):
                import_module(f'{package.__name__}.{module.name}')


def lookup(registry: str, name: Any) -> tuple[Any, list[str]]:
    """The class or function of that name in a registry of BasicSR (ours are loaded), and the names there are.

    BasicSR's own look-up prints when it takes a name for another, which would be in the way of JSON.
    """
    from basicsr.utils import registry as registries

    found = getattr(registries, f'{registry}_REGISTRY')
    if not isinstance(name, str):
        return None, list(dict(iter(found)))
    if name not in found and f'{name}_basicsr' not in found:
        register(registry.lower())
    known = dict(iter(found))
    return known.get(name, known.get(f'{name}_basicsr')), list(known)
