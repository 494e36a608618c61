"""Studies of the papers' training methods: one module one study, one command, results as JSON beside it."""
