"""``effsr benchmark``: counted costs, times in turns, the challenges' rows and scores."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.cli import app
from basicsr_effsr.tools import benchmark, ntire
from basicsr_effsr.tools.networks import choose_from
from basicsr_effsr.tools.yardsticks import BASELINES
from basicsr_effsr.utils import latency
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.latency import cost

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
    times = latency.interleaved(nets, torch.zeros(1, 3, 4, 4), warmup=2, runs=3)
    assert calls == ['A', 'B'] * 5
    assert {name: len(values) for name, values in times.items()} == {'A': 5, 'B': 5}
    calls.clear()
    assert len(latency.interleaved(nets, torch.zeros(1, 3, 4, 4), warmup=0, runs=3)['A']) == 3
    assert calls == ['A', 'B'] * 3, 'none to warm up'


def fake_times(monkeypatch, times):
    """``latency.once`` gives these milliseconds, and returns the list of what is left."""
    left = list(times)
    monkeypatch.setattr(latency, 'once', lambda net, image: left.pop(0))
    return left


@pytest.mark.parametrize(
    ('warmup', 'times', 'expected'), [(0, [90.0, 20.0, 10.0], 20.0), (2, [90.0, 50.0, 20.0, 10.0, 10.0], 10.0)]
)
def test_medians_leave_out_the_warm_up_alone(monkeypatch, warmup, times, expected):
    left = fake_times(monkeypatch, times)
    (row,) = latency.latencies(
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
    row = ntire.ntire(tiny_dparn(), 'it', 'ntire2025', CPU, strict=strict, warmup=warmup, runs=2)
    assert row['Val Time [ms]'] == sum(taken) / 2
    assert left == [], 'as many runs as it says'
    assert row['timed'].startswith(f'mean of 2 runs on a random 256x256 image in fp32, {words}')


def test_runtime_of_a_baseline_given_by_hand_is_used(monkeypatch):
    fake_times(monkeypatch, [30.0])
    row = ntire.ntire(tiny_dparn(), 'it', 'ntire2025', CPU, baseline_ms=20.0, strict=True, runs=1)
    protocol = ntire.challenge_of('ntire2025')
    assert row['score'] == ntire.ntire_score(
        protocol, runtime_ratio=1.5, flops=row['FLOPs [G]'], params=row['Params [M]']
    )


def test_no_latency_leaves_time_and_score_out_of_the_row(monkeypatch):
    monkeypatch.setattr(latency, 'once', lambda net, image: pytest.fail('something was timed'))
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
    assert rows['DPARN', 'fused']['params'] == sum(p.numel() for p in net.fuse().parameters())
    assert rows['RLFN', 'yardstick']['params'] == 317_218
    times = {row['model']: row for row in report['latencies']}
    assert list(times) == ['DPARN', 'SPAN', 'RLFN']
    for row in times.values():
        assert row['ratio'] == pytest.approx(row['median'] / times['RLFN']['median'])
        assert 0 < row['p5'] <= row['median'] <= row['p95']
    assert report['environment']['torch'] == torch.__version__
    assert report['scale'] == 4
    assert {p.name for p in tmp_path.iterdir()} == {'benchmark.md', 'benchmark.json', 'cost.csv', 'latency.csv'}
    assert json.loads((tmp_path / 'benchmark.json').read_text()) == report
    written = list(csv.DictReader((tmp_path / 'latency.csv').open()))
    assert [row['model'] for row in written] == list(times)


def test_several_networks_take_turns():
    both = ['--arch', 'DPARN', '--arch', 'IMDN', '--set', 'num_feat=8', '--set', 'num_block=1']
    out = call(*both, '--size', '16x16', '--runs', '1', '--warmup', '0', '--json')
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    assert [row['model'] for row in report['latencies']] == ['DPARN', 'IMDN', 'SPAN', 'RLFN']
    assert {row['form'] for row in report['costs'] if row['model'] == 'IMDN'} == {'as trained'}
    for words, said in (
        (['--protocol', 'ntire2024'], '--protocol needs one'),
        (['--opt', 'a', '--opt', 'b', '--opt', 'c'], 'equally often'),
    ):
        assert said in call(*both, *words).stderr


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
    protocol = ntire.challenge_of(f'ntire{year}')
    flops, params = protocol['flops'], protocol['params']
    alike = ntire.ntire_score(protocol, runtime_ratio=1, flops=flops, params=params)
    assert alike == pytest.approx(math.exp(2)), 'the baseline scores e squared'
    score = ntire.ntire_score(protocol, runtime_ratio=0.5, flops=0.25 * flops, params=2 * params)
    expected = weights[0] * math.exp(1) + weights[1] * math.exp(0.5) + weights[2] * math.exp(4)
    assert score == pytest.approx(expected)


def test_rlfn_row_of_2024_is_the_published_one():
    row = ntire.ntire(BASELINES['RLFN'](), 'it', 'ntire2024', CPU, runs=1, warmup=0)
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
    files = ntire.images_of(tmp_path / 'lq')
    times, psnr, peak = ntire.over_images(nets, files[1:], tmp_path / 'gt', CPU, warmup=0)
    assert peak is None, 'a CPU does not say'
    assert psnr == pytest.approx(10 * math.log10(255**2)), 'every byte is off by one'
    assert calls == ['net', 'base', 'net'], 'timed once each, in turns, then scored'
    assert set(times) == {'net', 'base'}
    (tmp_path / 'gt' / 'b.png').unlink()
    with pytest.raises(UserError, match=r'bx4\.png'):
        ntire.over_images(nets, files, tmp_path / 'gt', CPU, warmup=1)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--size', '16'], '--size must be HxW'),
        (['--size', '4x4'], 'got 4 x 4'),
        (['--dtype', 'int8'], '--dtype must be fp32, fp16 or bf16'),
        (['--protocol', 'ntire1999'], '--protocol must be one of'),
        (['--protocol', 'ntire2024', '--scale', '2'], '--protocol needs one x4'),
        (['--gt', '.', '--protocol', 'ntire2024'], '--gt needs --data'),
        (['--gt', '.'], '--gt can only be used with --protocol'),
        (['--psnr', '27'], '--psnr can only'),
        (['--strict', '--baseline-ms', '3'], '--strict, --baseline-ms can only'),
        (['--protocol', 'ntire2025', '--baseline-ms', '0'], '--baseline-ms'),
        (['--protocol', 'ntire2025', '--psnr', '0'], '--psnr'),
        (['--protocol', 'ntire2024', '--dtype', 'bf16'], '--protocol times in fp32'),
        (['--protocol', 'ntire2024', '--no-latency', '--strict'], '--no-latency cannot be combined with --strict,'),
        (['--no-latency', '--dtype', 'bf16', '--compile'], 'with --dtype, --compile,'),
        (['--no-latency', '--warmup', '0', '--threads', '1'], 'with --warmup, --threads,'),
        (['--data', 'nowhere'], 'nowhere'),
        (['--device', 'tpu7'], "device 'tpu7' cannot be used"),
        (['--set', 'num_feet=3'], 'num_feet'),
        (['--arch', 'DPARNN'], "there is no network 'DPARNN'; did you mean 'DPARN'?"),
        (['--protocol', 'ntire2024', '--set', 'num_in_ch=1'], '--protocol needs one x4'),
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


@pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
def test_half_precision_leaves_the_weights_as_they_are(dtype):
    net = tiny_dparn()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    (row,) = latency.latencies(
        {'net': net}, (16, 16), CPU, dtype=dtype, channels_last=True, compiled=False, warmup=0, runs=1
    )
    assert row.dtype == dtype
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_every_compiled_setting_starts_from_an_empty_cache(monkeypatch):
    """After eight variants of one network torch.compile gives up and runs it as it is, without a word."""
    order = []
    monkeypatch.setattr(torch.compiler, 'reset', lambda: order.append('reset'))
    monkeypatch.setattr(torch, 'compile', lambda net, dynamic: order.append('compile') or net)
    nets = {'a': nn.Identity(), 'b': nn.Identity()}
    for _ in range(2):
        latency.latencies(nets, (4, 4), CPU, dtype='fp32', channels_last=False, compiled=True, warmup=0, runs=1)
    assert order == ['reset', 'compile', 'compile'] * 2


MIB = 2**20


def test_memory_of_the_row_is_left_out_on_a_cpu_and_counted_under_its_own_name(monkeypatch):
    fake_times(monkeypatch, [30.0] * 10)
    net = tiny_dparn()
    row = ntire.ntire(net, 'it', 'ntire2024', CPU, strict=True, runs=1)
    assert row['Mem [M]'] is None
    assert row['counted mem [M]'] == cost(net, 'it', 'fused', (256, 256)).memory / MIB


def test_the_peak_is_that_of_the_pass_and_of_the_network_alone(monkeypatch):
    """On the GPU lie 100 MiB of others, too, of which the pass makes 130."""
    order = []

    class Pass(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(MIB, dtype=torch.float32))

        def forward(self, image):
            order.append('work')

    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: 100 * MIB)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda device: order.append('reset'))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: order.append('read') or 130 * MIB)
    image = SimpleNamespace(device=torch.device('cuda'), nbytes=2 * MIB)
    assert latency.peak_mib(Pass(), image) == 30 + 4 + 2
    assert order == ['reset', 'work', 'read']
    assert latency.peak_mib(Pass(), torch.empty(1)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_the_peak_on_a_gpu_is_close_to_what_is_counted():
    net = tiny_dparn().cuda()
    image = torch.rand(1, 3, 64, 64, device='cuda')
    assert latency.peak_mib(net, image) >= cost(net.cpu(), 'it', 'fused', (64, 64)).memory / MIB * 0.9


def test_networks_of_one_channel_stand_beside_yardsticks_of_one_channel():
    out = call(
        *(*TINY, '--set', 'num_in_ch=1', '--set', 'num_out_ch=1', '--size', '16x16'),
        *('--runs', '1', '--warmup', '0', '--json'),
    )
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    assert [row['model'] for row in report['latencies']] == ['DPARN', 'SPAN', 'RLFN']
    params = {row['model']: row['params'] for row in report['costs']}
    assert params['RLFN'] == 317_218 - 2 * 46 * 9 - 32 * (46 * 9 + 1), 'two channels less in, 32 less before shuffling'


def test_channels_as_the_network_its_options_or_its_defaults_say():
    class Told(nn.Module):
        def __init__(self, in_channels: int = 4, out_channels: int = 5) -> None:
            super().__init__()

    class Window(nn.Module):
        def __init__(self, in_chans: int = 3) -> None:
            super().__init__()

    assert benchmark.channels_of(Told(), {'type': 'Told', 'in_channels': 2}) == (2, 5)
    assert benchmark.channels_of(Window(), {'in_chans': 1}) == (1, 1)
    assert benchmark.channels_of(nn.Identity(), {}) == (3, 3)


@pytest.mark.parametrize(
    ('arch', 'settings'),
    [('SRVGGNetCompact', ['num_feat=8', 'num_conv=1']), ('EDSR', ['num_in_ch=3', 'num_out_ch=3', 'num_feat=8'])],
)
def test_nets_of_the_host_are_counted_and_timed(arch, settings, capfd):
    """The host's look-up prints a line where a name has a suffix; the mean of its EDSR is no buffer."""
    words = [word for setting in settings for word in ('--set', setting)]
    out = call('--arch', arch, *words, '--size', '16x16', '--runs', '1', '--warmup', '0', '--json')
    assert out.exit_code == 0, out.output
    report = json.loads(out.stdout)
    assert [row['model'] for row in report['latencies']] == [arch, 'SPAN', 'RLFN']
    assert report['costs'][0]['multi_adds'] > 0
    assert (out.stderr, *capfd.readouterr()) == ('', '', '')


