"""``effsr benchmark``: counted costs, times in turns, the challenges' rows and scores."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.cli import app
from basicsr_effsr.tools import benchmark
from basicsr_effsr.tools.networks import UserError

TINY = ['--arch', 'DPARN', '--set', 'num_feat=8', '--set', 'num_block=1', '--set', 'esa_channels=4']
CPU = torch.device('cpu')


def call(*words: str):
    return CliRunner().invoke(app, ['benchmark', *words])


class Counting(nn.Module):
    """Enlarges by repetition and notes the order of calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x):
        self.calls.append(self.name)
        return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_networks_take_turns_and_warm_up_does_not_count():
    calls: list[str] = []
    nets = {name: Counting(name, calls) for name in 'AB'}
    times = benchmark.interleaved(nets, torch.zeros(1, 3, 4, 4), warmup=2, runs=3)
    assert calls == ['A', 'B'] * 5
    assert {name: len(values) for name, values in times.items()} == {'A': 5, 'B': 5}
    calls.clear()
    assert len(benchmark.interleaved(nets, torch.zeros(1, 3, 4, 4), warmup=0, runs=3)['A']) == 3
    assert calls == ['A', 'B'] * 3, 'none to warm up'


def fake_times(monkeypatch, times):
    """``benchmark.once`` gives these milliseconds, and returns the list of what is left."""
    left = list(times)
    monkeypatch.setattr(benchmark, 'once', lambda net, image: left.pop(0))
    return left


@pytest.mark.parametrize(
    ('warmup', 'times', 'expected'), [(0, [90.0, 20.0, 10.0], 20.0), (2, [90.0, 50.0, 20.0, 10.0, 10.0], 10.0)]
)
def test_medians_leave_out_the_warm_up_alone(monkeypatch, warmup, times, expected):
    left = fake_times(monkeypatch, times)
    (row,) = benchmark.latencies(
        {'net': nn.Identity()},
        (4, 4),
        CPU,
        dtype='fp32',
        channels_last=False,
        compiled=False,
        warmup=warmup,
        runs=3,
    )
    assert (row.median, row.first) == (expected, 90.0)
    assert left == []


def tiny_dparn():
    return DPARN(num_feat=8, num_block=1, esa_channels=4).eval()


@pytest.mark.parametrize(
    ('strict', 'warmup', 'taken', 'words'),
    [(True, 3, [60.0, 10.0], 'no warm-up'), (False, 1, [10.0, 2.0], 'after warm-up'), (False, 0, [60.0, 10.0], 'no w')],
)
def test_strict_is_the_mean_of_every_run_from_the_first_on(monkeypatch, strict, warmup, taken, words):
    left = fake_times(monkeypatch, [60.0, 10.0, 2.0][: 2 + (not strict and warmup)])
    row = benchmark.ntire(tiny_dparn(), 'it', 'ntire2025', CPU, strict=strict, warmup=warmup, runs=2)
    assert row['Val Time [ms]'] == sum(taken) / 2
    assert left == [], 'as many runs as it says'
    assert row['timed'].startswith(f'mean of 2 runs on a random 256x256 image in fp32, {words}')


def test_runtime_of_a_baseline_given_by_hand_is_used(monkeypatch):
    fake_times(monkeypatch, [30.0])
    row = benchmark.ntire(tiny_dparn(), 'it', 'ntire2025', CPU, baseline_ms=20.0, strict=True, runs=1)
    protocol = benchmark.protocol_of('ntire2025')
    assert row['score'] == benchmark.ntire_score(
        protocol, runtime_ratio=1.5, flops=row['FLOPs [G]'], params=row['Params [M]']
    )


def test_no_latency_leaves_time_and_score_out_of_the_row(monkeypatch):
    monkeypatch.setattr(benchmark, 'once', lambda net, image: pytest.fail('something was timed'))
    out = call(*TINY, '--size', '16x16', '--no-latency', '--protocol', 'ntire2026', '--psnr', '27', '--json')
    assert out.exit_code == 0, out.output
    row = json.loads(out.stdout)['ntire']
    assert (row['Val Time [ms]'], row['score'], row['timed']) == (None, None, 'counted, not timed')
    assert row['gate passed']


def test_report_holds_both_forms_and_ratios_to_rlfn(tmp_path):
    out = call(
        *TINY, '--scale', '4', '--size', '24x32', '--runs', '2', '--warmup', '1', '--json', '--out', str(tmp_path)
    )
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    rows = {(row['model'], row['form']): row for row in report['costs']}
    net = DPARN(num_feat=8, num_block=1, esa_channels=4)
    assert rows['DPARN', 'as trained']['params'] == sum(p.numel() for p in net.parameters())
    assert rows['DPARN', 'deployed']['params'] == sum(p.numel() for p in net.fuse().parameters())
    assert rows['RLFN', 'yardstick']['params'] == 317_218
    times = {row['model']: row for row in report['latencies']}
    assert list(times) == ['DPARN', 'SPAN', 'RLFN']
    for row in times.values():
        assert row['ratio'] == pytest.approx(row['median'] / times['RLFN']['median'])
        assert 0 < row['p5'] <= row['median'] <= row['p95']
    assert report['environment']['torch'] == torch.__version__
    assert {p.name for p in tmp_path.iterdir()} == {'benchmark.md', 'benchmark.json', 'cost.csv', 'latency.csv'}
    assert json.loads((tmp_path / 'benchmark.json').read_text()) == report
    written = list(csv.DictReader((tmp_path / 'latency.csv').open()))
    assert [row['model'] for row in written] == list(times)


