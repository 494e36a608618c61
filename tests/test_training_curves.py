"""Studies: option files, page, first steps of the authors' trainings (``studies.same_training`` has them all)."""

from __future__ import annotations

import pytest
import torch

from basicsr_effsr.options.check import inspected
from studies import report
from studies.run import HERE, options_of, studies
from studies.same_training import CURVES, train

TOLERANCE = {  # of the loss in float64
    'hasn_x4_l1': 1e-14,  # two sums in another order
    'hasn_x4_l1_kl': 1e-14,
    'agdn_x4_l1': 1e-10,  # divides by deviations near zero, which lets rounding grow
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CURVES)
def test_our_training_follows_the_authors(golden, name):
    stored = golden(f'curves/{name}')
    curve, _ = train(name, stored, iterations=8)
    torch.testing.assert_close(curve, stored['curve'][:8], rtol=0, atol=TOLERANCE[name])


@pytest.mark.parametrize('name', [name for name in studies() if name != 'every'])
def test_every_run_of_a_study_is_an_option_file_without_a_fault(name):
    study = studies()[name]
    for run in study['runs']:
        options = options_of(study, run)
        if options['train']['total_iter']:  # 0 scores published weights
            found = [problem for problem in inspected(options, True).found if problem.fatal]
            assert not [p for p in found if not p.where.startswith(('datasets.', 'path.pretrain_network_'))], run
    assert {run for claim in study['claims'] for run in claim} <= study['runs'].keys()


def test_the_page_of_results_is_what_the_studies_gave():
    assert (HERE.parent / 'docs' / 'results.md').read_text(encoding='utf-8').endswith(report.page())


@pytest.mark.parametrize(
    ('seeds', 'told'),
    [
        ([0.1], 'cannot be told'),
        ([0.1, 0.11, 0.09], 'holds'),
        ([0.1, -0.1, 0.3], 'cannot be told'),
        ([-0.1, -0.11, -0.09], 'does not hold'),
    ],
)
def test_a_claim_holds_where_no_seed_would_turn_it(seeds, told):
    assert report.verdict(seeds, [], trained=True)[1] == told
