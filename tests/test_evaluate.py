"""``effsr evaluate``: layouts, scores, files, and the page in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from basicsr_effsr.archs.asid_arch import ASID
from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.archs.imdn_arch import IMDN
from basicsr_effsr.cli import app
from basicsr_effsr.data.benchmark_sets import canonical, find_sets, images_of
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.imaging.metrics import score_y
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools import evaluate_report as reports
from basicsr_effsr.tools.scoring import ImageScore, read_pair
from basicsr_effsr.utils.console import INTERNAL
from basicsr_effsr.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}
SETTINGS = ['--arch', 'HASN', '--scale', '2', '--set', 'num_feat=8', '--set', 'num_block=1', '--set', 'esa_channels=4']


def photo(y: int, x: int, height: int = 48, width: int = 60) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[y : y + height, x : x + width])


def save(image: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save({'params': HASN(**TINY).state_dict()}, tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


@pytest.fixture
def root(tmp_path) -> Path:
    """Set5 as BasicSR lays it out, Set14 as SwinIR, Urban100 as SelfExSR."""
    folder = tmp_path / 'data'
    for i, y in enumerate((20, 120)):
        gt, lq = photo(y, 150), imresize(photo(y, 150), scale=0.5)
        save(gt, folder / 'Set5' / 'GTmod12' / f'{i}.png')
        save(lq, folder / 'Set5' / 'LRbicx2' / f'{i}.png')
        save(gt, folder / 'Set14' / 'HR' / f'{i}.png')
        save(lq, folder / 'Set14' / 'LR_bicubic' / 'X2' / f'{i}x2.png')
        save(gt, folder / 'Urban100' / 'image_SRF_2' / f'img_00{i}_SRF_2_HR.png')
        save(lq, folder / 'Urban100' / 'image_SRF_2' / f'img_00{i}_SRF_2_LR.png')
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ['evaluate', *map(str, arguments)])


class TestLayouts:
    def test_every_layout_gives_the_same_pairs(self, root):
        found = find_sets(root, None, 2)
        assert list(found) == ['Set5', 'Set14', 'Urban100']
        for name, folder in found.items():
            pairs = images_of(folder, 2)
            assert len(pairs) == 2, name
            for pair in pairs:
                assert pair.gt != pair.lq
                assert Image.open(pair.gt).width == 2 * Image.open(pair.lq).width

    def test_a_single_set_and_names_in_any_case(self, root):
        assert list(find_sets(root / 'Set5', None, 2)) == ['Set5']
        assert list(find_sets(root, ['set14'], 2)) == ['Set14']
        assert canonical('BSDS100') == 'B100'
        assert find_sets(root / 'Set5', ['set5'], 2) == {'Set5': root / 'Set5'}
        assert (
            list(find_sets(root, ['all'], 2))
            == list(find_sets(root.parent, ['all'], 2))
            == ['Set5', 'Set14', 'Urban100']
        )
        assert find_sets(root / 'Set5', ['all'], 2) == {'Set5': root / 'Set5'}
        with pytest.raises(UserError, match=r'has no Set14; it has \[.Set5.\]'):
            find_sets(root / 'Set5', ['Set5', 'Set14'], 2)

    def test_missing_lr_is_refused_or_made(self, root):
        shutil.rmtree(root / 'Set5' / 'LRbicx2')
        with pytest.raises(UserError, match=r'has no LR image at x2 \(2 of 2 lack one\); .* --make-lr'):
            images_of(root / 'Set5', 2)
        (pair, _) = images_of(root / 'Set5', 2, make_lr=True)
        lq, gt = read_pair(pair, 2)
        assert np.array_equal(lq, imresize(gt, scale=0.5))

    def test_endings_in_capitals_are_found(self, root):
        for file in [*(root / 'Set5').rglob('*.png'), *(root / 'Set14').rglob('*.png')]:
            file.rename(file.with_suffix('.PNG'))
        for name in ('Set5', 'Set14'):
            assert [pair.lq.suffix for pair in images_of(root / name, 2)] == ['.PNG', '.PNG']

    def test_what_is_not_there_is_named(self, root, tmp_path):
        with pytest.raises(UserError, match='has no B100; it has'):
            find_sets(root, ['B100'], 2)
        with pytest.raises(UserError, match='does not exist'):
            find_sets(tmp_path / 'nowhere', None, 2)
        (tmp_path / 'empty').mkdir()
        with pytest.raises(UserError, match='has no Set5 or Set14'):
            find_sets(tmp_path / 'empty', ['all'], 2)
        with pytest.raises(UserError, match='holds no images in a known layout'):
            find_sets(tmp_path / 'empty', None, 2)


class TestCommand:
    def test_scores_in_every_file(self, root, weights, tmp_path):
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out', '--json')
        assert done.exit_code == 0, done.output
        told = json.loads((tmp_path / 'out' / 'report.json').read_text())
        net = HASN(**TINY).eval()
        net.load_state_dict(torch.load(weights, weights_only=True)['params'])
        scores = []
        for y in (20, 120):
            gt, lq = photo(y, 150), imresize(photo(y, 150), scale=0.5)
            with torch.no_grad():
                out = net(torch.from_numpy(lq).permute(2, 0, 1)[None] / 255)[0].clamp(0, 1)
            scores.append(score_y((out * 255).round().byte().permute(1, 2, 0).numpy(), gt, 2))
        mean = np.mean(scores, axis=0)
        for name in ('Set5', 'Set14', 'Urban100'):
            assert [told['means'][name][key] for key in ('psnr', 'ssim')] == pytest.approx(mean.tolist(), abs=1e-3)
        rows = list(csv.DictReader(io.StringIO((tmp_path / 'out' / 'report.csv').read_text())))
        assert len(rows) == 6
        assert float(rows[0]['psnr']) == told['images'][0]['psnr']
        text = (tmp_path / 'out' / 'report.md').read_text()
        assert f'| Set5 | 2 | {told["means"]["Set5"]["bicubic_psnr"]:.2f} /' in text
        assert 'border 2, HR cropped to multiples of 2, whole images, SSIM where' in text

    def test_self_ensemble_and_tiles_change_the_scores_and_the_protocol(self, root, weights, tmp_path):
        values = []
        for extra in ([], ['--self-ensemble'], ['--tile', '20', '--overlap', '8']):
            arguments = ['--weights', weights, '--data', root, '--sets', 'Set5', '--out', tmp_path / 'out', '--json']
            done = run(*SETTINGS, *arguments, *extra)
            assert done.exit_code == 0, done.output
            values.append(json.loads(done.stdout)['means']['Set5']['psnr'])
        assert len(set(values)) == 3

    def test_the_option_file_says_the_protocol_unless_the_command_line_does(self, root, weights, tmp_path):
        file = tmp_path / 'opt.yml'
        opt = {
            'scale': 2,
            'network_g': {'type': 'HASN', **TINY},
            'path': {'pretrain_network_g': str(weights)},
            'val': {'tile': {'size': 20, 'overlap': 8, 'blend': 'feather'}, 'self_ensemble': True},
        }

        def protocol(*extra):
            file.write_text(yaml.safe_dump(opt))
            words = ['-opt', file, '--data', root / 'Set5', '--sets', 'Set5', '--out', tmp_path / 'out', '--json']
            done = run(*words, '--show', '0', *extra)
            assert done.exit_code == 0, done.output
            told = json.loads(done.stdout)
            return told['protocol'].split(', ', 3)[3].removesuffix(', SSIM where its window fits'), told['means'][
                'Set5'
            ]['psnr']

        tiled, score = protocol()
        assert tiled == 'tiles 20, overlap 8, feather, self-ensemble'
        plain, other = protocol('--tile', '0', '--no-self-ensemble')
        assert (plain, other == score) == ('whole images', False)
        assert protocol('--blend', 'mean', '--overlap', '4')[0] == 'tiles 20, overlap 4, mean, self-ensemble'
        opt['val'] = {'tile': {'size': 20}}
        assert protocol()[0] == 'tiles 20, overlap 0, mean', 'as EffSRModel reads it'
        opt['val'] = None
        assert protocol() == (plain, other)

    @pytest.mark.parametrize(
        ('change', 'words'),
        [
            (['--arch', 'HASM'], "there is no network 'HASM'"),
            (['--set', 'num_faet=3'], 'num_faet'),
            (['--set', 'num_feat'], '--set must be key=value'),
            (['--scale', '4'], 'another scale'),
            (['--tile', '16'], 'overlap from 0 to tile - 1'),
            (['--device', 'cuda:99'], "device 'cuda:99' cannot be used"),
            (['--sets', 'Set99'], 'has no Set99'),
            (['--overlap', '8'], '--overlap need tiles; give --tile'),
            (['--tile', '32', '--blend', 'mix'], 'blend must be one of'),
            (['--show', '-3'], "'--show'"),
        ],
    )
    def test_bad_input_is_one_sentence_and_nothing_is_written(self, root, weights, tmp_path, change, words):
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out', *change)
        assert done.exit_code == 2
        assert words in done.output
        assert 'Traceback' not in done.output
        assert not (tmp_path / 'out').exists()

    def test_pairs_of_another_scale_are_refused(self, root, weights, tmp_path):
        for file in (root / 'Set5' / 'GTmod12').iterdir():
            save(photo(0, 0, 30, 30), file)
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--sets', 'Set5', '--out', tmp_path / 'out')
        assert done.exit_code == 2
        assert 'must be 2 times' in done.output

    def test_a_network_that_overflows_has_no_score(self, root, weights, tmp_path):
        state = torch.load(weights, weights_only=True)['params']
        next(iter(state.values())).fill_(1e38)
        torch.save({'params': state}, weights)
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out')
        assert done.exit_code == 2
        assert '0.png: HASN gave NaN' in done.output
        assert not (tmp_path / 'out').exists()

    def test_memory_that_runs_out_is_one_sentence_and_a_bug_is_not(self, root, weights, tmp_path, monkeypatch):
        arguments = [*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out']
        for text in ("DefaultCPUAllocator: can't allocate memory", 'shapes cannot be multiplied'):

            def fail(self, x, text=text):
                raise RuntimeError(text)

            monkeypatch.setattr(HASN, 'forward', fail)
            done = run(*arguments)
            if text.startswith('Default'):
                assert done.exit_code == 2
                assert 'an image of 30x24 needs more memory than there is; give tiles' in done.output
            else:
                assert done.exit_code == INTERNAL

    def test_a_folder_that_cannot_be_made_is_said_before_the_work(self, root, weights, tmp_path):
        weights.unlink()
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', root / 'Set5' / 'GTmod12' / '0.png')
        assert done.exit_code == 2
        assert '0.png is a file, must be a folder' in done.output


def large(folder: Path, side: int = 100) -> Path:
    """Set5 as SwinIR lays it out, one photograph at x4 whose sides are no multiples of 12."""
    gt = photo(20, 150, side, side)
    save(gt, folder / 'Set5' / 'HR' / 'a.png')
    save(imresize(gt, scale=0.25), folder / 'Set5' / 'LR_bicubic' / 'X4' / 'ax4.png')
    return folder


class TestSeveral:
    @pytest.fixture
    def nets(self, tmp_path) -> list[object]:
        words: list[object] = []
        for name, width in (('a', 8), ('b', 10)):
            torch.manual_seed(0)
            torch.save({'params': HASN(**TINY | {'num_feat': width}).state_dict()}, tmp_path / f'{name}.pth')
            words += ['--weights', tmp_path / f'{name}.pth']
        return words

    def test_side_by_side_with_paired_differences(self, root, nets, tmp_path):
        done = run(*nets, '--data', root, '--sets', 'all', '--out', tmp_path / 'out', '--json')
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert json.loads((tmp_path / 'out' / 'report.json').read_text()) == told
        first, other = told['models']
        assert [first['name'], other['name']] == ['HASN, a', 'HASN, b']
        alone = run('--weights', tmp_path / 'b.pth', '--data', root, '--out', tmp_path / 'one', '--json')
        assert json.loads(alone.stdout)['means']['Set14']['psnr'] == other['means']['Set14']['psnr']
        assert [(row['set'], row['network'], row['reference'], row['images']) for row in told['paired']] == [
            (name, 'HASN, b', 'HASN, a', 2) for name in ('Set5', 'Set14', 'Urban100')
        ]
        means = [report['means']['Set5']['psnr'] for report in (first, other)]
        assert told['paired'][0]['psnr']['mean'] == pytest.approx(means[1] - means[0])
        rows = list(csv.DictReader(io.StringIO((tmp_path / 'out' / 'report.csv').read_text())))
        assert [row['network'] for row in rows] == ['HASN, a'] * 6 + ['HASN, b'] * 6
        page = (tmp_path / 'out' / 'report.html').read_text()
        assert page.count('<img ') == 6 * 7, 'two nets with bicubic on top, two errors, HR'
        for head in ('HASN, a PSNR', 'HASN, b gain'):
            assert head in page

    def test_labels_name_them_and_one_network_goes_for_many_checkpoints(self, root, nets, tmp_path):
        labelled = [f'--model={label}={tmp_path}/{name}.pth' for label, name in (('Small', 'a'), ('Wide', 'b'))]
        done = run(*labelled, '--data', root, '--sets', 'Set5', '--out', tmp_path / 'out', '--show', 0)
        assert done.exit_code == 0, done.output
        assert re.findall(r'^│ (Small|Wide)', done.stdout, re.M) == ['Small', 'Wide']
        twice = ['--weights', tmp_path / 'a.pth', *nets[:2], '--arch', 'HASN', *SETTINGS[2:]]
        done = run(*twice, '--data', root, '--sets', 'Set5', '--out', tmp_path / 'out', '--show', 0, '--json')
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert [report['name'] for report in told['models']] == ['HASN, a, 1', 'HASN, a, 2']
        (pair,) = told['paired']
        assert (pair['better'], pair['psnr']) == (0, {'mean': 0.0, 'low': None, 'high': None, 'p': None})

    def test_what_cannot_stand_side_by_side_is_refused(self, root, nets, tmp_path):
        torch.save({'params': HASN(**TINY | {'upscale': 4}).state_dict()}, tmp_path / 'x4.pth')
        where = ['--data', root, '--out', tmp_path / 'out']
        for words, said in (
            ([*nets, '--weights', tmp_path / 'x4.pth'], 'same scale'),
            ([*nets, '--arch', 'HASN', '--arch', 'HASN', '--arch', 'HASN'], 'equally often'),
            (
                [*nets, '--model', tmp_path / 'a.pth', '--model', tmp_path / 'b.pth'],
                '--model names network and weights',
            ),
        ):
            done = run(*words, *where)
            assert done.exit_code == 2
            assert said in done.output

    def test_several_are_measured_alike_unless_their_papers_are_asked_for(self, tmp_path):
        large(tmp_path / 'sets')
        for name, net in (('hasn', HASN()), ('imdn', IMDN())):
            torch.save({'params': net.state_dict()}, tmp_path / f'{name}.pth')
        words = ['--model', tmp_path / 'hasn.pth', '--model', tmp_path / 'imdn.pth', '--data', tmp_path / 'sets']
        words += ['--out', tmp_path / 'out', '--show', 0]
        alike = json.loads(run(*words, '--json').stdout)['models']
        assert alike[0]['protocol'] == alike[1]['protocol']
        assert 'the paper:' in alike[0]['remarks'][0], 'HASN and its paper'
        own = run(*words, '--protocol', 'paper')
        assert own.exit_code == 0, own.output
        assert 'networks use different protocols' in own.stdout


def test_paired_differences_are_those_of_the_textbook():
    """Student's sleep data (Biometrika 6, 1908): mean 1.58, t = 4.0621 on 9 degrees of freedom, p = 0.00283."""
    other = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    found = reports.Difference.of(other, first)
    assert (found.mean, found.low, found.high) == pytest.approx((1.58, 0.70011, 2.45989), abs=1e-5)
    assert found.p == pytest.approx(0.002833, abs=1e-6)


