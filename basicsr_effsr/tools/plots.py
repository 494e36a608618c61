"""``effsr plot``: PSNR against size, multiply-adds or latency; the figure that papers of this field open with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from basicsr_effsr.tools.benchmark import BenchmarkReport, lr_size
from basicsr_effsr.tools.networks import check_file
from basicsr_effsr.tools.papers import papers
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError, needs
from basicsr_effsr.utils.files import atomic_path, read_regular
from basicsr_effsr.utils.report import strict_json

if TYPE_CHECKING:
    from basicsr_effsr.tools.evaluate import EvaluationReport

AXES = {
    'params': ('params', 1e-3, 'parameters [K]'),
    'multi-adds': ('multi_adds', 1.0, 'multiply-adds at 1280x720 output [G]'),
    'latency': ('runtime_ms', 1.0, 'latency [ms]'),
}


@dataclass(frozen=True)
class Point:
    """A method in the figure."""

    method: str
    x: float  # size, multiply-adds or latency, in the unit of the axis
    psnr: float  # dB
    size: int | None  # parameters, for the area of the disc; None draws a small one
    measured: bool  # by a file of this project, not printed in a paper
    source: str  # where it stands
    setting: str = ''  # how a latency was measured; empty for papers, which measured on GPUs of their own

    @property
    def stands_out(self) -> bool:
        """Measured here, or the method of the very paper that lists it (AGDN-S in the AGDN paper)."""
        return self.measured or self.source.startswith(f'{self.method.partition("-")[0]} paper')


def points_of_papers(scale: int, dataset: str, against: str, sources: Iterable[str] = ()) -> list[Point]:
    """What the papers print, one point per method: of its own paper, else of the first that lists it.

    Args:
        scale: scale factor.
        dataset: Set5, Set14, B100, Urban100 or Manga109.
        against: a key of ``AXES``.
        sources: only rows of these papers, such as ``DPARN``; empty takes all.
    """
    key, factor, _ = AXES[against]
    found: dict[str, Point] = {}
    for row in papers()['rows']:
        score, x = row['scores'].get(dataset), row.get(key)
        wanted = not sources or any(row['source'].startswith(f'{source} ') for source in sources)
        if row['scale'] == scale and score and x is not None and wanted and row['method'] not in found:
            found[row['method']] = Point(row['method'], x * factor, score[0], row.get('params'), False, row['source'])
    return list(found.values())


def read_report(file: Path) -> BenchmarkReport | EvaluationReport:
    """A report of ``effsr benchmark`` or of ``effsr evaluate``.

    Raises:
        UserError: it is neither.
    """
    from basicsr_effsr.tools.evaluate import EvaluationReport

    kinds: TypeAdapter[BenchmarkReport | EvaluationReport] = TypeAdapter(BenchmarkReport | EvaluationReport)
    try:
        report = kinds.validate_json(read_regular(file))
        if isinstance(report, BenchmarkReport):
            _ = _model(report), _device(report)
    except OSError as error:
        raise UserError(f'--measured: {file} cannot be read ({error.strerror or error})') from error
    except (ValidationError, StopIteration, KeyError) as error:
        raise UserError(f'--measured: {file} must be a report of effsr benchmark or effsr evaluate') from error
    return report


def _model(report: BenchmarkReport) -> str:
    return next(row.model for row in report.costs if row.form != 'yardstick')


def _device(report: BenchmarkReport) -> str:
    """Where latencies were measured, with the number of threads of a CPU."""
    facts = report.environment
    return str(facts['device']) + ('' if 'CUDA' in facts else f', {facts["threads"]} threads')


def _value(file: Path, found: BenchmarkReport, params: int, against: str) -> float:
    """The value of a network on an axis, at 1280x720 output where the size matters.

    Raises:
        UserError: the report does not have it.
    """
    if against == 'params':
        return params / 1e3
    height, width = size = lr_size('720p', found.scale)
    wanted, fix = 'multiply-adds', ''
    values = [row.multi_adds / 1e9 for row in found.costs if (row.params, row.lr_size) == (params, size)]
    if against == 'latency':
        wanted, fix = 'latency in fp32, contiguous and not compiled,', ' and without --no-latency'
        plain = (_model(found), size, 'fp32', 'contiguous', False)
        rows = ((r.median, (r.model, r.lr_size, r.dtype, r.memory_format, r.compiled)) for r in found.latencies)
        values = [median for median, setting in rows if setting == plain]
    if not values:
        raise UserError(
            f'--measured: {file} has no {wanted} at the input of 720p, {height}x{width}; run effsr benchmark with '
            f'--size 720p{fix}'
        )
    return values[0]


def points_of_files(files: Iterable[Path], scale: int, dataset: str, against: str) -> list[Point]:
    """What was measured here: reports of ``effsr benchmark`` joined with reports of ``effsr evaluate``.

    Both must speak of the same class with the same number of parameters, which tells AGDN from AGDN-S.

    Args:
        files: reports of both kinds, in any order.
        scale: scale factor of the figure.
        dataset: Set5, Set14, B100, Urban100 or Manga109.
        against: a key of ``AXES``.

    Raises:
        UserError: a file is no report, of another scale, lacks what the axis needs, or has no partner.
    """
    benchmarks: dict[Path, BenchmarkReport] = {}
    evaluations: dict[Path, EvaluationReport] = {}
    for file in files:
        report = read_report(file)
        if report.scale != scale:
            raise UserError(f'--measured: {file} is of x{report.scale}, the figure of x{scale}; give --scale')
        (benchmarks if isinstance(report, BenchmarkReport) else evaluations)[file] = report  # type: ignore[assignment]
    points, used = [], set()
    for file, found in evaluations.items():
        means, params = found.means(), found.parameters
        if dataset not in means:
            raise UserError(f'--measured: {file} has no scores on {dataset}, only on {", ".join(means)}; give --set')
        partners = [
            path
            for path, one in benchmarks.items()
            if any((row.model, row.params) == (found.network, params) for row in one.costs if row.form != 'yardstick')
        ]
        if not partners:
            raise UserError(
                f'--measured: no benchmark of {found.network} with the {params:,} parameters of {file}; '
                'give the benchmark.json of the same network'
            )
        values = {_value(path, benchmarks[path], params, against) for path in partners}
        if len(values) > 1:
            raise UserError(
                f'--measured: {partners[0]} and {partners[1]} differ in {against} of the network of {file}; '
                'give one of them'
            )
        used |= set(partners)
        where = '{}x{} input, fp32, {}'.format(*lr_size('720p', scale), _device(benchmarks[partners[0]]))
        setting = where if against == 'latency' else ''
        name = (found.paper or {}).get('method', found.network)
        points.append(Point(name, values.pop(), means[dataset]['psnr'], params, True, str(file), setting))
    for path in benchmarks.keys() - used:
        raise UserError(
            f'--measured: no evaluation of the {_model(benchmarks[path])} of {path}, with as many parameters; '
            'give its report.json, of effsr evaluate'
        )
    return points


def axis_label(against: str, points: Sequence[Point]) -> str:
    """The words below the figure; what was measured here in another way than the papers' values is said."""
    settings = list(dict.fromkeys(point.setting for point in points if point.setting))
    printed = any(not point.measured for point in points)
    if not settings:
        return AXES[against][2]
    others = "; others: as printed, on the papers' GPUs" if printed else ''
    return f'{AXES[against][2]}\nblack edge: {" / ".join(settings)}{others}'


