"""``effsr host``: get the BasicSR that trains and tests."""

from __future__ import annotations

import typer

from basicsr_effsr.host.absent import absent
from basicsr_effsr.host.install import RELEASE, install
from basicsr_effsr.utils.console import Commands, say

app = typer.Typer(name='host', cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """The BasicSR that trains and tests."""


@app.command('install')
def command() -> None:
    """Install BasicSR 1.4.2 with pip, on Python 3.13 and later too, where pip alone cannot build it."""
    if not absent():
        say('There is a BasicSR already, which is never replaced; effsr doctor says which.')
        return
    say(f'Installing BasicSR {RELEASE} and what it needs; this takes a minute.')
    install()
    say(f'BasicSR {RELEASE} is installed: python -m basicsr.train and python -m basicsr.test find it.')
