"""Losses, one file each, which ``basicsr_effsr.register()`` imports (``*_loss.py``). Importing this loads nothing."""