@pytest.mark.parametrize(('ours', 'theirs'), [([1.0], [2.0]), ([2.0, 3.0], [1.0, 2.0]), ([np.inf, 1.0], [1.0, 2.0])])
def test_differences_that_tell_no_interval(ours, theirs):
    found = reports.Difference.of(ours, theirs)
    assert (found.low, found.high, found.p) == (None, None, None)


class TestProtocol:
    @pytest.fixture
    def report(self, tmp_path):
        """``report(network, *arguments)``: the JSON of a paper's network at x4, as initialised."""

        def made(name: str, *extra: object) -> dict:
            torch.manual_seed(0)
            torch.save({'params': {'HASN': HASN, 'ASID': ASID}[name]().state_dict()}, tmp_path / 'x4.pth')
            where = ['--weights', tmp_path / 'x4.pth', '--data', tmp_path / 'sets', '--sets', 'Set5']
            done = run('--arch', name, *where, '--out', tmp_path / 'out', '--json', '--show', 0, *extra)
            assert done.exit_code == 0, done.output
            return json.loads(done.stdout)

        large(tmp_path / 'sets')
        return made

    def test_a_papers_own_is_followed_unless_told_otherwise(self, report, tmp_path):
        paper = report('HASN')
        assert 'multiples of 12, whole images, self-ensemble, SSIM where' in paper['protocol']
        cropped = large(tmp_path / 'cropped')  # what the crop leaves, as files
        gt = read_rgb(cropped / 'Set5' / 'HR' / 'a.png')[:96, :96]
        save(gt, cropped / 'Set5' / 'HR' / 'a.png')
        lq = read_rgb(cropped / 'Set5' / 'LR_bicubic' / 'X4' / 'ax4.png')[:24, :24]
        save(lq, cropped / 'Set5' / 'LR_bicubic' / 'X4' / 'ax4.png')
        same = report('HASN', '--protocol', 'plain', '--self-ensemble', '--data', cropped)
        assert [paper['images'][0][key] for key in ('psnr', 'bicubic_ssim')] == [
            same['images'][0][key] for key in ('psnr', 'bicubic_ssim')
        ]
        assert report('HASN', '--protocol', 'paper')['means']['Set5']['psnr'] == paper['means']['Set5']['psnr']
        assert 'multiples of 4, whole images, SSIM where' in report('HASN', '--protocol', 'plain')['protocol']

    def test_tiles_and_the_ssim_of_asid(self, report, tmp_path):
        paper = report('ASID')
        assert paper['protocol'].endswith("tiles 64, overlap 24, mean, MATLAB's ssim()")
        gt = photo(20, 150, 100, 100)
        cubic = imresize(imresize(gt, scale=0.25), scale=4)
        assert paper['images'][0]['bicubic_ssim'] == pytest.approx(score_y(cubic, gt, 4, whole=True)[1], abs=1e-12)
        assert score_y(cubic, gt, 4)[1] != pytest.approx(paper['images'][0]['bicubic_ssim'], abs=1e-6)

    def test_what_is_not_measured_alike_is_said(self, report, tmp_path):
        alike = report('HASN')['remarks']
        assert ['not the set of the papers' in line for line in alike] == [True], 'one photograph called Set5'
        other = report('HASN', '--no-self-ensemble')['remarks']
        assert 'the paper:' in other[0]
        assert 'self-ensemble' in other[0]
        assert other[0] in (tmp_path / 'out' / 'report.md').read_text()
        (tmp_path / 'sets' / 'Set5' / 'HR').rename(tmp_path / 'sets' / 'Set5' / 'GTmod12')
        assert report('HASN')['remarks'] == alike
        assert any('GTmod12 are cropped to multiples of 12' in line for line in report('ASID')['remarks'])

    def test_a_smaller_network_of_the_class_is_none_of_the_papers(self, tmp_path):
        large(tmp_path / 'sets')
        torch.save({'params': HASN(**TINY | {'upscale': 4}).state_dict()}, tmp_path / 'net.pth')
        done = run('--weights', tmp_path / 'net.pth', '--data', tmp_path / 'sets', '--out', tmp_path / 'out', '--json')
        told = json.loads(done.stdout)
        assert told['paper'] is None
        assert 'self-ensemble' not in told['protocol']

    def test_without_a_paper_there_is_none_to_follow(self, root, weights, tmp_path):
        done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out', '--protocol', 'paper')
        assert done.exit_code == 2
        assert '--protocol' in done.output

    def test_too_small_an_image_is_named(self, report, tmp_path):
        large(tmp_path / 'tiny', 8)
        torch.save({'params': HASN(**TINY | {'upscale': 4}).state_dict()}, tmp_path / 'net.pth')
        done = run('--weights', tmp_path / 'net.pth', '--data', tmp_path / 'tiny', '--out', tmp_path / 'out')
        assert done.exit_code == 2
        assert 'a.png' in done.output


