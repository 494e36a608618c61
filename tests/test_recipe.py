"""``effsr recipe``: option files of the package with somebody's data filled in."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.options.check import inspected
from basicsr_effsr.tools.recipe import recipes

NAMES = [(name, kind) for kind in ('train', 'test') for name in recipes(kind)]


def said(*words: str) -> str:
    result = CliRunner().invoke(app, ['recipe', *words])
    assert result.exit_code == 0, result.output
    return result.output


def dataroots(opt: dict) -> list[str]:
    return [
        value
        for data in opt['datasets'].values()
        for key, value in data.items()
        if key in ('dataroot_gt', 'dataroot_lq')
    ]


@pytest.mark.parametrize('folder', ['/data/sets', "my sets: #1 'a'"])
@pytest.mark.parametrize(('name', 'kind'), NAMES)
def test_a_recipe_is_the_shipped_file_with_data_elsewhere(name, kind, folder):
    text = said(name, '--data', folder, *['--test'] * (kind == 'test'))
    shipped = recipes(kind)[name].read_text(encoding='utf-8')
    opt, original = yaml.safe_load(text), yaml.safe_load(shipped)
    assert dataroots(opt) == [root.replace('datasets', folder, 1) for root in dataroots(original)]
    for data in (*opt['datasets'].values(), *original['datasets'].values()):
        for key in ('dataroot_gt', 'dataroot_lq', 'meta_info'):
            data.pop(key, None)
    assert opt == original
    assert len(text.splitlines()) == 1 + len(shipped.splitlines())
    assert not re.search(r'options/\w+/\w+\.yml', text)


@pytest.mark.parametrize('name', [name for name, kind in NAMES if kind == 'train' and 'realworld' not in name])
def test_a_recipe_from_packs_lacks_nothing_but_data_and_weights(name):
    opt = yaml.safe_load(said(name, '--data', 'sets', '--pack'))
    assert opt['datasets']['train']['type'] == 'PackedPairedImageDataset'
    assert all(root.endswith('.pack') for root in dataroots(opt)[:2])
    found = [problem for problem in inspected(opt, True).found if problem.fatal]
    assert not [p for p in found if not re.search(r'\.dataroot_|^path\.pretrain_network_', p.where)]


def test_list_knows_what_comes_before():
    rows = {row['name']: row for row in json.loads(said('list', '--json'))}
    assert rows.keys() == recipes('train').keys()
    stages = [rows[name]['stage'] for name in ('dparn_teacher_x4', 'dparn_x4_distill', 'dparn_x4_finetune')]
    assert stages == [1, 2, 3]
    assert rows['hasn_x4_warmstart']['after'] == 'hasn_x4'
    assert (rows['agdn_x3']['network'], rows['agdn_x3']['scale']) == ('AGDN', 3)
    assert all(row['reproduces'] for row in rows.values())
    assert {row['name'] for row in json.loads(said('--test', '--json'))} == recipes('test').keys()
    assert all(name in said('list') for name in rows)


@pytest.mark.parametrize(
    ('words', 'word'),
    [(['hasn_4'], 'hasn_x4'), (['hasn_x4', '--test', '--pack'], '--pack'), (['hasn_x4_realworld', '--pack'], '--pack')],
)
def test_what_there_is_not_is_a_sentence(words, word):
    result = CliRunner().invoke(app, ['recipe', *words])
    assert result.exit_code == 2
    assert word in result.output
