"""Everything that can be known to be wrong with an option file before anything is built: the rules, collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr_effsr.options import data_rules, rules
from basicsr_effsr.options.context import Context
from basicsr_effsr.options.problem import Problem, adopt, copied, plain

# In this order: what is ill-typed is taken out of the options before others read them, networks and images are learnt.
SECTIONS = (rules.top, rules.networks, rules.path, rules.gpus, data_rules.phases, data_rules.data_sets)
TRAINING = (rules.train, rules.logger, rules.loss_names, rules.losses, rules.optimizers, rules.scheduler)
AFTER = (rules.val, data_rules.pairs, data_rules.sizes, rules.metrics)
AFTER_TRAINING = (rules.distillation, rules.iterations)


def inspected(opt: Any, is_train: bool, *, every_image: bool = False) -> Context:
    """What is wrong with the options and what was learnt; ``opt`` is not changed and nothing is written.

    Reads names of files, headers of images to train on, and decodes images of validation.

    Args:
        opt: as in the file, or as BasicSR has parsed it.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on, however many there are.
    """
    if not isinstance(opt, Mapping):
        words = f'must hold sections such as network_g and datasets, found {plain(opt)}'
        return Context({}, is_train, found=[Problem('option file', words)])
    context = Context(copied(opt), is_train, every_image)
    _apply(context, (*SECTIONS, *TRAINING * is_train, *AFTER, *AFTER_TRAINING * is_train))
    context.found = sorted(dict.fromkeys(context.found), key=lambda problem: not problem.fatal)
    return context


def problems(opt: Any, is_train: bool, *, every_image: bool = False) -> list[Problem]:
    """What is wrong with the options, worst first; see :func:`inspected`."""
    return inspected(opt, is_train, every_image=every_image).found


def refuse(opt: dict[str, Any], model: type, *, net: Any = None) -> None:
    """The rules on what a model class itself reads, for whoever builds one without a check of the whole file.

    Args:
        opt: as BasicSR has parsed it; whole floats become integers where counts are asked for.
        model: a class with ``train_keys`` and ``val_keys``.
        net: ``network_g``, once it is built: then patches and tiles are held against its least input.

    Raises:
        ValueError: names the first option that is wrong.
    """
    context = Context(copied(opt), bool(opt.get('is_train')), model=model, nets={'network_g': net})
    own = (rules.train, rules.loss_names, rules.distillation) * context.is_train
    _apply(context, (*own, rules.val) if net is None else (data_rules.sizes,))
    for problem in context.found:
        if problem.fatal:
            raise ValueError(f'{model.__name__}: {problem}')
    adopt(opt, context.opt)


def _apply(context: Context, those: tuple[Any, ...]) -> None:
    for rule in those:
        for problem in rule(context):  # one by one, as rules ask what has been found
            context.found.append(problem)
