"""Trying something in a process without leaving a trace in it."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from basicsr_effsr.utils.distributed import alone
from basicsr_effsr.utils.training import random_states, restore_random_states

CUDNN = ('benchmark', 'deterministic', 'enabled', 'allow_tf32')


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, loggers, flags, arguments and the current directory are afterwards what they were before.

    Nothing is printed or logged meanwhile, and in a process group this process counts as alone.
    """
    from basicsr.utils import logger as host

    states, argv, folder = random_states(), list(sys.argv), os.getcwd()
    flags = {name: getattr(torch.backends.cudnn, name) for name in CUDNN}
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    loggers = [(one, list(one.handlers), one.level, one.propagate, one.disabled) for one in _loggers()]
    begun = dict(host.initialized_logger)
    silent = logging.getLogger('basicsr')
    before = (list(silent.handlers), silent.level, silent.propagate, silent.disabled)
    try:
        host.initialized_logger['basicsr'] = True  # the host would open its log for good
        silent.handlers, silent.propagate = [logging.NullHandler()], False
        with alone(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        gc.collect()  # closes LMDBs and packs, which the run opens again
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        host.initialized_logger.clear()
        host.initialized_logger.update(begun)
        for one, handlers, level, propagate, disabled in [*loggers, (silent, *before)]:
            one.handlers, one.propagate, one.disabled = handlers, propagate, disabled
            one.setLevel(level)
        for name, value in flags.items():
            setattr(torch.backends.cudnn, name, value)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        sys.argv[:] = argv
        os.chdir(folder)
        restore_random_states(states)
