"""Our fast metrics against the host's own functions."""

from __future__ import annotations

import numpy as np
import pytest
from basicsr.metrics import calculate_psnr, calculate_ssim
from scipy.ndimage import gaussian_filter
from skimage import data

from basicsr_effsr.imaging.metrics import psnr, score_y, ssim, to_y


def pair(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gt = data.astronaut()[:height, :width]
    noisy = np.clip(gt + rng.normal(0, 9, gt.shape), 0, 255).round().astype(np.uint8)
    return noisy, np.ascontiguousarray(gt)


@pytest.mark.parametrize(('height', 'width', 'border'), [(64, 80, 4), (37, 51, 3), (200, 120, 2), (40, 40, 0)])
def test_equal_to_the_host(height, width, border):
    image, gt = pair(height, width, height)
    ours = score_y(image, gt, border)
    options = {'crop_border': border, 'test_y_channel': True}
    theirs = (f(image[..., ::-1], gt[..., ::-1], **options) for f in (calculate_psnr, calculate_ssim))
    assert ours == pytest.approx(tuple(theirs), abs=1e-6)


@pytest.mark.parametrize(('height', 'width', 'border'), [(64, 80, 4), (37, 51, 3), (15, 40, 2)])
def test_the_whole_map_as_matlab_documents_it(height, width, border):
    """imgaussfilt of radius 5 and sigma 1.5 with replicated borders, constants for a range of 255, mean of the map."""
    x, y = (to_y(image)[border:-border, border:-border] for image in pair(height, width, height))

    def blurred(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane, 1.5, mode='nearest', truncate=3.5)

    mean_x, mean_y = blurred(x), blurred(y)
    spread = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
    shared = blurred(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + 6.5025) * (2 * shared + 58.5225)
    expected = np.mean(top / ((mean_x**2 + mean_y**2 + 6.5025) * (spread + 58.5225)))
    image, gt = pair(height, width, height)
    assert score_y(image, gt, border, whole=True)[1] == pytest.approx(expected, abs=1e-9)


def test_equal_images():
    _, gt = pair(32, 32, 0)
    assert score_y(gt, gt, 2) == (float('inf'), pytest.approx(1))


def test_psnr_by_hand():
    # a difference of 5 everywhere: 20 log10(255 / 5)
    assert psnr(np.full((4, 4), 5.0), np.zeros((4, 4))) == pytest.approx(34.1514, abs=1e-4)


def test_luma_by_hand():
    # white is 235, black 16, pure green 16 + 128.553
    image = np.array([[[255, 255, 255], [0, 0, 0], [0, 255, 0]]], np.uint8)
    assert to_y(image)[0].tolist() == pytest.approx([235, 16, 144.553], abs=1e-4)


def test_too_little_left_is_refused():
    with pytest.raises(ValueError, match='11 x 11'):
        ssim(np.zeros((16, 30)), np.zeros((16, 30)), 4)


def test_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match=r'20.*20.*20.*21'):
        score_y(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21, 3), np.uint8), 0)
