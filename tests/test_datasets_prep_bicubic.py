"""Is our bicubic MATLAB's, for every size, scale and type?"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, gcd, lcm

import numpy as np
import pytest

from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from datasets_prep.files import list_images, read_image


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def slow_resize_line(line, out_length, scale, integer):
    """One line as MATLAB's documentation tells it, one pixel at a time."""
    widened = min(scale, 1.0)
    mirror = [*range(len(line)), *reversed(range(len(line)))]
    result = []
    for i in range(out_length):
        centre = (i + 0.5) / scale - 0.5
        taps = range(floor(centre - 2 / widened) - 1, ceil(centre + 2 / widened) + 2)
        weights = [cubic((centre - k) * widened) for k in taps]
        value = sum(w * float(line[mirror[k % len(mirror)]]) for w, k in zip(weights, taps, strict=True)) / sum(weights)
        if integer is not None:
            value = min(max(floor(value + 0.5), 0), integer)
        result.append(value)
    return result


def slow_resize(img, scale, integer=None):
    height, width = (ceil(scale * side) for side in img.shape)
    columns = np.array([slow_resize_line(img[:, x], height, scale, integer) for x in range(img.shape[1])]).T
    return np.array([slow_resize_line(row, width, scale, integer) for row in columns])


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_equal_to_matlab_on_set5_in_every_pixel(reference, scale):
    files = list_images(reference / 'set5' / 'HR')
    assert len(files) == 5
    for file in files:
        expected = read_image(reference / 'set5' / 'LR_bicubic' / f'X{scale}' / f'{file.stem}x{scale}.png')
        ours = imresize(mod_crop(read_image(file), scale), scale=1 / scale)
        assert ours.shape == expected.shape
        assert np.count_nonzero(ours != expected) == 0, file.name


@pytest.mark.parametrize('scale', [2, 3, 1.7, 8 / 3, 0.5, 1 / 8, 0.75, 0.37, 17 / 19])
@pytest.mark.parametrize('size', [(17, 23), (5, 3), (1, 2)])
def test_floats_equal_the_definition(scale, size):
    img = np.random.default_rng(0).random(size)
    np.testing.assert_allclose(imresize(img, scale=scale), slow_resize(img, scale), rtol=0, atol=1e-13)


