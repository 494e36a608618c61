"""Pipes, sockets, devices, endless files and folders of them at every path of every command: no hang, no traceback."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import call, commands, parameters, words_of
from PIL import Image

from basicsr_effsr.archs.hasn_arch import HASN

COMMANDS = dict(commands())
PATHS = [(words, name) for words, function in COMMANDS.items() for name in parameters(function)]
SUFFIX = {'opt': '.yml', 'weights': '.pth', 'source': '.pth', 'measured': '.json', 'inputs': '.png', 'report': '.json'}
TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 4}


@pytest.fixture(scope='module')
def room(tmp_path_factory) -> Path:
    """A small network, its option file, a set of one image."""
    folder = tmp_path_factory.mktemp('room')
    for name, side in (('GTmod12', 96), ('LRbicx4', 24)):
        (folder / 'Set5' / name).mkdir(parents=True)
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / 'Set5' / name / '0.png')
    torch.save({'params': HASN(**TINY).state_dict()}, folder / 'net.pth')
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
        'infer': ({'weights': room / 'net.pth', 'out': out, 'inputs': lr}, []),
        'export': ({'weights': room / 'net.pth', 'out': out / 'a.safetensors'}, ['--form', 'safetensors']),
        'convert': ({'source': room / 'net.pth', 'out': out / 'a.pth'}, []),
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


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to('/dev/zero')


def listening(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def full_of_pipes(path: Path) -> None:
    for name in (
        '0.png',
        'data.mdb',
        'GTmod12/0.png',
        'LRbicx4/0.png',
        'Set5/GTmod12/0.png',
        'a.tar.gz',
        'meta_info.txt',
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path / name)


@pytest.mark.slow
@pytest.mark.parametrize('make', [pipe, endless, listening, full_of_pipes], ids=lambda make: make.__name__)
@pytest.mark.parametrize(('words', 'name'), PATHS, ids=[f'{" ".join(words)} {name}' for words, name in PATHS])
def test_what_is_no_regular_file_is_a_sentence(words, name, make, room, tmp_path):
    paths, extra = usual(words, room, tmp_path / 'out')
    trap = tmp_path / f'it{SUFFIX.get(name) or paths.get(name, Path()).suffix}'
    make(trap)
    code, said = call(words_of(words, COMMANDS[words], {**paths, name: trap}, extra), tmp_path)
    assert code is not None, 'it hangs'
    assert code in (0, 1, 2), said
    assert 'Traceback' not in said
    left = {path.name for path in tmp_path.rglob('.*')}
    assert not {one for one in left if one.endswith('.part')}, left
    if make is endless:
        assert not trap.is_symlink() or trap.resolve() == Path('/dev/zero')
