"""The console script ``effsr``."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help='Tools around efficient SR networks in BasicSR.')


def main() -> None:
    """Entry point of the console script."""
    app()
