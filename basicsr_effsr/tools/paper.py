"""``effsr paper``: the tables of the five papers, row by row: training commands, cost, results here.

The rows are data, ``options/papers/*.yml``: a row is recipes of ``options/train`` with changes by ``--force_yml``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from basicsr_effsr.data.course import StagePlan
from basicsr_effsr.options.file import read_option_file
from basicsr_effsr.tools.check import force
from basicsr_effsr.tools.evaluate_report import Mean, Means
from basicsr_effsr.tools.recipe import recipes
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError, near
from basicsr_effsr.utils.report import markdown_table

PASSES = 3  # of a training step in multiply-adds of a forward pass: forward, gradient of maps, gradient of weights
RESULTS = Path('results/papers')  # where the commands that are printed write what they measure
RTX_2080_TI = 13.45  # TFLOP/s in float32 as its maker states it; the card of two of the papers


@dataclass(frozen=True)
class Training:
    """One recipe of a row."""

    recipe: str  # name of the option file
    name: str  # of its folder under experiments/
    changes: tuple[str, ...] = ()  # as for --force_yml, in its order

    def command(self) -> str:
        """What trains it, from a checkout."""
        words = ['python', '-m', 'basicsr.train', '-opt', f'options/train/{self.recipe}.yml', '--auto_resume']
        return shlex.join([*words, *(['--force_yml', f'name={self.name}', *self.changes] if self.changes else [])])

    def options(self) -> dict[str, Any]:
        """The option file with its changes."""
        options = read_option_file(recipes('train')[self.recipe])
        for change in (f'name={self.name}', *self.changes):
            force(options, change)
        return options


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str  # as the table calls it
    scores: Mapping[str, tuple[float | None, float | None]]  # PSNR [dB], SSIM by set; None where nothing is usable
    trainings: tuple[Training, ...] = ()  # one after the other; empty for published weights, or if absent
    score: str = ''  # the command that measures it; empty if absent
    params: float | None = None  # as printed, in thousands
    remark: str = ''  # why there is no command, or what is misprinted

    def report(self) -> Path:
        """The file that ``score`` writes."""
        return Path(shlex.split(self.score)[-1]) / 'report.json'

    def measured(self) -> dict[str, Mean]:
        """The means of the sets, if ``score`` has been run here."""
        if not self.score:
            return {}
        report = self.report()
        return Means.read(report).means if report.is_file() else {}


@dataclass(frozen=True)
class Table:
    """A table of a paper, whose rows show the same sets."""

    number: str
    title: str
    sets: tuple[str, ...]
    note: str = ''
    rows: list[Row] = field(default_factory=list)

    def heading(self) -> str:
        """What stands over it; ours, of other readings, have no number."""
        return f'Table {self.number}: {self.title}' if self.number.isdigit() else self.title


def value(given: Any) -> str:
    """An option as ``--force_yml`` reads it, which knows sections, and words for nothing, only as members of a list."""
    if isinstance(given, dict) or (isinstance(given, str) and given.lower() in ('none', 'true', 'false')):
        return f'[{json.dumps(given)}][0]'
    return 'none' if given is None else given if isinstance(given, str) else json.dumps(given)


def setting(given: Any) -> str:
    """An option as ``--set`` reads it."""
    return given if isinstance(given, str) else json.dumps(given)


def trainings(place: str, names: list[str], network: dict[str, Any], forced: dict[str, Any]) -> tuple[Training, ...]:
    """The recipes of a row with its changes; what changes has a name of its own, and so has what begins with it."""
    found: list[Training] = []
    files = {name: read_option_file(recipes('train')[name]) for name in names}
    student = files[names[-1]]['network_g']['type'] if names else ''
    before = ''  # the training of the same network that stands before
    for name, options in files.items():
        mine, begins = options['network_g']['type'] == student, options['path']['pretrain_network_g']
        changes = [f'network_g:{key}={value(option)}' for key, option in network.items() if mine]
        changes += [f'{key}={value(option)}' for key, option in forced.get(name, {}).items()]
        after = re.sub(r'^experiments/[^/]+/', f'experiments/{before}/', begins) if before and begins else begins
        changes += [f'path:pretrain_network_g={after}'] if after != begins else []
        found.append(Training(name, f'{name}_{place}' if changes else name, tuple(changes)))
        before = found[-1].name if mine else before
    return tuple(found)


def tables(paper: str) -> dict[str, Table]:
    """The tables of a paper, by number."""
    known = recipes('papers')
    if paper not in known:
        raise UserError(f'there is no paper {paper!r}; {near(paper, known)}')
    whole = read_option_file(known[paper])
    found = {}
    for number, its in whole['tables'].items():
        sets, rows = tuple(its.get('sets', whole['sets'])), list(_rows(number, {**whole, **its}))
        found[number] = Table(number, its['title'], sets, its.get('note', ''), rows)
    return found


def _rows(number: str, table: dict[str, Any]) -> Iterator[Row]:
    for name, row in table['rows'].items():
        place = 't' + re.sub(r'\W+', '_', f'{number}_{name}').strip('_').lower()
        scores = {one: tuple(row['scores'][2 * i : 2 * i + 2]) for i, one in enumerate(table['sets'])}
        remark = row.get('absent') or row.get('misprint', '')
        chain: tuple[Training, ...] = ()
        if not row.get('absent'):
            network, names = row.get('network', {}), row.get('train', table['train'])
            chain = trainings(place, names, network, row.get('force', table.get('force', {})))
            if chain:
                last = chain[-1].options()
                weights = f'experiments/{chain[-1].name}/models/net_g_latest.pth'
                which = ['--weights', weights]
                if network:
                    which = ['--arch', last['network_g']['type'], '--scale', str(last['scale']), *which]
                    set_to = [f'{k}={setting(v)}' for k, v in network.items() if k != 'type']
                    which += [word for each in set_to for word in ('--set', each)]
                out = chain[-1].name
            else:
                which, out = ['--model', row['weights']], row['weights']
            extra = [str(word) for word in row.get('score', table.get('score', []))]
            out += '_' + place if row.get('score') else ''
            few = table['sets'] if len(table['sets']) < 4 else []
            sets = [word for one in few for word in ('--sets', one)]
            words = ['effsr', 'evaluate', *which, *extra, *sets, '--data', 'datasets', '--out', f'{RESULTS}/{out}']
            score = shlex.join(words)
        yield Row(name, scores, chain, score if not row.get('absent') else '', row.get('params'), remark)


@cache
def _macs(network: str, side: int) -> int:
    from basicsr_effsr.utils.complexity import count_macs
    from basicsr_effsr.weights.build import build

    return count_macs(build(json.loads(network), fuse=False), (side, side)).total


def flops(options: dict[str, Any]) -> float:
    """Floating-point operations of a training, by our own count of multiply-adds at its patches.

    Two operations per multiply-add, three passes of the network and one of a teacher per sample. VGG of a perceptual
    loss, affinities and the optimizer are left out.
    """
    data, train, scale = options['datasets']['train'], options['train'], options['scale']
    plan, begin, total = StagePlan(data['batch_size_per_gpu'], train.get('progressive')), 0, 0.0
    ends = [stage.end or train['total_iter'] for stage in plan.stages]
    for stage, (begin, end) in zip(plan.stages, pairwise([0, *ends]), strict=True):
        side = (stage.gt_size or data['gt_size']) // scale
        each = PASSES * _macs(json.dumps(options['network_g']), side)
        if options.get('network_t'):
            each += _macs(json.dumps(options['network_t']), side)
        total += 2 * each * stage.batch * (end - begin)
    return total


def hours(row: Row, tflops: float) -> float:
    """GPU-hours of all trainings of a row at ``tflops`` TFLOP/s."""
    return sum(flops(training.options()) for training in row.trainings) / (tflops * 1e12) / 3600


def cells(table: Table, tflops: float | None) -> tuple[list[str], list[list[str]]]:
    """Head and rows; ``tflops`` None leaves the cost out."""
    head = ['row', 'params, K', *table.sets, 'measured here', *(['GPU-hours'] if tflops else []), 'remark']
    out = []
    for row in table.rows:
        scores = [
            ' / '.join('-' if x is None else f'{x:.{n}f}' for x, n in zip(row.scores[s], (2, 4), strict=True))
            for s in table.sets
        ]
        means = row.measured()
        mine = ', '.join(f'{s} {m.psnr:.2f} / {m.ssim:.4f}' for s, m in means.items()) or '-'
        cost = [f'{hours(row, tflops):.1f}' if row.trainings else '-'] if tflops else []
        out.append([row.name, '-' if row.params is None else f'{row.params:g}', *scores, mine, *cost, row.remark])
    return head, out


def lines(table: Table) -> Iterator[str]:
    """The commands of a table, row by row, each where it is first needed."""
    said: set[str] = set()
    for row in table.rows:
        if row.score:
            yield f'# {row.name}'
            mine = [*(training.command() for training in row.trainings), row.score]
            yield from (line for line in mine if line not in said)
            said.update(mine)


def paper_page(paper: str, tflops: float | None = RTX_2080_TI) -> str:
    """The tables of a paper in Markdown, each followed by its commands."""
    out = []
    for table in tables(paper).values():
        out += [f'### {table.heading()}', markdown_table(*cells(table, tflops)).rstrip()]
        out += [table.note] if table.note else []
        out.append('```\n' + '\n'.join(lines(table)) + '\n```')
    return '\n\n'.join(out) + '\n'


def command(
    paper: Annotated[str, typer.Argument(help='hasn, agdn, asid, dparn or efrdn.')],
    table: Annotated[str | None, typer.Option(help='Only this table.')] = None,
    tflops: Annotated[
        float, typer.Option(min=0.001, help='TFLOP/s for GPU-hours; default: RTX 2080 Ti, float32, peak.')
    ] = RTX_2080_TI,
    markdown: Annotated[bool, typer.Option('--markdown', help='Print the page of docs/papers in Markdown.')] = False,
) -> None:
    """Print a paper's tables: every row's scores, what was measured here, its cost, the commands that train it."""
    found = tables(paper)
    if table is not None and table not in found:
        raise UserError(f'{paper} has no table {table} with rows of its own; {near(table, found)}')
    if markdown:
        typer.echo(paper_page(paper, tflops), nl=False)
        return
    for one in [found[table]] if table else found.values():
        Console().table(f'{one.heading()}; PSNR [dB] / SSIM as printed', *cells(one, tflops))
        if one.note:
            say(one.note)
        for line in lines(one):
            say(line)
    say(f'GPU-hours: a lower bound, from our multiply-adds at {tflops:g} TFLOP/s')
