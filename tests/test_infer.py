"""``effsr infer``: pixels against the network itself, tiles against the whole, and what files carry beside pixels."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from host import HANGS, stopped_while_writing
from PIL import Image, ImageCms, ImageOps
from skimage import data
from torch import nn
from typer.testing import CliRunner

from basicsr_effsr.archs.agdn_arch import AGDN
from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import app
from basicsr_effsr.imaging import enlarge_files
from basicsr_effsr.imaging import picture as pictures
from basicsr_effsr.imaging.enlarge_files import Done, Enlargement, Format, plan
from basicsr_effsr.imaging.enlarger import Blend, Enlarger, spread_colours
from basicsr_effsr.imaging.picture import Picture
from basicsr_effsr.imaging.tiling import self_ensemble, tiled_forward
from basicsr_effsr.tools import infer, networks
from basicsr_effsr.utils.console import INTERNAL
from basicsr_effsr.utils.errors import UserError

TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}
NAMED = ['--arch', 'HASN', '--scale', '2', '--set', 'num_feat=8', '--set', 'num_block=1', '--set', 'esa_channels=4']
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def choose_net(monkeypatch, net) -> None:
    chosen = networks.Chosen(net, {'type': 'Net'}, Path('net.pth'), net.upscale, {}, torch.device('cpu'), 'Net')
    assert infer  # has read the options of the function that is replaced
    monkeypatch.setattr(networks, 'choose', lambda *_, **__: chosen)


def photo(height: int = 20, width: int = 26) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[40 : 40 + height, 150 : 150 + width])


def deep_photo(height: int = 20, width: int = 26) -> np.ndarray:
    """16 bits whose lower eight matter."""
    return photo(height, width).astype(np.uint16) * 255 + np.arange(width, dtype=np.uint16)[None, :, None]


def hasn() -> nn.Module:
    torch.manual_seed(0)
    return HASN(**TINY).eval()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return DPARN(num_feat=8, num_block=2, branches=('spa', 'spa'), upscale=2).eval().fuse()


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.save({'params': hasn().state_dict()}, tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """``effsr infer`` in ``tmp_path`` with the tiny HASN."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, net=('--weights', 'net.pth')):
        return CliRunner().invoke(app, ['infer', '--device', 'cpu', *map(str, arguments), *map(str, net)])

    return call


def save(image: np.ndarray, file: Path | str, **options) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, **options)


def by_hand(image: np.ndarray, net: nn.Module | None = None) -> np.ndarray:
    """(H, W, 3) integers through the net, rounded to the same depth."""
    top = np.iinfo(image.dtype).max
    lq = torch.from_numpy(image.astype(np.float32) / np.float32(top)).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = (net or hasn())(lq)[0].clamp(0, 1)
    return (out * top).round().permute(1, 2, 0).numpy().astype(image.dtype)


def gray_by_hand(gray: np.ndarray) -> np.ndarray:
    """(H, W) integers through the net as three equal colours, their luma (BT.601) rounded to the same depth."""
    top = np.iinfo(gray.dtype).max
    with torch.no_grad():
        out = hasn()(torch.from_numpy(gray.astype(np.float32) / np.float32(top)).expand(1, 3, -1, -1))[0].double()
    luma = 0.299 * out[0] + 0.587 * out[1] + 0.114 * out[2]
    return (luma.clamp(0, 1) * top).numpy()


def pixels(file: Path | str) -> np.ndarray:
    return np.asarray(Image.open(file))


