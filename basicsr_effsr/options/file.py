"""Reading an option file, and the lines on which its options stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from basicsr_effsr.options.problem import Problem, copied, plain
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import open_regular

MOST_BYTES = 1 << 18  # a few thousand lines, read within a second
MOST_ENTRIES = 10_000  # keys and values once every alias (*) is written out
DEEPEST = 50  # sections in sections


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):  # type: ignore[misc]
    """Executes nothing, and reads sections as BasicSR does: ``<<`` is a key like any other."""


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: dict(loader.construct_pairs(node, deep=True)),
)


def option_text(file: Path) -> str:
    """What an option file holds.

    Raises:
        UserError: it does not exist, is no regular file, cannot be read, is too large, or is not in UTF-8.
    """
    try:
        with open_regular(file) as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f'no option file {file} that can be read ({one_line(error)}); give one of options/') from error
    if len(content) > MOST_BYTES:
        raise UserError(f'{file} must be an option file, and is larger than {MOST_BYTES // 1024} KiB')
    try:
        return content.decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{file} must be saved as UTF-8, byte {error.start} is of another encoding') from error


def read_option_file(file: Path) -> dict[str, Any]:
    """An option file whose sections may be anything, as to say what is wrong with them is up to the check.

    Raises:
        UserError: it cannot be read, is no YAML, gives a key twice, holds no sections, or more than a person writes.
    """
    try:
        loader, node = _composed(file)
        options = copied(loader.construct_document(node)) if node is not None else None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date such as 2024-13-45, a key that is a list
        if isinstance(error, UserError):
            raise
        raise UserError(f'{file} is not YAML that BasicSR reads: {one_line(error)}') from error
    if not isinstance(options, dict):
        raise UserError(f'{file} must hold sections such as network_g and datasets, found {plain(options)}')
    return options


def _composed(file: Path) -> tuple[Any, Any]:
    """The loader of a file and its nodes, measured before anything is made of them."""
    text, depth = option_text(file), 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(
                f'{file} must hold at most {DEEPEST} sections in one another; line {_line(event)} is deeper'
            )
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is not None:
        _measure(file, node, {})
    return loader, node


def _line(part: Any) -> int:
    return part.start_mark.line + 1


def _measure(file: Path, node: Any, seen: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(entries, levels) of a node with its aliases written out; refuses what is too large and keys given twice."""
    if id(node) in seen:
        return seen[id(node)]
    seen[id(node)] = (0, DEEPEST)  # as deep as can be while it is open: who meets it now is within it
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    lines: dict[Any, int] = {}
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
        for key in parts[::2]:
            name = (key.tag, str(key.value))
            if name in lines:
                raise UserError(
                    f'{file} gives {key.value!r} twice, on lines {lines[name]} and {_line(key)}; remove one'
                )
            lines[name] = _line(key)
    measured = [_measure(file, part, seen) for part in parts]
    entries, levels = (1 + sum(e for e, _ in measured)), 1 + max((lv for _, lv in measured), default=0)
    if entries > MOST_ENTRIES or levels > DEEPEST:
        words = f'{MOST_ENTRIES} entries and {DEEPEST} sections in one another, aliases (*) written out'
        raise UserError(f'{file} must hold at most {words}; line {_line(node)} holds more')
    seen[id(node)] = entries, levels
    return entries, levels


def with_lines(problems: Iterable[Problem], file: Path) -> list[Problem]:
    """The problems with the line of their option in a file; of one that is missing, that of its section.

    Raises:
        UserError: see :func:`read_option_file`.
    """
    lines = {'': 1}

    def walk(node: Any, where: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            place = f'{where}.{key.value}' if where else str(key.value)
            lines[place] = _line(key)
            walk(value, place)

    walk(_composed(file)[1], '')

    def line(where: str) -> int:
        while where not in lines:
            where = where.rpartition('.')[0]
        return lines[where]

    return [replace(problem, line=line(problem.where)) for problem in problems]
