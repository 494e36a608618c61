"""BasicSR's last release on any Python: pip builds it, with the rule that its setup script needs."""

from __future__ import annotations

import os
import subprocess
import sys

from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.files import scratch_folder

RELEASE = '1.4.2'
SHA256 = 'b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87'  # of basicsr-1.4.2.tar.gz

# Its setup.py reads __version__ with exec() in a function and looks for it in locals(), where Python 3.13 (PEP 667) no
# longer puts it. The processes of this one build get the rule of Python 3.12 back; nothing of BasicSR is changed.
EXEC_OF_PYTHON_3_12 = """\
import builtins, sys

def exec(code, globals=None, locals=None, /, *, run=builtins.exec, **options):
    frame = sys._getframe(1)
    run(code, *((frame.f_globals, frame.f_locals) if globals is None else (globals, locals)), **options)

builtins.exec = exec
"""


def install() -> None:
    """Installs the release and what it needs with pip, from wherever pip is set up to take packages.

    No second torch is fetched to build it.

    Raises:
        UserError: pip is missing, or cannot fetch, verify, build or install it; nothing is installed then.
    """
    with scratch_folder() as folder:
        (folder / 'sitecustomize.py').write_text(EXEC_OF_PYTHON_3_12, encoding='utf-8')
        pinned = folder / 'requirements.txt'
        pinned.write_text(f'basicsr=={RELEASE} --hash=sha256:{SHA256}\n', encoding='utf-8')
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get('PYTHONPATH')]))
        build = ['wheel', '--no-deps', '--no-build-isolation', '--no-binary', 'basicsr', '--require-hashes']
        _pip([*build, '--wheel-dir', str(folder), '--requirement', str(pinned)], {'PYTHONPATH': path})
        _pip(['install', *map(str, folder.glob('*.whl'))], {})


def _pip(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, '-m', 'pip', '--quiet', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith('WARNING')]
        errors = [line for line in said if line.lower().startswith('error')]
        why = one_line(' '.join(errors or said[-1:]) or f'exit code {done.returncode}')
        raise UserError(f'pip {arguments[0]} of BasicSR {RELEASE} failed: {why}')
