"""Names that mean something to Markdown, spreadsheets, HTML or a terminal are shown as they are, in every report."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import basicsr_effsr
from basicsr_effsr.tools.evaluate_report import Evaluation, EvaluationReport, texts
from basicsr_effsr.tools.scoring import ImageScore
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import printable
from basicsr_effsr.utils.report import csv_table, markdown_table, strict_json, write_texts

NAMES = (
    *('a|b', '`x`', '``', '<script>alert(1)</script>', '&lt;', '*a*', '**a**', '_a_', 'img_001_x', '[a](b)', '![a](b)'),
    *(':coffee:', 'a:b:c', '$x$', '~~a~~', '[red]x[/red]', 'x.pack:coffee:', '\\', 'a\\|b', '# a', '- a', '1. a', '--'),
    *('a\nb', 'a\r\nb', 'a\tb', '\x1b[31mred', 'a\x00b', 'Ünïcode 日本', 'half\udcff', '', '\u202egnp.x', '\u2028'),
)


@pytest.mark.parametrize('name', NAMES)
def test_markdown_shows_every_name(name):
    table = markdown_table(['set', 'other'], [[name, 'x']])
    assert table.count('\n') == 3
    tokens = MarkdownIt('commonmark').enable(['table', 'strikethrough']).parse(table)
    cells = [token for token in tokens if token.type == 'inline']
    assert [''.join(child.content for child in cell.children) for cell in cells] == [
        *('set', 'other', printable(name), 'x')
    ]
    assert {child.type for cell in cells for child in cell.children} <= {'text', 'text_special'}


@pytest.mark.parametrize('name', NAMES)
def test_page_shows_every_name_and_runs_none(name, tmp_path):
    report = EvaluationReport(name, 1, 2, name, name, name, [ImageScore(name, name, 30.0, 0.9, 29.0, 0.8, 0.1)])
    write_texts(tmp_path, texts(Evaluation([report])))
    page = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert page.count('<script>') == 1
    assert page.count('<td') == 7 + 6
    rows = list(csv.DictReader(io.StringIO((tmp_path / 'report.csv').read_bytes().decode(), newline='')))
    assert [rows[0][key].removeprefix("'") for key in ('set', 'image')] == [printable(name)] * 2
    assert json.loads((tmp_path / 'report.json').read_text())['images'][0]['set'] == name


@pytest.mark.parametrize('cell', ['=1+1', '+x', '-x', '@x', '\t=x', '\r=x', '=H("http://x")', "-2+3+cmd|' /C'!A0"])
def test_cells_of_text_are_no_formulas(cell):
    _, row = csv.reader(io.StringIO(csv_table(['a', 'b'], [[cell, 'x']]), newline=''))
    assert row[0] == (f"'{cell}" if cell.isprintable() else printable(cell))
    assert row[0][0] not in '=+-@\t\r'


@pytest.mark.parametrize('cell', ['-0.5', '+3', '-', '1e-3', -0.5, 'a=b', ''])
def test_numbers_and_other_text_stay(cell):
    assert csv_table(['a', 'b'], [[cell, 'x']]) == f'a,b\n{cell},x\n'


def test_json_is_strict():
    def refuse(constant):
        raise AssertionError(constant)

    data = {'a': [math.inf, 1.0], 'b': {'c': math.nan}, 'd': -math.inf, 'e': (1, None)}
    found = json.loads(strict_json(data), parse_constant=refuse)
    assert found.pop('not_finite') == {'a.0': 'inf', 'b.c': 'nan', 'd': '-inf'}
    assert found == {'a': [None, 1.0], 'b': {'c': None}, 'd': None, 'e': [1, None]}
    assert json.loads(strict_json([math.inf])) == [None]
    assert 'not_finite' not in json.loads(strict_json({'a': 1.0}))


def test_equal_images_have_no_finite_psnr_and_the_report_says_so():
    report = EvaluationReport('N', 1, 2, None, '', '', [ImageScore('Set5', 'a', math.inf, 1.0, 30.0, 0.9, 0.1)])
    files = texts(Evaluation([report]))
    found = json.loads(files['report.json'])
    assert found['not_finite'] == {'images.0.psnr': 'inf', 'means.Set5.psnr': 'inf'}
    assert '| inf / 1.0000 |' in files['report.md']


def test_files_of_a_report_are_written_all_or_none(tmp_path):
    write_texts(tmp_path, {'a.md': 'old', 'b.md': 'old'})
    (tmp_path / 'c.md').mkdir()
    with pytest.raises(OSError, match=r'c\.md'):
        write_texts(tmp_path, {'c.md': 'new', 'a.md': 'new'})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.md', 'b.md', 'c.md']
    assert (tmp_path / 'b.md').read_text() == 'old'


@pytest.mark.parametrize('name', NAMES)
def test_the_terminal_shows_every_name(name, capsys):
    say(f'<{name}>')
    assert capsys.readouterr().out == f'<{printable(name)}>\n'.replace('\udcff', '\\udcff')
    Console().table('', (), [(f'<{name}>', 'x')])
    assert f'<{printable(name)}>' in capsys.readouterr().out


def test_nothing_else_prints():
    """What commands print goes through one console; JSON, which is ASCII, our page and recipes as they are."""
    root = Path(basicsr_effsr.__file__).parents[1]
    for file in [*(root / 'basicsr_effsr').rglob('*.py'), *(root / 'datasets_prep').rglob('*.py')]:
        source = file.read_text(encoding='utf-8')
        # a run of the host's starts without a command-line library
        if file.parent.name == 'host' or file.name in ('console.py', '_autoload.py', 'train.py', 'test.py'):
            continue
        assert not re.search(
            r'rich\.(console|table|text|markdown)|\bprint\(|click\.echo|sys\.std(out|err)\.write', source
        ), file
        echoed = re.findall(r'typer\.echo\((\w+)', source)
        assert set(echoed) <= {'strict_json', 'option_page', 'paper_page', 'files', 'recipe'}, file
