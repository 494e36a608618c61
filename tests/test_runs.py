"""``effsr runs``: what logs of BasicSR tell of trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.tools.runs import run_of, smooth

HEAD = """2026-01-0{day} 10:00:00,000 INFO:
  name: {name}
  network_g:[
    type: HASN
    upscale: 4
  ]
  train:[
    total_iter: 100
  ]
  val:[
    val_freq: 10
  ]
"""


def line(iteration: int, loss: float) -> str:
    shown = f'[epoch:  0, iter:{iteration:8,d}, lr:(1.000e-03,)] [eta: 0:00:00, time (data): 0.7 (0.0)]'
    return f'2026-01-02 10:01:00,000 INFO: [short..]{shown} l_pix: {loss:.4e} l_kl: 1.0e-01 out_d_real: 3.0e+00 \n'


def validation(psnr: float, best: float, at: int) -> str:
    said = f'\t # psnr: {psnr:.4f}\tBest: {best:.4f} @ {at} iter\n\t # ssim: 0.8000\tBest: 0.8000 @ 10 iter\n'
    return f'2026-01-02 10:01:00,000 INFO: Validation Set5\n{said}\n'


def log(folder: Path, day: int, *parts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f'train_{folder.name}_2026010{day}_100000.log'
    file.write_text(HEAD.format(day=day, name=folder.name) + ''.join(parts))
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    start = '2026-01-01 10:00:01,000 INFO: Start training from epoch: 0, iter: {}\n'
    killed = [line(4, 0.5), line(8, 0.4), validation(20, 20, 10), line(12, 0.3), line(16, 0.9)]
    log(tmp_path / 'experiments' / 'one', 1, start.format(0), *killed)
    ended = [line(14, 0.2), line(20, 0.1), validation(22, 22, 20), line(100, 0.1), validation(21, 22, 20)]
    end = '2026-01-02 11:00:00,000 INFO: End of training. Time consumed: 1:00:00\n'
    log(tmp_path / 'experiments' / 'one', 2, start.format(12), *ended, end, validation(21, 22, 20))
    log(tmp_path / 'experiments' / 'two', 1, start.format(0), line(50, 0.7))
    for name in ('one/models/net_g_10.pth', 'one/models/net_g_100.pth', 'pretrained_models/hasn.pth'):
        (tmp_path / 'experiments' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'experiments' / name).touch()
    return tmp_path / 'experiments'


def test_logs_of_a_resumed_run_are_one_curve(root):
    run = run_of(root / 'one')
    assert run.losses['l_pix'] == [(4, 0.5), (8, 0.4), (12, 0.3), (14, 0.2), (20, 0.1), (100, 0.1)]
    assert [when for when, _ in run.loss] == [when for when, _ in run.losses['l_pix']]
    assert [value for _, value in run.loss] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.2])
    assert run.scores['Set5 psnr'] == [(10, 20.0), (20, 22.0), (100, 21.0)]
    assert run.best['Set5 psnr'] == (22.0, 20)
    assert (run.network, run.iterations, run.total, run.checkpoint) == ('HASN', 100, 100, 'net_g_100.pth')
    assert run.seen.startswith('2026-01-02')


def test_list_has_every_training_and_nothing_else(root):
    result = CliRunner().invoke(app, ['runs', '--json'])
    assert result.exit_code == 0, result.output
    assert [row['name'] for row in json.loads(result.output)] == ['one', 'two']
    shown = CliRunner().invoke(app, ['runs', str(root)]).output
    assert 'Set5 psnr 22.0000 @ 20' in shown
    assert '50 of 100' in shown


@pytest.mark.parametrize('suffix', ['png', 'pdf'])
def test_plot_draws_every_run(root, suffix):
    pytest.importorskip('matplotlib', reason='drawing needs the extra plots')
    result = CliRunner().invoke(app, ['runs', 'plot', 'one', str(root / 'two'), '--out', f'out/curves.{suffix}'])
    assert result.exit_code == 0, result.output
    file = Path(f'out/curves.{suffix}')
    if suffix == 'png':
        assert len(np.unique(np.asarray(Image.open(file).convert('RGB')).reshape(-1, 3), axis=0)) > 100
    else:
        assert file.read_bytes().startswith(b'%PDF')


@pytest.mark.parametrize(
    ('words', 'word'),
    [
        (['nowhere'], 'nowhere'),
        (['plot', 'on'], "'one'"),
        (['plot'], 'names'),
        (['one', 'two'], 'plot'),
        (['plot', 'one', '--out', 'a.txt'], '--out'),
        (['plot', 'two', '--metric', 'niqe', '--out', 'one/x.png'], ''),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(root, words, word):
    if 'niqe' in words:
        log(root / 'two', 1)
        pytest.importorskip('matplotlib', reason='drawing needs the extra plots')
    result = CliRunner().invoke(app, ['runs', *words])
    assert result.exit_code == 2
    assert word in result.output


def test_smoothed_values_keep_constants_and_ends():
    assert smooth([2.0] * 300) == pytest.approx(np.full(300, 2.0))
    assert len(smooth([1.0, 5.0])) == 2
    assert smooth([1.0, 5.0]).tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    'damaged',
    [
        '    total_iter: inf\n    val_freq: none\n',
        f'2026-01-02 INFO: Start training from epoch: 0, iter: {"9" * 5000}\n',
        line(30, 0.5).replace('30,', f'{"9" * 400},'),
        line(30, 0.5).replace('5.0000e-01', '5.0x'),
        validation(20, 20, 10).replace('20.0000', 'high'),
        '\0\x1b[31m [epoch:  0, iter: ,,, lr:(1)] l_pix: 1 \n',
    ],
    ids=['settings', 'start', 'iteration', 'loss', 'score', 'commas'],
)
def test_a_damaged_line_of_a_log_says_nothing(tmp_path, damaged):
    log(tmp_path / 'it', 1, line(20, 0.25), damaged)
    run = run_of(tmp_path / 'it')
    assert (run.total, run.iterations) in ((100, 20), (100, 30))
    assert run.losses['l_pix'] == [(20, 0.25)]
    assert 'Set5 psnr' not in run.scores
    assert CliRunner().invoke(app, ['runs', str(tmp_path), '--json']).exit_code == 0
