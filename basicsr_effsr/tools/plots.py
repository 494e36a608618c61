"""``effsr plot``: PSNR or SSIM against what it costs; the figure that papers of this field open with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError

from basicsr_effsr.tools.benchmark import BenchmarkReport, lr_size
from basicsr_effsr.tools.networks import check_file
from basicsr_effsr.tools.papers import papers
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError, needs
from basicsr_effsr.utils.files import read_text
from basicsr_effsr.utils.report import PAGE, new_figure, strict_json, write_figure

if TYPE_CHECKING:
    from basicsr_effsr.tools.evaluate_report import EvaluationReport

# x: key in papers.json, unit of the axis in units of the paper's value and of a benchmark's, label
AXES = {
    'params': ('params', 1e-3, 1e3, 'parameters [K]'),
    'multi-adds': ('multi_adds', 1.0, 1e9, 'multiply-adds at 1280x720 output [G]'),
    'latency': ('runtime_ms', 1.0, 1.0, 'latency [ms]'),
    'memory': ('memory', 1.0, 2**20, 'counted memory at 1280x720 output, fp32 [MiB]'),
}
# y: place in a row of papers.json, label, how far below ours a method may lie to be shown
METRICS = {'psnr': (0, 'PSNR-Y on {} [dB]', 0.3), 'ssim': (1, 'SSIM-Y on {}', 0.01)}
OURS, OTHERS = "the papers' own networks", 'others in their tables'


@dataclass(frozen=True)
class Point:
    """A method in the figure."""

    method: str
    x: float  # what it costs, in the unit of the axis
    score: float  # PSNR [dB] or SSIM
    size: int | None  # parameters, for the area of the disc; None draws a small one
    measured: bool  # by a file of this project, not printed in a paper
    source: str  # where it stands
    setting: str = ''  # how a latency was measured; empty for papers, which measured on GPUs of their own

    @property
    def stands_out(self) -> bool:
        """Measured here, or the method of the very paper that lists it (AGDN-S in the AGDN paper)."""
        return self.measured or self.source.startswith(f'{self.method.partition("-")[0]} paper')


def points_of_papers(
    scale: int, dataset: str, against: str, sources: Iterable[str] = (), metric: str = 'psnr'
) -> list[Point]:
    """What the papers print, one point per method: of its own paper, else of the first that lists it.

    ``against`` is a key of ``AXES``, ``metric`` of ``METRICS``; of ``sources``, such as ``DPARN``, only the rows are
    taken, unless it is empty.
    """
    key, factor = AXES[against][:2]
    found: dict[str, Point] = {}
    for row in papers()['rows']:
        score, x = row['scores'].get(dataset), row.get(key)
        wanted = not sources or any(row['source'].startswith(f'{source} ') for source in sources)
        if row['scale'] == scale and score and x is not None and wanted and row['method'] not in found:
            place = x * factor, score[METRICS[metric][0]]
            found[row['method']] = Point(row['method'], *place, row.get('params'), False, row['source'])
    return list(found.values())


def read_report(file: Path) -> BenchmarkReport | list[EvaluationReport]:
    """A report of ``effsr benchmark``, or those of an ``effsr evaluate``, a network each."""
    from basicsr_effsr.tools.evaluate_report import Evaluation, EvaluationReport

    kinds: Any = TypeAdapter(BenchmarkReport | Evaluation | EvaluationReport)
    try:
        report = kinds.validate_json(read_text(file))
        if isinstance(report, BenchmarkReport):
            _ = _model(report), _device(report)
    except OSError as error:
        raise UserError(f'--measured: {file} cannot be read ({error.strerror or error})') from error
    except (ValidationError, StopIteration, KeyError) as error:
        raise UserError(f'--measured: {file} must be a report of effsr benchmark or effsr evaluate') from error
    if isinstance(report, BenchmarkReport):
        return report
    return report.models if isinstance(report, Evaluation) else [report]


def _model(report: BenchmarkReport) -> str:
    return next(row.model for row in report.costs if row.form != 'yardstick')


def _names(report: EvaluationReport) -> tuple[str, str]:
    """What a benchmark of the same network may call it."""
    return report.network, report.name


def _device(report: BenchmarkReport) -> str:
    """Where latencies were measured, with the number of threads of a CPU."""
    facts = report.environment
    return str(facts['device']) + ('' if 'CUDA' in facts else f', {facts["threads"]} threads')


def _value(file: Path, found: BenchmarkReport, network: EvaluationReport, against: str) -> float:
    """The value of a network on an axis, at 1280x720 output where the size matters."""
    params, (key, _, unit, _) = network.parameters, AXES[against]
    if against == 'params':
        return params / unit
    height, width = size = lr_size('720p', found.scale)
    wanted, fix = against, ''
    if against != 'latency':
        values = [getattr(row, key) / unit for row in found.costs if (row.params, row.lr_size) == (params, size)]
    else:
        wanted, fix = 'latency in fp32, contiguous and not compiled,', ' and without --no-latency'
        plain = (size, 'fp32', 'contiguous', False)
        mine = [row for row in found.latencies if row.model in _names(network)]
        values = [r.median for r in mine if (r.lr_size, r.dtype, r.memory_format, r.compiled) == plain]
    if not values:
        raise UserError(
            f'--measured: {file} has no {wanted} at the input of 720p, {height}x{width}; run effsr benchmark with '
            f'--size 720p{fix}'
        )
    return values[0]


def points_of_files(files: Iterable[Path], scale: int, dataset: str, against: str, metric: str = 'psnr') -> list[Point]:
    """What was measured here: reports of ``effsr benchmark`` joined with reports of ``effsr evaluate``, in any order.

    Both must be of one class with one number of parameters, which tells AGDN from AGDN-S. For the other arguments see
    :func:`points_of_papers`.
    """
    benchmarks: dict[Path, BenchmarkReport] = {}
    evaluations: list[tuple[Path, EvaluationReport]] = []
    for file in files:
        report = read_report(file)
        first = report if isinstance(report, BenchmarkReport) else report[0]
        if first.scale != scale:
            raise UserError(f'--measured: {file} is of x{first.scale}, the figure of x{scale}; give --scale')
        if isinstance(report, BenchmarkReport):
            benchmarks[file] = report
        else:
            evaluations += [(file, each) for each in report]
    points, used = [], set()
    for file, found in evaluations:
        means, params = found.means(), found.parameters
        if dataset not in means:
            raise UserError(f'--measured: {file} has no scores on {dataset}, only on {", ".join(means)}; give --set')
        partners = [
            path
            for path, one in benchmarks.items()
            if any(r.params == params and r.model in _names(found) for r in one.costs if r.form != 'yardstick')
        ]
        if not partners:
            raise UserError(
                f'--measured: no benchmark of {found.network} with the {params:,} parameters of {file}; '
                'give the benchmark.json of the same network'
            )
        values = {_value(path, benchmarks[path], found, against) for path in partners}
        if len(values) > 1:
            raise UserError(
                f'--measured: {partners[0]} and {partners[1]} differ in {against} of the network of {file}; '
                'give one of them'
            )
        used |= set(partners)
        where = '{}x{} input, fp32, {}'.format(*lr_size('720p', scale), _device(benchmarks[partners[0]]))
        setting = where if against == 'latency' else ''
        printed = (found.paper or {}).get('method', found.name)
        name = printed if found.name == found.network else found.name
        points.append(Point(name, values.pop(), means[dataset][metric], params, True, str(file), setting))
    for path in benchmarks.keys() - used:
        raise UserError(
            f'--measured: no evaluation of the {_model(benchmarks[path])} of {path}, with as many parameters; '
            'give its report.json, of effsr evaluate'
        )
    return points


def axis_label(against: str, points: Sequence[Point]) -> str:
    """The words below the figure; states where values were measured differently from the papers'."""
    settings = list(dict.fromkeys(point.setting for point in points if point.setting))
    printed = any(not point.measured for point in points)
    if not settings:
        return AXES[against][-1]
    others = "; others: as printed, on the papers' GPUs" if printed else ''
    return f'{AXES[against][-1]}\nblack edge: {" / ".join(settings)}{others}'


