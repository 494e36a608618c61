"""``effsr zoo``: official and own weights by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from basicsr_effsr.options.file import read_option_file
from basicsr_effsr.tools.evaluate_report import Means
from basicsr_effsr.tools.papers import row_of
from basicsr_effsr.utils.console import Commands, Console, say
from basicsr_effsr.utils.report import score_words, strict_json
from basicsr_effsr.utils.stored import read_metadata
from basicsr_effsr.weights import zoo

app = typer.Typer(name='zoo', cls=Commands, add_completion=False, pretty_exceptions_enable=False)


def listed() -> list[dict[str, Any]]:
    """Every model: name, network, scale, whose it is, size, licence, Set5 as measured and in the paper, where it is."""
    rows = []
    for name, model in zoo.published().items():
        network, scale = model.network['type'], int(model.network['upscale'])
        paper = row_of(network, model.network, scale)
        rows.append(
            {
                'name': name,
                'network': network,
                'scale': scale,
                'from': f'{model.repository}@{model.commit[:7]}' if model.commit else model.repository,
                'bytes': model.bytes,
                'licence': model.licence,
                'set5': model.scores.get('Set5'),
                'paper_set5': ((paper or {}).get('scores') or {}).get('Set5'),
                'state': 'here' if zoo.kept(name).is_file() else 'on demand' if model.url else 'by hand',
            }
        )
    for name, file in zoo.added().items():
        facts = read_metadata(file)
        known = {'network': facts.get('network', '?'), 'scale': int(facts.get('scale', 0)), 'from': 'yours'}
        unknown = dict.fromkeys(('licence', 'set5', 'paper_set5'))
        rows.append({'name': name, **known, 'bytes': file.stat().st_size, **unknown, 'state': 'here'})
    return rows


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context, as_json: Annotated[bool, typer.Option('--json', help='Print the table as JSON.')] = False
) -> None:
    """Weights by name: list them, fetch, import authors' files, add a model of your own.

    Commands take a name as --model NAME, option files as zoo://NAME. The cache is EFFSR_CACHE or the
    user's cache folder; EFFSR_MIRROR replaces GitHub as the server.
    """
    if context.invoked_subcommand is not None:
        return
    rows = listed()
    if as_json:
        typer.echo(strict_json(rows))
        return
    head = ['name', 'network', 'from', 'MB', 'licence', 'Set5, measured', 'Set5, paper', '']
    cells = [
        [
            row['name'],
            f'{row["network"]} x{row["scale"]}',
            row['from'],
            f'{row["bytes"] / 1e6:.1f}' if row['bytes'] else '-',
            row['licence'] or ('-' if row['from'] == 'yours' else 'none stated'),
            score_words(row['set5']),
            score_words(row['paper_set5']),
            row['state'],
        ]
        for row in rows
    ]
    Console().table(f'cache: {zoo.folder()}', head, cells)


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(help='Names from the table.')]) -> None:
    """Download models into the cache, for use without a network."""
    for name in names:
        say(f'{name}: {zoo.located(f"zoo://{name}", say=lambda line: say(line, err=True))}')


@app.command('import')
def bring(source: Annotated[Path, typer.Argument(exists=True, help="Folder of the authors' files, or one.")]) -> None:
    """Copy authors' files into the cache; hash, parameters or network identify them."""
    for file, what in zoo.bring(source):
        say(f'{file}: {what}')


@app.command()
def add(
    name: Annotated[str, typer.Argument(help='Name of the model, for --model NAME and zoo://NAME.')],
    file: Annotated[Path, typer.Argument(help='Checkpoint.')],
    opt: Annotated[Path | None, typer.Option('-opt', '--opt', help='Option file it was trained with.')] = None,
    scores: Annotated[Path | None, typer.Option(help='report.json of effsr evaluate.')] = None,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Overwrite a model of that name.')] = False,
) -> None:
    """Put a model of your own into the zoo: safetensors, and a model card (options, data, seeds, scores, versions)."""
    report = None if scores is None else Means.read(scores).model_dump()
    training = None if opt is None else read_option_file(opt)
    for path in zoo.add(name, file, training=training, scores=report, overwrite=overwrite):
        say(f'written: {path}')
