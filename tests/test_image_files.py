"""What pixels of a file mean: 16-bit TIFFs of every layout, transparent colours, profiles of gray."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from basicsr_effsr.imaging import picture as pictures
from basicsr_effsr.imaging.picture import Picture, read
from basicsr_effsr.utils.errors import UserError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GRAY = SRGB[:16] + b'GRAY' + SRGB[20:]  # what a profile is of stands in its header


without_imagecodecs = pytest.mark.skipif(
    find_spec('imagecodecs') is not None, reason='imagecodecs is installed and reads them'
)


@pytest.fixture
def planes() -> np.ndarray:
    """(37, 45, 4) of all 16 bits: no multiple of the side of a tile, neighbours far apart."""
    return np.random.default_rng(0).integers(0, 65536, (37, 45, 4), dtype=np.uint16)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / 'a.tif'


def store(file: Path, planes: np.ndarray, *, separate: bool = False, **options) -> None:
    """A TIFF of (H, W, C) with no tags but the ones asked for."""
    planes = planes.transpose(2, 0, 1) if separate else planes
    if planes.shape[2] == 1:
        planes = planes[..., 0]
    if planes.ndim == 3:
        options['planarconfig'] = 'separate' if separate else 'contig'
    tifffile.imwrite(file, np.ascontiguousarray(planes), metadata=None, software=False, **options)


def lzw(data: bytes) -> bytes:
    """LZW as TIFF has it, with literal codes only: the table is cleared before it needs wider ones."""
    bits = ''.join(('100000000' if i % 200 == 0 else '') + f'{byte:09b}' for i, byte in enumerate(data)) + '100000001'
    bits += '0' * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, 'big')


def store_lzw(file: Path, planes: np.ndarray, *, separate: bool, order: str, tile: int, predictor: int) -> None:
    """An LZW TIFF of strips of ten rows or of tiles, which no writer here can make in all its layouts."""
    height, width, channels = planes.shape
    parts = [planes[..., i : i + 1] for i in range(channels)] if separate else [planes]
    segments = []
    for part in parts:
        for top in range(0, height, tile or 10):
            for left in range(0, width, tile or width):
                cut = part[top : top + (tile or 10), left : left + (tile or width)]
                if tile:
                    cut = np.pad(cut, ((0, tile - cut.shape[0]), (0, tile - cut.shape[1]), (0, 0)))
                if predictor == 2:
                    cut = np.diff(cut, axis=1, prepend=np.uint16(0))
                segments.append(lzw(cut.astype(f'{order}u2').tobytes()))
    body, offsets = b'', []
    for segment in segments:
        offsets.append(8 + len(body))
        body += segment + bytes(len(segment) % 2)
    tags = {256: width, 257: height, 258: [16] * channels, 259: 5, 262: 2 if channels > 2 else 1, 277: channels}
    tags |= {284: 2 if separate else 1, 317: predictor}
    tags |= {322: tile, 323: tile} if tile else {278: 10}
    tags |= {324 if tile else 273: offsets, 325 if tile else 279: [len(segment) for segment in segments]}
    if channels in (2, 4):
        tags[338] = 2
    entries = b''
    start = 8 + len(body)
    beyond = start + 2 + 12 * len(tags) + 4
    extra = b''
    for tag, value in sorted(tags.items()):
        values = np.atleast_1d(value).astype(f'{order}u4').tobytes()
        if len(values) > 4:
            values, extra = struct.pack(f'{order}I', beyond + len(extra)), extra + values
        entries += struct.pack(f'{order}HHI', tag, 4, np.size(value)) + values
    head = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HI', 42, start)
    file.write_bytes(head + body + struct.pack(f'{order}H', len(tags)) + entries + bytes(4) + extra)


class TestDeepTiff:
    @pytest.mark.parametrize('channels', [1, 2, 3, 4])
    @pytest.mark.parametrize('order', ['<', '>'])
    @pytest.mark.parametrize('separate', [False, True])
    @pytest.mark.parametrize('layout', [{}, {'rowsperstrip': 10}, {'tile': (16, 32)}])
    @pytest.mark.parametrize('compression', [None, 'zlib', 'lzma'])
    def test_every_layout_is_the_same_picture(self, file, planes, channels, order, separate, layout, compression):
        if channels == 1 and separate:
            return
        planes = planes[..., :channels]
        extra = {'extrasamples': ['unassalpha']} if channels in (2, 4) else {}
        photometric = 'rgb' if channels > 2 else 'minisblack'
        packed = {'compression': compression, 'predictor': compression is not None}
        store(file, planes, separate=separate, photometric=photometric, byteorder=order, **layout, **packed, **extra)
        found = read(file)
        colours = channels - (channels in (2, 4))
        assert found.pixels.dtype == np.uint16
        assert np.array_equal(found.pixels, planes[..., :colours])
        assert (found.alpha is None) == (channels in (1, 3))
        if found.alpha is not None:
            assert np.array_equal(found.alpha, planes[..., -1])
        assert found.lost == ''

    @pytest.mark.parametrize(('channels', 'separate'), [(1, False), (1, True), (3, False), (4, False)])
    @pytest.mark.parametrize('order', ['<', '>'])
    @pytest.mark.parametrize('tile', [0, 16])
    @pytest.mark.parametrize('predictor', [1, 2])
    def test_lzw_needs_no_further_package(self, file, planes, channels, order, separate, tile, predictor):
        planes = planes[..., :channels]
        store_lzw(file, planes, separate=separate, order=order, tile=tile, predictor=predictor)
        found = read(file)
        together = found.pixels if found.alpha is None else np.dstack([found.pixels, found.alpha])
        assert np.array_equal(together, planes)

    @without_imagecodecs
    @pytest.mark.parametrize(('channels', 'separate'), [(2, False), (3, True), (4, True)])
    def test_lzw_that_opencv_would_misread_is_refused(self, file, planes, channels, separate):
        store_lzw(file, planes[..., :channels], separate=separate, order='<', tile=0, predictor=1)
        with pytest.raises(UserError, match=r'its compression is LZW, damaged or in a layout .*; save it with deflate'):
            read(file)

    @pytest.mark.parametrize('channels', [1, 3, 4])
    @pytest.mark.parametrize('compression', [1, 5, 8, 32773])
    def test_what_opencv_writes_is_read(self, file, planes, channels, compression):
        """It says nothing of a fourth channel, which is alpha then, as in 8 bits."""
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        smooth = (planes // 64).cumsum(axis=1, dtype=np.uint16)
        assert cv2.imwrite(str(file), smooth[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        found = read(file)
        assert np.array_equal(found.pixels, smooth[..., : min(channels, 3)])
        if channels == 4:
            assert np.array_equal(found.alpha, smooth[..., 3])

    @pytest.mark.parametrize('gray', [True, False])
    @pytest.mark.parametrize('alpha', [True, False])
    def test_what_is_written_is_read(self, file, planes, gray, alpha):
        picture = Picture(
            planes[..., : 1 if gray else 3], planes[..., 3] if alpha else None, None, GRAY if gray else SRGB
        )
        picture.exif = Image.Exif()
        picture.exif[0x010F] = 'Maker'
        picture.exif.get_ifd(0x8825)[2] = (47.0, 3.0, 8.5)
        file.write_bytes(pictures.encode(picture, 'tiff', 95))
        found = read(file)
        assert np.array_equal(found.pixels, picture.pixels)
        assert np.array_equal(found.alpha, picture.alpha) if alpha else found.alpha is None
        assert (found.icc, found.lost) == (picture.icc, '')
        assert found.exif[0x010F] == 'Maker'
        assert found.exif.get_ifd(0x8825)[2] == (47.0, 3.0, 8.5)

    def test_white_as_zero_is_turned(self, file, planes):
        store(file, planes[..., :1], photometric='miniswhite')
        assert np.array_equal(read(file).pixels, 65535 - planes[..., :1])
        store(file, planes[..., :2], photometric='miniswhite', extrasamples=['unassalpha'])
        found = read(file)
        assert np.array_equal(found.pixels, 65535 - planes[..., :1])
        assert np.array_equal(found.alpha, planes[..., 1])

    @pytest.mark.parametrize('colours', [1, 3])
    def test_premultiplied_alpha_becomes_straight(self, file, planes, colours):
        alpha = planes[..., 3:]
        alpha[0, :3, 0] = 0, 1, 65535
        stored = (planes[..., :colours].astype(np.uint64) * alpha // 65535).astype(np.uint16)
        stored[0, 1, 0] = 2  # brighter than its alpha
        both = np.concatenate([stored, alpha], axis=-1)
        store(file, both, photometric='rgb' if colours == 3 else 'minisblack', extrasamples=['assocalpha'])
        found = read(file)
        assert np.array_equal(found.alpha, alpha[..., 0])
        exact = np.divide(stored * 65535.0, alpha, where=alpha > 0, out=stored.astype(float)).clip(0, 65535)
        assert np.abs(found.pixels - exact).max() <= 0.5
        assert found.pixels[0, 1, 0] == 65535

    @pytest.mark.parametrize('bits', [8, 16])
    def test_a_channel_of_unknown_meaning_is_dropped_and_said(self, file, planes, bits):
        planes = planes if bits == 16 else (planes >> 8).astype(np.uint8)
        store(file, planes, photometric='rgb', extrasamples=['unspecified'])
        found = read(file)
        assert np.array_equal(found.pixels, planes[..., :3])
        assert (found.alpha, found.lost) == (None, 'channel of unknown meaning')

    def test_alpha_is_found_behind_another_channel(self, file, planes):
        five = np.dstack([planes, planes[..., 0] // 2])
        store(file, five, photometric='rgb', extrasamples=['unspecified', 'unassalpha'])
        found = read(file)
        assert np.array_equal(found.alpha, five[..., 4])
        assert found.lost == 'channel of unknown meaning'

    @pytest.mark.parametrize('order', ['<', '>'])
    @pytest.mark.parametrize('bigtiff', [False, True])
    def test_orientation_profile_and_exif_are_read(self, file, planes, order, bigtiff):
        tags = [(274, 'H', 1, 6, True), (0x010F, 's', 0, 'Maker', True)]
        options = {'photometric': 'rgb', 'byteorder': order, 'bigtiff': bigtiff}
        store(file, planes[..., :3], **options, iccprofile=SRGB, extratags=tags)
        found = read(file)
        assert np.array_equal(found.pixels, np.rot90(planes[..., :3], -1))
        assert found.icc == SRGB
        if order == '>' and bigtiff:
            assert (found.exif, found.lost) == (None, 'EXIF')
        else:
            assert (found.exif[0x010F], found.lost) == ('Maker', '')

    @pytest.mark.parametrize(
        ('options', 'words'),
        [
            ({'photometric': 'separated'}, 'its colours are CMYK in 16 bits; convert it to gray or RGB'),
            ({'photometric': 'cielab', 'channels': 3}, 'its colours are CIELAB in 16 bits'),
            ({'photometric': 'palette', 'channels': 1}, 'its colours are PALETTE in 16 bits'),
            ({'dtype': np.int16, 'channels': 1}, 'its pixels are no unsigned integers'),
            ({'dtype': np.float16, 'channels': 1}, 'its pixels are no unsigned integers'),
            ({'pages': 2}, 'it has 2 frames; split it into images'),
            ({'photometric': 'miniswhite', 'extrasamples': ['assocalpha'], 'channels': 2}, 'its white is zero and'),
        ],
    )
    def test_other_pixels_are_refused_in_one_sentence(self, file, planes, options, words, capfd):
        planes = planes[..., : options.pop('channels', 4)].astype(options.pop('dtype', np.uint16))
        options = {'photometric': 'rgb' if planes.shape[2] > 2 else 'minisblack'} | options
        if options['photometric'] == 'palette':
            planes, options['colormap'] = planes % 256, np.zeros((3, 65536), np.uint16)
        for i in range(options.pop('pages', 1)):
            store(file, planes, append=i > 0, **options)
        with pytest.raises(UserError, match=words) as found:
            read(file)
        assert '\n' not in str(found.value)
        assert capfd.readouterr() == ('', '')

    @without_imagecodecs
    def test_a_compression_that_nothing_here_decodes_is_named(self, file, planes, capfd):
        store(file, planes[..., :3], photometric='rgb')
        data = bytearray(file.read_bytes())
        at = data.index(struct.pack('<HHI', 259, 3, 1))
        data[at + 8 : at + 10] = struct.pack('<H', 34712)
        file.write_bytes(data)
        with pytest.raises(UserError, match=r'its compression is JPEG2000, .*; save it with deflate'):
            read(file)
        assert capfd.readouterr() == ('', '')

    def test_lzw_whose_data_is_damaged_is_refused(self, file, planes):
        store_lzw(file, planes[..., :3], separate=False, order='<', tile=0, predictor=1)
        data = bytearray(file.read_bytes())
        data[8:4000] = bytes(3992)
        data[1000:3000] = b'\xff' * 2000
        file.write_bytes(data)
        with pytest.raises(UserError, match=r'a\.tif cannot be read as an image'):
            read(file)

    def test_eight_bits_are_left_to_pillow(self, file, planes):
        store(file, (planes >> 8).astype(np.uint8), photometric='rgb', extrasamples=['unassalpha'])
        assert read(file).bits == 8


class TestTransparentColour:
    @pytest.mark.parametrize('colours', [1, 3])
    def test_of_a_png_of_sixteen_bits_becomes_alpha(self, tmp_path, planes, colours):
        planes = planes[..., :colours]
        planes[3, 5] = planes[9, 9] = clear = np.array([258, 3, 65530], np.uint16)[:colours]
        planes[4, 4] = clear ^ 1  # the same colour in its upper eight bits
        lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in planes)
        header = struct.pack('>IIBBBBB', 45, 37, 16, 0 if colours == 1 else 2, 0, 0, 0)
        chunks = ((b'IHDR', header), (b'tRNS', clear.astype('>u2').tobytes()), (b'IDAT', zlib.compress(lines)))
        data = b'\x89PNG\r\n\x1a\n'
        for name, part in (*chunks, (b'IEND', b'')):
            data += struct.pack('>I', len(part)) + name + part + struct.pack('>I', zlib.crc32(name + part))
        (tmp_path / 'a.png').write_bytes(data)
        found = read(tmp_path / 'a.png')
        assert np.array_equal(found.pixels, planes)
        expected = np.full((37, 45), 65535)
        expected[3, 5] = expected[9, 9] = 0
        assert np.array_equal(found.alpha, expected)


class TestProfiles:
    @pytest.mark.parametrize(
        ('kind', 'bits', 'alpha', 'lost'),
        [
            ('webp', 8, False, True),
            ('webp', 8, True, True),
            ('png', 16, True, True),
            ('png', 16, False, False),
            ('png', 8, True, False),
            ('jpeg', 8, False, False),
            ('tiff', 16, True, False),
        ],
    )
    def test_one_of_gray_stays_with_gray_only(self, tmp_path, planes, kind, bits, alpha, lost):
        planes = planes if bits == 16 else (planes >> 8).astype(np.uint8)
        picture = Picture(planes[..., :1], planes[..., 1] if alpha else None, None, GRAY)
        file = tmp_path / f'a{pictures.ENDINGS[kind]}'
        file.write_bytes(pictures.encode(picture, kind, 95))
        assert read(file).icc == (None if lost else GRAY)
        assert pictures.fitting(picture, kind).lost == ('colour profile of gray' if lost else '')

    @pytest.mark.parametrize('kind', ['webp', 'png', 'jpeg', 'tiff'])
    def test_one_of_colours_stays_in_every_format(self, tmp_path, planes, kind):
        picture = Picture((planes[..., :3] >> 8).astype(np.uint8), None, None, SRGB)
        file = tmp_path / f'a{pictures.ENDINGS[kind]}'
        file.write_bytes(pictures.encode(picture, kind, 95))
        assert read(file).icc == SRGB
        assert pictures.fitting(picture, kind).lost == ''


class TestWhatIsCarried:
    CHUNKS: ClassVar = {b'cHRM': bytes(range(32)), b'gAMA': b'\0\0\xb1\x8f', b'sRGB': b'\0', b'cICP': b'\1\r\0\1'}

    @pytest.mark.parametrize('bits', [8, 16])
    @pytest.mark.parametrize('kind', ['png', 'jpeg', 'tiff', 'webp'])
    def test_what_the_colours_of_a_png_mean_is_carried_or_named(self, planes, bits, kind):
        planes = planes[..., :3] if bits == 16 else (planes[..., :3] >> 8).astype(np.uint8)
        read = pictures.picture_of(pictures.encode(Picture(planes, colour=self.CHUNKS), 'png', 95), 'a')
        assert read.colour == self.CHUNKS
        assert pictures.fitting(read, kind).lost == ('' if kind == 'png' else 'cHRM, gAMA, cICP')
        read.pixels = read.pixels if bits == 16 and kind in ('png', 'tiff') else (planes >> (bits - 8)).astype(np.uint8)
        again = pictures.picture_of(pictures.encode(read, kind, 95), 'a')
        assert again.colour == (self.CHUNKS if kind == 'png' else {})

    @pytest.mark.parametrize('source', ['PNG', 'JPEG', 'BMP', 'TIFF'])
    @pytest.mark.parametrize('kind', ['png', 'jpeg', 'tiff', 'webp'])
    def test_the_resolution_is_carried_or_named(self, planes, source, kind):
        out = io.BytesIO()
        Image.fromarray((planes[..., :3] >> 8).astype(np.uint8)).save(out, source, dpi=(300, 150))
        read = pictures.picture_of(out.getvalue(), 'a')
        assert read.resolution == pytest.approx((300, 150), abs=0.02)
        again = pictures.picture_of(pictures.encode(read, kind, 95), 'a')
        if kind != 'webp':
            assert again.resolution == pytest.approx((300, 150), abs=0.02)
        elif source != 'TIFF':  # which has it in its EXIF, too
            assert pictures.fitting(read, kind).lost == 'resolution'

    def test_pixels_that_are_not_square_are_named(self, planes):
        data = pictures.encode(Picture(planes[..., :3]), 'png', 95)
        shape = struct.pack('>I', 9) + b'pHYs' + struct.pack('>IIB', 2, 1, 0)
        data = data[:33] + shape + struct.pack('>I', zlib.crc32(shape[4:])) + data[33:]
        assert pictures.picture_of(data, 'a').lost == 'shape of its pixels'

    @pytest.mark.parametrize(('kind', 'channels'), [('P5', 1), ('P6', 3)])
    @pytest.mark.parametrize('largest', [65535, 1023])
    def test_pgm_and_ppm_of_sixteen_bits_are_read_in_their_range(self, planes, kind, channels, largest):
        values = planes[..., :channels].astype(int) % (largest + 1)
        head = f'{kind} # made here\n45 37\n{largest}\n'.encode()
        found = pictures.picture_of(head + values.astype('>u2').tobytes(), 'a')
        assert np.abs(found.pixels - values * (65535 / largest)).max() <= 0.5
