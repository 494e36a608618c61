"""Checkpoints: reading any layout, and telling whose they are."""
