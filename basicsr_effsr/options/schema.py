"""The JSON schema of option files for editors, and ``docs/options.md``: both written from the typed sections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from basicsr_effsr._registration import is_ours, register, registry_of
from basicsr_effsr.options import spec
from basicsr_effsr.options.problem import plain
from basicsr_effsr.options.signatures import optimizers, options_of, schedulers
from basicsr_effsr.options.spec import Section
from basicsr_effsr.options.validate import in_words, schema_of

NULL = {'type': 'null'}
CROPPING = ['calculate_psnr', 'calculate_ssim', 'calculate_niqe']


def ours(kind: str) -> dict[str, Any]:
    """The classes of this package in a registry of BasicSR, by name."""
    found = dict(iter(registry_of(kind)))
    return {name: cls for name, cls in sorted(found.items()) if is_ours(cls) and name == cls.__name__}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {'anyOf': [dict(schema), NULL]}


def _where(key: str, values: Iterable[str], then: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where an option has one of these values."""
    return {'if': {'properties': {key: {'enum': list(values)}}, 'required': [key]}, 'then': dict(then)}


def _by_type(text: str, sections: Mapping[str, dict[str, Any]], *, closed: bool = False) -> dict[str, Any]:
    """A section whose options depend on its ``type``; other types are open, or refused if ``closed``."""
    return {
        'description': text,
        'type': 'object',
        'required': ['type'],
        'properties': {'type': {'type': 'string', 'enum' if closed else 'examples': list(sections)}},
        'allOf': [_where('type', [name], section) for name, section in sections.items()],
    }


class _Schema:
    """Sections as they are met; those within others come under ``definitions``."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, section: type[Section], *, open_ended: bool = False) -> dict[str, Any]:
        schema = deepcopy(schema_of(section))
        self.definitions |= schema.pop('$defs', {})
        return {**schema, 'additionalProperties': open_ended}

    def named(self, text: str, classes: Mapping[str, Any], kind: str = '') -> dict[str, Any]:
        """Sections of these classes by ``type``; types of others are open where anybody can register one."""
        sections = {name: self.of(options_of(cls, kind)[0]) for name, cls in sorted(classes.items())}
        return _by_type(f'{text}: type and its options.', sections, closed=bool(kind))

    def data_sets(self) -> dict[str, Any]:
        """Data sets by phase; those whose options are not known are open."""
        backend = {'$ref': '#/definitions/io_backend'}
        phases = {}
        for phase, training in (('^train$', True), ('^(val|test)(_.*)?$', False)):
            kinds = {kind: self.of(spec.Dataset) for kind in spec.PAIRED}
            for kind, section in kinds.items():
                keys = spec.needed_by(kind, training)
                section['required'] += keys
                section['properties']['io_backend'] = backend if 'io_backend' in keys else _or_null(backend)
            phases[phase] = _by_type('A data set: type and its options.', kinds)
        return {'type': 'object', 'patternProperties': phases, 'additionalProperties': False}


def option_schema() -> dict[str, Any]:
    """The schema (draft 7); classes of BasicSR and of others are open, ours are closed."""
    register()
    made = _Schema()
    loss, network, optimizer, cycle = (
        {'$ref': f'#/definitions/{name}'} for name in ('loss', 'network', 'optimizer', 'scheduler')
    )
    schema, train, val, path = (made.of(section) for section in (spec.Top, spec.Train, spec.Val, spec.Path))
    losses = {'type': 'object', 'additionalProperties': _or_null(loss)}
    train['properties'] |= {key: _or_null(loss) for key in spec.LOGGED.values()} | {'losses': _or_null(losses)}
    train['properties'] |= {'optim_g': optimizer, 'scheduler': cycle}
    train |= {'patternProperties': {'^optim_.+$': optimizer}, 'additionalProperties': True}
    # open, as BasicSR's metrics drop options that they do not know
    metric = made.of(spec.Metric, open_ended=True)
    metric['allOf'] = [_where('type', CROPPING, made.of(spec.CroppedMetric, open_ended=True))]
    val['properties']['metrics'] = _or_null({'type': 'object', 'additionalProperties': metric})
    path['patternProperties'] = {'^(pretrain_network|param_key|strict_load)_.+$': {}}  # of further networks
    made.definitions['Distill']['properties']['feature_loss'] = _or_null(loss)
    sections = {'datasets': made.data_sets(), 'path': path, 'train': _or_null(train), 'val': _or_null(val)}
    sections |= {'logger': _or_null(made.of(spec.Logger)), 'network_g': network, 'network_t': _or_null(network)}
    for name, section in sections.items():
        schema['properties'][name] = {'description': schema['properties'][name]['description']} | section
    schema['patternProperties'] = {'^network_.+$': _or_null(network)}
    freq = {'properties': {'val_freq': {'type': 'number'}}, 'required': ['val_freq']}
    in_training = {'properties': {'logger': {'type': 'object'}, 'val': _or_null(freq)}, 'required': ['logger']}
    trains = {'properties': {'train': {'type': 'object'}}, 'required': ['train']}
    schema['allOf'] = [{'if': trains, 'then': in_training}]
    read = {'SRModel': (spec.HOST_TRAIN, spec.HOST_VAL)}  # of models that are not named here any key may be there
    read |= {name: (cls.train_keys, cls.val_keys) for name, cls in ours('MODEL').items()}
    named = {'anyOf': [{'enum': sorted(schema['properties'])}, {'pattern': '^network_.+$'}]}
    schema['additionalProperties'] = True  # models of others may read keys of their own
    schema['allOf'].append(_where('model_type', sorted(read), {'propertyNames': named}))
    for model, keys in read.items():
        parts = {p: {'propertyNames': {'enum': sorted(k)}} for p, k in zip(('train', 'val'), keys, strict=True)}
        schema['allOf'].append(_where('model_type', [model], {'properties': parts}))
    schema['definitions'] = {
        'optimizer': made.named('An optimizer of torch.optim', optimizers(), 'OPTIMIZER'),
        'scheduler': made.named('A learning rate schedule', schedulers(), 'SCHEDULER'),
        'network': made.named('A network', ours('ARCH')),
        'loss': made.named('A loss', ours('LOSS')),
        'io_backend': made.of(spec.IOBackend),
        **made.definitions,
    }
    head = {'$schema': 'http://json-schema.org/draft-07/schema#', 'title': 'Option file of basicsr_effsr'}
    return {**schema, **head, 'description': 'Generated by: effsr check --schema'}


HEAD = """# Options

