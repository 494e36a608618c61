"""Data sets for super-resolution: exact low-resolution images, sub-images, LMDB, packs, checks.

Needs numpy, OpenCV, lmdb, typer and rich; neither torch nor BasicSR.
"""
