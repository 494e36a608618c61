"""One decoder: what the check takes from a header, training, scoring and preparation find in the pixels."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from basicsr.utils import imfrombytes
from PIL import Image

from basicsr_effsr.data.pairs import image_size, undecodable
from basicsr_effsr.imaging.header import ImageError, read_header
from basicsr_effsr.imaging.picture import decode, decode_stored, read, read_rgb, upright

FORMATS = {
    'png': {},
    'jpg': {'quality': 95},
    'webp': {'lossless': True},
    'bmp': {},
    'tif': {'compression': 'tiff_lzw'},
    'ppm': {},
}
TURNED = ('png', 'jpg', 'webp', 'tif')


@pytest.fixture
def image() -> np.ndarray:
    """(18, 26, 3) uint8 RGB, smooth enough for JPEG to be cut in its midst."""
    noise = np.random.default_rng(0).integers(0, 256, (18, 26, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1)


def stored(image: np.ndarray, suffix: str, orientation: int | None = None, **options) -> bytes:
    out = io.BytesIO()
    if orientation is not None:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    kind = {'jpg': 'JPEG', 'tif': 'TIFF'}.get(suffix, suffix.upper())
    if suffix != 'tif' or orientation is None:  # Pillow writes no orientation through libtiff
        options |= FORMATS[suffix]
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize('gray', [False, True])
def test_plain_images_are_the_hosts_bit_for_bit_for_every_reader(tmp_path, image, suffix, gray):
    image = image[..., 0] if gray else image
    if gray and suffix == 'webp':
        pytest.skip('WebP has no gray')
    file = tmp_path / f'a.{suffix}'
    file.write_bytes(stored(image, suffix))
    expected = imfrombytes(file.read_bytes())
    assert np.array_equal(decode(file.read_bytes(), 'a'), expected)
    assert np.array_equal(read_rgb(file), expected[..., ::-1])
    found = decode_stored(file.read_bytes(), 'a')
    assert np.array_equal(found if found.ndim == 3 else found[..., None].repeat(3, 2), expected)
    assert image_size(str(file)) == read_header(file).size == expected.shape[:2]
    assert read_header(file.read_bytes()) == read_header(file)
    assert undecodable([str(file)]) == ''


@pytest.mark.parametrize('suffix', TURNED)
@pytest.mark.parametrize('orientation', range(10))
def test_an_image_is_upright_for_every_reader_or_refused_by_all_that_train(tmp_path, image, suffix, orientation):
    """OpenCV turns some formats in some versions only; where it does not, training would learn turned pairs."""
    file = tmp_path / f'a.{suffix}'
    file.write_bytes(stored(image, suffix, orientation))
    content = file.read_bytes()
    plain = imfrombytes(stored(image, suffix))
    expected = upright(plain, orientation)
    assert np.array_equal(decode_stored(content, 'a'), expected)
    assert np.array_equal(read_rgb(file), expected[..., ::-1])
    assert np.array_equal(read(file).pixels, expected[..., ::-1])
    assert read_header(file).size == expected.shape[:2]
    if np.array_equal(imfrombytes(content), expected):
        assert np.array_equal(decode(content, 'a'), expected)
        assert image_size(str(file)) == expected.shape[:2]
        assert undecodable([str(file)]) == ''
        return
    assert suffix not in ('jpg', 'tif')
    for refuse in (lambda: decode(content, str(file)), lambda: image_size(str(file))):
        with pytest.raises(ImageError, match=rf'a\.{suffix}.*orientation {orientation}'):
            refuse()
    assert str(file) in undecodable([str(file)])


@pytest.mark.parametrize('place', ['before', 'behind'])
def test_the_orientation_of_a_png_is_found_wherever_it_stands(tmp_path, image, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(image, 'png')
    at = {'before': 33, 'behind': len(data) - 12}[place]
    content = data[:at] + chunk(b'eXIf', exif.tobytes()[6:]) + data[at:]
    assert read_header(content).size == (26, 18)
    assert decode_stored(content, 'a').shape == (26, 18, 3)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif'])
def test_the_header_alone_shows_that_the_end_is_missing(tmp_path, image, suffix):
    content = stored(np.tile(image, (4, 4, 1)), suffix)
    (tmp_path / f'a.{suffix}').write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=rf'a\.{suffix}'):
        image_size(str(tmp_path / f'a.{suffix}'))


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('more', [100, 200_000])
def test_what_programs_put_behind_the_end_is_no_damage(tmp_path, image, suffix, more):
    content = stored(image, suffix) + bytes(more)
    (tmp_path / f'a.{suffix}').write_bytes(content)
    assert image_size(str(tmp_path / f'a.{suffix}')) == (18, 26)
    assert decode(content, 'a').shape == (18, 26, 3)


def test_the_thumbnail_of_a_cut_jpeg_is_not_its_end(image):
    thumbnail = stored(image[:8, :8], 'jpg')
    whole = stored(image, 'jpg')
    with_thumbnail = (
        whole[:2] + b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 8) + b'Exif\0\0' + thumbnail + whole[2:]
    )
    assert read_header(with_thumbnail).size == (18, 26)
    with pytest.raises(ImageError):
        read_header(with_thumbnail[:-30])


class TestWhatTrainingWouldCut:
    @pytest.mark.parametrize('suffix', ['png', 'tif'])
    @pytest.mark.parametrize('channels', [1, 3])
    def test_sixteen_bits_are_refused_by_name_and_kept_elsewhere(self, tmp_path, suffix, channels):
        deep = np.random.default_rng(0).integers(0, 65536, (7, 9, channels), dtype=np.uint16)
        file = tmp_path / f'a.{suffix}'
        cv2.imwrite(str(file), deep)
        for refuse in (lambda: decode(file.read_bytes(), str(file)), lambda: image_size(str(file))):
            with pytest.raises(ImageError, match=rf'a\.{suffix}.* 16 bits'):
                refuse()
        assert np.array_equal(decode_stored(file.read_bytes(), 'a').reshape(deep.shape), deep)
        assert read_rgb(file).shape == (7, 9, 3)

    @pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
    @pytest.mark.parametrize('mode', ['RGBA', 'LA'])
    def test_alpha_is_dropped_where_it_says_nothing_and_refused_where_it_does(self, tmp_path, image, suffix, mode):
        if suffix == 'webp' and mode == 'LA':
            pytest.skip('WebP has no gray')
        picture = Image.fromarray(image).convert(mode)
        file = tmp_path / f'a.{suffix}'
        picture.save(file, **FORMATS[suffix])
        expected = np.asarray(picture.convert('RGB'))
        assert np.array_equal(decode(file.read_bytes(), 'a')[..., ::-1], expected)
        assert image_size(str(file)) == (18, 26)
        picture.putalpha(Image.fromarray(image[..., 0]))
        picture.save(file, **FORMATS[suffix], **({'exact': True} if suffix == 'webp' else {}))
        for refuse in (lambda: decode(file.read_bytes(), str(file)), lambda: image_size(str(file))):
            with pytest.raises(ImageError, match=rf'a\.{suffix}.*transparent'):
                refuse()
        assert read_rgb(file).shape == (18, 26, 3)

    def test_a_transparent_colour_of_a_palette_is_refused_where_it_is_used(self, tmp_path, image):
        picture = Image.fromarray(image).quantize(8)
        picture.save(tmp_path / 'a.png', transparency=3)
        with pytest.raises(ImageError, match=r'a\.png.*transparent'):
            image_size(str(tmp_path / 'a.png'))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'none\.png'):
        image_size(str(tmp_path / 'none.png'))
    assert 'none.png' in undecodable([str(tmp_path / 'none.png')])
