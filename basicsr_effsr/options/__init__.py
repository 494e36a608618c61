"""The schema of option files, and the rules of the check."""
