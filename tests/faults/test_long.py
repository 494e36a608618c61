"""Hours of training: memory and open files stay as they are, and its end is reached bit for bit from a state before it.

Run: make faults HOURS=2, or pytest tests/faults/test_long.py --hours 2 -s
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from host import Command, logged
from runs import TINY_HASN, short_run, write

SAVED = 100  # iterations between two states
MEBIBYTES = 16  # that the peak may grow by between the first and the last of ten parts; 3 was measured in 25 minutes


def held(pid: int) -> tuple[float, int]:
    """(resident memory in MiB, open files) of a running process."""
    resident = next(s for s in Path(f'/proc/{pid}/status').read_text().splitlines() if s.startswith('VmRSS'))
    return int(resident.split()[1]) / 1024, len(list(Path(f'/proc/{pid}/fd').iterdir()))


@pytest.mark.slow
def test_memory_and_files_are_flat_and_the_end_is_exact(photos, tmp_path, pytestconfig):
    seconds = pytestconfig.getoption('--hours') * 3600
    if not seconds:
        pytest.skip('takes hours: --hours 2')
    opt = short_run(photos, TINY_HASN, scale=2, iters=10**9)
    opt['datasets']['train'] |= {'gt_size': 32, 'num_worker_per_gpu': 1, 'dataset_enlarge_ratio': 20}  # 40 an epoch
    opt['val']['val_freq'] = SAVED
    opt['logger'] |= {'save_checkpoint_freq': SAVED, 'print_freq': 10}
    file = tmp_path / 'short.yml'
    models, states = (tmp_path / 'experiments' / 'short' / name for name in ('models', 'training_states'))
    seen = []
    with Command('-m', 'basicsr.train', '-opt', write(opt, file), cwd=tmp_path) as run:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(1)
            if states.is_dir() and any(states.glob('*.state')):  # started, validated and saved at least once
                seen.append(held(run.pid))
        run.send_signal(signal.SIGKILL)
        run.wait()
    tenth = len(seen) // 10
    assert tenth > 5, 'too short to say anything'
    begin, final = ([max(column) for column in zip(*part, strict=True)] for part in (seen[:tenth], seen[-tenth:]))
    done = sorted(int(state.stem) for state in states.glob('*.state'))
    print(f'\n{done[-1]} iterations in {seconds:.0f} s, {len(done)} states; (MiB, files) at most {begin}, then {final}')
    assert final[0] <= begin[0] + MEBIBYTES
    assert final[1] <= begin[1]

    last, before = done[-1], done[-5]
    straight = torch.load(models / f'net_g_{last}.pth', weights_only=True)
    for number in (n for n in done if n > before):
        (states / f'{number}.state').unlink()
    opt['train']['total_iter'] = last
    log = logged('-m', 'basicsr.train', '-opt', write(opt, file), '--auto_resume', cwd=tmp_path)
    assert f'iter: {before}.' in log
    resumed = torch.load(models / f'net_g_{last}.pth', weights_only=True)
    for kind, weights in straight.items():
        assert all(torch.equal(weights[name], resumed[kind][name]) for name in weights), kind
