"""``effsr runs``: progress, best scores and curves of the runs in a folder, from BasicSR's log files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from basicsr_effsr.tools.networks import check_file
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError, near, needs
from basicsr_effsr.utils.files import read_regular
from basicsr_effsr.utils.report import PAGE, new_figure, strict_json, write_figure

LINE = re.compile(r'^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ [A-Z]+: (.*)$')
# numbers as logs hold them; what is none, in a damaged one, is no line of theirs
COUNT, NUMBER = r'(\d[\d,]{0,14})', r'([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan))(?!\S)'
ITERATION = re.compile(rf'\[epoch: *[\d,]+, iter: *{COUNT}, lr:\([^)]*\)\] *(?:\[eta[^]]*\])?(.*)$')
START = re.compile(rf'(?:Start|Resuming) training from epoch: \d+, iter: {COUNT}\b')
SCORE = re.compile(rf'^\t # (\S+): {NUMBER}(?:\tBest: {NUMBER} @ {COUNT} iter)?')
SETTING = re.compile(r' +(total_iter|val_freq): (\d{1,15}(?:\.0)?)$| +type: (\S+)$')
ROOT = Path('experiments')
Curve = list[tuple[int, float]]  # (iteration, value)


def _count(text: str) -> int:
    return int(text.replace(',', ''))


@dataclass
class Run:
    """A training, from its logs."""

    name: str  # of its folder
    network: str = ''  # type of network_g; empty if no log says it
    iterations: int = 0  # done, as far as they were logged
    total: int | None = None  # iterations asked for; None if no log says it
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # 'Set5 psnr' -> (score, iteration)
    checkpoint: str | None = None  # the last file of weights in models/
    seen: str = ''  # time of the last line
    scores: dict[str, Curve] = field(default_factory=dict)  # 'Set5 psnr' -> every validation
    losses: dict[str, Curve] = field(default_factory=dict)  # 'l_pix' -> every printed iteration

    def read(self, text: str) -> None:
        """One log; those of a run in the order of their time, as a resumed one takes back what came after its state."""
        every = start = 0
        dataset = before = ''
        ended = False
        for line in text.splitlines():
            stamp = LINE.match(line)
            said = stamp[2] if stamp else line
            self.seen = stamp[1] if stamp else self.seen
            if found := SETTING.match(line):
                if found[1] == 'total_iter':
                    self.total = int(float(found[2]))
                elif found[1] == 'val_freq':
                    every = int(float(found[2]))
                elif before.strip() == 'network_g:[':
                    self.network = found[3]
            elif found := START.match(said):
                self.iterations = start = _count(found[1])
                for curve in (*self.scores.values(), *self.losses.values()):
                    curve[:] = [point for point in curve if point[0] <= start]
            elif found := ITERATION.search(said):
                self.iterations = _count(found[1])
                for name, number in re.findall(rf'(\w+): {NUMBER}', found[2]):
                    self.losses.setdefault(name, []).append((self.iterations, float(number)))
            elif said.startswith('End of training'):
                self.iterations, ended = self.total or self.iterations, True
            elif said.startswith('Validation '):
                dataset = said.removeprefix('Validation ')
            elif found := SCORE.match(line):
                curve = self.scores.setdefault(f'{dataset} {found[1]}', [])
                last, when = curve[-1][0] if curve else start, self.iterations
                if every and not ended:  # which the log does not say: the next multiple of val_freq
                    when = every * max(-(-when // every), last // every + 1)
                if not curve or when > last:
                    curve.append((when, float(found[2])))
                if found[3]:
                    when = _count(found[4])
                    self.best[f'{dataset} {found[1]}'] = float(found[3]), min(when, self.total or when)
            before = line

    @property
    def loss(self) -> Curve:
        """The sum of the terms of the network's loss, which are logged as l_..., without the discriminator's l_d_..."""
        total: dict[int, float] = {}
        for name, curve in self.losses.items():
            if name.startswith('l_') and not name.startswith('l_d_'):
                for when, value in curve:
                    total[when] = total.get(when, 0.0) + value
        return sorted(total.items())


def logs_of(folder: Path) -> list[Path]:
    """The logs of a training in the order of their time, which is in their names."""
    return sorted(folder.glob('train_*.log'), key=lambda file: file.stem[-15:])


def run_of(folder: Path) -> Run:
    """The training whose folder of experiments/ this is.

    Raises:
        OSError: a log cannot be read.
    """
    run = Run(folder.resolve().name)
    for file in logs_of(folder):
        run.read(read_regular(file).decode('utf-8', 'replace'))
    saved = {file.stem.removeprefix('net_g_'): file for file in folder.glob('models/net_g_*.pth')}
    last = max(saved, key=lambda name: float(name) if name.isdigit() else float('inf'), default=None)
    run.checkpoint = None if last is None else saved[last].name
    return run


def folder_of(name: str) -> Path:
    """The folder of a training: ``name`` itself, or below experiments/."""
    for folder in (Path(name), ROOT / name):
        if logs_of(folder):
            return folder
    there = [folder.name for folder in folders(ROOT)]
    hint = near(name, there) if there else 'there is none'
    raise UserError(f'{name}: no folder of that name, here or in {ROOT}, holds a log of training (train_*.log); {hint}')


def folders(root: Path) -> list[Path]:
    """The folders below ``root`` that hold logs of a training."""
    return sorted(folder for folder in root.glob('*') if folder.is_dir() and logs_of(folder))


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Means over a fiftieth of the curve around each value."""
    half = len(values) // 100
    total = np.cumsum([0.0, *values])
    low, high = (np.clip(np.arange(len(values)) + shift, 0, len(values)) for shift in (-half, half + 1))
    return (total[high] - total[low]) / (high - low)


