"""Damaged, lying and strange image files: never enlarged, scored, trained on or packed, through no command."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import call
from files import FORMATS, damaged, lying, picture, suffix_of, whole
from typer.testing import CliRunner

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import app
from basicsr_effsr.data.pairs import undecodable
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.imaging.header import ImageError, read_header
from basicsr_effsr.imaging.picture import decode, decode_stored, picture_of, read, read_rgb

DEEP = ('png16', 'ppm16', 'tif16', 'tif16 deflate')


@pytest.mark.parametrize('kind', FORMATS)
def test_damage_is_refused_by_every_reader_with_the_name_and_nothing_on_the_screen(tmp_path, kind, capfd):
    image = picture()
    file = tmp_path / f'a.{suffix_of(kind)}'
    file.write_bytes(whole(kind, image))
    if kind not in DEEP:
        decode(file.read_bytes(), 'a')
    assert read_rgb(file).shape == image.shape
    for what, content in damaged(kind, image):
        file.write_bytes(content)
        for reader in (lambda: read_rgb(file), lambda: read(file), lambda: decode_stored(file.read_bytes(), str(file))):
            with pytest.raises(ImageError, match=f'{file}') as found:
                pytest.fail(f'{what}: {reader()}')
            assert '\n' not in str(found.value), what
        assert str(file) in undecodable([str(file)]), what
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('kind', ['png', 'bmp', 'ppm', 'jpg', 'gif', 'tif', 'webp'])
@pytest.mark.parametrize('size', [(3_000_000, 2_000_000), (60_000, 60_000)])
def test_a_header_that_its_bytes_cannot_fill_asks_for_no_memory(tmp_path, kind, size):
    file = tmp_path / f'a.{kind}'
    file.write_bytes(lying(kind, *size))
    with pytest.raises(ImageError, match=f'{file}'):
        read_header(file)
    with pytest.raises(ImageError, match=f'{file}'):
        read(file)


@pytest.mark.skipif(not Path('/proc/meminfo').exists(), reason='the free memory is known on Linux')
def test_an_image_larger_than_the_memory_is_refused_before_it_is_decoded():
    code = struct.pack('<HHII', 259, 3, 1, 4)  # group 4, which writes any number of white lines in few bytes
    content = lying('tif', 500_000, 500_000).replace(struct.pack('<HHII', 259, 3, 1, 1), code)
    assert read_header(content).size == (500_000, 500_000)
    with pytest.raises(ImageError, match=r'GiB'):
        picture_of(content, 'a.tif')


COMMANDS = {
    'infer': ['infer', 'HR', '--weights', 'net.pth', '--out', 'out', '--device', 'cpu'],
    'evaluate': ['evaluate', '--weights', 'net.pth', '--data', 'Set5', '--out', 'out', '--device', 'cpu', '--make-lr'],
    'compare': ['compare', '-opt', 'test.yml', '--out', 'out/b.png'],
    'check': ['check', '-opt', 'test.yml'],
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Pairs at x2 in HR and LR, a benchmark set, weights; the second HR image is damaged inside."""
    monkeypatch.chdir(tmp_path)
    image = picture()
    bad = dict(damaged('png', image))['bit 5 flipped']
    for folder in ('HR', 'LR', 'Set5/HR', 'Set5/LR_bicubic/X2'):
        Path(folder).mkdir(parents=True)
        small = folder in ('LR', 'Set5/LR_bicubic/X2')
        good = whole('png', imresize(image, scale=0.5) if small else image)
        for name in 'abc':
            Path(folder, f'{name}.png').write_bytes(bad if name == 'b' and not small else good)
    net = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}
    torch.manual_seed(0)
    torch.save({'params': HASN(**net).state_dict()}, 'net.pth')
    data = {'name': 'Set5', 'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}}
    data |= {'dataroot_gt': 'Set5/HR', 'dataroot_lq': 'Set5/LR_bicubic/X2'}
    opt = {'name': 'it', 'model_type': 'EffSRModel', 'scale': 2, 'num_gpu': 0, 'datasets': {'test': data}}
    opt |= {'network_g': {'type': 'HASN', **net}, 'path': {'pretrain_network_g': 'net.pth'}}
    Path('test.yml').write_text(yaml.safe_dump(opt))
    return tmp_path


@pytest.mark.parametrize('command', COMMANDS)
def test_no_command_takes_a_damaged_image(root, command):
    done = CliRunner().invoke(app, COMMANDS[command])
    assert done.exit_code in (1, 2), done.output
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
    assert 'b.png' in done.output
    assert not list(Path('out').glob('**/b*'))


@pytest.mark.parametrize('command', ['pack', 'lmdb', 'subimages', 'lr', 'verify'])
def test_no_data_set_is_made_of_a_damaged_image(root, command):
    from datasets_prep.cli import app as prepare

    arguments = {
        'pack': ['HR', 'out.pack'],
        'lmdb': ['HR', 'out.lmdb'],
        'subimages': ['HR', 'out', '--crop', '32', '--step', '32'],
        'lr': ['HR', 'out', '--scales', '2'],
        'verify': ['HR', 'LR'],
    }[command]
    done = CliRunner().invoke(prepare, [command, *arguments])
    assert done.exit_code not in (0, None), done.output
    assert 'b.png' in done.output
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
    assert not [*Path().glob('out/**/b*'), *Path().glob('out.pack')]


def test_training_does_not_see_a_damaged_image(root):
    from basicsr.utils.registry import DATASET_REGISTRY

    opt = {'name': 'unit', 'type': 'EffSRPairedDataset', 'phase': 'train', 'scale': 2, 'gt_size': 16}
    opt |= {'use_hflip': False, 'use_rot': False, 'io_backend': {'type': 'disk'}}
    data = DATASET_REGISTRY.get('EffSRPairedDataset')({**opt, 'dataroot_gt': 'HR', 'dataroot_lq': 'LR'})
    data[0]
    with pytest.raises(ImageError, match=r'b\.png'):
        data[1]


@pytest.mark.parametrize('what', ['pipe', 'device', 'folder'])
def test_what_is_no_file_is_named_and_blocks_nothing(root, what):
    Path('HR/b.png').unlink()
    if what == 'pipe':
        os.mkfifo('HR/b.png')
    elif what == 'device':
        Path('HR/b.png').symlink_to('/dev/zero')
    else:
        Path('HR/b.png').mkdir()
    done = CliRunner().invoke(app, COMMANDS['infer'])
    assert done.exit_code == (0 if what == 'folder' else 1)
    with pytest.raises(ImageError, match=r'b\.png'):
        read_rgb(Path('HR/b.png'))
    from datasets_prep.cli import app as prepare

    done = CliRunner().invoke(prepare, ['pack', 'HR', 'out.pack'])
    assert done.exit_code not in (0, None)
    assert 'b.png' in done.output


@pytest.mark.slow
def test_a_full_disk_stops_infer_at_the_first_failure_and_it_goes_on(root):
    Path('HR/b.png').unlink()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    code, said = call(COMMANDS['infer'], root, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    assert code == 1, said
    assert 'a_x2.png' in said
    assert 'c' not in said.split('stopped after')[1].split('images')[0]
    assert not list(Path('out').glob('**/*'))
    assert CliRunner().invoke(app, COMMANDS['infer']).exit_code == 0


def test_hidden_colours_do_not_bleed_into_the_rims():
    from torch import nn

    from basicsr_effsr.imaging.enlarger import Enlarger
    from basicsr_effsr.imaging.picture import Picture

    class Smooth(nn.Module):
        upscale = 2

        def forward(self, x):
            return nn.functional.interpolate(x, scale_factor=2, mode='bicubic', align_corners=False)

    alpha = np.zeros((20, 20), np.uint8)
    alpha[5:14, 6:15] = 255
    pixels = np.where(alpha[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2)
    found = Enlarger(Smooth())(Picture(pixels, alpha))[0]
    assert (found.pixels[found.alpha > 0] == 255).all()
    stored = Enlarger(Smooth())(Picture(pixels, np.zeros_like(alpha)))[0]
    assert (stored.pixels < 255).any()