class TestPixels:
    def test_a_file_is_what_the_network_gives(self, run):
        save(photo(), 'a.png')
        assert run('a.png', '--out', 'out').exit_code == 0
        assert np.array_equal(pixels('out/a_x2.png'), by_hand(photo()))

    def test_named_network_and_option_file_agree_with_the_weights_alone(self, run, weights):
        save(photo(), 'a.png')
        Path('net.yml').write_text(
            'network_g: {type: HASN, num_feat: 8, num_block: 1, esa_channels: 4, upscale: 2}\n'
            'path: {pretrain_network_g: net.pth}\n'
        )
        assert run('a.png', '--out', 'named', net=[*NAMED, '--weights', weights]).exit_code == 0
        assert run('a.png', '--out', 'option', net=['-opt', 'net.yml']).exit_code == 0
        for folder in ('named', 'option'):
            assert np.array_equal(pixels(f'{folder}/a_x2.png'), by_hand(photo()))

    @pytest.mark.parametrize('size', [(1, 1), (2, 30), (14, 15), (30, 3)])
    def test_images_below_the_least_size_are_continued_and_cut(self, size):
        image = photo(*size)
        result, _ = Enlarger(hasn())(Picture(image))
        assert result.pixels.shape == (2 * size[0], 2 * size[1], 3)
        down, right = (max(15 - side, 0) for side in size)
        mirrored = np.pad(image, ((0, min(down, size[0] - 1)), (0, min(right, size[1] - 1)), (0, 0)), mode='reflect')
        rest = ((0, down - min(down, size[0] - 1)), (0, right - min(right, size[1] - 1)), (0, 0))
        whole = by_hand(np.pad(mirrored, rest, mode='edge'))
        assert np.array_equal(result.pixels, whole[: 2 * size[0], : 2 * size[1]])

    def test_self_ensemble_is_the_mean_of_eight(self, run):
        save(photo(), 'a.png')
        assert run('a.png', '--out', 'out', '--self-ensemble').exit_code == 0
        net = hasn()
        assert np.array_equal(pixels('out/a_x2.png'), by_hand(photo(), lambda x: self_ensemble(net, x)))
        assert not np.array_equal(pixels('out/a_x2.png'), by_hand(photo()))

    @pytest.mark.parametrize(('dtype', 'kind'), [('fp16', torch.float16), ('bf16', torch.bfloat16)])
    def test_half_precision_runs_the_halved_network(self, run, dtype, kind):
        save(photo(), 'a.png')
        done = run('a.png', '--out', 'out', '--dtype', dtype, '--json')
        assert done.exit_code == 0
        assert json.loads(done.stdout)['dtype'] == dtype
        halved = hasn().to(kind)
        expected = by_hand(photo(), lambda x: halved(x.to(kind)).float())
        assert np.array_equal(pixels('out/a_x2.png'), expected)

    def test_a_network_of_one_channel_sees_each_colour_and_gray(self):
        torch.manual_seed(0)
        net = HASN(**TINY, num_in_ch=1, num_out_ch=1).eval()
        image = photo()
        result, _ = Enlarger(net)(Picture(image))
        for i in range(3):
            alone, _ = Enlarger(net)(Picture(image[..., i : i + 1]))
            assert np.array_equal(result.pixels[..., i], alone.pixels[..., 0])
            assert np.array_equal(alone.pixels, by_hand(image[..., i : i + 1], net))


class TestTiles:
    @pytest.mark.parametrize('ensemble', [False, True])
    @pytest.mark.parametrize(('size', 'tile'), [((41, 57), 16), ((41, 57), 10), ((9, 70), 24), ((40, 40), 13)])
    def test_halo_tiles_are_the_whole_image_in_double(self, size, tile, ensemble):
        net = convolutional()
        enlarge = Enlarger(net, dtype=torch.float64, tile=tile, self_ensemble=ensemble)
        assert (enlarge.blend, enlarge.overlap) == (Blend.halo, net.halo)
        lq = torch.rand(1, 3, *size, dtype=torch.float64)
        tiled = torch.cat(list(enlarge.bands(lq, tile)), dim=-2)
        whole = next(enlarge.bands(lq, 0))
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-13)

    def test_halo_tiles_are_the_whole_image_in_single_and_in_the_file(self, tmp_path):
        image = photo(61, 47)
        lq = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        net = convolutional()
        enlarge = Enlarger(net, tile=16)
        tiled = torch.cat(list(enlarge.bands(lq, 16)), dim=-2)
        torch.testing.assert_close(tiled, next(enlarge.bands(lq, 0)), rtol=0, atol=1e-6)
        assert np.array_equal(enlarge(Picture(image))[0].pixels, by_hand(image, net))

    def test_one_pixel_less_than_the_halo_is_not_exact_and_refused(self):
        net = convolutional()
        lq = torch.rand(1, 3, 60, 60, dtype=torch.float64)
        short = tiled_forward(net.double(), lq, upscale=2, tile=16, overlap=net.halo - 1, blend='halo')
        assert (short - net(lq)).abs().max() > 1e-9
        with pytest.raises(UserError, match=f'--overlap must be at least {net.halo}, the halo of DPARN'):
            Enlarger(net, tile=16, overlap=net.halo - 1)

    @pytest.mark.parametrize('blend', ['mean', 'feather'])
    def test_bands_are_the_tiled_image(self, blend):
        net = hasn()
        lq = torch.rand(1, 3, 70, 50)
        enlarge = Enlarger(net, tile=24, overlap=8, blend=Blend(blend))
        bands = list(enlarge.bands(lq, 24))
        with torch.no_grad():
            expected = tiled_forward(net, lq, upscale=2, tile=24, overlap=8, blend=blend)
        assert [band.shape[-2] for band in bands] == [32, 32, 28, 48]
        assert torch.equal(torch.cat(bands, dim=-2), expected)

    def test_no_more_than_a_row_of_tiles_is_held(self):
        seen = []

        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                seen.append(x.shape[-2:])
                return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

        bands = Enlarger(Net(), tile=16, overlap=4).bands(torch.rand(1, 3, 100, 40), 16)
        first = next(bands)
        assert len(seen) == 3
        assert set(seen) == {(16, 16)}
        assert first.shape == (1, 3, 24, 80)

    def test_attention_networks_are_feathered_and_the_paper_protocol_can_be_had(self):
        net = AGDN(num_feat=12, num_block=1, tlc=12, upscale=2).eval()
        assert (Enlarger(net).blend, Enlarger(net).overlap) == (Blend.feather, 32)
        image = photo(40, 50)
        asid = Enlarger(net, tile=24, overlap=8, blend=Blend.mean)(Picture(image))[0].pixels
        expected = by_hand(image, lambda x: tiled_forward(net, x, upscale=2, tile=24, overlap=8, blend='mean'))
        assert np.array_equal(asid, expected)

    def test_automatic_tiles_begin_above_512_x_512(self):
        enlarge = Enlarger(hasn())
        assert [enlarge.tile_for(*size) for size in ((512, 512), (513, 512), (256, 1024), (256, 1025), (5, 9))] == [
            *(0, 512, 0, 512, 0)
        ]
        assert Enlarger(hasn(), tile=0).tile_for(9000, 9000) == 0
        assert [Enlarger(hasn(), tile=64).tile_for(*size) for size in ((64, 64), (20, 65))] == [0, 64]

    def test_automatic_tiles_shrink_when_memory_runs_out(self):
        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                if x.shape[-1] > 260:
                    raise torch.OutOfMemoryError('CUDA out of memory')
                return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

        image = np.tile(photo(), (20, 27, 1))[:, :700]  # 400 x 700, more than goes whole
        result, tile = Enlarger(Net())(Picture(image))
        assert tile == 256
        assert np.array_equal(result.pixels, image.repeat(2, 0).repeat(2, 1))
        with pytest.raises(UserError, match='the memory of cpu is too small; give a --tile below 280'):
            Enlarger(Net(), tile=280)(Picture(image))
        with pytest.raises(UserError, match='the memory of cpu is too small; give a --tile, such as 256'):
            Enlarger(Net(), tile=0)(Picture(image))


