"""The console script ``effsr``: one line per sub-command, each loaded only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from basicsr_effsr._autoload import install
from basicsr_effsr.host.absent import absent, look_here, stand_in
from basicsr_effsr.utils.console import BAD_INPUT, Commands, Version, as_command
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.memory import keep_freed_memory

# name -> (module, attribute, line in the overview). The attribute is a function for typer, or a Typer app.
COMMANDS: dict[str, tuple[str, str, str]] = {
    'doctor': (
        'basicsr_effsr.tools.doctor',
        'command',
        'Show which BasicSR is used and if it finds this package.',
    ),
    'host': ('basicsr_effsr.tools.host', 'app', 'Install BasicSR, on any Python.'),
    'check': ('basicsr_effsr.tools.check', 'command', 'Check an option file and show what it will do.'),
    'recipe': ('basicsr_effsr.tools.recipe', 'command', 'Print the option file of a network, with your data folder.'),
    'paper': ('basicsr_effsr.tools.paper', 'command', 'Print the tables of a paper: scores, cost, commands, results.'),
    'evaluate': ('basicsr_effsr.tools.evaluate', 'command', 'Score networks on the benchmark sets.'),
    'compare': ('basicsr_effsr.tools.compare', 'command', 'Compare networks and bicubic on images: a table, a figure.'),
    'benchmark': (
        'basicsr_effsr.tools.benchmark',
        'command',
        'Count and measure parameters, multiply-adds, memory, latency.',
    ),
    'plot': ('basicsr_effsr.tools.plots', 'command', 'Plot PSNR or SSIM against size, multiply-adds, latency, memory.'),
    'features': ('basicsr_effsr.tools.features', 'features', 'Draw feature and attention maps of a network.'),
    'lam': ('basicsr_effsr.tools.features', 'lam', 'Draw which pixels a network uses (local attribution map).'),
    'runs': ('basicsr_effsr.tools.runs', 'command', 'List training runs, draw their curves.'),
    'infer': ('basicsr_effsr.tools.infer', 'command', 'Enlarge images: files or folders, any size.'),
    'export': ('basicsr_effsr.tools.export', 'command', 'Export to ONNX, TorchScript, torch.export, safetensors.'),
    'convert': ('basicsr_effsr.tools.convert', 'command', 'Convert checkpoints between layouts.'),
    'zoo': ('basicsr_effsr.tools.zoo', 'app', 'Manage weights by name: list, fetch, import, add.'),
    'prepare': ('datasets_prep.cli', 'app', 'Download, convert, pack and verify data sets.'),
}


class _Lazy(Commands):
    """Sub-commands by the table above; the overview needs none of their modules."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][2]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            self.running = f' {name}'
            module, attribute, _ = COMMANDS[name]
            look_here()
            if name != 'doctor':  # which says what happens without this
                install(force=True)
                stand_in()
            target = getattr(import_module(module), attribute)
            group = isinstance(target, typer.Typer)
            command = typer.main.get_command(target) if group else as_command(name, target)
        return name, command, rest

    def reason(self, error: Exception) -> tuple[int, str]:
        if isinstance(error, ImportError) and not absent() and 'basicsr' not in sys.modules:
            what = f'{type(error).__name__}: {one_line(error)}'  # a clone comes without what it needs
            return BAD_INPUT, f'BasicSR does not import ({what}); see effsr doctor'
        return super().reason(error)


app = typer.Typer(name='effsr', cls=_Lazy, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _root(version: Version = False) -> None:
    """Tools around efficient super-resolution networks in BasicSR."""


def main() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    app(prog_name='effsr')


if __name__ == '__main__':
    main()