def test_a_network_called_as_a_yardstick_is_measured_itself(monkeypatch):
    net = tiny_dparn()
    report = benchmark.benchmark(choose_from({'RLFN': net}), sizes=['16x16'], warmup=0, runs=1)
    assert [row.model for row in report.latencies] == ['RLFN', 'SPAN', 'RLFN (yardstick)']
    fake_times(monkeypatch, [30.0, 10.0])
    row = ntire.ntire(net, 'RLFN', 'ntire2024', CPU, strict=True, runs=1)
    assert (row['Val Time [ms]'], row['baseline time [ms]']) == (30.0, 10.0)


@pytest.mark.parametrize(
    ('said', 'expected'),
    [
        ('570.1, 3, 345\n', {'driver': '570.1', 'GPU load [%]': 3, 'SM clock [MHz]': 345}),
        ('550.2, [N/A], 1200\n', {'driver': '550.2', 'SM clock [MHz]': 1200}),
        ('No devices were found\n', {}),
        (None, {}),
    ],
)
def test_state_of_the_gpu_that_is_measured(monkeypatch, said, expected):
    def answer(words, **_):
        if said is None:
            raise FileNotFoundError(words[0])
        assert '--id=GPU-bb-2' in words
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(latency.subprocess, 'run', answer)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(uuid='bb-2'))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a GPU')
    cuda = torch.device('cuda')
    assert latency.gpu_state(cuda) == expected
    facts = latency.environment(cuda)
    assert expected.items() <= facts.items()
    assert facts['device'] == 'a GPU'
    assert 'load average' in facts


