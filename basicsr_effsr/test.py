"""``python -m basicsr_effsr.test -opt FILE``: BasicSR's testing, with our classes, in this folder.

The host's own flags. Works without the automatic loading (``BASICSR_EFFSR_AUTOLOAD=0``);
outputs go to the current directory.
"""

from __future__ import annotations

import os
import sys

from basicsr_effsr._autoload import install
from basicsr_effsr.host.absent import need
from basicsr_effsr.utils.errors import UserError

# Here and not in main(): loader processes started by spawn import this module again, and must find the host adapted.
install(force=True)


def main() -> None:
    """Runs the host's ``test_pipeline`` with the current directory as root."""
    try:
        host = need('basicsr.test')
    except UserError as error:
        print(f'basicsr_effsr.test: {error}', file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    host.test_pipeline(os.getcwd())


if __name__ == '__main__':
    main()
