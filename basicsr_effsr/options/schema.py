"""The JSON schema of our option files, generated from the table of options and the signatures of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from basicsr_effsr._registration import is_ours, register
from basicsr_effsr.options import spec as spec
from basicsr_effsr.options.spec import Key, Section

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
    return {name: cls for name, cls in sorted(found.items()) if is_ours(cls) and not name.endswith('_effsr')}


def _where(key: str, values: Iterable[str], then: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where an option has one of these values."""
    return {'if': {'properties': {key: {'enum': list(values)}}, 'required': [key]}, 'then': dict(then)}


def _by_type(doc: str, classes: Mapping[str, Section]) -> dict[str, Any]:
    """A section whose options depend on its ``type``; types that are not ours are open."""
    return {
        'description': doc,
        'type': 'object',
        'required': ['type'],
        'properties': {'type': {'type': 'string', 'examples': list(classes)}},
        'allOf': [_where('type', [name], _object(section)) for name, section in classes.items()],
    }


def _of_these_types(doc: str, classes: Mapping[str, Section]) -> dict[str, Any]:
    """As ``_by_type``, of no other type."""
    schema = _by_type(doc, classes)
    schema['properties']['type'] = {'type': 'string', 'enum': list(classes)}
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same section, which may also be left empty."""
    if '$ref' in schema:
        return {'anyOf': [schema, {'type': 'null'}]}
    return {**schema, 'type': ['object', 'null']}


def _schedulers() -> dict[str, Section]:
    from basicsr.models import lr_scheduler

    sections: dict[str, Section] = {}
    for name, cls in spec.SCHEDULERS.items():
        accepted, _ = spec.keys_of(getattr(lr_scheduler, cls), ('optimizer', 'last_epoch'))
        known = {k: replace(spec.SCHEDULE.get(k, key), required=key.required) for k, key in accepted.items()}
        sections[name] = {'type': Key(spec.STR, '', required=True), **known}
    return sections


def _optimizers() -> dict[str, Section]:
    return {
        name: {'type': Key(spec.STR, '', required=True), **{k: spec.OPTIMIZER.get(k, Key((), '')) for k in options}}
        for name, options in spec.OPTIMIZERS.items()
    }


def _metric() -> dict[str, Any]:
    """A metric; open, as BasicSR's drop options that they do not know."""
    schema = _object(spec.METRIC_EXTRAS, closed=False)
    cropping = ['calculate_psnr', 'calculate_ssim', 'calculate_niqe']
    border = {'type': 'integer', 'minimum': 0, 'description': 'Pixels left out at every side.'}
    schema['allOf'] = [
        _where('type', cropping, {'properties': {'crop_border': border}, 'required': ['type', 'crop_border']})
    ]
    return schema


def _data_sets() -> dict[str, Any]:
    """Data sets by phase; those whose options are not in the table are open."""
    disk = [name for name in spec.PAIRED if 'Packed' not in name]
    backend = {'$ref': '#/definitions/io_backend'}
    phases = {}
    for phase, needed in (
        ('^train$', ('dataroot_gt', 'gt_size', 'batch_size_per_gpu', 'num_worker_per_gpu')),
        ('^(val|test)(_.*)?$', ('dataroot_gt',)),
    ):
        flips = ['use_hflip', 'use_rot'] if phase == '^train$' else []
        section = _object(
            {
                name: replace(key, required=key.required or name in needed)
                for name, key in spec.DATASET.items()
                if name not in ('phase', 'scale')
            }
        )
        section['properties'] |= {'io_backend': _or_null(backend)}
        section['properties']['dataset_enlarge_ratio'] |= {'type': 'number'}
        section['properties']['filename_tmpl'] |= {'type': 'string', 'pattern': r'\{.*\}'}
        phases[phase] = {
            'type': 'object',
            'required': ['type'],
            'properties': {'type': {'type': 'string', 'examples': list(spec.PAIRED)}},
            'allOf': [
                _where('type', spec.PAIRED, section),
                _where('type', disk, {'properties': {'io_backend': backend}, 'required': ['io_backend']}),
                _where('type', ['PairedImageDataset'], {'required': flips}),
            ],
        }
    return {'type': 'object', 'patternProperties': phases, 'additionalProperties': False}


