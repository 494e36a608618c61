"""Data sets, which ``basicsr_effsr.register()`` imports (``*_dataset.py``), and what they are read from.

Importing this package itself loads nothing: ``datasets_prep``, which needs neither torch nor BasicSR, uses the rest.
"""
