"""Efficient super-resolution networks, losses, data sets and training methods for BasicSR.

Importing this package loads nothing. BasicSR finds it by itself (``docs/how-loading-works.md``). The functions listed
here, and networks by name (``from basicsr_effsr import HASN``), are imported on first use. In your own training script,
call ``basicsr_effsr.register()``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from basicsr_effsr._version import __version__

if TYPE_CHECKING:
    from basicsr_effsr.api import benchmark, evaluate, load_model, register, upscale

__all__ = ['__version__', 'benchmark', 'evaluate', 'load_model', 'register', 'upscale']


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module('basicsr_effsr.api'), name)
    if name[:1].isupper():
        import_module('basicsr_effsr.api').ready()
        return getattr(import_module('basicsr_effsr.archs'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
