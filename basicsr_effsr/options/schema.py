"""The JSON schema of option files, assembled from the models of the sections and the signatures of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from basicsr_effsr._registration import is_ours, register
from basicsr_effsr.options import spec
from basicsr_effsr.options.signatures import options_of
from basicsr_effsr.options.spec import Section
from basicsr_effsr.options.validate import schema_of

NULL = {'type': 'null'}


class _Schema:
    """Sections as they are met; those within others come under ``definitions``."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, section: type[Section], *, open_ended: bool = False) -> dict[str, Any]:
        schema = deepcopy(schema_of(section))
        self.definitions |= schema.pop('$defs', {})
        return {**schema, 'additionalProperties': open_ended}

    def by_type(self, text: str, sections: Mapping[str, dict[str, Any]], *, closed: bool = False) -> dict[str, Any]:
        """A section whose options depend on its ``type``; other types are open, or refused if ``closed``."""
        return {
            'description': text,
            'type': 'object',
            'required': ['type'],
            'properties': {'type': {'type': 'string', 'enum' if closed else 'examples': list(sections)}},
            'allOf': [_where('type', [name], section) for name, section in sections.items()],
        }


def _where(key: str, values: Iterable[str], then: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where an option has one of these values."""
    return {'if': {'properties': {key: {'enum': list(values)}}, 'required': [key]}, 'then': dict(then)}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {'anyOf': [dict(schema), NULL]}


def ours(registry: str) -> dict[str, Any]:
    """The classes of this package in a registry of BasicSR, by name."""
    from basicsr.utils import registry as registries

    found = dict(iter(getattr(registries, f'{registry}_REGISTRY')))
    return {name: cls for name, cls in sorted(found.items()) if is_ours(cls) and not name.endswith('_effsr')}


def optimizers() -> dict[str, type[Section]]:
    """The optimizers of the torch that is installed, but for those that need a closure or sparse gradients."""
    import torch

    classes: dict[str, Any] = {
        n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    names = sorted(set(classes) - {'Optimizer', 'LBFGS', 'SparseAdam'})
    return {name: options_of(classes[name], known=spec.Optimizer, skip=('params',))[0] for name in names}


def schedulers() -> dict[str, type[Section]]:
    """The schedulers of BasicSR, by their names in an option file."""
    from basicsr.models import lr_scheduler

    classes = {name: getattr(lr_scheduler, cls) for name, cls in spec.SCHEDULERS.items()}
    skip = ('optimizer', 'last_epoch')
    return {name: options_of(cls, known=spec.Scheduler, skip=skip)[0] for name, cls in classes.items()}


def _data_sets(made: _Schema) -> dict[str, Any]:
    """Data sets by phase; those whose options are not known are open."""
    backend = {'$ref': '#/definitions/io_backend'}
    phases = {}
    for phase, training in (('^train$', True), ('^(val|test)(_.*)?$', False)):
        section = made.of(spec.Dataset)
        section['properties']['io_backend'] = _or_null(backend)
        kinds = {}
        for kind in spec.PAIRED:
            keys = spec.needed_by(kind, training)
            kinds[kind] = {**section, 'required': [*section['required'], *keys]}
            if 'io_backend' in keys:
                kinds[kind]['properties'] = {**section['properties'], 'io_backend': backend}
        phases[phase] = made.by_type('A data set: type and its options.', kinds)
    return {'type': 'object', 'patternProperties': phases, 'additionalProperties': False}


def _metrics(made: _Schema) -> dict[str, Any]:
    """A metric; open, as BasicSR's drop options that they do not know."""
    cropping = ['calculate_psnr', 'calculate_ssim', 'calculate_niqe']
    schema = made.of(spec.Metric, open_ended=True)
    return {**schema, 'allOf': [_where('type', cropping, made.of(spec.CroppedMetric, open_ended=True))]}


def _models() -> list[dict[str, Any]]:
    """Which options of ``train`` and ``val`` a model has; of those that are not named here, any."""
    keys = {'SRModel': (spec.HOST_TRAIN, spec.HOST_VAL)}
    keys |= {name: (cls.train_keys, cls.val_keys) for name, cls in ours('MODEL').items()}
    return [
        _where(
            'model_type',
            [name],
            {
                'properties': {
                    part: {'propertyNames': {'enum': sorted(own)}} for part, own in (('train', t), ('val', v))
                }
            },
        )
        for name, (t, v) in keys.items()
    ]


def option_schema() -> dict[str, Any]:
    """The schema (draft 7); classes of BasicSR and of others are open, ours are closed."""
    register()
    made = _Schema()
    networks, losses = (
        {name: made.of(options_of(cls)[0]) for name, cls in ours(kind).items()} for kind in ('ARCH', 'LOSS')
    )
    loss, network, optimizer = ({'$ref': f'#/definitions/{name}'} for name in ('loss', 'network', 'optimizer'))
    schema, train, val, path = (made.of(section) for section in (spec.Top, spec.Train, spec.Val, spec.Path))
    train['properties'] |= {
        'pixel_opt': _or_null(loss),
        'perceptual_opt': _or_null(loss),
        'losses': _or_null({'type': 'object', 'additionalProperties': _or_null(loss)}),
        'optim_g': optimizer,
        'scheduler': {'$ref': '#/definitions/scheduler'},
    }
    train |= {'patternProperties': {'^optim_.+$': optimizer}, 'additionalProperties': True}
    val['properties']['metrics'] = _or_null({'type': 'object', 'additionalProperties': _metrics(made)})
    path['patternProperties'] = {'^(pretrain_network|param_key|strict_load)_.+$': {}}  # of further networks
    made.definitions['Distill']['properties']['feature_loss'] = _or_null(loss)
    texts = {name: schema['properties'][name]['description'] for name in schema['properties']}
    schema['properties'] |= {
        'datasets': _data_sets(made),
        'path': path,
        'train': _or_null(train),
        'val': _or_null(val),
        'logger': _or_null(made.of(spec.Logger)),
        'network_g': network,
        'network_t': _or_null(network),
    }
    for name, text in texts.items():
        schema['properties'][name].setdefault('description', text)
    schema['patternProperties'] = {'^network_.+$': _or_null(network)}
    freq = {'properties': {'val_freq': {'type': 'number'}}, 'required': ['val_freq']}
    in_training = {'properties': {'logger': {'type': 'object'}, 'val': _or_null(freq)}, 'required': ['logger']}
    trains = {'properties': {'train': {'type': 'object'}}, 'required': ['train']}
    schema['allOf'] = [*_models(), {'if': trains, 'then': in_training}]
    closed = {
        'optimizer': ('An optimizer of torch.optim: type and its options.', optimizers()),
        'scheduler': ('A learning rate schedule: type and its options.', schedulers()),
    }
    schema['definitions'] = {
        **{
            name: made.by_type(t, {n: made.of(s) for n, s in s_.items()}, closed=True)
            for name, (t, s_) in closed.items()
        },
        'network': made.by_type('A network: type and its options.', networks),
        'loss': made.by_type('A loss: type and its options.', losses),
        'io_backend': made.of(spec.IOBackend),
        **made.definitions,
    }
    head = {'$schema': 'http://json-schema.org/draft-07/schema#', 'title': 'Option file of basicsr_effsr'}
    return {**schema, **head, 'description': 'Generated by: effsr check --schema'}