@pytest.mark.slow
def test_commands_of_the_pages_give_the_scores_beside_them(reference, tmp_path, monkeypatch):
    """Typed as they stand, with the folder of the reference data for the one of the page, and its weights by name."""
    monkeypatch.setenv('EFFSR_CACHE', str(tmp_path / 'cache'))
    assert CliRunner().invoke(app, ['zoo', 'import', str(reference / 'checkpoints')]).exit_code == 0
    told: dict[str, set[str]] = {}
    for page in ('README.md', 'docs/tools.md'):
        text = (ROOT / page).read_text(encoding='utf-8')
        shown = re.findall(
            r'^\$ effsr evaluate (--model (?!.*--model).*?)(?: +#.*)?\n(?:.*\n)+? '
            r'Set5 .*? [\d.]+ / [\d.]+ +([\d.]+ / [\d.]+)',
            text,
            re.M,
        )
        for words, score in [*shown, *re.findall(r'`effsr evaluate (--model .*?)` \| ([\d.]+ / [\d.]+) ', text)]:
            told.setdefault(words, set()).add(score)
    assert len(told) == 6
    for words, scores in told.items():
        given = words.replace('datasets/benchmark', str(reference / 'set5')).split()
        done = run(*given, '--out', tmp_path / 'out', '--show', '0', '--json')
        assert done.exit_code == 0, done.output
        mean = json.loads(done.stdout)['means']['Set5']
        (psnr, ssim), *others = {tuple(map(float, score.split(' / '))) for score in scores}
        assert not others, words
        # a value that lies where rounding turns may print another last digit on another machine
        assert abs(mean['psnr'] - psnr) < 0.006, words
        assert abs(mean['ssim'] - ssim) < 0.00006, words
        assert ('no-self' in words or 'plain' in words) == bool(json.loads(done.stdout)['remarks'])
    (words, shown), *_ = re.findall(r'^\$ effsr evaluate (.*--model .*--model .*)\n((?:.+\n)+)', text, re.M)
    done = run(*words.replace('datasets/benchmark', str(reference / 'set5')).split(), '--out', tmp_path / 'out')
    cells = [[cell.strip() for cell in line.split('│')] for line in (shown, done.stdout) for line in line.splitlines()]
    rows = [tuple(row) for row in cells if 'AGDN' in row or 'IMDN, paper' in row]
    assert len(rows) == 2 * 3
    assert rows[:3] == rows[3:], 'two tables of the page'