class TestKinds:
    def test_gray_stays_gray(self, run):
        gray = photo()[..., 1]
        save(gray, 'a.png')
        assert run('a.png', '--out', 'out').exit_code == 0
        found = Image.open('out/a_x2.png')
        assert found.mode == 'L'
        assert np.abs(np.asarray(found) - gray_by_hand(gray)).max() <= 0.501

    @pytest.mark.parametrize('ending', ['png', 'tif'])
    @pytest.mark.parametrize('channels', [1, 3, 4])
    def test_sixteen_bits_stay_sixteen(self, run, ending, channels):
        deep = deep_photo()
        planes = {1: deep[..., 0], 3: deep, 4: np.dstack([deep, deep[..., 0]])}[channels]
        swapped = planes if channels == 1 else planes[..., [2, 1, 0, 3][:channels]]
        assert cv2.imwrite(f'a.{ending}', swapped)
        done = run(f'a.{ending}', '--out', 'out', '--json')
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)['images'][0]['bits'] == 16
        found = cv2.imread(f'out/a_x2.{ending}', cv2.IMREAD_UNCHANGED)
        assert found.dtype == np.uint16
        expected = by_hand(deep)
        if channels == 1:
            assert np.abs(found - gray_by_hand(planes)).max() <= 0.55  # float32 resolves 0.004 of a level
        else:
            assert np.array_equal(found[..., 2::-1], expected)
            assert len(np.unique(expected % 256)) > 100

    def test_gray_with_alpha_of_sixteen_bits_in_a_png(self, tmp_path):
        deep = deep_photo()
        file = tmp_path / 'a.png'
        picture = Picture(deep[..., :1], deep[..., 1])
        file.write_bytes(pictures.encode(picture, 'png', 95))
        found = pictures.read(file)
        assert np.array_equal(found.alpha, deep[..., 1])
        assert np.array_equal(found.pixels, deep[..., :1].repeat(3, axis=2))
        file.write_bytes(pictures.encode(picture, 'tiff', 95))
        with tifffile.TiffFile(file) as stored:
            assert np.array_equal(stored.asarray(), deep[..., :2])

    def test_a_png_of_sixteen_bit_gray_with_alpha_is_read_as_gray(self, tmp_path):
        planes = deep_photo()[..., :2]
        lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in planes)  # filter 0 before each line
        header = struct.pack('>IIBBBBB', 26, 20, 16, 4, 0, 0, 0)
        data = b'\x89PNG\r\n\x1a\n'
        for name, part in ((b'IHDR', header), (b'IDAT', zlib.compress(lines)), (b'IEND', b'')):
            data += struct.pack('>I', len(part)) + name + part + struct.pack('>I', zlib.crc32(name + part))
        (tmp_path / 'a.png').write_bytes(data)
        read = pictures.read(tmp_path / 'a.png')
        assert np.array_equal(read.pixels, planes[..., :1])
        assert np.array_equal(read.alpha, planes[..., 1])

    def test_alpha_is_bicubic_or_through_the_network_or_dropped(self, run):
        transparent = np.dstack([photo(), photo()[..., 0]])
        save(transparent, 'a.png')
        for way in ('bicubic', 'net', 'drop'):
            assert run('a.png', '--out', way, '--alpha', way).exit_code == 0
        opaque = by_hand(photo())
        assert np.array_equal(pixels('drop/a_x2.png'), opaque)
        for way in ('bicubic', 'net'):
            assert np.array_equal(pixels(f'{way}/a_x2.png')[..., :3], opaque)
        size = (52, 40)
        smooth = cv2.resize(photo()[..., 0].astype(np.float64), size, interpolation=cv2.INTER_CUBIC).clip(0, 255)
        assert np.abs(pixels('bicubic/a_x2.png')[..., 3] - smooth).max() <= 0.51
        gray = Enlarger(hasn())(Picture(photo()[..., :1]))[0].pixels[..., 0]
        assert np.array_equal(pixels('net/a_x2.png')[..., 3], gray)

    def test_palettes_become_colours_with_their_transparency(self, run):
        image = Image.fromarray(photo()).quantize(16)
        image.save('plain.png')
        image.save('clear.png', transparency=0)
        assert run('plain.png', 'clear.png', '--out', 'out').exit_code == 0
        colours = np.asarray(image.convert('RGB'))
        assert np.array_equal(pixels('out/plain_x2.png'), by_hand(colours))
        spread = spread_colours(colours, np.asarray(image) != 0)
        assert np.array_equal(pixels('out/clear_x2.png')[..., :3], by_hand(spread))
        assert pixels('out/clear_x2.png')[..., 3].min() == 0

    @pytest.mark.parametrize('orientation', range(1, 9))
    @pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif', 'deep.png', 'deep.tif'])
    def test_orientation_is_applied_and_reset(self, tmp_path, orientation, ending):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f'a.{ending}'
        image = np.ascontiguousarray(np.repeat(np.repeat(photo(3, 4), 16, 0), 16, 1))
        if ending == 'deep.tif':
            tags = [(0x0112, 'H', 1, orientation, True)]
            tifffile.imwrite(file, image.astype(np.uint16) * 257, photometric='rgb', extratags=tags, metadata=None)
        elif ending == 'deep.png':
            file.write_bytes(pictures.encode(Picture(image.astype(np.uint16) * 257, exif=exif), 'png', 95))
        else:
            save(image, file, exif=exif, **({'quality': 100, 'subsampling': 0} if ending == 'jpg' else {}))
        read = pictures.read(file)
        plain = Image.fromarray(image)
        plain.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(plain)).astype(float)
        found = read.pixels / (257 if read.bits == 16 else 1)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < (6 if ending in ('jpg', 'webp') else 1e-9)
        assert read.exif is None or read.exif[0x0112] == 1  # Pillow forgets that of a TIFF that it has turned

    @pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif', 'deep.png', 'deep.tif'])
    def test_exif_and_profile_are_kept(self, tmp_path, ending):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x0132] = 6, 'Maker', '2020:01:02 03:04:05'
        exif.get_ifd(0x8769).update({0x9003: '2020:01:02 03:04:05', 0x829A: 0.01, 0xA002: 24, 0xA003: 16})
        exif.get_ifd(0x8825).update({1: 'N', 2: (47.0, 3.0, 8.5)})
        save(photo(16, 24), tmp_path / 'a.jpg', exif=exif, icc_profile=SRGB)
        picture = pictures.read(tmp_path / 'a.jpg')
        if 'deep' in ending:
            picture.pixels = picture.pixels.astype(np.uint16) * 257
        file = tmp_path / f'b.{ending}'
        file.write_bytes(
            pictures.encode(picture, {'jpg': 'jpeg', 'tif': 'tiff'}.get(file.suffix[1:], file.suffix[1:]), 95)
        )
        with Image.open(file) as stored:
            told = stored.getexif()
            assert stored.size == (16, 24)
            assert (told.get(0x0112, 1), told[0x010F], told[0x0132]) == (1, 'Maker', '2020:01:02 03:04:05')
            inner = told.get_ifd(0x8769)
            assert (inner[0x9003], float(inner[0x829A])) == ('2020:01:02 03:04:05', pytest.approx(0.01))
            assert (inner[0xA002], inner[0xA003]) == (16, 24)
            assert tuple(map(float, told.get_ifd(0x8825)[2])) == (47.0, 3.0, 8.5)
            assert stored.info['icc_profile'] == SRGB
            stored.load()
        again = pictures.read(file)
        assert again.pixels.dtype == picture.pixels.dtype
        assert again.icc == SRGB
        if ending in ('png', 'tif', 'deep.png', 'deep.tif'):
            assert np.array_equal(again.pixels, picture.pixels)

    @pytest.mark.parametrize(('damage', 'lost'), [('header', 'damaged EXIF'), ('pointer', 'damaged parts of EXIF')])
    def test_damaged_exif_is_left_out_and_said(self, run, damage, lost):
        exif = Image.Exif()
        exif[0x010F] = 'Maker'
        exif.get_ifd(0x8825)[2] = (47.0, 3.0, 8.5)
        data = bytearray(exif.tobytes())
        if damage == 'header':
            data[6:10] = b'none'
        else:
            entry = data.index(b'\x88\x25')
            data[entry + 8 : entry + 12] = b'\x00\x0f\xff\xff'  # the GPS directory lies behind the end
        save(photo(), 'a.jpg', exif=bytes(data))
        done = run('a.jpg', '--out', 'out')
        assert done.exit_code == 0, done.output
        assert f', {lost} left out' in done.stdout
        told = Image.open('out/a_x2.jpg').getexif()
        assert told.get(0x010F) == (None if damage == 'header' else 'Maker')
        assert not told.get_ifd(0x8825)

    def test_cmyk_becomes_srgb_through_its_profile_and_loses_it(self, tmp_path):
        Image.fromarray(photo()).convert('CMYK').save(tmp_path / 'plain.jpg', quality=100)
        read = pictures.read(tmp_path / 'plain.jpg')
        assert np.abs(read.pixels.astype(float) - photo()).mean() < 6
        assert read.icc is None

    def test_cmyk_goes_through_its_own_profile(self, tmp_path, monkeypatch):
        """No CMYK profile can be made here, so the conversion is replaced by one that shows what it was given."""
        Image.fromarray(photo()).convert('CMYK').save(tmp_path / 'a.jpg', icc_profile=SRGB)

        def convert(image, source, target, outputMode):
            assert (image.mode, source.tobytes(), outputMode) == ('CMYK', SRGB, 'RGB')
            assert ImageCms.getProfileDescription(target).startswith('sRGB')
            return Image.new('RGB', image.size, (1, 2, 3))

        with monkeypatch.context() as patched:
            patched.setattr(ImageCms, 'profileToProfile', convert)
            read = pictures.read(tmp_path / 'a.jpg')
        assert (read.icc, read.lost) == (None, '')
        assert np.unique(read.pixels.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]
        read = pictures.read(tmp_path / 'a.jpg')  # a profile of RGB does not fit an image of CMYK
        assert (read.icc, read.lost) == (None, 'colour profile that does not fit')
        assert np.abs(read.pixels.astype(float) - photo()).mean() < 12

    def test_black_and_white_becomes_gray(self, tmp_path):
        Image.fromarray(photo()).convert('1').save(tmp_path / 'a.png')
        assert set(np.unique(pictures.read(tmp_path / 'a.png').pixels)) == {0, 255}

    @pytest.mark.parametrize(('kind', 'found'), [('png', 'PNG'), ('jpeg', 'JPEG'), ('webp', 'WEBP'), ('tiff', 'TIFF')])
    def test_every_format_can_be_asked_for(self, run, kind, found):
        save(photo(), 'a.bmp')
        assert run('a.bmp', '--out', 'out', '--format', kind, '--quality', '100').exit_code == 0
        (file,) = Path('out').iterdir()
        stored = Image.open(file)
        assert stored.format == found
        error = np.abs(np.asarray(stored).astype(float) - by_hand(photo()))
        assert error.max() == 0 if kind != 'jpeg' else error.mean() < 1.5

    def test_quality_changes_the_size(self, run):
        save(photo(60, 60), 'a.jpg', quality=100)
        sizes = []
        for quality in ('50', '95'):
            assert run('a.jpg', '--out', quality, '--quality', quality).exit_code == 0
            sizes.append(Path(quality, 'a_x2.jpg').stat().st_size)
        assert sizes[0] < 0.7 * sizes[1]

    def test_sides_that_a_format_cannot_count_are_refused_before_the_network_runs(self):
        with pytest.raises(UserError, match='webp holds sides of at most 16383 pixels, the result has 16384x8'):
            pictures.check_size('webp', 8, 16384)
        pictures.check_size('webp', 16383, 8)
        pictures.check_size('png', 70000, 8)


