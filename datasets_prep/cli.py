"""The commands of ``python -m datasets_prep``, also mounted as ``effsr prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help='From nothing to a verified, fast data set for super-resolution.',
)
console = Console()


@app.callback()
def _app() -> None:
    """Keeps the commands sub-commands, even if there is only one."""


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help='Folder of the data set.')] = Path('datasets/sample'),
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Write again what exists.')] = False,
) -> None:
    """Writes a small paired data set from the photographs inside scikit-image; needs no network."""
    from datasets_prep.sample import SCALES, write_sample

    try:
        counts = write_sample(out, overwrite=overwrite)
    except (OSError, ValueError) as error:
        console.print(f'[red]error:[/] {error}', highlight=False)
        raise typer.Exit(1) from None
    console.print(
        f'{out}: {counts["train"]} photographs to train on, {counts["val"]} held out, '
        f'LR at {", ".join(f"x{scale}" for scale in SCALES)} (MATLAB bicubic)',
        highlight=False,
    )
