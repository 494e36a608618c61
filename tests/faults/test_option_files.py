"""What is no option file, or one that nobody would write: one sentence, from the check and from the run."""

from __future__ import annotations

import json
import os

import pytest
import yaml
from basicsr.utils import options as host
from runs import TINY_HASN, short_run
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.options.file import MOST_BYTES, read_option_file

BOMB = 'a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]\n' for i in range(1, 12)
)
NO_OPTIONS = {
    'no YAML': 'a: [',
    'no date': 'manual_seed: 2024-13-45',
    'another encoding': 'name: caf\xe9',
    'within itself': 'a: &a {b: *a}',
    'a list': '- a\n- b',
    'nothing': '',
    'a list for a key': '? [a]\n: b',
    'merged sections': 'a: &a {x: 1}\nb: {<<: *a}',
    'code': 'a: !!python/object/apply:os.system [ls]',
    'no text': '\x00\x01',
    'deep brackets': 'a: ' + '[' * 100_000,
    'deep lists': '- ' * 50_000 + 'x',
    'deep aliases': 'a0: &a0 [x]\n' + ''.join(f'a{i}: &a{i} [*a{i - 1}]\n' for i in range(1, 3000)),
    'aliases that explode': BOMB,
    'too large': '# \n' * MOST_BYTES,
}


def checked(file) -> str:
    """The one line that the check prints of what is no option file."""
    result = CliRunner().invoke(app, ['check', '-opt', str(file)])
    assert (result.exit_code, result.stdout, result.stderr.count('\n')) == (2, '', 1)
    return result.stderr


def started(file, folder, monkeypatch) -> str:
    """What a training of the host ends with before it has made anything in the folder."""
    before = sorted(folder.rglob('*'))
    monkeypatch.setattr('sys.argv', ['train', '-opt', str(file)])
    with pytest.raises(SystemExit) as stopped:
        host.parse_options(str(folder), is_train=True)
    assert sorted(folder.rglob('*')) == before
    return str(stopped.value)


@pytest.mark.parametrize('kind', NO_OPTIONS)
def test_what_is_no_option_file_is_one_sentence(tmp_path, monkeypatch, kind):
    file = tmp_path / 'a.yml'
    file.write_bytes(NO_OPTIONS[kind].encode('latin-1'))
    assert str(file) in checked(file)
    if kind != 'aliases that explode':  # which names no class of ours, and without one a file is the host's affair
        assert str(file) in started(file, tmp_path, monkeypatch)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_what_is_no_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe')
    for file in (tmp_path / 'pipe', '/dev/zero', tmp_path, tmp_path / 'none.yml', tmp_path / ('x' * 300)):
        assert str(file) in checked(file)
        assert str(file) in started(file, tmp_path, monkeypatch)


@pytest.fixture
def opt(photos) -> dict:
    return short_run(photos, TINY_HASN, scale=2, iters=2)


def faulty(opt: dict, kind: str) -> str:
    """An option file of ours with one fault of that kind; its name is on the first line."""
    if kind == 'leads elsewhere':
        opt['name'] = '../photos'
    if kind == 'no path':
        del opt['path']
    text = f'name: {opt.pop("name")}\n{yaml.safe_dump(opt)}'
    return text + {'twice': 'name: b\n', 'explodes': BOMB}.get(kind, '')


@pytest.mark.parametrize(
    ('kind', 'named'),
    [
        ('leads elsewhere', 'line 1: name'),
        ('no path', 'path: is missing'),
        ('twice', "'name' twice, on lines 1 and"),
        ('explodes', 'aliases'),
    ],
)
def test_the_check_and_the_run_refuse_alike(opt, tmp_path, monkeypatch, kind, named):
    file = tmp_path / 'a.yml'
    file.write_text(faulty(opt, kind))
    result = CliRunner().invoke(app, ['check', '-opt', str(file)])
    assert result.exit_code in (1, 2)
    assert named in result.output
    assert named in started(file, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    'entry', ['name', 'name=3', 'name=../x', 'train:total_iter=[', 'none:b=1', 'scale:b=1', 'datasets=[1]']
)
def test_the_check_and_the_run_refuse_the_same_changes_of_a_file(opt, tmp_path, monkeypatch, entry):
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump(opt))
    result = CliRunner().invoke(app, ['check', '-opt', str(file), '--force_yml', entry])
    assert result.exit_code in (1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.setattr('sys.argv', ['train', '-opt', str(file), '--force_yml', entry])
    with pytest.raises(SystemExit, match=r'^basicsr_effsr: '):
        host.parse_options(str(tmp_path), is_train=True)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
    'name',
    ['a.', 'a ', ' a', '...', 'a\\b', 'a/b', '/a', '', 3, None, True, ['a'], 'a\nb', 'a\0b', 'x' * 201, 'ä' * 101],
)
def test_a_name_that_leads_elsewhere_on_some_system_is_refused(opt, tmp_path, monkeypatch, name):
    """At the end of a name Windows drops blanks and dots; of a long one logs and locks could not be written."""
    file = tmp_path / 'a.yml'
    file.write_text(yaml.safe_dump({**opt, 'name': name}))
    result = CliRunner().invoke(app, ['check', '-opt', str(file), '--json'])
    found = json.loads(result.stdout)['problems']
    assert [problem['where'] for problem in found if problem['fatal']] == ['name']
    assert 'name: must be a string' in started(file, tmp_path, monkeypatch)


@pytest.mark.parametrize('name', ['~', '.hidden', '[red]a', '100 % {}', '-rf', '画像', 'x' * 200])
def test_any_other_name_is_a_folder(opt, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.yml').write_text(yaml.safe_dump({**opt, 'name': name}))
    monkeypatch.setattr('sys.argv', ['train', '-opt', 'a.yml'])
    found, _ = host.parse_options(str(tmp_path), is_train=True)
    assert found['path']['experiments_root'] == str(tmp_path / 'experiments' / name)


def test_a_file_at_the_limits_is_read(tmp_path):
    file = tmp_path / 'a.yml'
    file.write_text(''.join('  ' * i + f'k{i}:\n' for i in range(40)) + '  ' * 40 + 'x: [' + '1, ' * 4000 + '1]')
    assert list(read_option_file(file)) == ['k0']