class TestFiles:
    def test_folders_globs_and_names_given_twice(self, run):
        for name in ('in/a.png', 'in/b.PNG', 'in/sub/c.png', 'in/notes.txt', 'in/.hidden.png'):
            save(photo(), 'x.png')
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path('x.png').replace(name)
        jobs = plan(['in', 'in/a.png'], Path('out'), suffix='_x2')
        assert [job.target.as_posix() for job in jobs] == ['out/a_x2.png', 'out/b_x2.png']
        jobs = plan(['in'], Path('in/out'), suffix='', kind=Format.webp, recursive=True)
        assert [job.target.as_posix() for job in jobs] == ['in/out/a.webp', 'in/out/b.webp', 'in/out/sub/c.webp']
        jobs = plan(['in/**/*.png'], Path('out'), suffix='')
        assert [job.target.as_posix() for job in jobs] == ['out/a.png', 'out/sub/c.png']
        assert plan(['in/a.png'], Path('there/z.jpeg'), suffix='_x2') == [
            Enlargement(Path('in/a.png'), Path('there/z.jpeg'), 'jpeg')
        ]

    def test_results_below_the_input_folder_are_no_inputs(self, run):
        save(photo(), 'in/a.png')
        for _ in range(2):
            done = run('in', '--recursive', '--out', 'in/out')
            assert done.exit_code == 0, done.output
        assert [file.name for file in Path('in/out').iterdir()] == ['a_x2.png']

    def test_a_second_run_leaves_what_is_there_and_overwrite_does_not(self, run):
        save(photo(), 'in/a.png')
        save(photo(), 'in/b.png')
        assert run('in', '--out', 'out').exit_code == 0
        Path('out/b_x2.png').unlink()
        Path('out/a_x2.png').write_bytes(b'mine')
        done = run('in', '--out', 'out', '--json')
        assert [image['status'] for image in json.loads(done.stdout)['images']] == ['skipped', 'written']
        assert Path('out/a_x2.png').read_bytes() == b'mine'
        assert run('in', '--out', 'out', '--overwrite').exit_code == 0
        assert np.array_equal(pixels('out/a_x2.png'), by_hand(photo()))

    @pytest.mark.parametrize('link', ['same', 'hard', 'symbolic', 'folder'])
    def test_an_input_is_never_overwritten(self, run, link):
        save(photo(), 'in/a.png')
        before = Path('in/a.png').read_bytes()
        if link == 'folder':
            Path('out').symlink_to('in')
        elif link != 'same':
            Path('out').mkdir()
            (os.link if link == 'hard' else os.symlink)(Path('in/a.png').resolve(), 'out/a.png')
        out = 'in' if link == 'same' else 'out'
        done = run('in/a.png', '--out', out, '--suffix', '', '--overwrite')
        assert done.exit_code == 2
        assert f'{out}/a.png would overwrite the input in/a.png' in done.output
        assert Path('in/a.png').read_bytes() == before

    def test_a_broken_image_does_not_stop_the_others(self, run):
        save(photo(), 'in/a.png')
        whole = Path('in/a.png').read_bytes()
        Path('in/b.png').write_bytes(whole[: len(whole) // 2])
        Path('in/c.png').write_text('no image')
        save(photo(), 'in/d.png')
        done = run('in', '--out', 'out', '--json')
        assert done.exit_code == 1
        told = json.loads(done.stdout)
        assert [image['status'] for image in told['images']] == ['written', 'failed', 'failed', 'written']
        assert (told['written'], told['skipped'], told['failed']) == (2, 0, 2)
        assert done.stderr.count('cannot be read as an image') == 2
        assert sorted(file.name for file in Path('out').iterdir()) == ['a_x2.png', 'd_x2.png']
        assert '2 written, 0 skipped, 2 failed' in run('in', '--out', 'other').stdout

    @pytest.mark.parametrize('value', [float('nan'), float('inf')])
    def test_weights_that_are_not_finite_give_no_picture(self, run, value):
        save(photo(), 'a.png')
        state = hasn().state_dict()
        next(iter(state.values())).view(-1)[0] = value
        torch.save({'params': state}, 'bad.pth')
        done = run('a.png', '--out', 'out', net=['--weights', 'bad.pth'])
        assert done.exit_code == 2, done.output
        assert 'conv_1.weight' in done.stderr
        assert not Path('out').exists()

    def test_an_image_too_bright_for_half_precision_does_not_stop_the_others(self, run, monkeypatch):
        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                large = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
                return large * 100_000 / 100_000

        choose_net(monkeypatch, Net())
        save(photo(), 'in/a.png')
        save(np.zeros_like(photo()), 'in/b.png')
        done = run('in', '--out', 'out', '--dtype', 'fp16')
        assert done.exit_code == 1
        assert 'in/a.png failed: the network gave NaN or infinity; give --dtype fp32' in done.stderr
        assert [file.name for file in Path('out').iterdir()] == ['b_x2.png']
        assert run('in', '--out', 'out').exit_code == 0
        assert np.array_equal(pixels('out/a_x2.png'), photo().repeat(2, 0).repeat(2, 1))

    @pytest.mark.parametrize('kind', ['torch', 'numpy'])
    def test_memory_that_runs_out_on_a_cpu_does_not_stop_the_others(self, run, monkeypatch, kind):
        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                if x.shape[-1] == 26:
                    (torch if kind == 'torch' else np).empty(1 << 52)  # more than any machine has
                return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

        choose_net(monkeypatch, Net())
        save(photo(), 'in/a.png')
        save(photo(20, 24), 'in/b.png')
        done = run('in', '--out', 'out', '--tile', '0')
        assert done.exit_code == 1, done.exception
        told = {
            'torch': 'the memory of cpu is too small; give a --tile, such as 256',
            'numpy': 'the memory is too small for the image and its result',
        }[kind]
        assert done.stderr == f'effsr infer: in/a.png failed: {told}\n'
        assert [file.name for file in Path('out').iterdir()] == ['b_x2.png']

    def test_a_bug_of_the_network_is_not_taken_for_a_lack_of_memory(self, run, monkeypatch):
        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                return x @ x

        choose_net(monkeypatch, Net())
        save(photo(), 'a.png')
        assert run('a.png', '--out', 'out').exit_code == INTERNAL

    def test_a_cpu_without_half_precision_is_refused_with_the_option(self):
        """Which operations have it differs between versions of torch."""

        class Net(nn.Module):
            upscale = 2

            def forward(self, x):
                raise RuntimeError('no kernel')

        with pytest.raises(UserError, match='--dtype'):
            Enlarger(Net(), dtype=torch.float16)(Picture(photo()))

    def test_json_says_what_was_done(self, run):
        save(photo(40, 50), 'a.png')
        done = run('a.png', '--out', 'out', '--json', '--tile', '20', '--overlap', '4')
        told = json.loads(done.stdout)
        image = told['images'][0]
        assert (told['network'], told['scale'], told['blend'], told['overlap']) == ('HASN', 2, 'feather', 4)
        assert (image['input'], image['output'], image['tile']) == ('a.png', 'out/a_x2.png', 20)
        assert (image['input_size'], image['output_size']) == ([40, 50], [80, 100])
        assert image['seconds'] > 0

    @pytest.mark.parametrize(
        ('arguments', 'words'),
        [
            (['nowhere.png'], 'nowhere.png does not exist'),
            (['empty'], 'empty holds no images'),
            (['*.gif'], '*.gif matches no file'),
            (['a.png', 'other/a.png'], 'a.png and other/a.png would both become out/a_x2.png'),
            (['other', '--format', 'png'], 'other/a.jpg and other/a.png would both become out/a_x2.png'),
            (['other', '--out', 'other'], '--out other is where the images of other are'),
            (['other', '--out', 'b.png'], '--out b.png is one file for 2 images'),
            (['a.png', '--out', 'b.png', '--format', 'webp'], '--out b.png and --format webp contradict each other'),
            (['a.png', '--out', 'b.bmp'], 'let it end in .png'),
            (['a.png', '--out', 'net.pth'], '--out net.pth is a file'),
            (['a.png', '--tile', 'large'], "--tile must be auto, 0 or a side in LR pixels, got 'large'"),
            (['a.png', '--tile', '14', '--overlap', '2'], 'at least 15 for HASN'),
            (['a.png', '--tile', '20', '--overlap', '20'], 'at least 21 for HASN'),
            (['a.png', '--overlap', '-1'], '--overlap must be from 0'),
            (['a.png', '--tile', '0', '--overlap', '500'], '--tile 0 processes whole images'),
            (['a.png', '--tile', '0', '--blend', 'mean'], '--tile 0 processes whole images'),
            (['a.png', '--dtype', 'fp8'], '--dtype must be one of fp32, fp16, bf16'),
            (['a.png', '--quality', '0'], "'--quality'"),
            (['a.png', '--suffix', '/x'], '--suffix must be part of a file name'),
            (['a.png', '--scale', '4'], 'by its weights it is HASN'),
            (['a.png', '--device', 'cuda:99'], "device 'cuda:99' cannot be used"),
            (['a.png', '--weights', 'none.pth'], 'none.pth does not exist'),
            (['a.png', '--weights', 'foreign.pth'], 'unrecognised architecture'),
            (['broken.png'], 'broken.png cannot be read as an image: '),
            (['clear.png', '--format', 'jpeg'], 'give --alpha drop'),
            (['moving.gif'], 'it has 2 frames; split it into images'),
        ],
    )
    def test_bad_input_is_one_sentence_and_nothing_is_written(self, run, arguments, words):
        for name in ('a.png', 'other/a.png', 'other/a.jpg'):
            save(photo(), name)
        Path('empty').mkdir()
        Path('broken.png').write_text('no image')
        save(np.dstack([photo(), photo()[..., 0]]), 'clear.png')
        frames = [Image.fromarray(photo()), Image.fromarray(photo()[::-1])]
        if arguments == ['moving.gif']:
            frames[0].save('moving.gif', save_all=True, append_images=frames[1:])
        torch.save({'params': nn.Conv2d(3, 3, 3).state_dict()}, 'foreign.pth')
        out = [] if '--out' in arguments else ['--out', 'out']
        net = [] if '--weights' in arguments else ['--weights', 'net.pth']
        before = sorted(Path().rglob('*'))
        done = run(*arguments, *out, net=net)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
        assert done.stderr.count('\n') == 1
        assert sorted(Path().rglob('*')) == before

    def test_no_network_at_all(self, run):
        save(photo(), 'a.png')
        assert '--weights' in run('a.png', net=[]).output


class TestManyImages:
    def enlarged(self, tmp_path, count: int, net: nn.Module | None = None) -> Iterator[Done]:
        for i in range(count):
            save(photo(16 + i % 3, 20), tmp_path / 'in' / f'{i}.png')
        (tmp_path / 'in' / '1.png').write_bytes(b'no image')
        jobs = plan([str(tmp_path / 'in')], tmp_path / 'out', suffix='')
        jobs[2].target.parent.mkdir()
        jobs[2].target.write_bytes(b'there')
        return enlarge_files.enlarge_files(Enlarger(net or hasn()), jobs, quality=95, overwrite=False)

    @pytest.mark.parametrize('most', [1, enlarge_files.MOST])
    def test_order_and_images_are_those_of_one_by_one(self, tmp_path, monkeypatch, most):
        monkeypatch.setattr(enlarge_files, 'MOST', most)
        monkeypatch.setattr(enlarge_files, 'AHEAD', 3)
        done = list(self.enlarged(tmp_path, 7))
        assert [Path(each.input).stem for each in done] == list('0123456')
        assert [each.status for each in done] == ['written', 'failed', 'skipped', *['written'] * 4]
        for i in (0, 3, 4, 5, 6):
            assert np.array_equal(pixels(tmp_path / 'out' / f'{i}.png'), by_hand(photo(16 + i % 3, 20)))

    def test_an_image_is_read_and_another_written_while_the_network_works(self, tmp_path, monkeypatch):
        read, wrote = threading.Event(), threading.Event()

        class Net(type(hasn())):
            def forward(self, x):
                if x.shape[2] == 16:  # the first image
                    assert read.wait(HANGS)
                if x.shape[2] == 17:  # the fifth
                    assert wrote.wait(HANGS)
                return super().forward(x)

        net, load, write = hasn(), enlarge_files.read, enlarge_files.write_bytes
        net.__class__ = Net
        monkeypatch.setattr(enlarge_files, 'read', lambda file: (read.set() if file.stem == '3' else 0, load(file))[1])
        monkeypatch.setattr(enlarge_files, 'write_bytes', lambda *a, **how: (write(*a, **how), wrote.set()))
        assert [each.status for each in self.enlarged(tmp_path, 5, net)].count('written') == 3

    def test_what_is_left_in_the_middle_leaves_whole_files(self, tmp_path):
        done = self.enlarged(tmp_path, 7)
        next(done)
        done.close()
        assert not list((tmp_path / 'out').glob('.*'))
        assert all(file.read_bytes() == b'there' or pixels(file).size for file in (tmp_path / 'out').iterdir())


class TestProcesses:
    @pytest.mark.parametrize(
        ('environment', 'words'),
        [
            ({'RANK': 'one', 'WORLD_SIZE': '2'}, 'RANK'),
            ({'RANK': '2', 'WORLD_SIZE': '2'}, 'RANK must be from 0 to WORLD_SIZE - 1, got 2 of 2'),
        ],
    )
    def test_strange_ranks_are_refused(self, run, monkeypatch, environment, words):
        save(photo(), 'a.png')
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = run('a.png', '--out', 'out')
        assert done.exit_code == 2
        assert words in done.stderr

    @pytest.mark.slow
    def test_two_processes_share_a_folder(self, weights, tmp_path):
        for name in 'abcde':
            save(photo(), tmp_path / 'in' / f'{name}.png')
        command = [sys.executable, '-m', 'basicsr_effsr.cli', 'infer', 'in', '--weights', 'net.pth', '--out', 'out']
        environment = {**os.environ, 'WORLD_SIZE': '2', 'OMP_NUM_THREADS': '1'}
        running = [
            subprocess.Popen(
                [*command, '--json', '--device', 'cpu'],
                cwd=tmp_path,
                env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        told = []
        for process in running:
            out, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0
            assert out.count('\n') == 1
            told.append(json.loads(out))
        assert [[Path(image['input']).stem for image in report['images']] for report in told] == [
            ['a', 'c', 'e'],
            ['b', 'd'],
        ]
        assert [report['rank'] for report in told] == [0, 1]
        for name in 'abcde':
            assert np.array_equal(pixels(tmp_path / 'out' / f'{name}_x2.png'), by_hand(photo()))

    @pytest.mark.slow
    def test_a_terminated_process_leaves_no_temporary_file(self, weights, tmp_path):
        for i in range(5):
            save(photo(), tmp_path / 'in' / f'{i}.png')
        command = ['infer', 'in', '--weights', 'net.pth', '--out', 'out', '--device', 'cpu']
        done = stopped_while_writing('3_x2.png', signal.SIGTERM, 'basicsr_effsr.cli', *command, cwd=tmp_path)
        assert done.returncode == 130
        assert 'of 5 images' in done.stderr
        assert {'0_x2.png', '1_x2.png', '2_x2.png'} <= {file.name for file in tmp_path.glob('out/*')}
        for file in tmp_path.glob('out/*'):
            assert np.array_equal(pixels(file), by_hand(photo()))
        assert not list(tmp_path.glob('out/.*'))
