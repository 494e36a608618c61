"""How a run ends by a fault that its user can mend: at once, in a sentence, with nothing half-written."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr_effsr.utils.distributed import lost_another
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.files import WriteError, write_bytes


def end_in_a_sentence() -> None:
    """Lets errors that are sentences end this process as such, and lets what BasicSR writes itself raise them.

    BasicSR says neither path nor cause of an image that it cannot write, and goes on without a log that it cannot
    write, with a traceback for each of its lines.
    """
    if not isinstance(sys.excepthook, partial):
        sys.excepthook = partial(_say, sys.excepthook)
    from basicsr.models import sr_model

    sr_model.imwrite = _write_image
    logging.FileHandler.handleError = _stop  # type: ignore[method-assign, assignment]


def sentence(error: BaseException) -> str:
    """What to say of an error that the user can mend; empty for any other, which is a fault of a program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and trace.tb_frame.f_globals.get('__name__', '').startswith('basicsr_effsr.')
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted; repeat the command with --auto_resume'
    if isinstance(error, Exception) and lost_another(error):
        return 'another process of this run has ended; its own words say why. Repeat the command with --auto_resume'
    of_ours = type(error).__module__.startswith('basicsr_effsr.') or (isinstance(error, ValueError) and ours)
    if not (of_ours or isinstance(error, OSError | FloatingPointError)):
        return ''
    text = str(error).strip().splitlines()
    if text and text[0].startswith('Caught '):  # of a loader process, with its whole traceback
        return text[-1].partition(': ')[2] or text[-1]
    return one_line(error)


def _say(otherwise: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of ``sys.excepthook``."""
    words = sentence(error)
    if not words:
        otherwise(kind, error, trace)
        return
    sys.stderr.write(f'basicsr_effsr: {words}\n')
    for handler in logging.getLogger('basicsr').handlers:
        if isinstance(handler, logging.FileHandler):
            with suppress(Exception):  # the disk of the log may be the one that is full
                handler.handle(logging.LogRecord('basicsr', logging.ERROR, '', 0, words, None, None))


def _write_image(image: Any, file_path: str, params: Any = None, auto_mkdir: bool = True) -> None:
    """BasicSR's ``imwrite``, all or nothing.

    Raises:
        WriteError: it cannot be written.
    """
    import cv2

    write_bytes(Path(file_path), cv2.imencode(os.path.splitext(file_path)[1], image, params or [])[1].data)


def _stop(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """In place of ``Handler.handleError``."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise WriteError.of(Path(handler.baseFilename), error) from error
    logging.Handler.handleError(handler, record)
