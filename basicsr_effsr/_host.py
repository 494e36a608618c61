"""Every change this package makes to the host, each with its reason and its condition.

Loaded only when BasicSR itself is imported (``_autoload.py``). Nothing else in this package touches
the host's code.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from basicsr_effsr._autoload import DEAD_TORCHVISION, REGISTRY


class _AdaptingLoader:
    """The module's own loader, which lets us adapt the module right after it has been executed."""

    def __init__(self, loader: Any, adapt: Callable[[ModuleType], None]) -> None:
        self._loader, self._adapt = loader, adapt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._adapt(module)


class _FunctionalTensor:
    """Loader of the module name that torchvision 0.17 removed and PyPI's basicsr 1.4.2 still imports."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        from torchvision.transforms import functional

        module.__doc__ = 'Served by basicsr_effsr from torchvision.transforms.functional.'
        module.__dict__.update({name: value for name, value in vars(functional).items() if not name.startswith('_')})


def find_spec(name: str) -> ModuleSpec | None:
    """The spec of a hooked module, so loaded that it is adapted; None if nobody has it."""
    real = importlib.util.find_spec(name)
    if name == DEAD_TORCHVISION:
        return real or ModuleSpec(name, _FunctionalTensor())  # type: ignore[arg-type]
    if real is not None and name in ADAPTATIONS:
        real.loader = _AdaptingLoader(real.loader, ADAPTATIONS[name])  # type: ignore[assignment]
    return real


def adapt_loaded(names: Iterable[str]) -> None:
    """Adapts those of the hooked modules that were imported before the hook was installed."""
    for name in names:
        if name in sys.modules and name in ADAPTATIONS:
            ADAPTATIONS[name](sys.modules[name])


def _adapt_registry(module: ModuleType) -> None:
    """A missing name, and only that, loads our classes; then the host looks again.

    Reason: BasicSR has no way to discover plugins. Condition: every version; forks included.
    """
    registry = module.Registry
    if getattr(registry.get, '_effsr', False):
        return
    original = registry.get

    @wraps(original)
    def get(self, name, *args, **kwargs):
        if name not in self and f'{name}_basicsr' not in self:
            from basicsr_effsr._registration import register

            register()
        return original(self, name, *args, **kwargs)

    get._effsr = True  # type: ignore[attr-defined]
    registry.get = get


ADAPTATIONS: dict[str, Callable[[ModuleType], None]] = {REGISTRY: _adapt_registry}
