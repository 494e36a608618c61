"""An interpreter that has imported torch and torchvision, 6 of the 7 seconds that a command of the host takes to start.

``host.py`` starts one per test process and sends it, for each command, a JSON line and three file descriptors: output,
errors, and the pipe for the answer. What it forks then is what a new interpreter would be: none of our modules but the
hook, nothing of the host, its own session, directory, environment and signals.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from types import ModuleType

ended: list[BaseException] = []


@atexit.register  # the first that is registered is the last that runs
def leave() -> None:
    """Ends this process as the interpreter would, but for the 3 seconds in which it clears what nobody will use."""
    with contextlib.suppress(ValueError):  # a stream that is closed
        sys.stdout.flush()
        sys.stderr.flush()
    error = ended[0] if ended else SystemExit(0)
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(0 if code is None else code & 0xFF if isinstance(code, int) else 1)


def supervise(answer: int) -> bool:
    """Forks; in the parent tells ``answer`` process id and exit code and returns False, in the child returns True."""
    child = os.fork()
    if not child:
        os.close(answer)
        os.setsid()
        return True
    os.write(answer, f'{child}\n'.encode())
    os.write(answer, f'{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n'.encode())
    return False


def become(arguments: list[str], cwd: str, environment: dict[str, str], out: int, err: int) -> None:
    """Makes this process the interpreter that was started with ``arguments`` in ``cwd``, and runs it."""
    for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # some torch has asked for it
    what, *rest = arguments
    if what == '-m':
        sys.path[0], sys.argv = cwd, rest
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    elif what == '-c':
        sys.path[0], sys.argv = '', ['-c', *rest[1:]]
        main = sys.modules['__main__'] = ModuleType('__main__')
        exec(compile(rest[0], '<string>', 'exec'), vars(main))
    else:
        sys.path[0], sys.argv = os.path.dirname(what), arguments
        runpy.run_path(what, run_name='__main__')


def main() -> None:
    for name in ('cv2', 'scipy.stats', 'torch', 'torch.utils.tensorboard', 'torchvision'):
        importlib.import_module(name)
    gc.freeze()  # or the first collection of a child copies every page
    control = socket.socket(fileno=0)
    while True:
        message, streams, *_ = socket.recv_fds(control, 1 << 20, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have answered
                pass
        if not message:
            return
        out, err, answer = streams
        if not os.fork():
            control.detach()
            if not supervise(answer):
                os._exit(0)
            try:
                become(**json.loads(message), out=out, err=err)
            except BaseException as error:
                ended.append(error)
                raise
            return
        for stream in streams:
            os.close(stream)


main()
