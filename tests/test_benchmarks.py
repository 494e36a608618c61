"""The commands of benchmarks/, on tiny networks: every case runs, and what it found is written."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu, run


@pytest.mark.parametrize(
    ('command', 'cases', 'words'),
    [
        (run, ['training', 'checkpointing', 'inference', 'model', 'distillation'], ['--net', 'HASN', '--quick']),
        (run, ['windows'], ['--net', 'AGDN', '--quick']),
        (gpu, ['steps', 'images', 'affinities'], ['--net', 'HASN', '--quick', '--device', 'cpu']),
    ],
    ids=['run', 'windows', 'gpu'],
)
def test_a_quick_run_writes_what_it_measured(command, cases, words, tmp_path):
    rows = command.main([*cases, *words, '--out', str(tmp_path / 'found')])
    stored = json.loads((tmp_path / 'found.json').read_text())
    assert [(row['what'], row['ours']) for row in stored['rows']] == [(row.what, row.ours) for row in rows]
    assert all(row.ours > 0 for row in rows)
    assert {'date', 'torch', 'device', 'Python'} <= set(stored)
    written = (tmp_path / 'found.md').read_text()
    assert all(f'| {row.what} |' in written for row in rows)
    assert len({row.case for row in rows}) >= len(cases)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_without_a_gpu_the_command_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    assert 'CUDA' in capsys.readouterr().err