class TestReading:
    @pytest.mark.parametrize('suffix', ['png', 'tif'])
    def test_16_bits_are_rounded_to_8(self, tmp_path, suffix):
        deep = np.array([[[0, 128, 129], [256, 257, 65535], [32768, 385, 386]]], np.uint16)
        cv2.imwrite(str(tmp_path / f'a.{suffix}'), deep[..., ::-1])
        expected = [[[0, 0, 1], [1, 1, 255], [128, 1, 2]]]
        assert read_rgb(tmp_path / f'a.{suffix}').tolist() == expected
        cv2.imwrite(str(tmp_path / f'g.{suffix}'), deep[..., 0])
        assert read_rgb(tmp_path / f'g.{suffix}').tolist() == [[[0] * 3, [1] * 3, [128] * 3]]

    def test_gray_and_alpha_become_rgb(self, tmp_path):
        Image.fromarray(np.array([[3, 250]], np.uint8)).save(tmp_path / 'g.png')
        assert read_rgb(tmp_path / 'g.png').tolist() == [[[3] * 3, [250] * 3]]
        Image.fromarray(np.array([[[1, 2, 3, 0]]], np.uint8)).save(tmp_path / 'a.png')
        assert read_rgb(tmp_path / 'a.png').tolist() == [[[1, 2, 3]]]

    def test_pixels_of_other_kinds_are_refused(self, tmp_path):
        Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / 'f.tif')
        with pytest.raises(UserError, match=r'f\.tif cannot be read as an image'):
            read_rgb(tmp_path / 'f.tif')


