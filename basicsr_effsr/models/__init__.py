"""Models of training, which ``basicsr_effsr.register()`` imports (``*_model.py``). Importing this loads nothing."""
