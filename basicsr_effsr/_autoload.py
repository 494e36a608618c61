"""The hook by which the unchanged ``python -m basicsr.train`` finds this package.

PyTorch calls :func:`install` at the end of ``import torch`` (entry point group ``torch.backends``).
It only puts a finder on the import path; the finder acts on a few module names and, until one of
them is imported, costs nothing. What is then changed in the host is written down in ``adapt.py``.

This module imports ``sys`` and three names: every process that imports torch pays for it.
"""

import sys

from basicsr_effsr.host import HOOKED, SERVED


class _Finder:
    """Meta path finder; passes on every name but the few above."""

    busy: tuple = ()

    def find_spec(self, name, path=None, target=None):
        if name not in HOOKED and name not in SERVED:
            return None
        if name in self.busy:
            return None
        from basicsr_effsr.host import adapt

        self.busy = (*self.busy, name)
        try:
            return adapt.find_spec(name)
        finally:
            self.busy = self.busy[:-1]


def disabled():
    """True if the user switched automatic loading off: ``BASICSR_EFFSR_AUTOLOAD=0``."""
    import os

    return os.environ.get('BASICSR_EFFSR_AUTOLOAD', '1').strip().lower() in ('0', 'false', 'no', 'off')


def installed():
    """True if the finder is in place in this process."""
    return any(type(finder).__module__ == __name__ and type(finder).__name__ == '_Finder' for finder in sys.meta_path)


def install(force=False):
    """Puts the finder in place; never raises, and a second call changes nothing.

    Args:
        force: also when the user switched automatic loading off; for our own commands.
    """
    try:
        if installed() or (disabled() and not force):
            return
        sys.meta_path.insert(0, _Finder())
        if any(name in sys.modules for name in HOOKED):
            from basicsr_effsr.host import adapt

            adapt.adapt_loaded()
    except Exception as error:  # an exception here would break `import torch`
        sys.stderr.write(f'basicsr_effsr: automatic loading is off in this process ({error!r})\n')
