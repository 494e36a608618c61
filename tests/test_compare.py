"""``effsr compare``: its scores, its picture, its errors."""

from __future__ import annotations

import json
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.metrics import calculate_psnr, calculate_ssim
from PIL import Image
from typer.testing import CliRunner

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import app
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.imaging.tiling import self_ensemble, tiled_forward
from basicsr_effsr.tools.compare import CAPTION, CROP, MARGIN, PANEL, busiest_crop, figure, fullest, picture

TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}


@pytest.fixture
def option_file(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('HR', 'LR'):
        (tmp_path / name).mkdir()
    gt = imresize(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), scale=4)
    Image.fromarray(gt).save(tmp_path / 'HR' / 'noise.png')
    Image.fromarray(imresize(gt, scale=0.5)).save(tmp_path / 'LR' / 'noise.png')
    torch.save({'params': HASN(**TINY).state_dict()}, tmp_path / 'net.pth')
    opt = {
        'scale': 2,
        'num_gpu': 0,
        'datasets': {'test_1': {'dataroot_gt': str(tmp_path / 'HR'), 'dataroot_lq': str(tmp_path / 'LR')}},
        'network_g': {'type': 'HASN', **TINY},
        'path': {'pretrain_network_g': str(tmp_path / 'net.pth')},
    }
    file = tmp_path / 'test.yml'
    file.write_text(yaml.safe_dump(opt))
    return file


def score(image, gt):
    """The host's own functions."""
    options = {'crop_border': 2, 'test_y_channel': True}
    pair = image[..., ::-1], gt[..., ::-1]
    return calculate_psnr(*pair, **options), calculate_ssim(*pair, **options)


def enlarged(forward, lq):
    with torch.no_grad():
        out = forward(torch.from_numpy(lq.transpose(2, 0, 1).copy())[None].float() / 255)
    return out[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def run(*arguments):
    return CliRunner().invoke(app, ['compare', *map(str, arguments)])


def test_scores_and_picture(option_file, tmp_path):
    done = run('-opt', option_file, '--out', tmp_path / 'new' / 'sheet.png', '--json')
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)
    gt = np.asarray(Image.open(tmp_path / 'HR' / 'noise.png'))
    lq = np.asarray(Image.open(tmp_path / 'LR' / 'noise.png'))
    net = HASN(**TINY).eval()
    net.load_state_dict(torch.load(tmp_path / 'net.pth', weights_only=True)['params'])
    assert (row['psnr'], row['ssim']) == pytest.approx(score(enlarged(net, lq), gt))
    assert (row['bicubic_psnr'], row['bicubic_ssim']) == pytest.approx(score(imresize(lq, scale=2), gt))
    assert row['bicubic_psnr'] > row['psnr'] + 1, 'an untrained network must lose'
    assert Image.open(tmp_path / 'new' / 'sheet.png').width > 4 * 288


def test_detail_is_where_the_picture_is_busy():
    image = np.zeros((200, 300, 3), np.uint8)
    image[100:120, 150:170] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    top, left = busiest_crop(image, 48)
    assert top <= 101
    assert top + 48 >= 119
    assert left <= 151
    assert left + 48 >= 169


@pytest.mark.parametrize('shape', [(48, 48), (47, 200), (48, 49)])
def test_detail_of_an_image_no_larger_than_it(shape):
    top, left = busiest_crop(np.zeros((*shape, 3), np.uint8), min(48, *shape))
    assert top + min(48, *shape) <= shape[0]
    assert left + min(48, *shape) <= shape[1]


