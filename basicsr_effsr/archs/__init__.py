"""Networks, one file each, which ``basicsr_effsr.register()`` imports (``*_arch.py``). Importing this loads nothing."""
