"""Optional dependencies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from basicsr_effsr.utils.errors import UserError

EXTRA = 'pip install basicsr_effsr[export]'


def needs(module: str) -> Any:
    """An optional module.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f'this needs {module.partition(".")[0]}: {EXTRA}') from error