def test_picture_has_a_line_per_image_and_the_detail_where_the_methods_differ():
    image = np.full((120, 160, 3), 200, np.uint8)
    other = image.copy()
    other[60:70, 100:110] = 0
    panels = [('LR', image), ('bicubic', image), ('net', other), ('HR', image)]
    one, two = (picture([(name, panels) for name in names]) for names in ('a', 'ab'))
    assert two.width == one.width
    assert two.height > 1.9 * one.height
    detail = np.asarray(one)[MARGIN + CAPTION + 216 + MARGIN // 2 :][:PANEL]  # of 120 lines of 160, PANEL wide
    at = MARGIN + 2 * (PANEL + MARGIN)
    assert (detail[:, at : at + PANEL] == 0).all(axis=2).sum() == (10 * PANEL // CROP) ** 2


def test_bad_input_is_one_sentence_and_exit_code_2(option_file, tmp_path):
    done = run('-opt', tmp_path / 'no.yml')
    assert done.exit_code == 2
    (tmp_path / 'LR' / 'noise.png').unlink()
    done = run('-opt', option_file, '--out', tmp_path / 'sheet.png')
    assert done.exit_code == 2
    assert 'noise.png does not exist, the partner of' in done.output
    assert run('-opt', option_file, '--out', tmp_path / 'sheet.bmp').exit_code == 2
    option_file.write_text(option_file.read_text().replace(str(tmp_path / 'net.pth'), str(tmp_path / 'no.pth')))
    done = run('-opt', option_file, '--out', tmp_path / 'sheet.png')
    assert done.exit_code == 2
    assert 'no.pth' in done.output
    assert not list(tmp_path.glob('sheet*'))


def test_pictures_of_16_bits_score_as_those_of_8(option_file, tmp_path):
    def scores():
        (row,) = json.loads(run('-opt', option_file, '--out', tmp_path / 'a.png', '--json').output)
        return row['psnr'], row['ssim'], row['bicubic_psnr'], row['bicubic_ssim']

    expected = scores()
    for folder in ('HR', 'LR'):
        file = str(tmp_path / folder / 'noise.png')
        cv2.imwrite(file, cv2.imread(file).astype(np.uint16) * 257)
    assert scores() == expected


def test_the_protocol_of_the_option_file_is_followed(option_file, tmp_path):
    opt = yaml.safe_load(option_file.read_text())
    opt['val'] = {'self_ensemble': True, 'tile': {'size': 16, 'overlap': 8}}
    option_file.write_text(yaml.safe_dump(opt))
    (row,) = json.loads(run('-opt', option_file, '--out', tmp_path / 'a.png', '--json').output)
    gt, lq = (np.asarray(Image.open(tmp_path / folder / 'noise.png')) for folder in ('HR', 'LR'))
    net = HASN(**TINY).eval()
    net.load_state_dict(torch.load(tmp_path / 'net.pth', weights_only=True)['params'])
    tiles = partial(tiled_forward, net, upscale=2, tile=16, overlap=8, blend='mean')
    assert (row['psnr'], row['ssim']) == pytest.approx(score(enlarged(partial(self_ensemble, tiles), lq), gt))
    assert row['psnr'] != pytest.approx(score(enlarged(net, lq), gt)[0])
    told = run('-opt', option_file, '--out', tmp_path / 'a.png').output
    assert 'tiles 16, overlap 8, mean, self-ensemble' in ' '.join(told.split())


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'scale': 3, 'network_g': {'type': 'HASN', **TINY, 'upscale': 3}}, 'of another scale'),
        ({'datasets': None}, 'names no images'),
        ({'datasets': {}}, 'names no images'),
        ({'datasets': 'abc'}, "datasets must be a section of options, got 'abc'"),
        ({'datasets': {'test_1': None}}, 'datasets.test_1 must be a section of options, got None'),
        ({'path': None}, 'path.pretrain_network_g must name the weights'),
    ],
)
def test_odd_sections_are_one_sentence(option_file, tmp_path, change, words):
    option_file.write_text(yaml.safe_dump(yaml.safe_load(option_file.read_text()) | change))
    done = run('-opt', option_file, '--out', tmp_path / 'sheet.png')
    assert done.exit_code == 2
    assert words in done.output, done.output
    assert len(done.output.splitlines()) == 1


def test_images_of_another_scale_are_named(option_file, tmp_path):
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / 'LR' / 'noise.png')
    done = run('-opt', option_file, '--out', tmp_path / 'sheet.png')
    assert done.exit_code == 2
    assert 'HR/noise.png (96x80) must be 2 times' in done.output
    option_file.write_text(
        yaml.safe_dump({k: v for k, v in yaml.safe_load(option_file.read_text()).items() if k != 'scale'})
    )
    assert 'must be 2 times' in run('-opt', option_file, '--out', tmp_path / 'sheet.png').output


def test_a_result_that_cannot_be_written_is_said_before_the_work(option_file, tmp_path):
    (tmp_path / 'taken').touch()
    (tmp_path / 'net.pth').unlink()
    done = run('-opt', option_file, '--out', tmp_path / 'taken' / 'sheet.png')
    assert done.exit_code == 2
    assert 'taken is a file, must be a folder' in done.output