def test_every_setting_of_the_grid_is_measured():
    out = call(
        *(*TINY, '--size', '16x16', '--size', '18x20', '--dtype', 'fp32', '--dtype', 'bf16', '--channels-last'),
        *('--runs', '1', '--warmup', '0', '--json'),
    )
    rows = [row for row in json.loads(out.stdout)['latencies'] if row['model'] == 'DPARN']
    settings = {(tuple(row['lr_size']), row['dtype'], row['memory_format']) for row in rows}
    assert len(rows) == len(settings) == 2 * 2 * 2


def test_sizes_in_words():
    assert benchmark.lr_size('720p', 4) == (180, 320)
    assert benchmark.lr_size('1080p', 3) == (360, 640)
    assert benchmark.lr_size('4K', 2) == (1080, 1920)
    assert benchmark.lr_size('48x64', 4) == (48, 64)


@pytest.mark.parametrize(
    ('year', 'weights'), [(2024, (0.7, 0.15, 0.15)), (2025, (0.7, 0.15, 0.15)), (2026, (0.8, 0.1, 0.1))]
)
def test_score_is_the_challenges_formula(year, weights):
    protocol = benchmark.protocol_of(f'ntire{year}')
    flops, params = protocol['flops'], protocol['params']
    alike = benchmark.ntire_score(protocol, runtime_ratio=1, flops=flops, params=params)
    assert alike == pytest.approx(math.exp(2)), 'the baseline scores e squared'
    score = benchmark.ntire_score(protocol, runtime_ratio=0.5, flops=0.25 * flops, params=2 * params)
    expected = weights[0] * math.exp(1) + weights[1] * math.exp(0.5) + weights[2] * math.exp(4)
    assert score == pytest.approx(expected)


def test_rlfn_row_of_2024_is_the_published_one():
    row = benchmark.ntire(
        benchmark.baseline_of(benchmark.protocol_of('ntire2024')), 'it', 'ntire2024', CPU, runs=1, warmup=0
    )
    assert round(row['Params [M]'], 6) == 0.317218
    assert round(row['FLOPs [G]'], 2) == 19.67
    assert round(row['Acts [M]'], 2) == 80.05
    assert row['Conv'] == 39
    ratio = row['Val Time [ms]'] / row['baseline time [ms]']
    assert row['score'] == pytest.approx(0.7 * math.exp(2 * ratio) + 0.3 * math.exp(2), rel=2e-3)


def test_folder_of_images_is_timed_and_scored(tmp_path):
    rng = np.random.default_rng(0)
    for name in 'ab':
        lq = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (tmp_path / 'lq').mkdir(exist_ok=True)
        (tmp_path / 'gt').mkdir(exist_ok=True)
        Image.fromarray(lq).save(tmp_path / 'lq' / f'{name}x4.png')
        gt = lq.repeat(4, 0).repeat(4, 1)
        Image.fromarray(gt if name == 'a' else gt ^ 1).save(tmp_path / 'gt' / f'{name}.png')
    calls: list[str] = []
    nets = {'net': Counting('net', calls), 'base': Counting('base', calls)}
    files = benchmark.images_of(tmp_path / 'lq')
    times, psnr = benchmark.over_images(nets, files[1:], tmp_path / 'gt', CPU, warmup=False)
    assert psnr == pytest.approx(10 * math.log10(255**2)), 'every byte is off by one'
    assert calls == ['net', 'base', 'net'], 'timed once each, in turns, then scored'
    assert set(times) == {'net', 'base'}
    (tmp_path / 'gt' / 'b.png').unlink()
    with pytest.raises(UserError, match='no partner'):
        benchmark.over_images(nets, files, tmp_path / 'gt', CPU, warmup=True)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--size', '16'], '--size must be HxW'),
        (['--size', '4x4'], 'needs at least 15 pixels a side'),
        (['--dtype', 'int8'], '--dtype must be fp32, fp16 or bf16'),
        (['--protocol', 'ntire1999'], '--protocol must be one of'),
        (['--protocol', 'ntire2024', '--scale', '2'], '--protocol is for x4'),
        (['--gt', '.', '--protocol', 'ntire2024'], '--gt needs --data'),
        (['--gt', '.'], '--gt only matter to the row of a challenge; give --protocol'),
        (['--psnr', '27'], '--psnr only matter to the row'),
        (['--strict', '--baseline-ms', '3'], '--strict, --baseline-ms only matter to the row'),
        (['--protocol', 'ntire2025', '--baseline-ms', '0'], '--baseline-ms must be greater than 0, got 0'),
        (['--protocol', 'ntire2025', '--psnr', 'nan'], '--psnr must be greater than 0, got nan'),
        (['--protocol', 'ntire2024', '--dtype', 'bf16'], '--protocol times in fp32'),
        (['--protocol', 'ntire2024', '--no-latency', '--strict'], 'so --strict would not matter'),
        (['--no-latency', '--dtype', 'bf16', '--compile'], 'so --dtype, --compile would not matter'),
        (['--no-latency', '--warmup', '0', '--threads', '1'], 'so --warmup, --threads would not matter'),
        (['--data', 'nowhere'], 'nowhere does not exist'),
        (['--device', 'tpu7'], "device 'tpu7' cannot be used"),
        (['--set', 'num_feet=3'], 'num_feet'),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    out = call(*TINY, *words)
    assert out.exit_code == 2
    assert sentence in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_below_the_gate_is_exit_code_1():
    out = call(*TINY, '--size', '16x16', '--runs', '1', '--warmup', '0', '--protocol', 'ntire2026', '--psnr', '26.1')
    assert out.exit_code == 1
    assert 'below the gate' in out.stderr
