"""Importing this package registers every ``*_arch.py`` in the folder with BasicSR."""

from basicsr_effsr._registration import import_all

import_all(__name__, __path__, suffix='_arch')
