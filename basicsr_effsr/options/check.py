"""Everything that can be known to be wrong with an option file before training starts: the rules, collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr_effsr.options import data_rules, run_rules, train_rules, val_rules
from basicsr_effsr.options.context import Context
from basicsr_effsr.options.problem import Problem, copied, plain

# In this order: what is ill-typed is taken out of the options before others read them, networks and images are learnt.
BEFORE = (
    run_rules.top,
    run_rules.networks,
    run_rules.path,
    run_rules.weights,
    run_rules.gpus,
    data_rules.phases,
    data_rules.data_sets,
    data_rules.pairs,
    data_rules.channels,
)
TRAINING = (
    train_rules.section,
    run_rules.logger,
    train_rules.loss_names,
    train_rules.losses,
    train_rules.optimizers,
    train_rules.scheduler,
    train_rules.distillation,
    train_rules.patches,
    train_rules.iterations,
)
AFTER = (
    val_rules.least_input,
    val_rules.presence,
    val_rules.section,
    val_rules.tile,
    val_rules.metrics,
)
OF_A_MODEL = (train_rules.section, train_rules.loss_names, train_rules.distillation)


def problems(opt: Any, is_train: bool, *, every_image: bool = False) -> list[Problem]:
    """What is wrong with the options, worst first; ``opt`` is not changed and nothing is written.

    Reads names of files, headers of images to train on, weights that are named, and decodes images of validation.

    Args:
        opt: as in the file, or as BasicSR has parsed it.
        is_train: for training; False for testing.
        every_image: read the header of every image to train on, however many there are.
    """
    return inspected(opt, is_train, every_image=every_image).found


def inspected(opt: Any, is_train: bool, *, every_image: bool = False) -> Context:
    """As ``problems``, with all that was learnt on the way."""
    if not isinstance(opt, Mapping):
        words = f'must hold sections such as network_g and datasets, found {plain(opt)}'
        return Context({}, is_train, found=[Problem('option file', words)])
    context = Context(copied(opt), is_train, every_image)
    context.run(BEFORE + (TRAINING if is_train else ()) + AFTER)
    context.found = sorted(dict.fromkeys(context.found), key=lambda problem: not problem.fatal)
    return context


def refuse(opt: Mapping[str, Any], model: type, *, net: Any = None) -> None:
    """The rules on what a model class itself reads, for whoever builds one without a check of the whole file.

    Args:
        opt: as BasicSR has parsed it.
        model: a class with ``train_keys`` and ``val_keys``.
        net: ``network_g``, once it is built.

    Raises:
        ValueError: names the first option that is wrong.
    """
    context = Context(copied(opt), bool(opt.get('is_train')), model=model, nets={'network_g': net})
    context.run((OF_A_MODEL if context.is_train else ()) + (val_rules.section, val_rules.tile))
    for problem in context.found:
        if problem.fatal:
            raise ValueError(f'{model.__name__}: {problem}')
