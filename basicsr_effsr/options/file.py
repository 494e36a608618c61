"""Reading an option file, and the lines on which its options stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from basicsr_effsr.options.problem import Problem, copied, plain
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import read_text

MOST_BYTES = 1 << 18  # a few thousand lines, read within a second
MOST_ENTRIES = 10_000  # options and members of lists once every alias (*) is written out
DEEPEST = 50  # sections in sections


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):  # type: ignore[misc]
    """Executes nothing, and reads sections as BasicSR does: ``<<`` is a key like any other."""


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lambda loader, node: dict(loader.construct_pairs(node, deep=True))
)


def option_text(file: Path) -> str:
    """What an option file holds.

    Raises:
        UserError: it does not exist, is no regular file, cannot be read, is too large, or is not in UTF-8.
    """
    try:
        return read_text(file, MOST_BYTES)
    except OSError as error:
        raise UserError(f'cannot read option file {file} ({one_line(error)}); give one of options/') from error


def read_option_file(file: Path) -> dict[str, Any]:
    """An option file whose sections may be anything, as to say what is wrong with them is up to the check.

    Raises:
        UserError: it cannot be read, is no YAML, gives a key twice, holds no sections, or more than a person writes.
    """
    try:
        options = copied(yaml.load(_measured(file)[0], Loader=_Loader))
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date such as 2024-13-45, a tag that is not known
        raise UserError(f'{file} is not YAML that BasicSR reads: {one_line(error)}') from error
    if not isinstance(options, dict):
        raise UserError(f'{file} must hold sections such as network_g and datasets, found {plain(options)}')
    return options


def force(options: dict[str, Any], entry: str) -> None:
    """Changes options as BasicSR does for ``--force_yml``: sections must be there, the key need not.

    Raises:
        UserError: it is no such change, or of another file.
    """
    places, is_given, value = entry.partition('=')
    *sections, key = places.strip().split(':')
    if not is_given or not key or '=' in value:
        raise UserError(f'--force_yml must be key=value or section:key=value, got {entry!r}')
    within: Any = options
    for name in sections:
        within = within.get(name) if isinstance(within, dict) else None
    if not isinstance(within, dict):
        raise UserError(f'--force_yml {entry}: the option file has no section {":".join(sections)}')
    try:
        within[key] = import_module('basicsr.utils.options')._postprocess_yml_value(value.strip())
    except (SyntaxError, NameError, ValueError) as error:
        raise UserError(f'--force_yml {entry}: not a value that BasicSR reads ({error})') from error


def with_lines(problems: Iterable[Problem], file: Path) -> list[Problem]:
    """The problems with the line of their option in a file; of one that is missing, that of its section.

    Raises:
        UserError: see :func:`read_option_file`.
    """
    _, lines = _measured(file)

    def line(where: str) -> int:
        while where not in lines:
            where = where.rpartition('.')[0]
        return lines[where]

    return [replace(problem, line=line(problem.where)) for problem in problems]


def _measured(file: Path) -> tuple[str, dict[str, int]]:
    """What a file holds, measured before anything is made of it; and the line of every option by its dotted place."""
    text, depth = option_text(file), 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _refuse_depth(file, event, depth)
    lines = {'': 1}
    for number, (place, line) in enumerate(_entries(file, yaml.compose(text, Loader=_Loader), '', 1)):
        if number >= MOST_ENTRIES:
            raise UserError(f'{file} must hold at most {MOST_ENTRIES} entries, aliases (*) expanded')
        lines.setdefault(place, line)
    return text, lines


def _entries(file: Path, node: Any, place: str, depth: int) -> Iterator[tuple[str, int]]:
    """(dotted place, line) of all in a node, aliases written out; what is in a list has the place of the list."""
    seen: dict[tuple[str, str], int] = {}
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
        where, line = place, (key or value).start_mark.line + 1
        if key is not None:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f'{file} must have strings as keys; line {line} has a list or a section')
            name = (key.tag, key.value)
            if name in seen:
                raise UserError(f'{file} gives {key.value!r} twice, on lines {seen[name]} and {line}; remove one')
            seen[name] = line
            where = f'{place}.{key.value}' if place else key.value
        yield where, line
        _refuse_depth(file, value, depth)
        yield from _entries(file, value, where, depth + 1)


def _refuse_depth(file: Path, part: Any, depth: int) -> None:
    if depth > DEEPEST:
        words = f'{DEEPEST} nested sections; line {part.start_mark.line + 1} is deeper'
        raise UserError(f'{file} must hold at most {words}')