def draw(runs: Sequence[Run], metric: str) -> Any:
    """A panel for ``metric`` on every data set of validation, and one for the loss; a colour for every run."""
    panels = list(dict.fromkeys(name for run in runs for name in run.scores if name.endswith(f' {metric}')))
    panels += ['loss'] if any(run.loss for run in runs) else []
    if not panels:
        raise UserError(f'no run has a loss or {metric} in its log')
    figure = new_figure(figsize=(max(5.5 * len(panels), PAGE), 4.6), layout='constrained')
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, run in enumerate(runs):
            curve = run.loss if panel == 'loss' else run.scores.get(panel, [])
            when, values = [point[0] for point in curve], np.array([point[1] for point in curve])
            if panel == 'loss':
                axes.plot(when, values, color=f'C{i % 10}', alpha=0.25, linewidth=0.8)
                values = smooth(values)
            axes.plot(when, values, color=f'C{i % 10}', marker='.' if len(when) < 40 else '', label=run.name)
        axes.set(title='loss, sum of its terms' if panel == 'loss' else panel, xlabel='iterations')
        if panel == 'loss':
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter('{x:g}')
            axes.yaxis.set_minor_formatter('{x:g}')
        axes.xaxis.set_major_formatter(needs('matplotlib.ticker', 'plots').EngFormatter(sep=''))
        axes.grid(alpha=0.3, which='both')
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=min(len(runs), 4), frameon=False)
    return figure


def _table(runs: Iterable[Run]) -> None:
    rows = []
    for run in runs:
        best = [f'{name} {score:.4f} @ {when:,}' for name, (score, when) in run.best.items()]
        done = f'{run.iterations:,}' + (f' of {run.total:,}' if run.total else '')
        rows.append((run.name, run.network or '-', done, ', '.join(best) or '-', run.checkpoint or '-', run.seen))
    Console().table('Trainings', ('name', 'network', 'iterations', 'best', 'checkpoint', 'last line'), rows)


def command(
    words: Annotated[
        list[str] | None, typer.Argument(help='Folder of experiments; or plot and the names of runs.', metavar='[DIR]')
    ] = None,
    out: Annotated[Path, typer.Option('--out', '-o', help='plot: PNG, PDF or SVG to write.')] = Path(
        'results/curves.png'
    ),
    metric: Annotated[str, typer.Option(help='plot: metric of the validations, as in val.metrics.')] = 'psnr',
    as_json: Annotated[bool, typer.Option('--json', help='Print the runs, curves too, as JSON.')] = False,
) -> None:
    """List the trainings of a folder; or draw curves of several: effsr runs plot NAME NAME --out curves.png"""
    first, *names = words or [str(ROOT)]
    if first != 'plot':
        if names:
            raise UserError(f'give one folder of experiments, or the word plot before the names of runs, got {first!r}')
        runs = [run_of(folder) for folder in folders(Path(first))]
        if not runs:
            raise UserError(f'no folder below {first} holds the log of a training (train_*.log); give another folder')
    else:
        runs = [run_of(folder_of(name)) for name in names]
        if not runs:
            raise UserError('plot needs the names of runs; effsr runs lists them')
    if as_json:
        typer.echo(strict_json(runs))
    elif first != 'plot':
        _table(runs)
    else:
        check_file(out, '.png', '.pdf', '.svg')
        write_figure(draw(runs, metric), out)
        say(f'written: {out}')
