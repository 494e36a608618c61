"""Data sets for super-resolution: exact low-resolution images, sub-images, LMDB, packs, checks.

Needs numpy, OpenCV, lmdb, typer and rich; neither torch nor BasicSR. From Python the commands raise ValueError for what
cannot be done, FileNotFoundError for what does not exist, WriteError for what cannot be written.
"""
