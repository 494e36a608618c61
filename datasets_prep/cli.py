"""The commands of ``python -m datasets_prep``, also mounted as ``effsr prepare``: each is a function, read by typer.

What a function annotates for typer is an argument or an option; ``schedule`` comes of the options below.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, Signature, getdoc, signature
from typing import Annotated, Any, get_args, get_origin

import typer

from basicsr_effsr.utils.console import Commands, Console, Version, as_command, say, sigterm_interrupts

_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
_SCHEDULE: dict[str, tuple[Any, Any, Any]] = {  # name -> type, default, how typer shows it
    'workers': (int, _CPUS, typer.Option('--workers', '-j', min=0, help='Number of processes; 0 runs in this one.')),
    'shard': (str, '1/1', typer.Option(help='i/n: this machine takes every n-th item from the i-th on.')),
    'dry_run': (bool, False, typer.Option('--dry-run', help='Only print what would be done.')),
}
# name -> module, function, what it takes of the schedule; imported when called, as that takes a while
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    'download': ('download', 'download', ('shard', 'dry_run')),
    'lr': ('lr', 'make_lr', (*_SCHEDULE,)),
    'subimages': ('subimages', 'make_subimages', (*_SCHEDULE,)),
    'meta-info': ('lmdb_maker', 'make_meta_info', ('dry_run',)),
    'lmdb': ('lmdb_maker', 'make_lmdb', (*_SCHEDULE,)),
    'pack': ('pack', 'make_pack', (*_SCHEDULE,)),
    'verify': ('verify', 'verify', (*_SCHEDULE,)),
    'sample': ('sample', 'write_sample', ('dry_run',)),
}


def function_of(command: str) -> Callable[..., Any]:
    """The function that a command calls."""
    module, name, _ = COMMANDS[command]
    return getattr(import_module(f'datasets_prep.{module}'), name)


def _run(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Calls a function of this package, prints its summary and leaves with its exit code."""
    from datasets_prep.jobs import Schedule, parse_shard

    workers, shard, dry_run = (options.pop(key, 0) for key in _SCHEDULE)
    if (scales := options.get('scales')) is not None:
        if not all(word.strip().isdecimal() for word in scales.split(',')):
            raise ValueError(f'--scales must be integers with commas between, as in 2,3,4, got {scales!r}')
        options['scales'] = tuple(map(int, scales.split(',')))
    schedule = Schedule(workers, parse_shard(shard or '1/1'), bool(dry_run), Console(stderr=True).is_terminal)
    try:
        with sigterm_interrupts():
            summary = function(**options, schedule=schedule)
    except KeyboardInterrupt:
        say('interrupted; run the same command again to continue', err=True)
        raise typer.Exit(130) from None
    for line in summary.lines():
        say(line)
    raise typer.Exit(summary.exit_code)


class _Prepare(Commands):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        function = function_of(cmd_name)

        def command(**options: Any) -> None:
            _run(function, options)

        shown = []
        for parameter in signature(function, eval_str=True).parameters.values():
            if get_origin(parameter.annotation) is Annotated:
                kind, how = get_args(parameter.annotation)
                if kind == tuple[int, ...]:  # which typer does not know
                    kind, parameter = str, parameter.replace(default=','.join(map(str, parameter.default)))
                shown.append(parameter.replace(annotation=Annotated[kind, how]))
        for key in COMMANDS[cmd_name][2]:
            kind, default, how = _SCHEDULE[key]
            shown.append(Parameter(key, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, how]))
        command.__signature__ = Signature(shown)  # type: ignore[attr-defined]
        paragraphs = (getdoc(function) or '').partition('\n\nReturns:')[0].split('\n\n')
        command.__doc__ = '\n\n'.join(paragraph.replace('\n', ' ') for paragraph in paragraphs)
        return as_command(cmd_name, command)


app = typer.Typer(
    name='datasets_prep',
    cls=_Prepare,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help='Download, prepare and verify data sets for super-resolution. Every command can be interrupted at any '
    'moment and run again; what is finished is skipped.',
)


@app.callback()
def _app(version: Version = False) -> None:
    """Keeps the commands sub-commands."""
