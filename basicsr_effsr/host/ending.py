"""How a run ends on an error of the user or a signal: with one sentence and nothing half-written."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr_effsr.host.watch import progress_line
from basicsr_effsr.utils.distributed import first, largest, lost_another, wait_for_all
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.files import WriteError, write_bytes

ASKING = (signal.SIGINT, signal.SIGTERM)


def end_in_a_sentence() -> None:
    """Lets errors that are sentences end this process as such, and lets what BasicSR writes itself raise them.

    BasicSR says neither path nor cause of an image that it cannot write, and goes on without a log that it cannot
    write, with a traceback for each of its lines.
    """
    if not isinstance(sys.excepthook, partial):
        sys.excepthook = partial(_end, sys.excepthook)
    from basicsr.models import sr_model

    sr_model.imwrite = _write_image
    threading.excepthook = partial(_end_of_a_thread, threading.excepthook)
    logging.FileHandler.handleError = _stop  # type: ignore[method-assign, assignment]


def sentence(error: BaseException) -> str:
    """The message for an error that the user can fix; empty for any other, which is a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and trace.tb_frame.f_globals.get('__name__', '').startswith('basicsr_effsr.')
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted; repeat the command with --auto_resume'
    if isinstance(error, Exception) and lost_another(error):
        return 'another process of this run has ended; see its own message. Repeat the command with --auto_resume'
    of_ours = type(error).__module__.startswith('basicsr_effsr.') or (isinstance(error, ValueError) and ours)
    if not (of_ours or isinstance(error, OSError | FloatingPointError)):
        return ''
    text = str(error).strip().splitlines()
    if text and text[0].startswith('Caught '):  # of a loader process, with its whole traceback
        return text[-1].partition(': ')[2] or text[-1]
    return one_line(error)


def _end(otherwise: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of ``sys.excepthook``."""
    words = sentence(error)
    if words:
        _say(words)
    else:
        otherwise(kind, error, trace)


def _end_of_a_thread(otherwise: Any, ended: Any) -> None:
    """In place of ``threading.excepthook``.

    TensorBoard raises what its thread met again where it is called next. The host would wait for ever for a batch of
    a loader's thread that has ended: it gets the error in its place.
    """
    if type(ended.thread).__name__ == 'PrefetchGenerator':
        ended.thread.queue.put(ended.exc_value)
    elif not type(ended.thread).__module__.startswith('tensorboard.'):
        otherwise(ended)


def event_logger(log_dir: str) -> Any:
    """BasicSR's ``init_tb_logger``, whose errors name the folder."""
    from torch.utils.tensorboard import SummaryWriter

    named = _naming(Path(log_dir))

    class Events(SummaryWriter):
        add_scalar = named(SummaryWriter.add_scalar)
        add_image = named(SummaryWriter.add_image)
        close = named(SummaryWriter.close)

    return Events(log_dir)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError.of(path, error) from error


def _say(words: str) -> None:
    sys.stderr.write(f'basicsr_effsr: {words}\n')
    for handler in logging.getLogger('basicsr').handlers:
        if isinstance(handler, logging.FileHandler):
            with suppress(Exception):  # the disk of the log may be the one that is full
                handler.handle(logging.LogRecord('basicsr', logging.ERROR, '', 0, words, None, None))


def stoppable(prefetcher: Any) -> Any:
    """BasicSR's class of that name, which ends a run between two iterations once SIGINT or SIGTERM has asked for it.

    There the iteration has saved and validated, and the model saves once more; there a terminal shows how far the run
    is. Before the first, a resumed run does the validation that a kill came before. BasicSR's loop takes its batches
    from here, in a function whose variables say what is trained.
    """

    class Stoppable(prefetcher):
        def __init__(self, loader: Any, *arguments: Any) -> None:
            self.asked, self.line = _Asked(), progress_line()
            for number in ASKING:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # others know what they do
                    with suppress(ValueError):  # only the main thread may
                        weakref.finalize(self, signal.signal, number, signal.signal(number, self.asked))
            loop = sys._getframe(1).f_locals
            due = getattr(loop.get('model'), 'validate_what_is_due', None)
            if due is not None:  # before the loader draws a number
                due(loop.get('val_loaders', ()), loop.get('tb_logger'))
            super().__init__(_Leaving(loader), *arguments)

        def reset(self) -> None:
            self.begins = True
            super().reset()

        def next(self) -> Any:
            if not self.begins:  # else the variables say the epoch that begins, and the iteration before it
                loop = sys._getframe(1).f_locals
                self.asked.leave(loop)
                if self.line is not None:
                    self.line(loop)
            self.begins = False
            batch = super().next()
            if isinstance(batch, BaseException):  # of a loader's thread
                raise batch
            return batch

    return Stoppable


class _Leaving:
    """A loader whose processes leave it to this one what a signal to all of them means: they may be waited for.

    Until then they ignore signals, as this process does while it starts them.
    """

    def __init__(self, loader: Any) -> None:
        loader.worker_init_fn = partial(_as_worker, loader.worker_init_fn)
        self.loader = loader

    def __iter__(self) -> Any:
        if not hasattr(signal, 'pthread_sigmask'):  # Windows
            return iter(self.loader)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        try:
            return iter(self.loader)
        finally:
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)  # behind multiprocessing's own, and so run before it
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_workers() -> None:
    """Ends the loader processes that are left: they would ignore the one SIGTERM that multiprocessing sends them."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls their end an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _as_worker(then: Any, worker: int) -> None:
    """Start of a loader process; a second SIGTERM ends it, such as torch sends to what does not end by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    if then is not None:
        then(worker)


class _Asked:
    """The signal that has asked the run to end; a second one ends it at once, whatever it waits for."""

    number = 0

    def __call__(self, number: int, _: Any) -> None:
        self.number = number
        for other in ASKING:
            signal.signal(other, signal.SIG_DFL)
        if first():
            os.write(2, b'\nbasicsr_effsr: ending after this iteration; the same signal again ends at once\n')

    def leave(self, loop: dict[str, Any]) -> None:
        """Saves and ends the process if a signal has come to any of the ranks, all of which must be here.

        Raises:
            SystemExit: 130 after SIGINT, 143 after SIGTERM.
        """
        number = largest(self.number)
        if not number:
            return
        loop['model'].save(loop['epoch'], loop['current_iter'])
        if loop.get('tb_logger'):
            loop['tb_logger'].close()
        if first():
            ended = f'{signal.Signals(number).name} ended the run after iteration {loop["current_iter"]}'
            _say(f'{ended}, which is saved; repeat the command with --auto_resume to continue')
        wait_for_all()  # for the files of the first: torchrun kills the others once one has ended
        raise SystemExit(128 + number)


def _write_image(image: Any, file_path: str, params: Any = None, auto_mkdir: bool = True) -> None:
    """BasicSR's ``imwrite``, all or nothing."""
    import cv2

    write_bytes(Path(file_path), cv2.imencode(os.path.splitext(file_path)[1], image, params or [])[1].data)


def _stop(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """In place of ``Handler.handleError``."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise WriteError.of(Path(handler.baseFilename), error) from error
    logging.Handler.handleError(handler, record)
