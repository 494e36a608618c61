"""Every command of ``effsr`` with the paths that it takes, found by walking; and calls that cannot hang a test."""

from __future__ import annotations

import faulthandler
import gc
import inspect
import json
import os
import resource
import signal
import tempfile
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import COMMANDS, app
from basicsr_effsr.tools import features
from datasets_prep.cli import COMMANDS as PREPARATIONS
from datasets_prep.cli import function_of

TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 4}
HANGS = 300  # seconds; only what hangs takes them, on the busiest machine too
MORE = (
    3 * 2**30
)  # bytes that a command may ask for beside what this process has: an endless file must not fill the machine


def make_room(folder: Path) -> Path:
    """``folder`` with two small networks, an option file of the first, and a set of one image."""
    for name, side in (('GTmod12', 96), ('LRbicx4', 24)):
        (folder / 'Set5' / name).mkdir(parents=True)
        pixels = np.zeros((side, side, 3), np.uint8)
        pixels[side // 2 :, side // 2 :] = 255  # edges, of which lam has something to say
        Image.fromarray(pixels).save(folder / 'Set5' / name / '0.png')
    for seed, name in enumerate(('net.pth', 'other.pth')):
        torch.manual_seed(seed)
        torch.save({'params': HASN(**TINY).state_dict()}, folder / name)
    (folder / 'experiments' / 'it').mkdir(parents=True)
    log = '2026-01-01 10:00:00,000 INFO: [it..][epoch:  0, iter:       1, lr:(1.000e-03,)] l_pix: 1.0e-01 \n'
    (folder / 'experiments' / 'it' / 'train_it_20260101_100000.log').write_text(log)
    data = {'type': 'PairedImageDataset', 'name': 'it', 'io_backend': {'type': 'disk'}}
    data |= {f'dataroot_{key}': str(folder / 'Set5' / name) for key, name in (('gt', 'GTmod12'), ('lq', 'LRbicx4'))}
    opt = {'name': 'it', 'model_type': 'EffSRModel', 'scale': 4, 'num_gpu': 0, 'datasets': {'test': data}}
    opt |= {'network_g': {'type': 'HASN', **TINY}, 'path': {'pretrain_network_g': str(folder / 'net.pth')}}
    (folder / 'opt.yml').write_text(yaml.safe_dump(opt))
    return folder


def usual(words: tuple[str, ...], room: Path, out: Path) -> tuple[dict[str, Path], list[str]]:
    """Paths and words with which a command does its work, as far as it needs them to come to the path under test."""
    sets, lr = room / 'Set5', room / 'Set5' / 'LRbicx4'
    paths, extra = {
        'check': ({'opt': room / 'opt.yml'}, []),
        'evaluate': ({'opt': room / 'opt.yml', 'data': sets, 'out': out}, ['--sets', 'Set5']),
        'compare': ({'opt': room / 'opt.yml', 'out': out / 'a.png'}, []),
        'benchmark': (
            {'opt': room / 'opt.yml', 'out': out},
            ['--no-latency', '--protocol', 'ntire2024', '--size', '16x16'],
        ),
        'plot': ({'out': out / 'a.png'}, []),
        'paper': ({}, ['hasn', '--table', '7']),
        'features': (
            {'weights': room / 'net.pth', 'image': lr / '0.png', 'out': out / 'a.png'},
            ['--module', 'block_1'],
        ),
        'lam': ({'weights': room / 'net.pth', 'image': lr / '0.png', 'out': out / 'a.png'}, []),
        'runs': ({'out': out / 'a.png'}, ['plot', str(room / 'experiments' / 'it')]),
        'infer': ({'weights': room / 'net.pth', 'out': out, 'inputs': lr}, []),
        'export': ({'weights': room / 'net.pth', 'out': out / 'a.safetensors'}, ['--form', 'safetensors']),
        'convert': ({'source': room / 'net.pth', 'out': out / 'a.pth'}, []),
        'zoo import': ({'source': room / 'net.pth'}, []),
        'zoo add': ({'file': room / 'net.pth'}, ['mine']),
        'prepare download': ({'root': out, 'archives': lr}, ['--dry-run', 'Set5']),
        'prepare lr': ({'hr': sets / 'GTmod12', 'out': out}, ['-j', '0', '--scales', '2']),
        'prepare subimages': ({'folder': lr, 'out': out}, ['-j', '0', '--crop', '12', '--step', '12']),
        'prepare meta-info': ({'folder': lr, 'out': out / 'm.txt'}, []),
        'prepare lmdb': ({'folder': lr, 'out': out / 'a.lmdb'}, ['-j', '0']),
        'prepare pack': ({'source': lr, 'out': out / 'a.pack'}, ['-j', '0']),
        'prepare verify': ({'hr': sets / 'GTmod12', 'lr': lr}, ['-j', '0', '--scale', '4']),
        'prepare sample': ({'out': out}, ['--dry-run']),
    }.get(' '.join(words), ({}, []))
    return dict(paths), list(extra)


def commands() -> Iterator[tuple[tuple[str, ...], Callable]]:
    """(words, function) of every command, those of groups too."""
    for name, (module, attribute, _) in COMMANDS.items():
        target = getattr(import_module(module), attribute)
        if name == 'prepare':
            yield from (((name, each), function_of(each)) for each in PREPARATIONS)
        elif isinstance(target, typer.Typer):
            for each in target.registered_commands:
                assert each.callback is not None
                yield (name, each.name or each.callback.__name__), each.callback
        else:
            yield (name,), target


def parameters(function: Callable) -> dict[str, str]:
    """Parameter that takes a path -> its option with dashes, or '' for an argument, in order."""
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        hint = parameter.annotation
        if 'Path' not in str(hint) and name != 'inputs':
            continue
        (how,) = (each for each in typing.get_args(hint) if hasattr(each, 'param_decls'))
        long = [word for word in how.param_decls or () if word.startswith('--')]
        option = type(how).__name__ == 'OptionInfo'
        found[name] = (long or [f'--{name.replace("_", "-")}'])[0] if option else ''
    return found


def words_of(words: Sequence[str], function: Callable, paths: Mapping[str, Path], extra: Sequence[str]) -> list[str]:
    """The command line with these paths, arguments last."""
    known = parameters(function)
    options = [word for name, path in paths.items() if known[name] for word in (known[name], str(path))]
    return [*words, *options, *extra, *(str(paths[name]) for name in known if not known[name] and name in paths)]


def call(words: Sequence[str], cwd: Path, before: Callable[[], None] = lambda: None) -> tuple[int | None, str]:
    """Exit code and output of ``effsr`` in a fork of this process; None if it did not end.

    ``before`` runs there first. A signal's number is negative.
    """
    with tempfile.NamedTemporaryFile('r+') as told:
        pid = os.fork()
        if pid == 0:
            try:
                gc.freeze()  # what was left to clear, such as sessions with threads, is not the fork's
                os.chdir(cwd)
                os.environ['EFFSR_CACHE'] = str(cwd / 'cache')
                os.dup2(told.fileno(), 2)
                pages = int(Path('/proc/self/statm').read_text().split()[0])
                faulthandler.enable(told)
                # torch computes no gradient in a fork of a process that has, as other tests do: lam is theirs
                features.local_attribution = lambda net, lq, *_, **__: np.ones_like(lq)
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE,) * 2)
                before()
                done = CliRunner().invoke(app, list(words))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # that of ``before`` is over
                Path(told.name).write_text(json.dumps([done.exit_code, done.output]))
                os._exit(0)
            finally:
                os._exit(1)
        end = time.monotonic() + HANGS
        while time.monotonic() < end:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                break
            time.sleep(0.01)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, ''
        code = os.waitstatus_to_exitcode(status)
        return json.load(told) if code == 0 else (code, told.read())