def _models() -> list[dict[str, Any]]:
    """Which options of ``train`` and ``val`` a model has; of those that are not named here, any."""
    own = {k for k, v in spec.TRAIN.items() if ': EffSRModel' not in v.doc and ': Distill' not in v.doc}
    keys: dict[str, tuple[Iterable[str], Iterable[str]]] = {'SRModel': (own, spec.VAL)}
    keys |= {name: (cls.train_keys, cls.val_keys) for name, cls in _ours('MODEL').items()}
    return [
        _where(
            'model_type',
            [name],
            {
                'properties': {
                    section: {'propertyNames': {'enum': sorted(known)}}
                    for section, known in (('train', train), ('val', val))
                }
            },
        )
        for name, (train, val) in keys.items()
    ]


def _in_training() -> dict[str, Any]:
    """What a file must hold beside ``train``."""
    val = {'properties': {'val_freq': {'type': 'number'}}, 'required': ['val_freq']}
    return {
        'if': {'properties': {'train': {'type': 'object'}}, 'required': ['train']},
        'then': {'properties': {'logger': {'type': 'object'}, 'val': val}, 'required': ['logger']},
    }


def option_schema() -> dict[str, Any]:
    """The schema (draft 7); classes of BasicSR and of others are open, ours are closed."""
    register()
    networks, losses = (
        {name: {'type': Key(spec.STR, '', required=True), **spec.keys_of(cls)[0]} for name, cls in _ours(kind).items()}
        for kind in ('ARCH', 'LOSS')
    )
    path = _object(spec.PATH)
    path['patternProperties'] = {'^(pretrain_network|param_key|strict_load)_.+$': {}}  # of further networks
    loss = {'$ref': '#/definitions/loss'}
    compiled = _object(spec.COMPILE)
    distill = _object(spec.DISTILL)
    distill['properties']['feature_loss'] = _or_null(loss)
    train = _object(spec.TRAIN, closed=False)
    train['properties'] |= {
        'pixel_opt': _or_null(loss),
        'perceptual_opt': _or_null(loss),
        'losses': {'type': ['object', 'null'], 'additionalProperties': _or_null(loss)},
        'progressive': _or_null(_object(spec.PROGRESSIVE)),
        'distill': _or_null(distill),
        'optim_g': {'$ref': '#/definitions/optimizer'},
        'scheduler': _of_these_types('Learning rate: type and its options.', _schedulers()),
    }
    train['patternProperties'] = {'^optim_.+$': {'$ref': '#/definitions/optimizer'}}
    train['properties']['compile'] |= {key: compiled[key] for key in ('properties', 'additionalProperties')}
    val = _object(spec.VAL) | {'required': ['save_img']}
    val['properties']['tile'] = _or_null(_object(spec.TILE))
    val['properties']['metrics'] = {'type': ['object', 'null'], 'additionalProperties': _metric()}
    logger = _object(spec.LOGGER)
    logger['properties']['wandb'] |= _or_null(_object(spec.WANDB))
    schema = _object(spec.TOP)
    schema['properties'] |= {
        'num_gpu': {
            'description': spec.TOP['num_gpu'].doc,
            'anyOf': [{'const': 'auto'}, {'type': 'integer', 'minimum': 0}],
        },
        'datasets': _data_sets(),
        'path': path,
        'train': _or_null(train),
        'val': _or_null(val),
        'logger': _or_null(logger),
        'network_g': {'$ref': '#/definitions/network'},
    }
    del schema['properties']['network_t']
    schema['patternProperties'] = {'^network_(?!g$).+$': _or_null({'$ref': '#/definitions/network'})}
    schema['allOf'] = [*_models(), _in_training()]
    schema['definitions'] = {
        'network': _by_type('A network: type and its options.', networks),
        'loss': _by_type('A loss: type and its options.', losses),
        'optimizer': _of_these_types('An optimizer of torch.optim: type and its options.', _optimizers()),
        'io_backend': _object({k: v for k, v in spec.IO_BACKEND.items() if not v.doc.startswith('Set by')}),
    }
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'Option file of basicsr_effsr',
        'description': 'Generated by: effsr check --schema',
        **schema,
    }
