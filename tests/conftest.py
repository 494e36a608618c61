"""One seed, one thread, every class registered, and the one place that looks for reference data."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import basicsr_effsr
from basicsr_effsr.imaging.bicubic import imresize

ROOT = Path(__file__).resolve().parents[1]

basicsr_effsr.register()
os.environ.pop('COLUMNS', None)  # tables are as wide here as in a file, whatever terminal starts the tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--kills', type=int, default=2, help='how often tests/faults kills each command (make faults: 20)')
    parser.addoption('--hours', type=float, default=0.0, help='length of tests/faults/test_long.py; 0 skips it')


@pytest.fixture(scope='session')
def kills(pytestconfig) -> int:
    """How often each command is killed."""
    return pytestconfig.getoption('--kills')


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


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> Path:
    """Four 192 x 192 crops of a photograph, with LR at every scale: photos/{HR,X2,X3,X4}."""
    from skimage import data

    folder = tmp_path_factory.mktemp('photos')
    image = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    for i, (y, x) in enumerate([(0, 0), (0, 192), (192, 0), (192, 192)]):
        gt = np.ascontiguousarray(image[y : y + 192, x : x + 192])
        for name, written in [('HR', gt), *((f'X{r}', imresize(gt, scale=1 / r)) for r in (2, 3, 4))]:
            (folder / name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name / f'{i}.png'), written)
    return folder