@pytest.fixture
def model_words(tmp_path, option_file):
    """``--model`` twice and ``--image``: two networks of one class."""
    torch.manual_seed(1)
    torch.save({'params': HASN(**TINY).state_dict()}, tmp_path / 'other.pth')
    models = ('--model', tmp_path / 'net.pth', '--model', f'Ours={tmp_path / "other.pth"}')
    return *models, '--image', tmp_path / 'HR' / 'noise.png'


@pytest.mark.parametrize('ending', ['png', 'pdf', 'svg'])
def test_several_models_on_an_image(model_words, option_file, tmp_path, ending):
    pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")
    out = tmp_path / 'new' / f'figure.{ending}'
    given = run(*model_words, '--lr', tmp_path / 'LR' / 'noise.png', '--out', out, '--json')
    assert given.exit_code == 0, given.output
    assert out.stat().st_size > 10_000
    found = json.loads(given.output)
    assert found == json.loads(run(*model_words, '--out', out, '--json').output), 'LR is made by the exact bicubic'
    bicubic, net, other = found['scores']
    assert (bicubic['method'], net['method'], other['method']) == ('bicubic', 'HASN', 'Ours')
    (row,) = json.loads(run('-opt', option_file, '--out', tmp_path / 'a.png', '--json').output)
    assert (net['psnr'], net['ssim']) == (row['psnr'], row['ssim'])
    assert (bicubic['psnr'], bicubic['ssim']) == (row['bicubic_psnr'], row['bicubic_ssim'])
    told = run(*model_words, '--crop', found['crop'], '--out', out).output
    assert f'--crop {found["crop"]}' in told


def test_models_of_one_class_are_told_apart(tmp_path, option_file):
    pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")
    words = ['--model', tmp_path / 'net.pth'] * 3
    done = run(*words, '--image', tmp_path / 'HR' / 'noise.png', '--out', tmp_path / 'a.png', '--json')
    names = [row['method'] for row in json.loads(done.output)['scores']]
    assert len({*names}) == 4, names


@pytest.mark.parametrize('count', [1, 6])
@pytest.mark.parametrize(
    ('shape', 'crop'), [((80, 96), (8, 8, 24, 24)), ((40, 300), (4, 8, 16, 32)), ((300, 40), (0, 0, 40, 20))]
)
def test_nothing_of_a_figure_overlaps_or_leaves_the_page(shape, crop, count):
    pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    names = ['HR', 'LR', 'Bicubic', *['a method with a long name, $of_ours'] * count]
    page = figure('image', image, crop, [(name, '30.00 / 0.9000', image) for name in names], '30.00 / 0.9000')
    boxes = [axes.get_window_extent() for axes in page.axes]
    boxes += [text.get_window_extent() for axes in page.axes for text in axes.texts]
    for i, box in enumerate(boxes):
        assert page.bbox.x0 - 1 <= box.x0 <= box.x1 <= page.bbox.x1 + 1
        assert page.bbox.y0 - 1 <= box.y0 <= box.y1 <= page.bbox.y1 + 1
        for other in boxes[:i]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across) < 3, (box, other)
    overview, *panels = page.axes
    for axes, sides in ((overview, shape), *((panel, (crop[3], crop[2])) for panel in panels)):
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(sides[0] / sides[1], rel=0.02), 'pixels are square'


def test_the_frame_is_where_most_is():
    weight = np.zeros((100, 150))
    weight[60:70, 90:110] = 1
    assert fullest(weight, 10, 20) == (60, 90)


@pytest.mark.parametrize('crop', ['1,2,3', 'a,b,c,d', '-1,0,20,20', '0,0,200,20', '0,70,20,20', '0,0,2,2'])
def test_a_crop_that_is_none_is_named(model_words, tmp_path, crop):
    pytest.importorskip('matplotlib', reason="needs matplotlib: pip install -e '.[dev]'")
    done = run(*model_words, f'--crop={crop}', '--out', tmp_path / 'a.png')
    assert done.exit_code == 2
    assert '--crop must' in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / 'a.png').exists()


def test_what_does_not_belong_together_is_refused(model_words, option_file, tmp_path):
    for words in (model_words[:2], model_words[-2:], ('-opt', option_file, *model_words), ()):
        done = run(*words, '--out', tmp_path / 'a.png')
        assert done.exit_code == 2
        assert len(done.output.splitlines()) == 1, done.output
    torch.save({'params': HASN(**TINY | {'upscale': 3}).state_dict()}, tmp_path / 'net.pth')
    done = run(*model_words, '--out', tmp_path / 'a.png')
    assert done.exit_code == 2
    assert 'same scale' in done.output
    assert not (tmp_path / 'a.png').exists()
