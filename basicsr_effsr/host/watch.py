"""Monitoring of a run: learning rates in TensorBoard, wandb, and a progress line on a terminal."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, TextIO

import torch

from basicsr_effsr.utils.distributed import first

WIPE = '\x1b[K'  # from the cursor to the end of the line


def with_rates(message_logger: Any) -> Any:
    """BasicSR's class of that name, which gives learning rates to tensorboard and does not say ``eta: -1 day``."""

    class WithRates(message_logger):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.max_iters += 1  # the host takes the last iteration for the one before

        def __call__(self, log_vars: dict[str, Any]) -> None:
            if self.tb_logger:
                for i, rate in enumerate(log_vars['lrs']):
                    self.tb_logger.add_scalar(f'lr/{i}', rate, log_vars['iter'])
            super().__call__(log_vars)

    return WithRates


def init_wandb_logger(opt: dict[str, Any]) -> None:
    """BasicSR's function of that name, for a wandb that no longer has what it takes an id from."""
    from basicsr.utils import logger

    if first():
        import wandb

        if not hasattr(wandb.util, 'generate_id'):
            wandb.util.generate_id = lambda: secrets.token_hex(4)
    logger.init_wandb_logger(opt)


def progress_line() -> ProgressLine | None:
    """The line, in the first process and on a terminal that can wipe one."""
    there = first() and sys.stderr is not None and sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'
    return ProgressLine(sys.stderr) if there else None


class ProgressLine:
    """Iterations, their speed, the time that is left, the losses that were logged last, the most memory so far."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.shown = stream, 0.0
        self.began: tuple[float, int] | None = None
        logging.getLogger('basicsr').addFilter(self._make_room)

    def _make_room(self, _: logging.LogRecord) -> bool:
        self._write('')  # before a line of the log
        return True

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(f'\r{WIPE}{text}\r')  # what is printed next begins where this does
            self.stream.flush()

    def __call__(self, loop: dict[str, Any]) -> None:
        """Between two iterations, of which ``loop`` are the variables of BasicSR's loop."""
        now, done, total = time.monotonic(), loop['current_iter'], loop['total_iters']
        began, before = self.began = self.began or (now, done)  # the first iteration is slower
        if done == before or now < self.shown + 0.2:
            return
        self.shown, speed = now, (done - before) / max(now - began, 1e-9)
        words = [f'{done:,} / {total:,}', f'{speed:.2f} it/s', f'ETA {timedelta(seconds=int((total - done) / speed))}']
        words += [f'{name} {value:.3e}' for name, value in getattr(loop['model'], 'log_dict', {}).items()]
        if torch.cuda.is_initialized():
            words.append(f'{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB')
        else:
            with suppress(ImportError):  # Windows
                import resource

                unit = 1 if sys.platform == 'darwin' else 2**10
                words.append(f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB')
        self._write('  '.join(words)[: shutil.get_terminal_size().columns - 1])
