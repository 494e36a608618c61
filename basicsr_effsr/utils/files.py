"""Writing so that nothing is ever half there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then puts it there in one step.

    Whatever happens, ``path`` holds either what it held before or all of the new content.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Deletes the temporary files of writes that were killed; no writer may be at work in ``folder``."""
    for leftover in Path(folder).glob('.*.tmp'):
        leftover.unlink(missing_ok=True)
