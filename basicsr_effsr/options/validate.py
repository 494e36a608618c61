"""A section of an option file against its model: what pydantic finds, said as our problems."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema

from basicsr_effsr.options.problem import Problem, adopt, in_words, plain
from basicsr_effsr.options.signatures import find, options_of
from basicsr_effsr.options.spec import Section, fields
from basicsr_effsr.utils.errors import near, nearest

SLIP = 0.75  # likeness of two names, above which one is taken for a misspelling of the other


class SchemaOfSections(GenerateJsonSchema):
    """JSON schema without the titles that pydantic makes of names, and without defaults that say nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        made = super().default_schema(schema)
        if made.get('default', ...) is None:
            del made['default']
        return made


@cache
def schema_of(section: type[Section]) -> dict[str, Any]:
    """Its JSON schema; nested sections are under ``definitions``."""
    schema = section.model_json_schema(ref_template='#/definitions/{model}', schema_generator=SchemaOfSections)
    schema.pop('title', None)
    return schema


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
        open_ended: an unknown key is nothing to speak of; a warning if it looks like a misspelling.
    """
    known = fields(section)
    names = list(dict.fromkeys([*(known if read is None else read), *others]))
    found = []
    for name in given:
        if name not in names:
            likely = nearest(name, [n for n in names if n not in given], SLIP)
            if likely or not open_ended:
                hint = f'did you mean {likely!r}?' if likely else near(name, names)
                fatal = not open_ended and (strict or bool(likely))
                found.append(Problem(_at(where, (name,)), f'nothing reads this option; {hint}', fatal))
    kept = {name: value for name, value in given.items() if name in known and name in names}
    try:
        adopt(given, section.model_validate(kept).model_dump(by_alias=True, exclude_unset=True, warnings=False))
    except ValidationError as error:
        found += list(_said(where, given, section, error))
    return found


def validate_typed(where: str, kind: str, option: Any, *, beside: type[Section] = Section) -> tuple[Any, list[Problem]]:
    """The class or function of a section {type: ..., options}, None if there is none; and what is wrong with it.

    Args:
        where: its place, dotted.
        kind: see :func:`find`.
        option: the section, as the file has it.
        beside: keys that it has beside those of the signature.
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


def _said(where: str, given: dict[Any, Any], section: type[Section], error: ValidationError) -> Iterator[Problem]:
    """One problem per place; ill-typed entries are taken out."""
    places: dict[tuple[Any, ...], tuple[str, type[Section]]] = {}
    for entry in error.errors(include_url=False, include_context=False):
        path, owner = _place(section, entry['loc'], entry['type'])
        places.setdefault(path, (entry['type'], owner))
    for path, (kind, owner) in places.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in places):
            continue  # the other branch of a union: a section was meant
        parent, name = given, path[-1]
        for step in path[:-1]:
            parent = parent[step]
        schema = schema_of(owner)['properties'].get(name, {})
        if kind in ('extra_forbidden', 'invalid_key'):
            message = f'nothing reads this option; {near(name, fields(owner))}'
        elif kind == 'missing':
            message = missing(schema.get('description', ''))
        else:
            value = parent.pop(name)
            message = f'must be {in_words(schema)}, got {plain(value)}{_fix(value, in_words(schema))}'
        yield Problem(_at(where, path), message)


def missing(description: str) -> str:
    """That an option is missing, and what it is."""
    return f'is missing: {description[:1].lower()}{description[1:].rstrip(".")}' if description else 'is missing'


def _at(where: str, path: tuple[Any, ...]) -> str:
    return '.'.join(map(str, (where, *path) if where else path))


def _place(section: type[Section], loc: tuple[Any, ...], kind: str) -> tuple[tuple[Any, ...], type[Section]]:
    """The keys that lead to an error of pydantic, without its names of types and places in lists; and the section."""
    path: list[Any] = []
    owner, inner = section, section
    for step in loc:
        known = fields(inner)
        last = step == loc[-1] and kind in ('extra_forbidden', 'invalid_key')
        if step not in known and not last:
            if step != inner.__name__:
                break
            continue
        path.append(step)
        owner = inner
        nested = _nested(known[step].annotation) if step in known else None
        if nested is None:
            break
        inner = nested
    return tuple(path), owner


def _nested(annotation: Any) -> type[Section] | None:
    parts = (annotation, *typing.get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def _fix(value: Any, expected: str) -> str:
    if not isinstance(value, str) or not ('a number' in expected or 'an integer' in expected):
        return ''
    try:
        number = float(value)
    except ValueError:
        return ''
    if number.is_integer() and ('an integer' in expected or value.isdigit()):
        return f'; write {number:.0f} without quotes'
    return f'; YAML reads it as a string, write !!float {value}' if 'a number' in expected else ''
