"""One seed, one thread, every class registered, and the one place that looks for reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import basicsr_effsr

ROOT = Path(__file__).resolve().parents[1]

basicsr_effsr.register()


@pytest.fixture(autouse=True)
def _deterministic():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def reference() -> Path:
    """The folder of official weights, golden vectors and benchmark images; tests skip without it."""
    folder = Path(os.environ.get('EFFSR_REFERENCE', ROOT.parent / 'shared' / 'reference'))
    if not folder.is_dir():
        pytest.skip(f'no reference data at {folder}; set EFFSR_REFERENCE to the folder that has golden/ and set5/')
    return folder


@pytest.fixture(scope='session')
def golden(reference):
    """Loader of golden vectors by name: ``golden('hasn_x4')``."""

    def load(name: str) -> dict:
        return torch.load(reference / 'golden' / f'{name}.pth', map_location='cpu', weights_only=True)

    return load
