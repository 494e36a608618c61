"""Pipes, sockets, devices, endless files and folders of them at every path of every command: no hang, no traceback."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from commands import call, commands, make_room, parameters, usual, words_of

COMMANDS = dict(commands())
PATHS = [(words, name) for words, function in COMMANDS.items() for name in parameters(function)]
SUFFIX = {'opt': '.yml', 'weights': '.pth', 'source': '.pth', 'measured': '.json', 'inputs': '.png', 'report': '.json'}


@pytest.fixture(scope='module')
def room(tmp_path_factory) -> Path:
    return make_room(tmp_path_factory.mktemp('room'))


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
    if words == ('compare',) and name != 'opt':  # which cannot be combined with what it says itself
        hr = room / 'Set5' / 'GTmod12' / '0.png'
        paths, extra = {'image': hr, 'out': tmp_path / 'out.png'}, ['--model', str(room / 'net.pth')]
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