def draw(points: Sequence[Point], title: str, x_label: str, y_label: str) -> Any:
    """The figure: discs with the area of the parameters, ours in colour, what was measured here with an edge.

    Raises:
        UserError: matplotlib or adjustText is not installed.
    """
    figure = needs('matplotlib.figure', 'plots').Figure(figsize=(11, 7), layout='constrained')
    needs('matplotlib.backends.backend_agg', 'plots').FigureCanvasAgg(figure)
    adjust_text = needs('adjustText', 'plots').adjust_text
    axes = figure.add_subplot()
    widest, narrowest = max(p.x for p in points), min(p.x for p in points)
    if widest > 30 * max(narrowest, 1e-9):
        axes.set_xscale('log')
    largest = max((p.size or 0 for p in points), default=0) or 1
    for point in sorted(points, key=lambda p: -(p.size or 0)):
        colour, alpha, order = ('tab:red', 0.55, 3) if point.stands_out else ('tab:blue', 0.3, 2)
        edge = {'edgecolors': 'black' if point.measured else 'none', 'linewidths': 1.5}
        area = 20 + 400 * (point.size or 0) / largest
        axes.scatter(point.x, point.psnr, s=area, color=colour, alpha=alpha, zorder=order, **edge)
    axes.margins(0.08, 0.1)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    figure.canvas.draw()
    # names beside their discs, moved apart, each with a line to its own disc where it had to move
    names = [
        axes.text(
            point.x,
            point.psnr,
            f'{point.method} (measured)' if point.measured else point.method,
            fontsize=8,
            fontweight='bold' if point.stands_out else 'normal',
            zorder=4,
        )
        for point in points
    ]
    places = {'x': [point.x for point in points], 'y': [point.psnr for point in points], 'expand': (1.25, 1.5)}
    lines = {'arrowstyle': '-', 'color': 'dimgray', 'lw': 0.6}
    adjust_text(names, ax=axes, max_move=None, arrowprops=lines, **places)
    return figure


