"""Registers our classes with BasicSR, without ever taking a name in use, and finds registered classes."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

__all__ = ['derives_from_ours', 'is_ours', 'lookup', 'register']

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
    """True for a class of this package and for a subclass of one."""
    return any(is_ours(base) for base in getattr(cls, '__mro__', ()))


def defaults_of(cls: Any) -> dict[str, Any]:
    """Option -> default of what a constructor takes; options without a default are not among them."""
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def registry_of(kind: str) -> Any:
    """BasicSR's registry of ``arch``, ``loss``, ``dataset``, ``model`` or ``metric``."""
    from basicsr.utils import registry

    return getattr(registry, f'{kind.upper()}_REGISTRY')


def register(registry: str | None = None) -> None:
    """Registers the networks, losses, data sets and model classes of this package with BasicSR.

    Safe to call again. Names that a fork or another plugin owns stay theirs; ours are always reachable with the suffix
    ``_effsr`` (``HASN_effsr``). ``registry`` is ``arch``, ``loss`` ... for one kind only.
    """
    from basicsr_effsr.archs.effsr_blocks import register_in  # with torch, which most users of this module do without

    for kind, (room, ending) in ROOMS.items():
        if registry not in (None, kind):
            continue
        current, package = registry_of(kind), import_module(f'basicsr_effsr.{room}')
        for file in iter_modules(package.__path__):
            if file.name.endswith(ending):
                module = import_module(f'{package.__name__}.{file.name}')
                first = getattr(module, f'{kind.upper()}_REGISTRY')
                if first is not current:  # BasicSR has been reloaded since
                    for cls in {obj for _, obj in first if obj.__module__ == module.__name__}:
                        register_in(current)(cls)


def lookup(registry: str, name: Any) -> tuple[Any, list[str]]:
    """The class or function of that name in a registry of BasicSR (ours are loaded), and the names there are.

    BasicSR's own look-up prints when it takes a name for another, which would be in the way of JSON.
    """
    found = registry_of(registry)
    if not isinstance(name, str):
        return None, list(dict(iter(found)))
    if name not in found and f'{name}_basicsr' not in found:
        register(registry.lower())
    known = dict(iter(found))
    return known.get(name, known.get(f'{name}_basicsr')), list(known)
