"""``effsr plot``: the points are the papers', the picture shows every one of them."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.tools import plots
from basicsr_effsr.tools.networks import UserError

pytest.importorskip('adjustText', reason="needs adjustText: pip install -e '.[dev]'")


def call(*words: str):
    return CliRunner().invoke(app, ['plot', *words])


def benchmark_report(folder, name='HASN'):
    costs = [{'model': name, 'form': 'as trained', 'params': 435_272, 'multi_adds': 23_280_000_000}]
    costs.append({'model': 'RLFN', 'form': 'yardstick', 'params': 1, 'multi_adds': 1})
    file = folder / 'benchmark.json'
    file.write_text(json.dumps({'costs': costs, 'latencies': [{'model': name, 'median': 12.5}]}))
    return file


def evaluation_report(folder, name='HASN'):
    file = folder / 'report.json'
    file.write_text(json.dumps({'network': name, 'means': {'Set5': {'psnr': 32.18}}}))
    return file


def test_a_method_stands_with_the_row_of_its_own_paper():
    points = {p.method: p for p in plots.points_of_papers(4, 'Set5', 'multi-adds')}
    assert (points['AGDN'].x, points['AGDN'].psnr) == (16.1, 32.43)
    assert points['ASID-D8'].source.startswith('ASID paper')
    assert 'HASN' not in points, 'its paper counts at another input size'
    latencies = {p.method: p for p in plots.points_of_papers(2, 'Set5', 'latency', ['DPARN'])}
    assert (latencies['DPARN'].x, latencies['DPARN'].psnr) == (47.45, 38.06)
    assert all(p.source.startswith('DPARN ') for p in latencies.values())


def test_measured_points_join_benchmark_and_evaluation(tmp_path):
    files = [benchmark_report(tmp_path), evaluation_report(tmp_path)]
    for against, x in (('params', 435.272), ('multi-adds', 23.28), ('latency', 12.5)):
        (point,) = plots.points_of_files(files, 'Set5', against)
        assert (point.method, point.x, point.psnr, point.measured) == ('HASN', x, 32.18, True)
    with pytest.raises(UserError, match='no network is both'):
        plots.points_of_files(files[:1], 'Set5', 'params')


def test_what_lies_far_below_ours_is_left_out_and_named(tmp_path):
    out = call('--set', 'Set5', '--out', str(tmp_path / 'a.png'))
    assert out.exit_code == 0, out.output
    assert 'SRCNN' in out.output
    assert call('--set', 'Set5', '--from', '0', '--out', str(tmp_path / 'b.png')).output.count('left out') == 0


@pytest.mark.parametrize('against', plots.AXES)
def test_the_figure_names_every_method_inside_its_frame(against):
    points = plots.points_of_papers(2, 'Set5', against)
    figure = plots.draw(points, 'title', 'x', 'y')
    (axes,) = figure.axes
    assert sorted(t.get_text() for t in axes.texts if t.get_text()) == sorted(p.method for p in points)
    frame = figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
    drawn = sorted((float(x), float(y)) for disc in axes.collections for x, y in disc.get_offsets())
    assert drawn == sorted((p.x, p.psnr) for p in points)


def test_pictures_and_points_are_written(tmp_path):
    files = [str(benchmark_report(tmp_path)), str(evaluation_report(tmp_path))]
    out = call(
        '--set', 'Set5', '--measured', files[0], '--measured', files[1], '--out', str(tmp_path / 'new' / 'p.png')
    )
    assert out.exit_code == 0, out.output
    with Image.open(tmp_path / 'new' / 'p.png') as image:
        assert image.width > 1000
    assert call('--out', str(tmp_path / 'p.svg')).exit_code == 0
    assert '<svg' in (tmp_path / 'p.svg').read_text()[:600]
    points = json.loads(call('--set', 'Set5', '--json').stdout)
    assert {p['method'] for p in points} >= set(plots.OURS)


@pytest.mark.parametrize(
    'text',
    [
        '{"costs":[{}],"latencies":[]}',
        '{"costs":[]}',
        '{"costs":5,"latencies":[]}',
        '{"costs":[{"form":"deployed","model":"A","params":"x","multi_adds":1}],"latencies":[]}',
        '{"costs":[],"latencies":[{"model":"A"}]}',
        '{"network":"A"}',
        '{"network":"A","means":{"Urban100":{}}}',
        '{"network":[],"means":{"Urban100":{"psnr":30}}}',
        '{"network":"A","means":5}',
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


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--against', 'beauty'], '--against must be one of'),
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
