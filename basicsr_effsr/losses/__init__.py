"""Importing this package registers every ``*_loss.py`` in the folder with BasicSR."""

from basicsr_effsr._registration import register

register('loss')
