"""Checkpoints: reading any layout, identifying the network."""
