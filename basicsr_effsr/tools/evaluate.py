"""``effsr evaluate``: networks over the benchmark sets, beside each other and their papers, as tables and as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import MofNCompleteColumn

from basicsr_effsr.data.benchmark_sets import find_sets, images_of
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.evaluate_report import (
    Evaluation,
    EvaluationReport,
    paired,
    remarks,
    shown_image,
    texts,
    worth_showing,
)
from basicsr_effsr.tools.papers import row_of
from basicsr_effsr.tools.scoring import Protocol, Run, forward_function, measure, protocol_of
from basicsr_effsr.utils.console import Console, progress, say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.report import strict_json, write_texts
from basicsr_effsr.weights.checkpoint import fused
from basicsr_effsr.weights.engines import Engine


class Measured(str, Enum):
    """How ``--protocol`` has scores measured."""

    PAPER = 'paper'
    PLAIN = 'plain'


def evaluate(
    chosen: Sequence[networks.Chosen],
    data: Path,
    *,
    sets: Sequence[str] | None = None,
    make_lr: bool = False,
    protocol: Measured | None = None,
    self_ensemble: bool | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    blend: str | None = None,
    engine: str | None = None,
    out: Path | None = None,
    show: int = 6,
) -> Evaluation:
    """Scores networks of one scale on the same images; arguments and errors are those of ``basicsr_effsr.evaluate``.

    What a section val says of the protocol, of ``fuse`` and of the engine holds unless an argument says otherwise.
    """
    reports: list[EvaluationReport] = []
    runs: list[tuple[Run, Protocol]] = []
    theirs: list[Protocol | None] = []
    for one in chosen:
        val, paper = one.options['val'], row_of(one.network['type'], one.network, one.scale)
        if paper is None and protocol is Measured.PAPER:
            raise UserError(
                f'no paper has scores of this {one.network["type"]} x{one.scale}; leave --protocol paper out'
            )
        own, fuse = paper['protocol'] if paper else {}, {'fuse': val.get('fuse')}
        stated = {Measured.PAPER: {**own, **fuse}, Measured.PLAIN: fuse}
        usual = own if len(chosen) == 1 else {}  # several are to be measured alike
        how = protocol_of(stated[protocol] if protocol else {**usual, **val}, self_ensemble, tile, overlap, blend)
        net = fused(one.net) if how.fuse else one.net
        run, words, machine = forward_function(net, one.scale, one.device, how, engine or val.get('engine') or 'torch')
        parameters, weights = sum(p.numel() for p in net.parameters()), str(one.weights) if one.weights else None
        facts = (type(net).__name__, parameters, one.scale, weights, words, machine)
        reports.append(EvaluationReport(*facts, paper=paper, name=one.name))
        runs.append((run, how))
        theirs.append(protocol_of(own) if paper else None)
    scale = chosen[0].scale
    work = [(name, p) for name, f in find_sets(data, sets, scale).items() for p in images_of(f, scale, make_lr)]
    with progress(MofNCompleteColumn(), shown=Console(stderr=True).is_terminal, transient=True) as bars:
        for report, (run, how) in zip(reports, runs, strict=True):
            for name, pair in bars.track(work, description=report.name):
                report.images.append(measure(name, pair, scale, run, how)[0])
    for report, (_, how), paper_how in zip(reports, runs, theirs, strict=True):
        report.remarks += remarks(report, how, paper_how, work)
    found = Evaluation(reports, [row for other in reports[1:] for row in paired(reports[0], other)])
    if out is not None:
        shown = []
        for place in worth_showing(found, show):  # measured again, so that no more than one image is ever in memory
            again = [measure(*work[place], scale, run, how) for run, how in runs]
            shown.append(shown_image(*zip(*again)))  # noqa: B905
        write_texts(out, texts(found, shown))
    return found


@networks.names_networks
def command(
    choose: Callable[..., list[networks.Chosen]],
    data: Annotated[Path, typer.Option(help='Folder of the benchmark sets, or one set.')] = Path('datasets'),
    sets: Annotated[
        list[str] | None, typer.Option('--sets', help='Only this set; repeatable. Default all: every known set.')
    ] = None,
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder for report.md, .csv, .json and .html.')] = Path(
        'results/evaluate'
    ),
    make_lr: Annotated[bool, typer.Option('--make-lr', help="Make missing LR images with MATLAB's bicubic.")] = False,
    protocol: Annotated[
        Measured | None,
        typer.Option(
            help='paper: as the paper measured; plain: whole images once, HR cropped to the scale. Default: '
            'section val of the file, else paper if the paper has a row, else plain; plain for several networks.'
        ),
    ] = None,
    self_ensemble: Annotated[
        bool | None, typer.Option(help='Mean over eight flips and rotations. Default: the protocol.')
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=0, help='Side of the tiles in LR pixels, 0 = whole images. Default: the protocol.')
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help='LR pixels that tiles share. Default: protocol or 24.')
    ] = None,
    blend: Annotated[str | None, typer.Option(help='mean, feather or halo. Default: the protocol, or mean.')] = None,
    show: Annotated[
        int,
        typer.Option(min=0, help='Images in report.html: least gain over bicubic, or largest difference of networks.'),
    ] = 6,
    device: networks.Device = None,
    engine: Annotated[
        Engine | None, typer.Option(help='Engine of the networks. Default: the section val, or torch.')
    ] = None,
    json_out: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Score networks on Set5, Set14, B100, Urban100, Manga109 next to their papers, with an HTML report."""
    networks.check_folder(out)
    how = {'self_ensemble': self_ensemble, 'tile': tile, 'overlap': overlap, 'blend': blend}
    asked = {'sets': sets, 'make_lr': make_lr, 'protocol': protocol, 'out': out, 'show': show}
    report = evaluate(choose(device=device), data, engine=engine, **asked, **how)  # type: ignore[arg-type]
    if json_out:
        typer.echo(strict_json(report.as_dict()))
        return
    measured, notes = report.words()
    say(measured)
    Console().table('', *report.table())
    if report.paired:
        Console().table(report.title(), *report.paired_table())
    for note in notes:
        say(note)
    say(f'written: {", ".join(str(out / f"report.{ending}") for ending in ("md", "csv", "json", "html"))}')
