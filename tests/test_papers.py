"""The scores copied from papers are believable: a misprint or a slip of the pen shows as an outlier of its column."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from typer.testing import CliRunner

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import app
from basicsr_effsr.options.check import inspected
from basicsr_effsr.tools.paper import Training, flops, paper_page, tables
from basicsr_effsr.tools.papers import papers, row_of
from basicsr_effsr.utils.complexity import count_macs
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.recognise import identify

ROWS = papers()['rows']


def implausible(rows: list[dict]) -> set[tuple[str, str, str]]:
    """(method, source, set) of scores that stand out: from the row's other sets (PSNR), from their own PSNR (SSIM)."""
    columns = defaultdict(list)
    for row in rows:
        for name, score in row['scores'].items():
            columns[row['scale'], name].append(score)
    centre = {key: [median(values) for values in zip(*scores, strict=True)] for key, scores in columns.items()}
    slope = {  # of SSIM over PSNR, by the median of all pairs (Theil and Sen)
        key: median(
            (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(scores, 2) if abs(b[0] - a[0]) > 0.1
        )
        for key, scores in columns.items()
    }
    found = set()
    for row in rows:
        ahead = {name: score[0] - centre[row['scale'], name][0] for name, score in row['scores'].items()}
        usual = median(ahead.values())
        for name, (_, ssim) in row['scores'].items():
            key = row['scale'], name
            off = ssim - centre[key][1] - slope[key] * ahead[name]
            if abs(ahead[name] - usual) > 1.0 + 0.6 * abs(usual) or (abs(ahead[name]) < 1.2 and abs(off) > 0.01):
                found.add((row['method'], row['source'], name))
    return found


def test_no_score_stands_out():
    assert implausible(ROWS) == set()


@pytest.mark.parametrize(
    ('method', 'scale', 'name', 'score'),
    [
        ('FDSCSR-S', 3, 'Set14', [33.37, 0.8429]),
        ('DPARN', 2, 'B100', [33.20, 0.9001]),
        ('LCRCA', 4, 'B100', [27.57, 0.7653]),
        ('CARN', 3, 'B100', [29.06, 0.8493]),
        ('MAFFSRN', 4, 'Set14', [26.62, 0.7822]),
        ('SAFMN', 3, 'Manga109', [22.80, 0.0470]),
    ],
)
def test_what_the_papers_misprint_stands_out(method, scale, name, score):
    """The scores as printed, put back one at a time: the check above would have found each."""
    rows = [dict(row, scores=dict(row['scores'])) for row in ROWS]
    row = next(r for r in rows if (r['method'], r['scale']) == (method, scale) and name in (r.get('misprint') or name))
    row['scores'][name] = score
    assert implausible(rows) == {(method, row['source'], name)}


def test_a_misprint_is_named_and_left_out():
    for row in ROWS:
        if misprint := row.get('misprint'):
            what = misprint.split()[0]
            assert what not in row
            assert what not in row['scores']


def paper_of(network: dict[str, Any]) -> str | None:
    """The method whose row stands beside weights of this network."""
    known = identify(build(network, fuse=False).state_dict())
    row = row_of(known['type'], known, 4)
    return row and row['method']


@pytest.mark.parametrize(
    ('network', 'method'),
    [
        *(({'type': name}, name) for name in ('HASN', 'AGDN', 'ASID', 'DPARN', 'EFRDN', 'IMDN')),
        ({'type': 'DPARN', 'deploy': True}, 'DPARN'),
        ({'type': 'AGDN', 'num_feat': 24, 'num_block': 4, 'tlc': 96}, 'AGDN-S'),
        ({'type': 'ASID', 'num_block': 8}, 'ASID-D8'),
        ({'type': 'HASN', 'num_feat': 8}, None),
        ({'type': 'ASID', 'num_block': 2}, None),
        ({'type': 'IMDN', 'num_in_ch': 1, 'num_out_ch': 1}, None),
    ],
)
def test_a_paper_is_that_of_its_network_and_of_no_other_of_its_class(network, method):
    assert paper_of(network) == method


PAPERS = ('hasn', 'agdn', 'asid', 'dparn', 'efrdn')
PAGES = Path(__file__).parents[1] / 'docs' / 'papers'


def trainings() -> list[Training]:
    """Every training that a row of a paper asks for, once."""
    rows = (row for paper in PAPERS for table in tables(paper).values() for row in table.rows)
    return list({training.command(): training for row in rows for training in row.trainings}.values())


@pytest.mark.parametrize('training', trainings(), ids=lambda training: training.name)
def test_what_a_row_trains_is_an_option_file_without_a_fault(training):
    found = [problem for problem in inspected(training.options(), True).found if problem.fatal]
    assert not [p for p in found if not re.search(r'\.dataroot_|^path\.pretrain_network_', p.where)]


def test_trainings_of_different_options_have_different_folders():
    named = defaultdict(set)
    for training in trainings():
        named[training.name].add(training.command())
    assert all(len(commands) == 1 for commands in named.values())


@pytest.mark.parametrize('name', PAPERS)
def test_a_row_begins_with_what_its_own_training_before_it_wrote(name):
    for table in tables(name).values():
        for row in table.rows:
            before = ''
            for training in row.trainings:
                options = training.options()
                begins = options['path']['pretrain_network_g'] or ''
                if before and begins:
                    assert begins.startswith(f'experiments/{before}/')
                before = training.name if options['network_g']['type'] != 'DPARNTeacher' else before


def without_cost(text: str) -> list[str]:
    """The lines of a page but for the column GPU-hours, which depends on how a network computes."""
    lines, place = [], None
    for line in text.splitlines():
        row = line.split(' | ')
        place = row.index('GPU-hours') if 'GPU-hours' in row else place if line.startswith('|') else None
        lines.append(' | '.join(row if place is None else row[:place] + row[place + 1 :]))
    return lines


@pytest.mark.parametrize('name', PAPERS)
def test_the_page_of_a_paper_is_what_the_command_prints(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where nothing has been measured
    written = (PAGES / f'{name}.md').read_text(encoding='utf-8')
    written = written[written.index('### Table') :]
    assert paper_page(name, None).splitlines() == without_cost(written)


def test_cost_is_the_counted_multiply_adds_of_all_patches():
    training = next(row for row in tables('hasn')['3'].rows if row.name == '2').trainings[0]
    macs = count_macs(HASN(num_block=2), (48, 48)).total
    assert flops(training.options()) == 2 * 3 * macs * 128 * 500_000


def test_what_was_measured_stands_beside_what_is_printed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    report = next(row for row in tables('hasn')['3'].rows if row.name == '6').report()
    report.parent.mkdir(parents=True)
    report.write_text('{"means": {"Set5": {"psnr": 31.987, "ssim": 0.89}}}')
    result = CliRunner().invoke(app, ['paper', 'hasn', '--table', '3'], env={'COLUMNS': '200'})
    assert result.exit_code == 0, result.output
    assert [line for line in result.output.splitlines() if 'Set5 31.99 / 0.8900' in line and '435' in line]


def test_a_table_that_a_paper_lacks_is_said():
    result = CliRunner().invoke(app, ['paper', 'dparn', '--table', '9'])
    assert result.exit_code == 2
    assert 'dparn has no table 9' in result.output