def command(
    scale: Annotated[int, typer.Option(help='Scale factor.')] = 4,
    dataset: Annotated[str, typer.Option('--set', help='Set5, Set14, B100, Urban100, Manga109.')] = 'Urban100',
    against: Annotated[str, typer.Option(help='params, multi-adds or latency.')] = 'params',
    source: Annotated[
        list[str] | None, typer.Option(help='Rows of this paper only (HASN, DPARN ...); repeatable.')
    ] = None,
    measured: Annotated[
        list[Path] | None, typer.Option(help='benchmark.json or report.json of effsr evaluate; repeatable.')
    ] = None,
    least: Annotated[
        float | None, typer.Option('--from', help='Leave out methods below this PSNR; default: 0.3 dB below ours.')
    ] = None,
    out: Annotated[Path, typer.Option(help='PNG, PDF or SVG to write.')] = Path('results/plot.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print the points instead of drawing them.')] = False,
) -> None:
    """Draw PSNR against parameters, multiply-adds or latency, from the papers' tables and from reports made here."""
    if against not in AXES:
        raise UserError(f'--against must be one of {", ".join(AXES)}, got {against!r}')
    if not as_json:
        check_file(out, '.png', '.pdf', '.svg')
    points = points_of_papers(scale, dataset, against, source or ())
    if measured:
        points += points_of_files(measured, scale, dataset, against)
    if not points:
        raise UserError(f'no paper prints {against} and a score on {dataset} for x{scale}')
    if least is None and (ours := [p.psnr for p in points if p.stands_out]):
        least = min(ours) - 0.3
    left_out = [p.method for p in points if least is not None and p.psnr < least]
    points = [p for p in points if least is None or p.psnr >= least]
    if not points:
        raise UserError(f'--from {least}: every method scores less on {dataset} x{scale}')
    if as_json:
        typer.echo(strict_json(points))
        return
    sources = 'as printed in the papers' + (', black edge: measured here' if measured else '')
    title, x_label = f'{dataset} x{scale}, {sources}', axis_label(against, points)
    figure = draw(points, title, x_label, f'PSNR-Y on {dataset} [dB]')
    with atomic_path(out, sync=True) as part:
        figure.savefig(part, format=out.suffix[1:].lower(), dpi=150)
    say(f'written: {out}' + (f' (left out, lower PSNR: {", ".join(left_out)})' if left_out else ''))
