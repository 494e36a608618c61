"""A short form of tests/faults/kill_datasets_prep.py."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

FAULTS = runpy.run_path(str(Path(__file__).parent / 'faults' / 'kill_datasets_prep.py'))


@pytest.mark.slow
@pytest.mark.parametrize('command', ['lr', 'lmdb', 'pack', 'download', 'lr+overwrite', 'subimages+overwrite'])
def test_a_killed_command_ends_with_the_same_bytes(command, tmp_path):
    images, server = FAULTS['prepare'](tmp_path, count=6, side=200)
    try:
        result = FAULTS['torture'](command, images, tmp_path, 2, random.Random(1))
    finally:
        server.shutdown()
    assert result['kills'] == 2
