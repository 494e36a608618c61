"""What is wrong with an option file, what its rules have learnt so far, and how values are named in a sentence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from basicsr_effsr.options.spec import PAIRED

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


@dataclass
class Images:
    """What a data set was found to hold: how many pairs, and the name and size (H, W) of the smallest LR image."""

    count: int = 0
    smallest: tuple[str, tuple[int, int]] | None = None


@dataclass
class Context:
    """A copy of the options from which ill-typed entries have been taken out, and what the rules have learnt.

    Attributes:
        opt: the options; counts are integers.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on.
        model: the class of ``model_type``, None if there is none of that name.
        nets: the networks on the meta device by key, None for those that could not be built so.
        images: of the data sets by phase, as far as they could be listed.
        found: the problems so far.
    """

    opt: dict[str, Any]
    is_train: bool
    every_image: bool = False
    model: Any = None
    nets: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Images] = field(default_factory=dict)
    found: list[Problem] = field(default_factory=list)

    def section(self, *names: str) -> dict[str, Any]:
        """A section by its path, empty if there is none."""
        value: Any = self.opt
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def fine(self, *where: str) -> bool:
        """True if nothing fatal has been found at these places or below them."""
        bad = [f'{problem.where}.' for problem in self.found if problem.fatal]
        return not any(place.startswith(f'{w}.') for place in bad for w in where)

    @property
    def scale(self) -> int | None:
        """The scale factor, if there is a sound one."""
        return self.opt.get('scale')

    @property
    def validated(self) -> list[str]:
        """The phases that are not trained on."""
        return [str(phase) for phase in self.section('datasets') if not str(phase).startswith('train')]

    @property
    def about_to_run(self) -> bool:
        """True if BasicSR has parsed the options on the machine that is to follow them."""
        return 'rank' in self.opt

    @property
    def gpus_of_one_process(self) -> int:
        """By so many BasicSR multiplies the batch of a loader: num_gpu, but not if a launcher starts the processes."""
        import torch

        number = torch.cuda.device_count() if self.opt.get('num_gpu') == 'auto' else self.opt.get('num_gpu')
        return 1 if self.opt.get('dist') else max(number or 1, 1)


def is_paired(data: Any) -> bool:
    """True for the data sets whose options are known."""
    return isinstance(data, Mapping) and str(data.get('type')).removesuffix('_effsr') in PAIRED


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what torch writes about networks that cannot do without memory."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.disabled = before