def place_names(axes: Any, names: Sequence[Any], discs: Sequence[Any]) -> None:
    """Moves each name beside its disc, off every other one and off the frame, with a line where it had to go far.

    Names in a crowd choose first: the nearest place that neither it nor its line shares with anything; where there is
    none, one that only the name has to itself. Unlike adjustText, whose forces end where they end, this is exact.
    """
    inch, to_data = axes.figure.dpi, axes.transData.inverted()
    gap, frame = 0.012 * inch, axes.get_window_extent()
    centres = axes.transData.transform([disc.get_offsets()[0] for disc in discs])
    radii = np.array([math.sqrt(disc.get_sizes()[0] / math.pi) * inch / 72 for disc in discs])
    taken = np.hstack([centres - radii[:, None], centres + radii[:, None]])  # left, bottom, right, top
    reach, angle = (each.ravel() for each in np.meshgrid(np.arange(0, 3, 0.05) * inch, np.arange(24) * math.pi / 12))
    order = np.argsort(reach, kind='stable')
    reach, way = reach[order], np.stack([np.cos(angle), np.sin(angle)], 1)[order].round(6)

    def free(boxes: np.ndarray) -> np.ndarray:
        apart = (boxes[:, None, :2] >= taken[:, 2:]) | (boxes[:, None, 2:] <= taken[:, :2])
        inside = (boxes[:, :2] > frame.min + 3 * gap) & (boxes[:, 2:] < frame.max - 3 * gap)
        return np.logical_and(np.any(apart, axis=2).all(axis=1), np.all(inside, axis=1))

    crowd = [(np.hypot(*(centres - centre).T) < inch / 2).sum() for centre in centres]
    for i in sorted(range(len(names)), key=lambda i: -crowd[i]):
        box = names[i].get_window_extent()
        half = np.array([box.width, box.height]) / 2
        away = radii[i] + gap + reach
        at = centres[i] + way * away[:, None] + half * np.sign(way) * np.minimum(1, 1.5 * abs(way))
        boxes = np.hstack([at - half - gap / 2, at + half + gap / 2])
        ends = np.clip(centres[i], at - half, at + half)
        steps = np.linspace(radii[i] / away, 1, 16)[..., None] * (ends - centres[i]) + centres[i]
        lines = np.concatenate([steps - gap / 2, steps + gap / 2], 2)  # a line is a row of dots
        alone = np.flatnonzero(free(boxes))
        k = next((k for k in alone if not reach[k] or free(lines[:, k]).all()), next(iter(alone), 0))
        names[i].set(position=to_data.transform(at[k]), ha='center', va='center')
        taken = np.vstack([taken, boxes[k]])
        if reach[k]:
            axes.plot(*to_data.transform(steps[[0, -1], k]).T, color='dimgray', linewidth=0.4)
            taken = np.vstack([taken, lines[:, k]])


