"""What the check calls ready runs to its end, and what it refuses it places; see ``mutations.py``."""

from __future__ import annotations

import pytest
from mutations import RECIPES, campaign, judge, make_data, small

COUNT = 60  # about a minute of one core; thousands by python tests/mutations.py


def test_unmutated_recipes_run(tmp_path):
    data = make_data(tmp_path / 'data')
    for recipe in RECIPES[:: len(RECIPES) // 4]:
        (tmp_path / recipe.stem).mkdir()
        assert judge(small(recipe, data), tmp_path / recipe.stem) == ('ran', '')


@pytest.mark.slow
def test_check_and_run_agree_on_mutations(tmp_path):
    counts, wrong = campaign(COUNT, 0, tmp_path)
    print(dict(counts))
    assert not wrong, '\n'.join(wrong)
    assert counts['refused'] > COUNT // 4
    assert counts['ran'] > COUNT // 10
