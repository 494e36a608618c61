"""``docs/options.md``: every key of an option file with its type and what it does, written from the models."""

from __future__ import annotations

from collections.abc import Iterator

from basicsr_effsr._registration import register
from basicsr_effsr.options import spec
from basicsr_effsr.options.problem import in_words, plain
from basicsr_effsr.options.schema import ours, schedulers
from basicsr_effsr.options.signatures import options_of
from basicsr_effsr.options.spec import Section
from basicsr_effsr.options.validate import schema_of

HEAD = """# Options

Every key of an option file. `effsr check -opt FILE` checks a file against it, `effsr check --schema` prints it as JSON
schema for editors. This page is written by `effsr check --docs`; keys in **bold** must be there, a key that also takes
null says so. Optimizers are those of `torch.optim` with the options of their class.
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
    """The page, in Markdown."""
    register()
    sections = dict(SECTIONS)
    sections |= {f'`train.scheduler`: {name}': section for name, section in schedulers().items()}
    for kind, title in (('ARCH', 'Network'), ('LOSS', 'Loss')):
        sections |= {f'{title} `{name}`': options_of(cls)[0] for name, cls in ours(kind).items()}
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
        words = in_words(entry) + (' or null' * any(part == {'type': 'null'} for part in entry.get('anyOf', ())))
        text = entry.get('description', '')
        if 'default' in entry:
            text = f'{text.rstrip(".")}. Default: `{plain(entry["default"])}`.'
        if ours_only is not None and name not in ours_only:
            text += ' DistillationModel only.' if name == 'distill' else ' EffSRModel only.'
        yield f'| {shown} | {words} | {" ".join(text.split())} |'.replace('||', '\\|\\|')
