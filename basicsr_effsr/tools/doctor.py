"""``effsr doctor``: which BasicSR is used, and does it find this package."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.host import DEAD_TORCHVISION, VERSION, adapt
from basicsr_effsr.host.absent import HOW_TO_GET_IT
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.report import strict_json

OURS = 'basicsr_effsr'
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')


@dataclass
class DoctorReport:
    """What was found: facts to read, names with their owners, and what is wrong with the fix."""

    facts: dict[str, str] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return 'not installed'


def _inspect_torch(report: DoctorReport) -> None:
    if importlib.util.find_spec('torch') is None:
        raise UserError('PyTorch is not installed: pip install torch torchvision')
    try:
        import torch
    except Exception as error:  # a missing library of the system, a folder torch/ in the way ...
        raise UserError(
            f'PyTorch cannot be imported ({type(error).__name__}: {one_line(error)}): install it again, '
            'pip install --force-reinstall torch torchvision, and look for a file or folder torch here'
        ) from error
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report.facts['torch'] = f'{torch.__version__} ({torch.version.cuda or "CPU build"})'
    report.facts['GPUs'] = ', '.join(devices) or 'none visible'
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f'torchvision does not import beside torch {torch.__version__} ({error}): install the pair of the same '
            'release, pip install --upgrade torch torchvision'
        ) from error
    report.facts['torchvision'] = torchvision.__version__


def _inspect_hook(report: DoctorReport) -> None:
    import torch

    from basicsr_effsr import _autoload

    if _autoload.installed():
        report.facts['automatic loading'] = 'active (entry point torch.backends)'
        return
    report.facts['automatic loading'] = 'not active'
    off = ['BASICSR_EFFSR_AUTOLOAD=' + os.environ['BASICSR_EFFSR_AUTOLOAD']] if _autoload.disabled() else []
    if os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD') == '0':
        off.append('TORCH_DEVICE_BACKEND_AUTOLOAD=0')
    if off:
        problem = f'automatic loading is switched off by {" and ".join(off)}: unset it'
    elif tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 5):
        problem = f'torch {torch.__version__} does not call plugins: upgrade to 2.5 or later'
    elif not any(entry.value.startswith(OURS) for entry in metadata.entry_points(group='torch.backends')):
        problem = f'{OURS} is importable but not installed (no entry point): pip install (-e) the folder it lies in'
    else:
        problem = f'the entry point is there but the hook did not start: reinstall {OURS}'
    report.problems.append(f'{problem}; python -m basicsr_effsr.train always works')


def _inspect_basicsr(report: DoctorReport) -> None:
    spec = importlib.util.find_spec('basicsr')
    if spec is None or spec.origin is None:
        raise UserError(f'BasicSR is not installed, training and check need it: {HOW_TO_GET_IT}')
    if spec.submodule_search_locations is None:
        raise UserError(f'{spec.origin} is taken for BasicSR, which must be a folder: rename that file')
    folder = Path(spec.origin).parent
    report.facts['basicsr'] = str(folder)
    installed = _version('basicsr')
    if adapt.installed_by_pip(str(folder.parent)):
        report.facts['basicsr version'] = f'{installed} (installed by pip)'
        report.facts['outputs go to'] = f'{os.getcwd()} (the current directory)'
    else:
        file = folder / 'version.py'
        own = re.findall(r'^__version__ *= *[\'"](.+?)[\'"]', file.read_text() if file.is_file() else '', re.M)
        report.facts['basicsr version'] = ', version '.join(['clone or fork', *own])
        report.facts['outputs go to'] = f'{folder.parent} (beside the clone)'
        if installed != 'not installed' and folder.parent == Path.cwd():
            report.notes.append(f'the folder basicsr/ here shadows the installed basicsr {installed}')
    try:
        import basicsr  # noqa: F401
    except Exception as error:  # whatever a fork raises at import is the finding
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = 'install or repair what it names'
        if lacking in (DEAD_TORCHVISION, VERSION):
            fix = 'our automatic loading supplies that module, switch it on'
        elif lacking and not lacking.startswith('basicsr'):
            fix = f'a clone does not install its dependencies: pip install {lacking}'
        why = f'{type(error).__name__}: {one_line(error)}'
        raise UserError(f'BasicSR at {folder} cannot be imported: {why}; {fix}') from error


def _inspect_names(report: DoctorReport) -> None:
    from basicsr_effsr import _registration

    try:
        _registration.register()
    except Exception as error:  # the finding of this command, not its failure
        raise UserError(f'the classes of {OURS} cannot be loaded: {type(error).__name__}: {error}') from error
    for kind in _registration.ROOMS:
        found = dict(iter(_registration.registry_of(kind)))
        for alias in sorted(name for name in found if name.endswith('_effsr')):
            name = found[alias].__name__
            owner = getattr(found[name], '__module__', '?')
            ours = owner.startswith(OURS)
            report.names[name] = {'kind': kind, 'owner': 'this package' if ours else owner, 'ours as': alias}
            if not ours:
                report.notes.append(f'{name} belongs to {owner}; ours is registered as {alias}')


def examine() -> DoctorReport:
    """Looks at this interpreter and the current directory; changes nothing.

    Returns:
        the report; ``problems`` is empty when training will find this package.
    """
    report = DoctorReport()
    report.facts['python'] = f'{sys.version.split()[0]} ({sys.executable})'
    report.facts[OURS] = f'{_version(OURS)} ({Path(__file__).parents[1]})'
    several = [name for name in OPENCV if _version(name) != 'not installed']
    if len(several) > 1:
        report.notes.append(
            f'{" and ".join(several)} share one folder cv2, and the one installed last counts: pip uninstall '
            f'all of them and install one; {OURS} needs any'
        )
    try:
        for inspect in (_inspect_torch, _inspect_hook, _inspect_basicsr, _inspect_names):
            inspect(report)
    except UserError as error:  # what comes after it cannot be said
        report.problems.append(str(error))
    return report


def command(as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False) -> None:
    """Show which BasicSR is used and whether it finds this package; exit code 1 if something is wrong."""
    report = examine()
    if as_json:
        typer.echo(strict_json(report))
    else:
        Console().table('Environment', (), list(report.facts.items()))
        if report.names:
            rows = [(name, *row.values()) for name, row in report.names.items()]
            Console().table('Names', ('name', 'kind', 'owner', 'always ours as'), rows)
        for note in report.notes:
            say(f'note: {note}', style='yellow')
        for problem in report.problems:
            say(f'problem: {problem}', style='red')
        if not report.problems:
            say('No problems: python -m basicsr.train finds every name above.', style='green')
    raise typer.Exit(1 if report.problems else 0)