@pytest.mark.parametrize('scale', [2, 4, 1 / 2, 1 / 4, 1 / 8])  # weights that floats hold exactly
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_integers_are_rounded_after_each_pass(scale, dtype):
    peak = np.iinfo(dtype).max
    img = np.random.default_rng(1).choice(np.array([0, 1, peak // 2, peak], dtype=dtype), (11, 14))
    ours = imresize(img, scale=scale)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, slow_resize(img, scale, integer=peak))


def test_rows_come_first():
    # a single bright pixel: rounding between the passes makes the order visible
    img = np.random.default_rng(2).integers(0, 256, (40, 36), dtype=np.uint8)
    by_rows, by_columns = imresize(img, scale=1 / 4), imresize(img.T, scale=1 / 4).T
    assert (by_rows != by_columns).any()
    np.testing.assert_array_equal(by_rows, slow_resize(img, 1 / 4, integer=255))


def test_the_dimension_with_the_smaller_scale_comes_first():
    img = np.random.default_rng(3).integers(0, 256, (40, 40), dtype=np.uint8)
    columns = np.array([slow_resize_line(row, 10, 1 / 4, 255) for row in img])
    expected = np.array([slow_resize_line(columns[:, x], 20, 1 / 2, 255) for x in range(10)]).T
    np.testing.assert_array_equal(imresize(img, size=(20, 10)), expected)


def test_size_and_scale_agree():
    img = np.random.default_rng(4).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    np.testing.assert_array_equal(imresize(img, size=(8, 12)), imresize(img, scale=Fraction(1, 3)))


def test_channels_do_not_mix():
    img = np.random.default_rng(5).integers(0, 256, (25, 31, 4), dtype=np.uint8)
    whole = imresize(img, scale=1 / 3)
    for channel in range(4):
        np.testing.assert_array_equal(whole[:, :, channel], imresize(img[:, :, channel], scale=1 / 3))


def test_input_is_left_alone_and_layout_does_not_matter():
    img = np.random.default_rng(6).integers(0, 256, (26, 22, 3), dtype=np.uint8)
    before = img.copy()
    expected = imresize(img, scale=1 / 2)
    np.testing.assert_array_equal(img, before)
    np.testing.assert_array_equal(imresize(img[:, ::-1], scale=1 / 2)[:, ::-1], expected)
    np.testing.assert_array_equal(imresize(np.asfortranarray(img), scale=1 / 2), expected)


def test_a_constant_image_stays_constant():
    for scale in (1 / 3, 0.37, 2.5, 3):
        assert (imresize(np.full((9, 10, 3), 201, dtype=np.uint8), scale=scale) == 201).all()


def rational_cubic(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return (3 * x**3 - 5 * x**2 + 2) / 2
    return (-(x**3) + 5 * x**2 - 8 * x + 4) / 2 if x <= 2 else Fraction(0)


def rational_rows(img: np.ndarray, ratio: Fraction, antialiasing: bool) -> tuple[np.ndarray, int, int]:
    """The rows of an integer image resized without rounding, times a denominator; it; the sum of |weights| times it."""
    widened = min(ratio, Fraction(1)) if antialiasing else Fraction(1)
    period = []
    for i in range(ratio.numerator):
        centre = (i + Fraction(1, 2)) / ratio - Fraction(1, 2)
        left = floor(centre - 2 / widened)
        row = [rational_cubic((centre - k) * widened) for k in range(left, ceil(centre + 2 / widened) + 1)]
        period.append((left, [weight / sum(row) for weight in row]))
    denominator = lcm(2, *(weight.denominator for _, row in period for weight in row))
    mirror = [*range(len(img)), *reversed(range(len(img)))]
    values, sums = img.astype(object), []
    for i in range(int(ratio * len(img))):
        left, row = period[i % ratio.numerator]
        left += i // ratio.numerator * ratio.denominator
        taps = [mirror[(left + k) % len(mirror)] for k in range(len(row))]
        sums.append(sum(int(weight * denominator) * values[tap] for weight, tap in zip(row, taps, strict=True)))
    return np.array(sums), denominator, int(max(sum(map(abs, row)) for _, row in period) * denominator)


SMALL_RATIOS = [Fraction(q, p) for p in range(1, 17) for q in range(1, 17) if gcd(p, q) == 1]


@pytest.mark.parametrize('antialiasing', [True, False])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.filterwarnings('error')
def test_integers_equal_rational_arithmetic_at_every_small_ratio(dtype, antialiasing):
    """Ties included wherever the sums fit a double; elsewhere the nearest value or, at a tie, one of the two."""
    peak = int(np.iinfo(dtype).max)
    rng = np.random.default_rng(8)
    wide = []
    for ratio in SMALL_RATIOS:
        height = ratio.denominator * ceil(20 / ratio.denominator)
        img = rng.choice(np.array([0, 1, peak // 2, peak - 1, peak]), (height, 12))
        img[:, ::2] = rng.integers(0, peak + 1, (height, 6))
        img = img.astype(dtype)
        sums, denominator, reach = rational_rows(img, ratio, antialiasing)
        ours = imresize(img, size=(len(sums), img.shape[1]), antialiasing=antialiasing)
        assert ours.dtype == dtype
        if reach * peak + denominator // 2 < 2**53:
            expected = np.clip((2 * sums + denominator) // (2 * denominator), 0, peak)
            assert (ours == expected).all(), ratio
        else:
            wide.append(ratio)
            exact = np.clip(sums, 0, peak * denominator)
            distance = abs(ours.astype(object) * denominator - exact)
            assert (distance * 2 * 10**9 <= denominator * (10**9 + 1)).all(), ratio
    assert len(wide) == ({np.uint8: 23, np.uint16: 33}[dtype] if antialiasing else 0)


@pytest.mark.parametrize('antialiasing', [True, False])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.filterwarnings('error')
def test_floats_equal_rational_arithmetic_at_every_small_ratio(dtype, antialiasing):
    rng = np.random.default_rng(9)
    for ratio in SMALL_RATIOS:
        whole = rng.integers(0, 256, (ratio.denominator * ceil(20 / ratio.denominator), 6))
        sums, denominator, _ = rational_rows(whole, ratio, antialiasing)
        ours = imresize((whole / 256).astype(dtype), size=(len(sums), 6), antialiasing=antialiasing)
        expected = (sums / (256 * denominator)).astype(np.float64)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-15, err_msg=str(ratio))


def test_a_size_whose_weights_need_more_than_64_bits():
    img = np.random.default_rng(10).integers(0, 256, (80, 96), dtype=np.uint8)
    small = imresize(img, size=(35, 42))  # 7/16 of both sides
    assert small.shape == (35, 42)
    np.testing.assert_array_equal(small, imresize(img, scale=7 / 16))
    assert np.abs(small.astype(float) - imresize(img.astype(float), size=(35, 42))).max() < 1.5


@pytest.mark.parametrize(
    ('img', 'options', 'words'),
    [
        (np.zeros((4, 4), np.uint8), {}, 'exactly one of scale and size'),
        (np.zeros((4, 4), np.uint8), {'scale': 2, 'size': (8, 8)}, 'exactly one of scale and size'),
        (np.zeros((4, 4), np.uint8), {'scale': 0}, 'positive and finite'),
        (np.zeros((4, 4), np.uint8), {'size': (0, 4)}, 'two positive numbers'),
        (np.zeros((0, 4), np.uint8), {'scale': 2}, 'without a zero'),
        (np.zeros(4, np.uint8), {'scale': 2}, 'shape'),
    ],
)
def test_impossible_requests_are_refused(img, options, words):
    with pytest.raises(ValueError, match=words):
        imresize(img, **options)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match='int64'):
        imresize(np.zeros((4, 4), np.int64), scale=2)


def test_mod_crop_keeps_the_top_left():
    img = np.arange(7 * 9).reshape(7, 9)
    np.testing.assert_array_equal(mod_crop(img, 4), img[:4, :8])
    with pytest.raises(ValueError, match='at least 8 pixels'):
        mod_crop(img, 8)


@pytest.mark.parametrize('height', [7, 63])
def test_the_parts_that_fit_the_cache_make_up_the_whole(height):
    """Columns are resized by themselves, of an image of this width in more than one part."""
    img = np.random.default_rng(7).integers(0, 256, (21, 12_000, 3), dtype=np.uint8)
    whole = imresize(img, size=(height, 12_000))
    for left in range(0, 12_000, 1500):
        part = imresize(img[:, left : left + 1500], size=(height, 1500))
        np.testing.assert_array_equal(part, whole[:, left : left + 1500])
