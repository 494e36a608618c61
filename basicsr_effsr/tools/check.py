"""``effsr check``: what an option file will do, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.host.absent import need
from basicsr_effsr.options.check import inspected
from basicsr_effsr.options.file import force, read_option_file, with_lines
from basicsr_effsr.options.forecast import forecast
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.report import strict_json


def command(
    opt: Annotated[Path | None, typer.Option('-opt', '--opt', help='Option file for training or testing.')] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar='[KEY=VALUE]...', help='More of --force_yml.')] = None,
    force_yml: Annotated[
        list[str] | None,
        typer.Option('--force_yml', help='Change values, as in BasicSR: train:ema_decay=0.999 name=other.'),
    ] = None,
    every_image: Annotated[
        bool, typer.Option('--all', help='Read the header of every training image, not of a sample.')
    ] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print problems and forecast as JSON.')] = False,
    schema: Annotated[
        bool, typer.Option('--schema', help='Print the JSON schema of option files for editors.')
    ] = False,
    docs: Annotated[bool, typer.Option('--docs', help='Print the page of all options, in Markdown.')] = False,
) -> None:
    """Check an option file and show what it will do; exit code 1 if the run would not do what the file says."""
    need('basicsr')
    if schema:
        from basicsr_effsr.options.schema import option_schema

        typer.echo(strict_json(option_schema()))
        return
    if docs:
        from basicsr_effsr.options.schema import option_page

        typer.echo(option_page(), nl=False)
        return
    if opt is None:
        raise UserError('give an option file with -opt, or ask for the --schema')
    options = read_option_file(opt)
    forced = [*(force_yml or ()), *(more or ())]
    if more and not force_yml:
        raise UserError(f'{" ".join(more)}: options are changed by --force_yml, which comes before them')
    for entry in forced:
        force(options, entry)
    datasets = options.get('datasets')
    is_train = bool(options.get('train')) or (isinstance(datasets, dict) and 'train' in datasets)
    context = inspected(options, is_train, every_image=every_image)
    found, will = context.found, forecast(context)
    if not any(problem.fatal for problem in found):
        from basicsr_effsr.host.dry_run import dry_step

        found += dry_step(context.opt, is_train)
    found = with_lines(found, opt)
    fatal = sum(problem.fatal for problem in found)
    if as_json:
        typer.echo(strict_json({'problems': found, 'forecast': will}))
    else:
        rows = []
        for key, value in will.items():
            parts = value if isinstance(value, list) else [value]
            rows.append((key, ' / '.join(f'{part:,}' if isinstance(part, int) else str(part) for part in parts)))
        Console().table(str(opt), (), rows)
        for problem in found:
            label, style = ('error', 'red') if problem.fatal else ('warning', 'yellow')
            say(f'{label}: {problem}', style=style)
        if fatal:
            say(f'{fatal} error{"s"[: fatal > 1]}: a run would not do what the file says.', style='red')
        else:
            words = f' --force_yml {" ".join(forced)}' if forced else ''
            say(f'Ready: python -m basicsr.{"train" if is_train else "test"} -opt {opt}{words}', style='green')
    raise typer.Exit(1 if fatal else 0)
