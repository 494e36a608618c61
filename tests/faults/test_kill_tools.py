"""Infer, evaluate, export and convert killed at random moments, also two in a row: in the end the whole output alone.

They run in forks, so that a kill finds them at work and not at their imports.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call, make_room
from files import picture, whole

from basicsr_effsr.tools.convert import Layout
from basicsr_effsr.weights.export import ENDINGS

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SUFFIX = {to: 'safetensors' if to == Layout.safetensors else 'pth' for to in Layout}
LINES = {
    'infer': ['infer', 'images', '--weights', 'net.pth', '--out', 'out'],
    'evaluate': ['evaluate', '--weights', 'net.pth', '--data', '.', '--sets', 'Set5', '--out', 'out'],
    **{
        f'export {form.value}': f'export --weights net.pth --form {form.value} --out out/net{ends[0]}'.split()
        for form, ends in ENDINGS.items()
    },
    **{f'convert {to.value}': f'convert net.pth out/net.{SUFFIX[to]} --to {to.value}'.split() for to in Layout},
}
KILLED_IN_THE_SUITE = ('infer', 'export safetensors', 'convert basicsr')


@pytest.fixture(scope='module')
def room(tmp_path_factory) -> Path:
    room = make_room(tmp_path_factory.mktemp('room'))
    (room / 'images').mkdir()
    for i, kind in enumerate(['png', 'jpg', 'tif deflate', 'png16', 'webp'] * 2):
        (room / 'images' / f'{i}.{kind[:3]}').write_bytes(whole(kind, picture(30 + i, 40)))
    return room


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def still() -> None:
    """Seconds of a run stand in its reports."""
    time.perf_counter = lambda: 0.0


def killing(moment: float, number: int) -> Callable[[], None]:
    """What a process does that is to get a signal after so many seconds."""

    def before() -> None:
        still()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
        process = os.getpid()
        if os.fork() == 0:
            time.sleep(moment)
            if os.getppid() == process:
                os.kill(process, number)
            os._exit(0)

    return before


@pytest.mark.slow
@pytest.mark.parametrize('command', LINES)
def test_a_killed_command_ends_with_the_same_bytes(command, room, kills):
    if kills <= 2 and command not in KILLED_IN_THE_SUITE:
        pytest.skip('the suite kills one form of each command; --kills 20 kills all of them so often')
    out, line = room / 'out', LINES[command]
    draw, length, expected = random.Random(command), 0.0, {}
    for number in range(-1, kills):  # the first is undisturbed
        shutil.rmtree(out, ignore_errors=True)
        disturbed = [
            killing(draw.uniform(0, length), SIGNALS[number % 3]) for _ in range((1 + number % 2) * (number >= 0))
        ]
        for before in [*disturbed, still]:  # every second one is killed twice in a row
            begun = time.monotonic()
            code, said = call(line, room, before)
            if before is still:
                assert code == 0, said
            else:
                assert code not in (None, 2, 70), said
                found = {name: data for name, data in contents(out).items() if not name.endswith('.part')}
                assert not [name for name, data in found.items() if data != expected[name]]
        if number < 0:
            length, expected = time.monotonic() - begun, contents(out)
            assert expected
        assert contents(out) == expected, f'kill {number}'
