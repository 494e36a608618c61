"""Efficient super-resolution networks, losses, data sets and training methods for BasicSR.

Importing this package loads nothing: BasicSR finds it by itself (``docs/how-loading-works.md``).
In a notebook or a training script of your own call ``basicsr_effsr.register()``.
"""

from basicsr_effsr._version import __version__

__all__ = ['__version__', 'register']


def register() -> None:
    """Registers everything of this package with BasicSR, also where automatic loading is off; safe to call again."""
    from basicsr_effsr._autoload import install
    from basicsr_effsr._registration import register as _register

    install(force=True)  # without it nobody serves what basicsr 1.4.2 imports and torchvision dropped
    _register()