def test_the_clock_is_read_again_after_the_work(monkeypatch):
    """An idle GPU lowers it, so that the clock before says little."""
    monkeypatch.setattr(latency, 'environment', lambda device: {'SM clock [MHz]': 345})
    monkeypatch.setattr(latency, 'gpu_state', lambda device: {'SM clock [MHz]': 1980})
    monkeypatch.setattr(latency, 'latencies', lambda *_, **__: ['a row'])
    cuda = torch.device('cuda')
    chosen = [replace(choose_from(tiny_dparn(), 'cpu')[0], device=cuda)]
    facts = benchmark.benchmark(chosen, sizes=['16x16']).environment
    assert (facts['SM clock [MHz]'], facts['SM clock after [MHz]']) == (345, 1980)
    idle = benchmark.benchmark(chosen, sizes=['16x16'], dtypes=()).environment
    assert 'SM clock after [MHz]' not in idle


def test_running_out_of_memory_is_one_sentence():
    out = call(*TINY, '--size', '4000000x4000000', '--runs', '1', '--warmup', '0')
    assert (out.exit_code, out.stdout) == (2, '')
    assert 'an input of 4000000x4000000 in fp32 needs more memory than there is' in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(('words', 'how'), [(['--dtype', 'fp16'], 'fp16'), (['--compile'], 'fp32, compiled,')])
