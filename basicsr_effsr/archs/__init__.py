"""Networks, one file each, which ``basicsr_effsr.register()`` imports (``*_arch.py``). Importing this loads nothing;
``from basicsr_effsr.archs import HASN`` does.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def __getattr__(name: str) -> Any:
    if name[:1].isupper():
        for file in iter_modules(__path__):
            if file.name.endswith('_arch'):
                module = import_module(f'{__name__}.{file.name}')
                found = getattr(module, name, None)
                if getattr(found, '__module__', None) == module.__name__:
                    return found
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
