"""The JSON schema of our option files, generated from the table of options and the signatures of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from basicsr_effsr.tools import option_spec as spec
from basicsr_effsr.tools.option_spec import Key, Section

TYPES = {'int': 'integer', 'number': 'number', 'bool': 'boolean', 'str': 'string', 'list': 'array', 'dict': 'object'}


def _value(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if key.doc:
        schema['description'] = key.doc
    if key.choices:
        schema['enum'] = [*key.choices, *([] if key.required else [None])]
    elif key.kinds:
        types = [TYPES[kind] for kind in key.kinds]
        schema['type'] = sorted({*types, *([] if key.required else ['null'])})
    bounds = {'minimum': key.least, 'exclusiveMinimum': key.above, 'exclusiveMaximum': key.below}
    limits: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
    if key.of:
        schema['items'] = {'type': [TYPES[kind] for kind in key.of], **limits}
    else:
        schema |= limits
    return schema


def _object(section: Section, *, closed: bool = True) -> dict[str, Any]:
    schema: dict[str, Any] = {'type': 'object', 'properties': {name: _value(key) for name, key in section.items()}}
    required = [name for name, key in section.items() if key.required]
    if required:
        schema['required'] = required
    if closed:
        schema['additionalProperties'] = False
    return schema


def _ours(registry: str) -> dict[str, Any]:
    from basicsr.utils import registry as registries

    found = dict(iter(getattr(registries, f'{registry}_REGISTRY')))
    return {
        name: cls
        for name, cls in sorted(found.items())
        if getattr(cls, '__module__', '').startswith('basicsr_effsr.') and not name.endswith('_effsr')
    }


def _by_type(doc: str, classes: Mapping[str, Section]) -> dict[str, Any]:
    """A section whose options depend on its ``type``; types that are not ours are open."""
    rules = [
        {'if': {'properties': {'type': {'const': name}}}, 'then': _object(section)} for name, section in classes.items()
    ]
    return {
        'description': doc,
        'type': ['object', 'null'],
        'required': ['type'],
        'properties': {'type': {'type': 'string', 'examples': list(classes)}},
        'allOf': rules,
    }


def option_schema() -> dict[str, Any]:
    """The schema (draft 7); classes of BasicSR and of others are open, ours are closed."""
    import basicsr_effsr

    basicsr_effsr.register()
    networks, losses = (
        {name: {'type': Key(spec.STR, '', required=True), **spec.keys_of(cls)[0]} for name, cls in _ours(kind).items()}
        for kind in ('ARCH', 'LOSS')
    )
    data = _object({k: v for k, v in spec.DATASET.items() if k not in ('phase', 'scale')})
    backend = {k: v for k, v in spec.IO_BACKEND.items() if not v.doc.startswith('Set by')}
    data['properties']['io_backend'] = _object(backend)
    path = _object(spec.PATH)
    path['additionalProperties'] = True
    train = _object(spec.TRAIN)
    loss = {'$ref': '#/definitions/loss'}
    train['properties'] |= {
        'pixel_opt': loss,
        'perceptual_opt': loss,
        'losses': {'type': 'object', 'propertyNames': {'pattern': '^l_'}, 'additionalProperties': loss},
        'progressive': _object(spec.PROGRESSIVE),
        'distill': _object(spec.DISTILL),
    }
    compiled = _object(spec.COMPILE)
    train['properties']['compile'] |= {key: compiled[key] for key in ('properties', 'additionalProperties')}
    train['properties']['distill']['properties']['feature_loss'] = loss
    schedulers = Key(spec.STR, 'Scheduler of BasicSR.', tuple(spec.SCHEDULERS), True)
    schedule = {name: replace(key, required=False) for name, key in spec.SCHEDULE.items()}
    train['properties']['scheduler'] = _object({**schedule, 'type': schedulers}, closed=False)
    train['properties']['optim_g'] = _object(spec.OPTIMIZER, closed=False)
    val = _object(spec.VAL)
    val['properties']['tile'] = _object(spec.TILE)
    val['properties']['metrics'] = {
        'type': ['object', 'null'],
        'additionalProperties': _object(spec.METRIC_EXTRAS, closed=False),
    }
    schema = _object(spec.TOP)
    schema['properties'] |= {
        'datasets': {'type': 'object', 'patternProperties': {'^(train|val|test)(_.*)?$': data}},
        'path': path,
        'train': train,
        'val': val,
        'logger': _object(spec.LOGGER),
    }
    schema['properties']['logger']['properties']['wandb'] |= _object(spec.WANDB) | {'type': ['object', 'null']}
    schema['patternProperties'] = {'^network_.+$': {'$ref': '#/definitions/network'}}
    for name in ('network_g', 'network_t'):
        schema['properties'][name] = {'$ref': '#/definitions/network'}
    schema['definitions'] = {
        'network': _by_type('A network: type and its options.', networks),
        'loss': _by_type('A loss: type and its options.', losses),
    }
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'Option file of basicsr_effsr',
        'description': 'Generated by: effsr check --schema',
        **schema,
    }