def draw(points: Sequence[Point], title: str, x_label: str, y_label: str) -> Any:
    """The figure, two columns of a page wide: discs with the area of the parameters, ours in colour, a legend below.

    The x axis is logarithmic where an evenly divided one would be empty over a third of its length.
    """
    figure = new_figure(figsize=(PAGE, 5), layout='constrained', dpi=300)
    ticker = needs('matplotlib.ticker', 'plots')
    axes = figure.add_subplot()
    x = sorted(p.x for p in points)
    if x[0] > 0 and max(np.diff(x), default=0) > (x[-1] - x[0]) / 3 and x[-1] > 3 * x[0]:
        axes.set_xscale('log')
        marks = (1, 3) if x[-1] > 300 * x[0] else (1, 2, 3, 5, 7)  # more would touch each other
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=marks))
        axes.xaxis.set_major_formatter('{x:g}')
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    largest = max((p.size or 0 for p in points), default=0) or 1
    named: dict[str, Any] = {}
    discs = []
    shown = sorted(points, key=lambda p: (p.stands_out, p.measured))
    for point in shown:
        ours = {'color': 'tab:red', 'alpha': 0.55, 'zorder': 3}
        how = ours if point.stands_out else {'color': 'tab:blue', 'alpha': 0.3, 'zorder': 2}
        edge = {'edgecolors': 'black' if point.measured else 'none', 'linewidths': 0.8}
        area = 8 + 120 * (point.size or 0) / largest
        discs.append(axes.scatter(point.x, point.score, s=area, **how, **edge))
        what = 'measured here' if point.measured else OURS if point.stands_out else OTHERS
        named.setdefault(what, axes.scatter([], [], s=40, **how, **edge))
    axes.margins(0.06, 0.08)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(x_label, fontsize=7)
    axes.set_ylabel(y_label, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3, linewidth=0.5)
    size = {'s': 8 + 120 * 5e5 / largest, 'color': 'lightgray'}
    named['area: parameters, this one 500 K'] = axes.scatter([], [], **size)
    below = {'loc': 'outside lower center', 'ncols': len(named), 'frameon': False, 'fontsize': 7}
    figure.legend(named.values(), named.keys(), **below)
    for point in shown:
        how = {'fontweight': 'bold' if point.stands_out else 'normal', 'zorder': 4, 'parse_math': False}
        axes.text(point.x, point.score, point.method, fontsize=6.5, **how)
    figure.canvas.draw()
    figure.set_layout_engine('none')  # names are placed on this page
    place_names(axes, list(axes.texts), discs)
    return figure


