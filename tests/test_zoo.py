"""Weights by name: fetched once, pinned, kept; authors' files known by hash or content; one's own added."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from host import logged
from runs import short_run, write
from typer.testing import CliRunner

from basicsr_effsr.archs.asid_arch import ASID
from basicsr_effsr.archs.imdn_arch import IMDN
from basicsr_effsr.cli import app
from basicsr_effsr.options.check import inspected
from basicsr_effsr.utils.download import DownloadError
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import digest_of
from basicsr_effsr.utils.stored import read_metadata
from basicsr_effsr.weights import zoo

TINY = {'upscale': 2, 'num_feat': 8, 'num_block': 1}


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def net() -> IMDN:
    torch.manual_seed(0)
    return IMDN(**TINY)


@pytest.fixture
def author(tmp_path, monkeypatch, net):
    """A server of loopback with a repository that holds ``tiny_x2``, an empty cache, and what it was asked for."""
    home = tmp_path / 'server'
    file = home / 'someone/Net/abc/net.pth'
    file.parent.mkdir(parents=True)
    torch.save({'params': net.state_dict()}, file)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(home))

        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    data = file.read_bytes()
    content = zoo.content_of(net.state_dict())
    known = {'network': {'type': 'IMDN', **TINY}, 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    model = zoo.Published('tiny_x2', 'someone/Net', 'abc', 'MIT', 'net.pth', **known, content=content)
    by_hand = zoo.Published('asid_x2', 'someone/ASID', None, None, 'somewhere', {'type': 'ASID', 'upscale': 2})
    monkeypatch.setattr(zoo, 'published', lambda: {'tiny_x2': model, 'asid_x2': by_hand})
    monkeypatch.setenv('EFFSR_MIRROR', f'http://127.0.0.1:{server.server_port}/')
    monkeypatch.setenv('EFFSR_CACHE', str(tmp_path / 'cache'))
    yield file, asked
    server.shutdown()


def test_a_name_is_fetched_once_and_then_works_offline(author, tmp_path):
    said = []
    file = zoo.located('zoo://tiny_x2', say=said.append)
    assert file.read_bytes() == author[0].read_bytes()
    assert 'someone/Net' in said[0]
    assert 'MIT' in said[0]
    author[0].unlink()
    assert zoo.located('zoo://tiny_x2') == file
    assert author[1] == ['/someone/Net/abc/net.pth']
    assert zoo.located(tmp_path / 'w.pth') == tmp_path / 'w.pth', 'a path is itself'


def test_what_differs_from_the_pin_is_refused_at_the_server_and_in_the_cache(author):
    whole = author[0].read_bytes()
    author[0].write_bytes(whole[:-1] + b'?')
    with pytest.raises(DownloadError, match='sha256'):
        zoo.located('zoo://tiny_x2')
    assert not zoo.kept('tiny_x2').exists()
    author[0].write_bytes(whole)
    zoo.located('zoo://tiny_x2').write_bytes(b'damaged since')
    with pytest.raises(UserError, match='SHA-256'):
        zoo.located('zoo://tiny_x2')


@pytest.mark.parametrize('name', ['tiny_x3', 'asid_x2', ''])
def test_names_that_cannot_be_fetched_say_what_to_do(author, name):
    result = run('zoo', 'fetch', name)
    assert (result.exit_code, result.stderr.count('\n')) == (2, 1)
    assert 'effsr zoo' in result.stderr
    assert author[1] == []


def test_files_are_known_by_hash_by_parameters_or_by_network(author, tmp_path, net):
    given = tmp_path / 'given'
    given.mkdir()
    (given / 'a.pth').write_bytes(author[0].read_bytes())
    torch.save({'params_ema': {f'module.{k}': v for k, v in net.state_dict().items()}}, given / 'b.pth')
    torch.save(ASID(upscale=2).state_dict(), given / 'c.pth')
    torch.save(IMDN(**TINY | {'num_block': 2}).state_dict(), given / 'd.pth')
    (given / 'e.pth').write_bytes(b'no checkpoint')
    assert [zoo.known_as(given / f'{x}.pth') for x in 'abcd'] == [
        ('tiny_x2', 'hash'),
        ('tiny_x2', 'content'),
        ('asid_x2', 'network'),
        None,
    ]
    result = run('zoo', 'import', given)
    assert result.exit_code == 0, result.output
    assert result.output.count('\n') == 5
    assert sorted(f.name for f in zoo.folder().iterdir()) == [
        'asid_x2.pth',
        'asid_x2.sha256',
        'tiny_x2.pth',
        'tiny_x2.sha256',  # the last one of that name was known by its parameters
    ]
    assert zoo.located('zoo://asid_x2') == zoo.kept('asid_x2')
    zoo.kept('asid_x2').write_bytes((given / 'd.pth').read_bytes())
    with pytest.raises(UserError, match='SHA-256'):
        zoo.located('zoo://asid_x2')


def test_a_model_of_ones_own_has_a_name_and_a_card(author, tmp_path, net):
    option, report = tmp_path / 'run.yml', tmp_path / 'report.json'
    option.write_text('name: run\nmanual_seed: 7\nnetwork_g: {type: IMDN}\nis_train: true\n')
    report.write_text(json.dumps({'protocol': 'Y channel', 'means': {'Set5': {'psnr': 31.5, 'ssim': 0.875}}}))
    words = ('zoo', 'add', 'mine_x2', author[0], '-opt', option, '--scores', report)
    assert run(*words).exit_code == 0
    file = zoo.located('zoo://mine_x2')
    assert read_metadata(file)['network'] == 'IMDN'
    card = file.with_suffix('.md').read_text()
    assert '| Set5 | 31.50 | 0.8750 |' in card
    assert '"manual_seed": 7' in card
    assert run(*words).exit_code == 2, 'taken'
    assert run(*words, '--overwrite').exit_code == 0
    assert run('zoo', 'add', 'tiny_x2', author[0]).exit_code == 2, "an author's"
    assert run('zoo', 'add', '../up', author[0]).exit_code == 2
    for text in ('{"models": []}', '[]', '{'):
        report.write_text(text)
        assert run(*words, '--overwrite').exit_code == 2, 'no report of one network'
    rows = json.loads(run('zoo', '--json').stdout)
    assert [(row['name'], row['state']) for row in rows] == [
        ('tiny_x2', 'on demand'),
        ('asid_x2', 'by hand'),
        ('mine_x2', 'here'),
    ]


@pytest.mark.parametrize('words', [('infer', 'x.png'), ('export',), ('evaluate',), ('benchmark',)], ids=lambda w: w[0])
def test_commands_take_a_name(author, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    result = run(*words, '--model', 'tiny_x3')
    assert result.exit_code == 2
    assert 'tiny_x2' in result.output, 'the nearest name'


def test_option_files_take_names(author, photos):
    opt = short_run(photos, {'type': 'IMDN', 'num_feat': 8, 'num_block': 1}, scale=2)
    opt['path']['pretrain_network_g'] = 'zoo://tiny_x2'
    context = inspected(opt, True)
    assert not [problem for problem in context.found if problem.fatal]
    assert context.opt['path']['pretrain_network_g'] == str(zoo.kept('tiny_x2'))
    assert opt['path']['pretrain_network_g'] == 'zoo://tiny_x2', 'the rules change nothing'
    opt['path']['pretrain_network_g'] = 'zoo://tiny_x3'
    assert [problem.where for problem in inspected(opt, True).found if problem.fatal] == ['path.pretrain_network_g']


@pytest.mark.slow
@pytest.mark.parametrize('model', ['EffSRModel', 'SRModel'])
def test_a_training_begins_with_a_model_of_the_zoo(author, photos, tmp_path, model, net):
    """The unchanged command; the host's own model reads what lies in the cache, too."""
    zoo.folder().mkdir(parents=True)
    torch.save({'params': net.state_dict()}, zoo.kept('imdn_x2'))
    note = zoo.kept('imdn_x2').with_suffix('.sha256')
    note.write_text(digest_of(zoo.kept('imdn_x2')))  # as import notes it
    opt = short_run(photos, {'type': 'IMDN', 'num_feat': 8, 'num_block': 1}, scale=2, iters=2, model_type=model)
    opt['path'] |= {'pretrain_network_g': 'zoo://imdn_x2', 'param_key_g': 'params'}
    opt['datasets']['train']['gt_size'] = 32
    cache = str(zoo.folder().parent)
    log = logged('-m', 'basicsr.train', '-opt', write(opt, tmp_path / 'short.yml'), cwd=tmp_path, EFFSR_CACHE=cache)
    assert str(zoo.kept('imdn_x2')) in log


def test_the_table_is_of_networks_that_exist():
    """Every published entry can be built, and what can be fetched is pinned by commit, size and hash."""
    from basicsr_effsr.weights.build import build

    for name, model in zoo.published().items():
        net = build(model.network, fuse=False)
        assert net.upscale == model.network['upscale'] == int(name[-1])
        pin = (model.url, model.bytes, model.sha256)
        assert all(pin) or not any(pin), name
        assert model.sha256 is None or len(model.sha256) == 64


def test_authors_files_are_those_of_the_table(reference):
    for name in ('hasn_x4', 'agdn_x4', 'agdn_s_x4', 'imdn_x4'):
        file = reference / 'checkpoints' / f'{name}_official.pth'
        model = zoo.published()[name]
        assert zoo.known_as(file) == (name, 'hash')
        assert file.stat().st_size == model.bytes
        from basicsr_effsr.weights.recognise import recognise

        assert zoo.content_of(recognise(file).state) == model.content
