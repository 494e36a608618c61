"""Nothing but the download opens a connection: neither the import of any module, nor a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, commands, make_room, usual, words_of

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = """
import sys

def refuse(event, arguments):
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.bind'):
        raise AssertionError(f'{event} {arguments}')

sys.addaudithook(refuse)
"""
EVERY_MODULE = """
import importlib, pathlib
for package in ('basicsr_effsr', 'datasets_prep'):
    for file in pathlib.Path(package).rglob('*.py'):
        name = '.'.join(file.with_suffix('').parts).removesuffix('.__init__')
        if not name.endswith('__main__'):
            importlib.import_module(name)
"""


@pytest.mark.slow
def test_no_module_connects_when_it_is_imported():
    done = subprocess.run([sys.executable, '-c', FORBIDDEN + EVERY_MODULE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'command',
    [
        pytest.param(each, id=' '.join(each[0]))
        for each in commands()
        if each[0] not in (('prepare', 'download'), ('zoo', 'fetch'))
    ],
)
def test_no_command_connects(command, tmp_path):
    words, function = command
    paths, extra = usual(words, make_room(tmp_path), tmp_path / 'out')
    code, said = call(words_of(words, function, paths, extra), tmp_path, lambda: exec(FORBIDDEN))
    assert code in (0, 1), said
    assert 'socket' not in said
