"""Templates for the names of files and folders, as in BasicSR's option ``filename_tmpl``; needs no package."""

from __future__ import annotations

from pathlib import PurePath


def _filled(template: str, *stems: str, **scale: str) -> str:
    """The template with its fields filled; empty when it has others."""
    try:
        return template.format(*stems, **scale)
    except (ValueError, LookupError, AttributeError):
        return ''


def check_file_template(option: str, template: str, *, scale: bool = False) -> None:
    """Checks that ``template.format(stem)`` is a file name of its own for every stem.

    Args:
        option: what the message calls it.
        template: holds ``{}`` for the stem of the HR file.
        scale: ``{scale}`` may stand in it, too.

    Raises:
        ValueError: when it is something else.
    """
    if '\1stem\2' not in _filled(template, '\1stem\2', **({'scale': '4'} if scale else {})):
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
    filled = _filled(template, scale='\1')
    if not filled or ('\1' not in filled and several):
        raise ValueError(f'{option} must hold {{scale}}, got {template!r}')
    path = PurePath(template)
    if path.is_absolute() or '..' in path.parts or '\0' in template:
        raise ValueError(f'{option} must stay below the folder of the output, got {template!r}')
