"""The pre-flight check finds each fault, names it with its fix, and lets good files pass."""

from __future__ import annotations

import json
import re

import pytest
import runs
from runs import TINY_HASN, break_option, short_run, write
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.tools.check import problems

FAULTS = {
    'misspelt option': r"network_g\.num_faet: HASN has no option 'num_faet'; did you mean 'num_feat'\?",
    'misspelt network': r"network_g\.type: there is no network 'HASM'; did you mean 'HASN'\?",
    'missing folder': r'datasets\.train\.dataroot_gt: the folder .*nowhere does not exist',
    'unequal count': r'datasets\.train: .*HR/3\.png has no partner .*X4/3\.png \(4 HR and 3 LR images\)',
    'wrong scale': r'datasets\.train: .*0\.png \(192x192\) must be 4 times .*0\.png \(96x96\), found 2 times',
    'unreadable image': r'datasets\.train: .*2\.png cannot be read as an image',
    'other network': r'path\.pretrain_network_g: checkpoint .*other\.pth does not fit HASN: .* of another network',
    'other scale': r'path\.pretrain_network_g: checkpoint .*x2\.pth does not fit HASN: 2 of .* another scale',
    'number as text': r"train\.optim_g\.lr: must be a number, found the text '2e-4' .*; write !!float 2e-4",
    'early end': r'training would end after 11 of 20 iterations, .* set it to \d+',
    'no iteration': r'training would end after 0 of 20 iterations, .* set it to \d+',
    'other upscale': r'network_g\.upscale: must equal scale \(4\), found 2',
    'impossible value': r'network_g: HASN: kernel_size must be odd, got 4',
    'patch too large': r'datasets\.train\.gt_size: .*0\.png \(192x192\) is smaller than the patch of 400',
    'patch no multiple': r'datasets\.train\.gt_size: must be a multiple of scale \(4\), found 98',
    'misspelt train key': r"train\.grad_clipp: EffSRModel does not read this key; did you mean 'grad_clip'\?",
    'misspelt loss option': r"train\.pixel_opt\.loss_wieght: L1Loss has no option .*; did you mean 'loss_weight'\?",
    'misspelt data set': r"datasets\.train\.type: there is no data set .*; did you mean 'EffSRPairedDataset'\?",
    'missing logger key': r'logger: needs use_tb_logger, which BasicSR reads without a default',
    'workers': r'datasets\.val\.persistent_workers: needs num_worker_per_gpu of at least 1',
}


@pytest.mark.parametrize(('kind', 'words'), FAULTS.items(), ids=FAULTS)
def test_each_fault_is_the_one_thing_found(kind, words, photos, tmp_path):
    opt = short_run(photos, TINY_HASN)
    break_option(kind, opt, tmp_path)
    found = [str(problem) for problem in problems(opt, True) if problem.fatal]
    assert len(found) == 1, found
    assert re.search(words, found[0]), found[0]


def test_the_ratio_it_names_is_the_smallest_that_works(photos, tmp_path):
    opt = short_run(photos, TINY_HASN)
    break_option('early end', opt, tmp_path)
    (problem,) = problems(opt, True)
    ratio = int(problem.text.rsplit(' ', 1)[1])
    opt['datasets']['train']['dataset_enlarge_ratio'] = ratio
    assert problems(opt, True) == []
    opt['datasets']['train']['dataset_enlarge_ratio'] = ratio - 1
    assert len(problems(opt, True)) == 1


def test_good_files_pass(photos, tmp_path):
    opt = short_run(photos, TINY_HASN)
    assert problems(opt, True) == []
    import torch

    from basicsr_effsr.archs.hasn_arch import HASN

    torch.save({'params': HASN(num_feat=8, num_block=1, esa_channels=4).state_dict()}, tmp_path / 'net.pth')
    assert problems(runs.tested(opt, tmp_path / 'net.pth'), False) == []


def test_unknown_keys_and_borders_are_warnings(photos):
    opt = short_run(photos, TINY_HASN, sclae=3)
    opt['path']['teacher'] = 'x'
    opt['val']['metrics']['psnr']['crop_border'] = 3
    found = problems(opt, True)
    assert not any(problem.fatal for problem in found)
    assert [problem.where for problem in found] == ['sclae', 'path.teacher', 'val.metrics.psnr.crop_border']
    assert "did you mean 'scale'?" in found[0].text


def test_report_says_what_will_happen(photos, tmp_path):
    file = write(short_run(photos, TINY_HASN), tmp_path / 'short.yml')
    done = CliRunner().invoke(app, ['check', '-opt', file, '--json'])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)['forecast']
    assert told['datasets.train'] == '4 pairs'
    assert told['iterations'] == 20
    assert told['network_g'] == 'HASN, 6,835 parameters'
    assert float(told['memory, activations (estimated, per GPU)'].split()[0]) > 0


def test_exit_codes(photos, tmp_path):
    opt = short_run(photos, TINY_HASN)
    break_option('misspelt option', opt, tmp_path)
    done = CliRunner().invoke(app, ['check', '-opt', write(opt, tmp_path / 'bad.yml')])
    assert done.exit_code == 1
    assert 'fatal: network_g.num_faet' in done.output
    assert CliRunner().invoke(app, ['check', '-opt', str(tmp_path / 'no.yml')]).exit_code == 2
    (tmp_path / 'broken.yml').write_text('a: [1\n')
    done = CliRunner().invoke(app, ['check', '-opt', str(tmp_path / 'broken.yml')])
    assert done.exit_code == 2
    assert 'is not YAML' in done.output
