"""Reading an option file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from basicsr_effsr.options.problem import Problem, copied, plain
from basicsr_effsr.utils.errors import UserError, one_line


def read_option_file(file: Path) -> dict[str, Any]:
    """An option file whose sections may be anything, as to say what is wrong with them is up to the check.

    Raises:
        UserError: it does not exist, is no YAML in UTF-8, holds no sections, or one that holds itself.
    """
    import yaml

    try:
        options = copied(yaml.safe_load(file.read_text(encoding='utf-8')))
    except OSError as error:
        raise UserError(f'no option file {file} that can be read; give one of options/') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{file} must be saved as UTF-8, byte {error.start} is of another encoding') from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise UserError(f'{file} is not YAML: {one_line(error)}') from error
    except RecursionError as error:
        raise UserError(f'{file} must end somewhere, an anchor (&) is used within its own section') from error
    if not isinstance(options, dict):
        raise UserError(f'{file} must hold sections such as network_g and datasets, found {plain(options)}')
    return options


def with_lines(problems: Iterable[Problem], file: Path) -> list[Problem]:
    """The problems with the line of their option in a file; of one that is missing, that of its section."""
    import yaml

    lines = {'': 1}

    def walk(node: Any, where: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            place = f'{where}.{key.value}' if where else str(key.value)
            lines[place] = key.start_mark.line + 1
            walk(value, place)

    walk(yaml.compose(file.read_text(encoding='utf-8')), '')

    def line(where: str) -> int:
        while where not in lines:
            where = where.rpartition('.')[0]
        return lines[where]

    return [replace(problem, line=line(problem.where)) for problem in problems]
