"""Validates a section of an option file with its model; pydantic's errors become problems."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from basicsr_effsr.options.problem import Problem, adopt, plain
from basicsr_effsr.options.signatures import find, options_of
from basicsr_effsr.options.spec import MAX_NAME, Section, fields
from basicsr_effsr.utils.errors import near, nearest

SLIP = 0.75  # likeness of two names, above which one is taken for a misspelling of the other
NOUNS = {'integer': 'integer', 'number': 'number', 'string': 'string', 'object': 'section', 'array': 'list'}
BOUNDS = {'minimum': 'of at least', 'exclusiveMinimum': 'greater than', 'exclusiveMaximum': 'less than'}


@cache
def schema_of(section: type[Section]) -> dict[str, Any]:
    """Its JSON schema; nested sections are under ``definitions``."""
    return section.model_json_schema(ref_template='#/definitions/{model}')


def in_words(schema: Mapping[str, Any], *, plural: bool = False) -> str:
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
    if 'pattern' in schema:
        name = f'that names a folder, on any system, in at most {MAX_NAME} bytes'
        words.append('with {} in it' if '{' in schema['pattern'] else name)
    return ' '.join(filter(None, words))


def validate(
    where: str,
    given: dict[Any, Any],
    section: type[Section],
    *,
    read: Iterable[str] | None = None,
    others: Iterable[str] = (),
    strict: bool = True,
    open_ended: bool = False,
) -> list[Problem]:
    """Unknown, missing and ill-typed keys; the ill-typed ones are taken out of ``given``, 2e4 becomes 20000.

    Args:
        where: its place, dotted; empty for the file.
        given: the section, plain dictionaries and lists.
        section: its model.
        read: keys that somebody reads here, None for all of the model.
        others: keys that somebody reads and of which nothing more is known.
        strict: an unknown key is fatal; if False a warning, unless it looks like a misspelling of a key not given.
        open_ended: an unknown key is no problem, unless it looks like a misspelling: a warning.
    """
    known, place = fields(section), f'{where}.' if where else ''
    names = list(dict.fromkeys([*(known if read is None else read), *others]))
    found, kept = [], {}
    for name, value in given.items():
        inner = _nested(known[name].annotation) if name in known else None
        if name not in names:
            likely = nearest(name, [n for n in names if n not in given], SLIP)
            if likely or not open_ended:
                hint = f'did you mean {likely!r}?' if likely else near(name, names)
                fatal = not open_ended and (strict or bool(likely))
                found.append(Problem(f'{place}{name}', f'unknown key; {hint}', fatal))
        elif inner and isinstance(value, dict):
            found += validate(f'{place}{name}', value, inner)
        elif name in known:
            kept[name] = value
    try:
        adopt(given, section.model_validate(kept).model_dump(by_alias=True, exclude_unset=True, warnings=False))
    except ValidationError as error:
        for name in dict.fromkeys(entry['loc'][0] for entry in error.errors(include_url=False, include_context=False)):
            schema = schema_of(section)['properties'][name]
            message = missing(schema.get('description', ''))
            if name in given:
                value, expected = given.pop(name), in_words(schema)
                message = f'must be {expected}, got {plain(value)}{_fix(value, expected)}'
            found.append(Problem(f'{place}{name}', message))
    return found


def validate_typed(where: str, kind: str, option: Any, *, beside: type[Section] = Section) -> tuple[Any, list[Problem]]:
    """The class or function of a section {type: ..., options}, None if there is none; and what is wrong with it.

    ``where`` is its dotted place; for ``kind`` and ``beside`` see ``signatures.options_of``.
    """
    name = option.get('type') if isinstance(option, dict) else None
    if not isinstance(name, str):
        got = plain(option['type']) if isinstance(option, dict) and 'type' in option else plain(option)
        return None, [Problem(where, f'must be a section with a type, got {got}')]
    target, known = find(kind, name)
    if target is None:
        return None, [Problem(f'{where}.type', f'there is no {kind.lower()} {name!r} to use here; {near(name, known)}')]
    section, open_ended = options_of(target, kind, beside=beside)
    return target, validate(where, option, section, open_ended=open_ended)


def missing(description: str) -> str:
    """That an option is missing, and what it is."""
    return f'is missing: {description[:1].lower()}{description[1:].rstrip(".")}' if description else 'is missing'


def _nested(annotation: Any) -> type[Section] | None:
    parts = (annotation, *typing.get_args(annotation))
    classes = (part for part in parts if isinstance(part, type) and typing.get_origin(part) is None)
    return next((each for each in classes if issubclass(each, Section)), None)


def _fix(value: Any, expected: str) -> str:
    """What to write instead of a string that is meant as a number."""
    try:
        whole = isinstance(value, str) and float(value).is_integer()
    except ValueError:
        whole, value = False, None
    if whole and ('an integer' in expected or ('a number' in expected and value.isdigit())):
        return f'; write {float(value):.0f} without quotes'
    return f'; YAML reads it as a string, write !!float {value}' * (isinstance(value, str) and 'a number' in expected)
