"""What this package changes in BasicSR, and the states of its runs."""
