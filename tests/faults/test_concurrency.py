"""Two commands on one output at once: in the end the whole output of one of them, nothing else, no traceback."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from commands import call, commands, make_room, usual, words_of

COMMANDS = dict(commands())
TIMES = {'plot': 1, 'benchmark': 1}  # the others three times: these take long
PAIRS = {  # command -> what the second one does otherwise
    'evaluate': {'weights': 'other.pth'},
    'compare': {},
    'benchmark': {'weights': 'other.pth'},
    'plot': {},
    'infer': {'weights': 'other.pth'},
    'export': {'weights': 'other.pth'},
    'convert': {'source': 'other.pth'},
    'prepare lr': {},
    'prepare subimages': {},
    'prepare meta-info': {},
    'prepare lmdb': {},
    'prepare pack': {},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def of_one_run(command: str, found: dict[str, bytes], alone: list[dict[str, bytes]]) -> bool:
    """Whether these are the files of one of the runs; reports hold the seconds of their own."""
    if command == 'evaluate':
        report = json.loads(found['report.json'])
        (row,) = csv.DictReader(found['report.csv'].decode().splitlines())
        same = (
            float(row['seconds']) == report['images'][0]['seconds']
            and report['weights'].encode() in found['report.html']
        )
        return same and found.keys() == alone[0].keys()
    if command == 'benchmark':  # times differ
        return found.keys() == alone[0].keys()
    return any(found == one for one in alone)


@pytest.mark.slow
@pytest.mark.parametrize('command', PAIRS)
def test_one_of_two_wins(command, tmp_path):
    words = tuple(command.split(' '))
    room = make_room(tmp_path / 'room')

    def line(out: Path, second: bool) -> list[str]:
        paths, extra = usual(words, room, out)
        changed = {name: room / file for name, file in PAIRS[command].items() if second}
        return words_of(words, COMMANDS[words], {**paths, **changed}, extra)

    alone = []
    for second in (False, True):
        out = tmp_path / f'alone{second}'
        out.mkdir()
        code, said = call(line(out, second), tmp_path)
        assert code == 0, said
        alone.append(contents(out))
    for i in range(TIMES.get(command, 3)):
        out = tmp_path / f'both{i}'
        out.mkdir()
        first = os.fork()
        if first == 0:
            code, said = call(line(out, False), tmp_path)
            os._exit(99 if code is None or 'Traceback' in said else code)
        code, said = call(line(out, True), tmp_path)
        codes = {code, os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])}
        assert 0 in codes, said
        assert codes <= {0, 1, 2}, said  # the second may be refused
        assert 'Traceback' not in said
        assert of_one_run(command, contents(out), alone), sorted(contents(out))
