"""Templates for the names of files and folders, as in BasicSR's option ``filename_tmpl``; needs no package."""

from __future__ import annotations

from pathlib import PurePath
from string import Formatter


def check_file_template(option: str, template: str, *, scale: bool = False) -> None:
    """Checks that ``template.format(stem)`` is a file name of its own for every stem.

    Args:
        option: what the message calls it.
        template: holds ``{}`` for the stem of the HR file.
        scale: ``{scale}`` may stand in it, too.

    Raises:
        ValueError: when it is something else.
    """
    if _fields(template, {'', '0', *(['scale'] if scale else [])}) & {'', '0'} == set():
        more = ' and may hold {scale}' if scale else ''
        raise ValueError(f'{option} must hold {{}} for the HR stem{more}, got {template!r}')
    if any(sign in template for sign in '/\\\0'):
        raise ValueError(f'{option} must give a plain file name, without a folder, got {template!r}')


def check_folder_template(option: str, template: str, *, several: bool) -> None:
    """Checks that ``template.format(scale=...)`` is a folder of its own for every scale.

    Args:
        option: what the message calls it.
        template: holds ``{scale}``.
        several: there is more than one scale; for a single one a plain name will do, too.

    Raises:
        ValueError: when it is something else, or leads out of the folder it is used in.
    """
    plain = not several and not any(brace in template for brace in '{}')
    if not plain and 'scale' not in _fields(template, {'scale'}):
        raise ValueError(f'{option} must hold {{scale}}, got {template!r}')
    path = PurePath(template)
    if path.is_absolute() or '..' in path.parts or '\0' in template:
        raise ValueError(f'{option} must stay below the folder of the output, got {template!r}')


def _fields(template: str, known: set[str]) -> set[str]:
    """The fields that stand in a template; none when it cannot be filled from the known ones."""
    try:
        found = set()
        for _, field, spec, conversion in Formatter().parse(template):
            if field is not None:
                found.add(field)
            if field in ('', '0') and (spec or conversion):
                return set()
        if not found <= known:
            return set()
        template.format('0001', scale=4)
    except (ValueError, LookupError):
        return set()
    return found
