"""``python -m basicsr_effsr.test -opt FILE``: BasicSR's testing, with our classes, in this folder.

The host's own flags. Works without the automatic loading (``BASICSR_EFFSR_AUTOLOAD=0``);
outputs go to the current directory.
"""

from basicsr_effsr._autoload import install
from basicsr_effsr.host.absent import start

# Here and not below: loader processes started by spawn import this module again, and must find the host adapted.
install(force=True)

if __name__ == '__main__':
    start('test')
