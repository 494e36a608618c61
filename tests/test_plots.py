"""``effsr plot``: the points are the papers', the picture shows every one of them."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.tools import plots
from basicsr_effsr.utils.errors import UserError

pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")


def call(*words: str):
    return CliRunner().invoke(app, ['plot', *words])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """What benchmark and evaluate write: of HASN as published, counted, and of a small DPARN, timed; name -> report."""
    folder = tmp_path_factory.mktemp('measured')
    torch.manual_seed(0)
    gt = np.ascontiguousarray(data.astronaut()[20:80, 150:230])
    for kind, image in (('GTmod12', gt), ('LRbicx4', imresize(gt, scale=0.25))):
        (folder / 'Set5' / kind).mkdir(parents=True)
        Image.fromarray(image).save(folder / 'Set5' / kind / 'a.png')
    reports = {}
    settings = {'HASN': {}, 'DPARN': {'num_feat': 8, 'num_block': 1, 'esa_channels': 4}}
    timing = {'HASN': ['--size', '64x64', '--no-latency'], 'DPARN': ['--size', '15x20', '--runs', '1', '--warmup', '0']}
    for arch, options in settings.items():
        torch.save({'params': build_network({'type': arch, **options}).state_dict()}, folder / 'net.pth')
        words = ['--arch', arch, '--weights', str(folder / 'net.pth')]
        words += [word for key, value in options.items() for word in ('--set', f'{key}={value}')]
        out = str(folder / arch)
        for command in (
            ['benchmark', *words, *timing[arch], '--size', '720p', '--out', out],
            ['evaluate', *words, '--data', str(folder / 'Set5'), '--show', '0', '--device', 'cpu', '--out', out],
        ):
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.output
        for kind, file in (('benchmark', 'benchmark.json'), ('evaluation', 'report.json')):
            reports[f'{arch} {kind}'] = json.loads((folder / arch / file).read_text())
    return reports


@pytest.fixture
def written(made, tmp_path):
    """Writes reports of ``made``, changed by a function first, and gives their paths."""

    def write(*names, change=None):
        files = []
        for i, name in enumerate(names):
            report = copy.deepcopy(made[name])
            if change is not None:
                change(report)
            files.append(tmp_path / f'{len(list(tmp_path.iterdir()))}_{i}.json')
            files[-1].write_text(json.dumps(report))
        return files

    return write


def test_a_method_stands_with_the_row_of_its_own_paper():
    points = {p.method: p for p in plots.points_of_papers(4, 'Set5', 'multi-adds')}
    assert (points['AGDN'].x, points['AGDN'].score) == (16.1, 32.43)
    assert points['ASID-D8'].source.startswith('ASID paper')
    assert 'HASN' not in points, 'its paper counts at another input size'
    latencies = {p.method: p for p in plots.points_of_papers(2, 'Set5', 'latency', ['DPARN'])}
    assert (latencies['DPARN'].x, latencies['DPARN'].score) == (47.45, 38.06)
    assert all(p.source.startswith('DPARN ') for p in latencies.values())


HASN = ('HASN benchmark', 'HASN evaluation')
DPARN = ('DPARN benchmark', 'DPARN evaluation')


def test_multiply_adds_are_those_at_720p_whatever_else_was_counted(made, written):
    files = written(*HASN)
    for against, x in (('params', 435.272), ('multi-adds', pytest.approx(23.28, abs=5e-4))):
        (point,) = plots.points_of_files(files, 4, 'Set5', against)
        assert (point.method, point.x, point.measured, point.size) == ('HASN', x, True, 435_272)
        assert point.score == made['HASN evaluation']['means']['Set5']['psnr']
    (point,) = plots.points_of_files(files, 4, 'Set5', 'memory', 'ssim')
    (counted,) = (c for c in made['HASN benchmark']['costs'] if (c['model'], c['lr_size']) == ('HASN', [180, 320]))
    assert (point.x, point.score) == (counted['memory'] / 2**20, made['HASN evaluation']['means']['Set5']['ssim'])
    with pytest.raises(UserError, match=r'fp32.*--size 720p'):
        plots.points_of_files(files, 4, 'Set5', 'latency')


def test_latency_is_that_at_720p_in_fp32_and_says_where(made, written):
    def add_others(report):
        """Before the rows that are there: other settings at 720p, which the same command can write."""
        if 'latencies' not in report:
            return
        plain = next(row for row in report['latencies'] if row['lr_size'] == [180, 320])
        others = [{'dtype': 'bf16'}, {'memory_format': 'channels_last'}, {'compiled': True}]
        report['latencies'] = [{**plain, **other, 'median': 1e6} for other in others] + report['latencies']
        report['latencies'] += [{**plain, **other, 'median': 1e6} for other in others]

    rows = [r for r in made['DPARN benchmark']['latencies'] if r['model'] == 'DPARN' and r['lr_size'] == [180, 320]]
    for change in (None, add_others):
        (point,) = plots.points_of_files(written(*DPARN, change=change), 4, 'Set5', 'latency')
        assert point.x == rows[0]['median']
        facts = made['DPARN benchmark']['environment']
        assert point.setting == f'180x320 input, fp32, {facts["device"]}, {facts["threads"]} threads'
    printed = plots.points_of_papers(4, 'Set5', 'latency')
    label = plots.axis_label('latency', [*printed, point])
    assert label == f"latency [ms]\nblack edge: {point.setting}; others: as printed, on the papers' GPUs"
    assert plots.axis_label('latency', [point]) == f'latency [ms]\nblack edge: {point.setting}'
    assert plots.axis_label('latency', printed) == 'latency [ms]'
    (point,) = plots.points_of_files(written(*HASN), 4, 'Set5', 'multi-adds')
    assert plots.axis_label('multi-adds', [point]) == plots.AXES['multi-adds'][-1]


def test_the_form_that_was_evaluated_is_the_one_that_is_drawn(made, written):
    forms = {row['form']: row['params'] for row in made['DPARN benchmark']['costs']}
    assert forms['as trained'] > forms['fused'] == made['DPARN evaluation']['parameters']
    (point,) = plots.points_of_files(written(*DPARN), 4, 'Set5', 'params')
    assert point.x * 1000 == forms['fused']


def test_networks_of_one_class_are_told_apart_by_their_parameters(made, written):
    def larger(report):
        for row in (report, *report.get('costs', ())):
            for key in ('params', 'parameters'):
                if key in row:
                    row[key] += 1000
        if report.get('paper'):
            report['paper']['method'] = 'HASN-L'

    files = written(*HASN) + written(*HASN, change=larger)
    points = plots.points_of_files(files, 4, 'Set5', 'params')
    assert [(p.method, p.x) for p in points] == [('HASN', 435.272), ('HASN-L', 436.272)]
    with pytest.raises(UserError, match=rf'HASN.*436,272.*{files[3]}'):
        plots.points_of_files([files[0], files[3]], 4, 'Set5', 'params')


def test_networks_of_one_evaluation_are_drawn_under_the_names_they_have_there(made, written, tmp_path):
    ours = {**made['DPARN evaluation'], 'name': 'Ours'}
    both = tmp_path / 'report.json'
    both.write_text(json.dumps({'models': [made['HASN evaluation'], ours], 'paired': []}))
    files = [*written('HASN benchmark', 'DPARN benchmark'), both]
    points = plots.points_of_files(files, 4, 'Set5', 'params')
    assert [point.method for point in points] == ['HASN', 'Ours']
    assert [point.score for point in points] == [
        report['means']['Set5']['psnr'] for report in json.loads(both.read_text())['models']
    ]


def test_every_file_that_adds_nothing_is_named(written):
    benchmark, evaluation = written(*HASN)
    other = written('DPARN benchmark')
    for files, named in (
        ([benchmark], f'HASN of {benchmark}'),
        ([evaluation], f'435,272 parameters of {evaluation}'),
        ([benchmark, evaluation, *other], f'DPARN of {other[0]}'),
    ):
        with pytest.raises(UserError, match=re.escape(named)):
            plots.points_of_files(files, 4, 'Set5', 'params')
    with pytest.raises(UserError, match=r'Urban100.*Set5.*--set'):
        plots.points_of_files([benchmark, evaluation], 4, 'Urban100', 'params')


@pytest.mark.parametrize('name', HASN)
def test_reports_of_another_scale_are_not_drawn(written, name):
    files = written(*(each for each in HASN if each != name))
    files += written(name, change=lambda report: report.update(scale=2))
    with pytest.raises(UserError, match=f'{re.escape(str(files[1]))}.*--scale'):
        plots.points_of_files(files, 4, 'Set5', 'params')


def test_two_benchmarks_of_one_network_must_agree(written):
    def slower(report):
        for row in report['latencies']:
            row['median'] *= 2

    files = [*written(*DPARN), *written('DPARN benchmark')]
    assert len(plots.points_of_files(files, 4, 'Set5', 'latency')) == 1
    files[-1:] = written('DPARN benchmark', change=slower)
    assert len(plots.points_of_files(files, 4, 'Set5', 'multi-adds')) == 1
    with pytest.raises(UserError, match=r'\.json.*latency'):
        plots.points_of_files(files, 4, 'Set5', 'latency')


def test_what_lies_far_below_ours_is_left_out_and_named(tmp_path):
    out = call('--set', 'Set5', '--out', str(tmp_path / 'a.png'))
    assert out.exit_code == 0, out.output
    assert 'SRCNN' in out.output
    assert call('--set', 'Set5', '--from', '0', '--out', str(tmp_path / 'b.png')).output.count('left out') == 0


@pytest.mark.parametrize(
    ('dataset', 'against', 'metric'), [('Set5', 'params', 'psnr'), ('Urban100', 'multi-adds', 'ssim')]
)
def test_names_touch_no_other_name_no_disc_and_no_frame(dataset, against, metric):
    points = plots.points_of_papers(4, dataset, against, metric=metric)
    figure = plots.draw(points, 'title', 'x', 'y')
    (axes,) = figure.axes
    assert sorted(t.get_text() for t in axes.texts) == sorted(p.method for p in points)
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    for box in boxes:
        assert box.count_overlaps(boxes) == 1, 'with itself'
        assert frame.x0 < box.x0 < box.x1 < frame.x1
        assert frame.y0 < box.y0 < box.y1 < frame.y1
    discs = [tuple(map(float, xy)) for disc in axes.collections for xy in disc.get_offsets()]
    assert sorted(discs) == sorted((p.x, p.score) for p in points)
    centres = axes.transData.transform(discs)
    assert not any(box.contains(*centre) for box in boxes for centre in centres)
    (legend,) = figure.legends
    assert {plots.OURS, plots.OTHERS} < {text.get_text() for text in legend.texts}


def test_an_axis_that_one_method_would_squeeze_is_logarithmic():
    def scale(*x):
        points = [plots.Point(f'net{i}', each, 30 + i, None, False, '') for i, each in enumerate(x)]
        return plots.draw(points, '', '', '').axes[0].get_xscale()

    assert scale(70.0, 300.0, 450.0, 500.0, 1600.0) == 'log'
    assert scale(70.0, 200.0, 350.0, 500.0, 600.0) == 'linear'
    assert scale(300.0) == 'linear'


def test_pictures_and_points_are_written(written, tmp_path):
    measured = [word for file in written(*HASN) for word in ('--measured', str(file))]
    out = call('--set', 'Set5', *measured, '--out', str(tmp_path / 'new' / 'p.png'))
    assert out.exit_code == 0, out.output
    shown = json.loads(call('--set', 'Set5', *measured, '--json').stdout)
    assert [p['x'] for p in shown if p['measured']] == [435.272]
    with Image.open(tmp_path / 'new' / 'p.png') as image:
        assert (image.width, [round(dpi) for dpi in image.info['dpi']]) == (2148, [300, 300])
    assert call('--out', str(tmp_path / 'p.SVG')).exit_code == 0
    assert '<svg' in (tmp_path / 'p.SVG').read_text()[:600]
    points = json.loads(call('--set', 'Set5', '--json').stdout)
    assert {p['method'] for p in points} >= {'HASN', 'DPARN', 'AGDN', 'AGDN-S', 'EFRDN', 'ASID', 'ASID-D8'}


@pytest.mark.parametrize(
    'text',
    [
        '{"costs":[{}],"latencies":[]}',
        '{"costs":[]}',
        '{"costs":5,"latencies":[]}',
        '{"costs":[{"form":"fused","model":"A","params":"x","multi_adds":1}],"latencies":[]}',
        '{"costs":[],"latencies":[{"model":"A"}]}',
        '{"network":"A"}',
        '{"network":"A","means":{"Urban100":{}}}',
        '{"network":[],"means":{"Urban100":{"psnr":30}}}',
        '{"network":"A","means":5}',
        '{"network":"A","means":{"Urban100":{"psnr":NaN}},"paper":null,"scale":4,"parameters":1}',
        '{"network":"A","means":{"Urban100":{"psnr":30}},"paper":null,"parameters":1}',
        '{"costs":[],"latencies":[],"environment":{"device":"CPU"},"scale":4}',
        '[]',
        '5',
        'null',
    ],
)
def test_a_file_that_is_no_report_is_named(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    out = call('--measured', str(tmp_path / 'a.json'), '--out', str(tmp_path / 'p.png'))
    assert (out.exit_code, isinstance(out.exception, SystemExit)) == (2, True)
    assert 'a.json must be a report of effsr benchmark or effsr evaluate' in out.stderr
    assert not (tmp_path / 'p.png').exists()


def test_a_file_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder.png').mkdir()
    for name, sentence in (('file/p.png', 'is a file, must be a folder'), ('folder.png', '--out must be a file')):
        out = call('--measured', 'no such report', '--out', str(tmp_path / name))
        assert out.exit_code == 2
        assert sentence in out.stderr
    assert call('--out', 'p.bmp').exit_code == 2


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--against', 'beauty'], '--against must be one of'),
        (['--metric', 'lpips'], '--metric must be one of'),
        (['--against', 'memory'], '--measured adds'),
        (['--set', 'Set6'], 'no paper prints'),
        (['--from', '99'], 'every method scores less'),
        (['--out', 'plot.bmp'], '--out must end in'),
        (['--measured', 'nowhere.json'], 'cannot be read'),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = call(*words)
    assert out.exit_code == 2
    assert sentence in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
