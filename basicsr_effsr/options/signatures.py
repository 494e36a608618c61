"""Options of networks, losses, optimizers, schedulers and metrics, as their signatures and docstrings have them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model

from basicsr_effsr._registration import lookup
from basicsr_effsr.options import spec
from basicsr_effsr.options.spec import Count, Section, fields

PLAIN = (bool, int, float, str)
SHOWN = (*PLAIN, list, tuple)


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError('null')
    return value


def optimizers() -> dict[str, Any]:
    """The optimizers of the torch that is installed, but for those that need a closure or sparse gradients."""
    import torch

    base = torch.optim.Optimizer
    unfit = (base, torch.optim.LBFGS, torch.optim.SparseAdam)
    return {
        n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, base) and c not in unfit
    }


def schedulers() -> dict[str, Any]:
    """The schedulers of BasicSR, by their names in an option file."""
    from basicsr.models import lr_scheduler

    return {name: getattr(lr_scheduler, cls) for name, cls in spec.SCHEDULERS.items()}


# kind of class -> those there are, what is known of some parameters, parameters that no option file gives
OTHERS: Mapping[str, tuple[Callable[[], dict[str, Any]] | None, type[Section], tuple[str, ...]]] = {
    'OPTIMIZER': (optimizers, spec.Optimizer, ('params',)),
    'SCHEDULER': (schedulers, spec.Scheduler, ('optimizer', 'last_epoch')),
    'METRIC': (None, Section, ('img', 'img2')),
}


def find(kind: str, name: Any) -> tuple[Any, list[str]]:
    """The class or function of that name, None if there is none, and the names there are.

    ``kind`` is OPTIMIZER, SCHEDULER, or a registry of BasicSR: ARCH, LOSS, DATASET, MODEL, METRIC.
    """
    classes = OTHERS.get(kind, (None,))[0]
    if classes is None:
        return lookup(kind, name)
    return classes().get(name) if isinstance(name, str) else None, list(classes())


def read_by(cls: type) -> set[str]:
    """Keys of the file itself that the source of a model reads, as Real-ESRGAN's models of BasicSR read jpeg_range."""
    return set(re.findall(r"""\bopt(?:\[|\.get\()['"](\w+)""", ''.join(map(inspect.getsource, cls.__mro__[:-1]))))


def _type_of(annotation: Any) -> Any:
    """What an option file may hold for a type annotation; None if the annotation does not say."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    base = origin or annotation
    if annotation is int:
        return Count
    if annotation is NoneType or base is typing.Literal or base in PLAIN:
        return annotation
    if origin in (typing.Union, UnionType):
        known = [kind for kind in map(_type_of, parts) if kind is not None]
        return reduce(or_, known) if any(kind is not NoneType for kind in known) else None
    if isinstance(base, type) and issubclass(base, Mapping):
        return dict[Any, Any]
    if isinstance(base, type) and issubclass(base, Sequence):
        element = _type_of(parts[0]) if parts and len(set(parts) - {...}) == 1 else None
        return list[Any] if element is None else list[element]  # type: ignore[valid-type]
    return None


def _type_of_default(value: Any) -> Any:
    if type(value) in (int, float):
        return float  # a default of 0 says nothing about 0.5
    if type(value) in PLAIN:
        return type(value)
    return list[Any] if isinstance(value, list | tuple) else dict[Any, Any] if isinstance(value, dict) else None


def descriptions(target: Callable) -> dict[str, str]:
    """What the ``Args`` of a docstring (Google style) say, for people to read."""
    _, _, block = (inspect.getdoc(target) or '').partition('\nArgs:\n')
    entries = re.findall(r'^ {4}(\w+)(?: \(.*?\))?: (.*(?:\n {8}.*)*)', block.split('\n\n')[0], re.M)
    return {name: ' '.join(text.split()) for name, text in entries}


@cache
def options_of(target: Callable, kind: str = '', *, beside: type[Section] = Section) -> tuple[type[Section], bool]:
    """The section of a class or function as its signature has it, and whether it takes any other key too.

    An option whose default is not None cannot be null, unless its annotation allows it. For ``kind`` see :func:`find`;
    ``beside`` are keys that it has beside its parameters.
    """
    _, known, skip = OTHERS.get(kind, (None, Section, ()))
    try:
        parameters = inspect.signature(target, eval_str=True).parameters
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        parameters = inspect.signature(target).parameters
    texts, bounded = descriptions(target), fields(known)
    made: dict[str, Any] = {'type': (str, Field(description='Name of the class or function.'))}
    open_ended = False
    for name, parameter in parameters.items():
        default = parameter.default
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            open_ended = open_ended or parameter.kind is parameter.VAR_KEYWORD
        elif name in bounded:
            made[name] = (bounded[name].annotation, bounded[name])
        elif name not in skip:
            accepted = _type_of(parameter.annotation) if not isinstance(parameter.annotation, str) else None
            accepted = accepted or _type_of_default(default)
            if accepted is None:
                accepted = Any if default is None else Annotated[Any, AfterValidator(_given)]
            shown = ... if default is parameter.empty else default if isinstance(default, SHOWN) else None
            # prefixed, because pydantic keeps some names to itself
            made[f'option_{name}'] = (accepted, Field(shown, alias=name, description=texts.get(name)))
    made |= {name: (info.annotation, info) for name, info in fields(beside).items()}
    return create_model(getattr(target, '__name__', 'Options'), __base__=Section, **made), open_ended