Every key of an option file. `effsr check -opt FILE` checks a file against these rules; `effsr check --schema` prints
them as a JSON schema for editors. Keys in **bold** are required. A key accepts null only where its type says so. A
float without fraction (2e4) is accepted as an integer, except for scale, num_gpu and manual_seed, which BasicSR reads
first. Optimizers are those of `torch.optim`, with the options of their class. This page is generated by `effsr check
--docs`.
"""
SECTIONS: dict[str, type[Section]] = {
    'Top level': spec.Top,
    '`datasets.<phase>`: paired data sets': spec.Dataset,
    '`datasets.<phase>.io_backend`': spec.IOBackend,
    '`path`': spec.Path,
    '`train`': spec.Train,
    '`train.progressive`': spec.Progressive,
    '`train.distill`': spec.Distill,
    '`train.compile`': spec.Compile,
    '`train.optim_g`': spec.Optimizer,
    '`val`': spec.Val,
    '`val.tile`': spec.Tile,
    '`val.metrics.<name>`': spec.CroppedMetric,
    '`logger`': spec.Logger,
    '`logger.wandb`': spec.Wandb,
}


def option_page() -> str:
    """The page of every key with its type and what it does, in Markdown."""
    register()
    sections = dict(SECTIONS)
    classes = [(f'`train.scheduler`: {name}', cls, 'SCHEDULER') for name, cls in schedulers().items()]
    classes += [(f'Network `{name}`', cls, '') for name, cls in ours('ARCH').items()]
    classes += [(f'Loss `{name}`', cls, '') for name, cls in ours('LOSS').items()]
    sections |= {title: options_of(cls, kind)[0] for title, cls, kind in classes}
    return HEAD + ''.join(
        f'\n## {title}\n\n' + '\n'.join(_table(section)) + '\n' for title, section in sections.items()
    )


def _table(section: type[Section]) -> Iterator[str]:
    schema = schema_of(section)
    yield '| key | value | |'
    yield '| --- | --- | --- |'
    ours_only = {spec.Train: spec.HOST_TRAIN, spec.Val: spec.HOST_VAL}.get(section)
    for name, entry in schema['properties'].items():
        shown = f'**`{name}`**' if name in schema.get('required', ()) else f'`{name}`'
        words = in_words(entry) + (' or null' * any(part == NULL for part in entry.get('anyOf', ())))
        text = entry.get('description', '')
        if 'default' in entry:
            text = f'{text.rstrip(".")}. Default: `{plain(entry["default"])}`.'
        if ours_only is not None and name not in ours_only:
            text += ' DistillationModel only.' if name == 'distill' else ' EffSRModel only.'
        yield f'| {shown} | {words} | {" ".join(text.split())} |'.replace('||', '\\|\\|')
