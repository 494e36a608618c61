"""``effsr plot``: PSNR against size, multiply-adds or latency; the figure that papers of this field open with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from basicsr_effsr.tools.networks import UserError, stop

PAPERS = Path(__file__).with_name('papers.json')
OURS = ('HASN', 'DPARN', 'AGDN', 'AGDN-S', 'EFRDN', 'ASID', 'ASID-D8')
AXES = {
    'params': ('params', 1e-3, 'parameters [K]'),
    'multi-adds': ('multi_adds', 1.0, 'multiply-adds at 1280x720 output [G]'),
    'latency': ('runtime_ms', 1.0, 'latency [ms]'),
}


@dataclass(frozen=True)
class Point:
    """A method in the figure.

    Attributes:
        method: its name.
        x: size, multiply-adds or latency, in the unit of the axis.
        psnr: dB.
        size: parameters, for the area of the disc; None draws a small one.
        measured: the value comes from a file of this project, not from a paper.
        source: where it stands.
    """

    method: str
    x: float
    psnr: float
    size: int | None
    measured: bool
    source: str


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
    for row in json.loads(PAPERS.read_text(encoding='utf-8'))['rows']:
        score, x = row['scores'].get(dataset), row.get(key)
        wanted = not sources or any(row['source'].startswith(f'{source} ') for source in sources)
        if row['scale'] == scale and score and x is not None and wanted and row['method'] not in found:
            found[row['method']] = Point(row['method'], x * factor, score[0], row.get('params'), False, row['source'])
    return list(found.values())


def points_of_files(files: Iterable[Path], dataset: str, against: str) -> list[Point]:
    """What was measured here: reports of ``effsr benchmark`` joined by name with reports of ``effsr evaluate``.

    Raises:
        UserError: a file is neither, or no network is in both kinds.
    """
    costs: dict[str, dict[str, int]] = {}
    times: dict[str, float] = {}
    scores: dict[str, tuple[float, str]] = {}
    for file in files:
        try:
            report = json.loads(file.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise UserError(f'--measured: {file} cannot be read as JSON ({error})') from error
        try:
            if 'costs' in report:
                for row in report['costs']:
                    if row['form'] != 'yardstick':
                        costs[row['model']] = {key: int(row[key]) for key in ('params', 'multi_adds')}
                for row in report['latencies']:
                    times.setdefault(row['model'], float(row['median']))
            else:
                means = report['means']
                if dataset in means:
                    scores[report['network']] = (float(means[dataset]['psnr']), str(file))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'--measured: {file} must be a report of effsr benchmark or effsr evaluate') from error
    points = []
    for name, (psnr, source) in scores.items():
        if name not in costs:
            continue
        x = {
            'params': costs[name]['params'] / 1e3,
            'multi-adds': costs[name]['multi_adds'] / 1e9,
            'latency': times.get(name),
        }[against]
        if x is not None:
            points.append(Point(name, x, psnr, costs[name]['params'], True, source))
    if not points:
        raise UserError(f'--measured: no network is both in a benchmark and in an evaluation on {dataset}')
    return points


def in_view(points: Sequence[Point], least: float | None) -> tuple[list[Point], list[str]]:
    """The points of at least that PSNR, and the names of the others.

    Args:
        points: one or more.
        least: dB; None is 0.3 dB below the weakest of ours, or of what was measured.
    """
    if least is None:
        ours = [p.psnr for p in points if p.method in OURS or p.measured]
        least = min(ours) - 0.3 if ours else float('-inf')
    return [p for p in points if p.psnr >= least], [p.method for p in points if p.psnr < least]


def draw(points: Sequence[Point], title: str, x_label: str, y_label: str) -> Any:
    """The figure: discs with the area of the parameters, ours in colour, what was measured here with an edge.

    Raises:
        UserError: matplotlib or adjustText is not installed.
    """
    try:
        import adjustText  # noqa: F401
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('drawing needs matplotlib and adjustText: pip install basicsr_effsr[plots]') from error

    figure = Figure(figsize=(11, 7), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    widest, narrowest = max(p.x for p in points), min(p.x for p in points)
    if widest > 30 * max(narrowest, 1e-9):
        axes.set_xscale('log')
    largest = max((p.size or 0 for p in points), default=0) or 1
    for point in sorted(points, key=lambda p: -(p.size or 0)):
        ours = point.method in OURS or point.measured
        area = 20 + 400 * (point.size or 0) / largest
        axes.scatter(
            point.x,
            point.psnr,
            s=area,
            color='tab:red' if ours else 'tab:blue',
            alpha=0.55 if ours else 0.3,
            edgecolors='black' if point.measured else 'none',
            linewidths=1.5,
            zorder=3 if ours else 2,
        )
    axes.margins(0.08, 0.1)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    figure.canvas.draw()
    _label(axes, points)
    return figure


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Names beside their discs, moved apart, each with a line to its own disc where it had to move."""
    from adjustText import adjust_text

    texts = [
        axes.text(
            point.x,
            point.psnr,
            f'{point.method} (measured)' if point.measured else point.method,
            fontsize=8,
            fontweight='bold' if point.method in OURS else 'normal',
            zorder=4,
        )
        for point in points
    ]
    adjust_text(
        texts,
        x=[point.x for point in points],
        y=[point.psnr for point in points],
        ax=axes,
        expand=(1.25, 1.5),
        max_move=None,
        arrowprops={'arrowstyle': '-', 'color': 'dimgray', 'lw': 0.6},
    )


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
    try:
        if against not in AXES:
            raise UserError(f'--against must be one of {", ".join(AXES)}, got {against!r}')
        points = points_of_papers(scale, dataset, against, source or ())
        if measured:
            points += points_of_files(measured, dataset, against)
        if not points:
            raise UserError(f'no paper prints {against} and a score on {dataset} for x{scale}')
        points, left_out = in_view(points, least)
        if not points:
            raise UserError(f'--from {least}: every method scores less on {dataset} x{scale}')
        if as_json:
            typer.echo(json.dumps([vars(point) for point in points], indent=2, ensure_ascii=False))
            return
        sources = 'as printed in the papers' + (', black edge: measured here' if measured else '')
        figure = draw(points, f'{dataset} x{scale}, {sources}', AXES[against][2], f'PSNR-Y on {dataset} [dB]')
        if out.suffix not in ('.png', '.pdf', '.svg'):
            raise UserError(f'--out must end in .png, .pdf or .svg, got {out}')
        from basicsr_effsr.utils.checkpoint import write_atomic

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, lambda path: figure.savefig(path, format=out.suffix[1:], dpi=150))
    except (OSError, ValueError) as error:
        raise stop('plot', error) from error
    typer.echo(f'written: {out}' + (f' (left out, lower PSNR: {", ".join(left_out)})' if left_out else ''))
