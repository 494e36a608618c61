"""Studies: option files, page, first steps of the authors' trainings (``studies.same_training`` has them all)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import avg_pool2d

from basicsr_effsr.options.check import inspected
from studies import report
from studies.run import HERE, lacking, main, options_of, studies
from studies.same_training import CURVES, Batches, of_photographs, ours_of, through_the_host, train

TOLERANCE = {  # of the loss in float64
    'hasn_x4_l1': 1e-14,  # two sums in another order
    'hasn_x4_l1_kl': 1e-14,
    'agdn_x4_l1': 1e-10,  # divides by deviations near zero, which lets rounding grow
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CURVES)
def test_our_training_follows_the_authors(golden, name):
    stored, (network, kl_weight) = golden(f'curves/{name}'), CURVES[name]
    net = ours_of(network, stored['state_dict'], torch.float64, upscale=4)
    curve = train(net, Batches(stored['lq'], stored['gt']), 8, kl_weight)
    torch.testing.assert_close(curve, stored['curve'][:8], rtol=0, atol=TOLERANCE[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', CURVES)
def test_the_hosts_own_steps_follow_the_authors(golden, name):
    """In float32, by BasicSR's SRModel, or ours where there are two losses."""
    stored, (network, kl_weight) = golden(f'curves/{name}'), CURVES[name]
    curve = through_the_host(network, stored, kl_weight, 4)
    torch.testing.assert_close(curve, stored['curve'][:4].sum(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(('line', 'equal'), [('x * self.attention(x)', True), ('1.001 * x * self.attention(x)', False)])
def test_an_arch_file_that_somebody_names_is_trained_beside_ours(tmp_path, line, equal):
    """A file that registers a HASN of its own, as the authors' does; equal, then with one line changed."""
    text = (HERE.parent / 'basicsr_effsr' / 'archs' / 'hasn_arch.py').read_text(encoding='utf-8')
    text = text.replace('from .effsr_blocks', 'from basicsr_effsr.archs.effsr_blocks')
    text = text.replace('@register_in(ARCH_REGISTRY)', '@ARCH_REGISTRY.register()').replace(
        'x * self.attention(x)', line
    )
    (tmp_path / 'their_arch.py').write_text(text, encoding='utf-8')
    small = json.dumps({'upscale': 2, 'num_feat': 8, 'num_block': 1})
    words = ['--theirs', f'{tmp_path}/their_arch.py:HASN', '--theirs-options', small, '--options', small]
    words += ['--iterations', '6', '--kl', '1', '--out', f'{tmp_path}/out.json']
    done = subprocess.run(
        [sys.executable, '-m', 'studies.same_training', *words], cwd=HERE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'out.json').read_text())
    assert (found['parted'] is None) == equal
    assert (found['theirs'] == found['ours']) == equal
    assert ('the same training' if equal else 'other from step') in done.stdout


def test_the_patches_of_a_comparison_are_pairs():
    batches = of_photographs(2)
    lq, _ = batches.pair(12, torch.float64)
    assert torch.equal(lq, batches.pair(0, torch.float64)[0]), 'twelve batches, one after the other'
    assert lq.shape == (2, 3, 24, 24)
    assert len(batches.lq) == 12
    away = (avg_pool2d(batches.gt.flatten(0, 1) / 255, 2) - batches.lq.flatten(0, 1) / 255).abs().mean()
    assert away < 0.02, 'an LR pixel is near the mean of its HR pixels'
    assert (lq - lq.roll(1, -1)).abs().mean() > 0.02, 'and other patches would be further away'


ABSENT = ('datasets.train.dataroot_', 'datasets.val.dataroot_', 'path.pretrain_network_')  # data that a run prepares


@pytest.mark.parametrize('name', [name for name in studies() if name != 'every'])
def test_every_run_of_a_study_is_an_option_file_without_a_fault(name):
    study = studies()[name]
    for run in study['runs']:
        options = options_of(study, run)
        if options['train']['total_iter']:  # 0 scores published weights
            found = [problem for problem in inspected(options, True).found if problem.fatal]
            assert not [p for p in found if not p.where.startswith(ABSENT)], run
    assert {run for claim in study['claims'] for run in claim} <= study['runs'].keys()


def test_a_study_whose_weights_are_absent_says_so_before_anything_is_done(tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['agdn_tlc', '--reference', str(tmp_path), '--work', str(tmp_path / 'work')])
    assert f'agdn_tlc needs {tmp_path / "checkpoints" / "agdn_x4_official.pth"}, which' in capsys.readouterr().err
    assert not (tmp_path / 'work').exists()
    assert not lacking(studies()['hasn_kl'], tmp_path)
    assert [path.name for path in lacking(studies()['hasn_full'], tmp_path)] == ['HR', 'X4']


def test_the_page_of_results_is_what_the_studies_gave():
    assert (HERE.parent / 'docs' / 'results.md').read_text(encoding='utf-8').endswith(report.page())


@pytest.mark.parametrize(
    ('seeds', 'told'),
    [
        ([0.1], 'inconclusive'),
        ([0.1, 0.11, 0.09], 'holds'),
        ([0.1, -0.1, 0.3], 'inconclusive'),
        ([-0.1, -0.11, -0.09], 'does not hold'),
    ],
)
def test_a_claim_holds_where_no_seed_would_turn_it(seeds, told):
    assert report.verdict(seeds, [], trained=True)[1] == told