def test_a_network_that_does_not_run_in_a_setting_is_one_sentence(monkeypatch, words, how):
    def compiled(net, dynamic):
        if not isinstance(net, DPARN):
            return net

        def broken(image):
            raise RuntimeError('no compiler\nand many lines')

        return broken

    def forward(net, x):
        return x @ torch.ones(x.shape[-1], x.shape[-1])  # of float32, as in the host's SwinIR

    monkeypatch.setattr(DPARN, 'forward', forward)
    monkeypatch.setattr(torch, 'compile', compiled)
    out = call(*TINY, '--size', '16x16', '--runs', '1', '--warmup', '0', *words)
    assert out.exit_code == 2
    assert f'DPARN does not run in {how} on cpu: ' in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_the_row_that_runs_out_of_memory_is_one_sentence(monkeypatch):
    def full(net, image):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(latency, 'once', full)
    with pytest.raises(UserError, match='the random image of --protocol ntire2024 needs more memory'):
        ntire.ntire(tiny_dparn(), 'it', 'ntire2024', CPU)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / 'file').write_text('mine')
    out = call('--arch', 'no such network', '--out', str(tmp_path / 'file' / 'new'))
    assert out.exit_code == 2
    assert 'is a file, must be a folder' in out.stderr
    assert (tmp_path / 'file').read_text() == 'mine'