def test_error_map_is_black_where_equal_and_white_where_far():
    gt = np.zeros((2, 2, 3), np.uint8)
    image = gt.copy()
    image[0, 0] = 255
    shown = reports.error_map(image, gt)
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[1, 1].tolist() == [0, 0, 0]


def test_worst_is_the_least_gain_over_bicubic():
    rows = [ImageScore('s', str(i), psnr, 0.9, 30.0, 0.9, 0.1) for i, psnr in enumerate((31, 29, 30.5))]
    report = reports.EvaluationReport('N', 1, 2, None, '', '', rows)
    assert reports.worth_showing(reports.Evaluation([report]), 2) == [1, 2]


@pytest.mark.parametrize(
    ('psnr', 'ssim', 'gap'),
    [
        (32.0, 0.89, '-0.23 / -0.0060'),
        (32.2295, 0.89603, '+0.00 / +0.0000'),  # a difference that rounds to zero has no sign
        (32.2, 0.89603, '-0.03 / +0.0000'),
    ],
)
def test_paper_row_stands_beside_ours(psnr, ssim, gap):
    rows = [ImageScore('Set5', 'a', psnr, ssim, 28.0, 0.8, 0.1)]
    paper = {'scores': {'Set5': [32.23, 0.896]}, 'source': 'Table 1'}
    report = reports.EvaluationReport('N', 1, 4, None, '', '', rows, paper)
    assert f'| 32.23 / 0.8960 | {gap} |' in reports.texts(reports.Evaluation([report]))['report.md']


