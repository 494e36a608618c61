"""What is wrong with an option file, and how values and types are named in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something wrong in an option file.

    Attributes:
        where: the option, dotted.
        message: what must hold, what was found, the fix.
        fatal: the run would fail, end early or compute something else than the file says.
        line: of the option, or of the section that lacks it; None if there is no file.
    """

    where: str
    message: str
    fatal: bool = True
    line: int | None = None

    def __str__(self) -> str:
        return f'line {self.line}: ' * bool(self.line) + f'{self.where}: {self.message}'


def warning(where: str, message: str) -> Problem:
    """A problem that is not fatal."""
    return Problem(where, message, fatal=False)


def plain(value: Any) -> str:
    """A value as an option file has it."""
    if isinstance(value, Mapping):
        return 'a section'
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(plain, value))}]'
    return {'None': 'null', 'True': 'true', 'False': 'false'}.get(repr(value), repr(value))


def copied(value: Any) -> Any:
    """Sections and lists copied, so that entries can be taken out; a ``dict`` for every mapping."""
    if isinstance(value, Mapping):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list | tuple) else value


def adopt(given: Any, counted: Any) -> None:
    """Puts the integer where ``given`` has a whole float (2e4) and ``counted``, options of the same file, has it so."""
    for key, value in counted.items() if isinstance(counted, Mapping) else enumerate(counted):
        if type(value) is int and type(given[key]) is float:
            given[key] = value
        elif isinstance(value, Mapping | list):
            adopt(given[key], value)


NOUNS = {'integer': 'integer', 'number': 'number', 'string': 'string', 'object': 'section', 'array': 'list'}
BOUNDS = {'minimum': 'of at least', 'exclusiveMinimum': 'greater than', 'exclusiveMaximum': 'less than'}


def in_words(schema: Schema, *, plural: bool = False) -> str:
    """What a JSON schema asks for: an integer of at least 1, one of bf16, fp16, a list of numbers."""
    if 'anyOf' in schema:
        parts = [in_words(part) for part in schema['anyOf'] if part.get('type') != 'null']
        return ' or '.join(dict.fromkeys(parts))
    if 'const' in schema or 'enum' in schema:
        values = [plain(value).strip("'") for value in schema.get('enum', [schema.get('const')])]
        return f'one of {", ".join(values)}' if len(values) > 1 else values[0]
    kind = schema.get('type', 'object' if '$ref' in schema else None)
    if kind == 'boolean':
        return 'true or false'
    noun = NOUNS.get(str(kind), 'value')
    words = [f'{noun}s' if plural else f'an {noun}' if noun == 'integer' else f'a {noun}']
    if kind == 'array':
        length = f'{schema["minItems"]} ' if schema.get('minItems') == schema.get('maxItems', 0) else ''
        words.append(f'of {length}{in_words(schema.get("items", {}), plural=True)}')
    words += [' and '.join(f'{text} {schema[name]:.10g}' for name, text in BOUNDS.items() if name in schema)]
    words += ['with {} in it' if '{' in schema['pattern'] else 'that can name a folder'] if 'pattern' in schema else []
    return ' '.join(filter(None, words))
