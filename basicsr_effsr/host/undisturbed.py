"""Trying something in a process without leaving a trace in it."""

from __future__ import annotations

import gc
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from basicsr_effsr.utils.distributed import alone
from basicsr_effsr.utils.training import random_states, restore_random_states


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, arguments and the host's logger are afterwards what they were before.

    Nothing is printed or logged meanwhile, and in a process group this process counts as alone.
    """
    from basicsr.utils import logger as host

    states, argv, begun = random_states(), list(sys.argv), dict(host.initialized_logger)
    log = logging.getLogger('basicsr')
    before = (log.handlers, log.level, log.propagate)
    try:
        host.initialized_logger['basicsr'] = True  # the host would open its log for good
        log.handlers, log.propagate = [logging.NullHandler()], False
        with alone(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        gc.collect()  # closes LMDBs and packs, which the run opens again
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        host.initialized_logger.clear()
        host.initialized_logger.update(begun)
        log.handlers, level, log.propagate = before
        log.setLevel(level)
        sys.argv[:] = argv
        restore_random_states(states)