@pytest.mark.slow
def test_page_in_a_browser(root, weights, tmp_path):
    browser = next(
        (path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None
    )
    if browser is None or shutil.which('chromedriver') is None:
        pytest.skip('needs chromium and chromedriver on the PATH')
    webdriver = pytest.importorskip('selenium.webdriver', reason="needs selenium: pip install -e '.[dev]'")
    done = run(*SETTINGS, '--weights', weights, '--data', root, '--out', tmp_path / 'out', '--show', '3')
    assert done.exit_code == 0, done.output
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run'),
        *(
            '--disable-component-update',
            '--disable-sync',
            f'--user-data-dir={tmp_path / "profile"}',
            '--window-size=1200,1600',
        ),
    ):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        driver.get((tmp_path / 'out' / 'report.html').as_uri())
        loaded = driver.execute_script('return [...document.images].map(i => i.complete && i.naturalWidth > 0)')
        assert loaded == [True] * 12
        slide = (
            'const r = document.querySelector("input[type=range]"); r.value = 80; r.dispatchEvent(new Event("input"));'
        )
        driver.execute_script(slide)
        assert (
            driver.execute_script('return document.querySelector(".slider .top").style.clipPath')
            == 'inset(0px 20% 0px 0px)'
        )
        assert driver.execute_script('return document.querySelector(".slider .bar").style.left') == '80%'
        values = 'return [...document.querySelectorAll("#images tbody tr")].map(r => Number(r.cells[2].textContent))'
        driver.execute_script('document.querySelector("th[data-sort=\\"2\\"]").click()')
        scores = driver.execute_script(values)
        assert scores == sorted(scores, reverse=True)
        assert [entry for entry in driver.get_log('browser') if entry['level'] == 'SEVERE'] == []
        driver.save_screenshot(str(tmp_path / 'page.png'))
    finally:
        driver.quit()