def command(
    scale: Annotated[int, typer.Option(help='Scale factor.')] = 4,
    dataset: Annotated[str, typer.Option('--set', help='Set5, Set14, B100, Urban100, Manga109.')] = 'Urban100',
    against: Annotated[str, typer.Option(help=f'{", ".join(AXES)}.')] = 'params',
    metric: Annotated[str, typer.Option(help=f'{", ".join(METRICS)}.')] = 'psnr',
    source: Annotated[
        list[str] | None, typer.Option(help='Rows of this paper only (HASN, DPARN ...); repeatable.')
    ] = None,
    measured: Annotated[
        list[Path] | None, typer.Option(help='benchmark.json or report.json of effsr evaluate; repeatable.')
    ] = None,
    least: Annotated[
        float | None,
        typer.Option('--from', help='Leave out methods below this score; default: 0.3 dB, or 0.01, below ours.'),
    ] = None,
    out: Annotated[Path, typer.Option('--out', '-o', help='PNG, PDF or SVG to write.')] = Path('results/plot.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print the points instead of drawing them.')] = False,
) -> None:
    """Draw PSNR or SSIM against parameters, multiply-adds, latency or memory: papers' tables, and reports made here."""
    for option, value, known in (('--against', against, AXES), ('--metric', metric, METRICS)):
        if value not in known:
            raise UserError(f'{option} must be one of {", ".join(known)}, got {value!r}')
    if not as_json:
        check_file(out, '.png', '.pdf', '.svg')
    points = points_of_papers(scale, dataset, against, source or (), metric)
    if measured:
        points += points_of_files(measured, scale, dataset, against, metric)
    if not points:
        raise UserError(f'no paper prints {against} and a score on {dataset} for x{scale}; --measured adds your own')
    _, y_label, below = METRICS[metric]
    if least is None and (ours := [p.score for p in points if p.stands_out]):
        least = min(ours) - below
    left_out = [p.method for p in points if least is not None and p.score < least]
    points = [p for p in points if least is None or p.score >= least]
    if not points:
        raise UserError(f'--from {least}: every method scores less on {dataset} x{scale}')
    if as_json:
        typer.echo(strict_json(points))
        return
    title = f'{dataset} x{scale}' + (', as printed in the papers' if any(not p.measured for p in points) else '')
    write_figure(draw(points, title, axis_label(against, points), y_label.format(dataset)), out)
    say(f'written: {out}' + (f' (left out, lower {metric.upper()}: {", ".join(left_out)})' if left_out else ''))
