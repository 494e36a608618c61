"""Importing this package registers every ``*_arch.py`` in the folder with BasicSR."""

from basicsr_effsr._registration import register

register('arch')
