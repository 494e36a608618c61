"""Commands that write where nothing can be written: one sentence with path and cause, and nothing half there."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
from commands import call, commands, make_room, usual, words_of

COMMANDS = dict(commands())
WRITING = ['evaluate', 'compare', 'benchmark', 'plot', 'features', 'runs', 'infer', 'export', 'convert']


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize('command', WRITING)
@pytest.mark.parametrize('kind', ['full', 'gone', 'file'])
def test_what_cannot_be_written_is_one_sentence(command, kind, tmp_path):
    room, out = make_room(tmp_path / 'room'), tmp_path / 'out'
    out.mkdir()
    words = tuple(command.split(' '))
    line = words_of(words, COMMANDS[words], *usual(words, room, out))
    (out / 'report.md').write_text('old')

    def before() -> None:
        if kind == 'full':  # as on a disk that is full: no file may grow beyond a few bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        else:
            shutil.rmtree(out)
            if kind == 'file':
                out.write_text('a file')

    code, said = call(line, tmp_path, before)
    assert 'Traceback' not in said
    if kind == 'gone':
        assert code == 0, said
        return
    assert code == (1 if command == 'infer' and kind == 'full' else 2), said
    assert len([text for text in said.splitlines() if str(out) in text]) == 1, said
    assert files(tmp_path / 'out') == ({'report.md': b'old'} if kind == 'full' else {})
