"""Hostile checkpoints, made by code, in every command that reads one: one sentence within seconds, and no output."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import zipfile
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from runs import TINY_HASN, short_run, twin_of
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.host.loop import _read_state
from basicsr_effsr.models.effsr_model import EffSRModel
from basicsr_effsr.models.run_state import read_side_file
from basicsr_effsr.utils.stored import CheckpointError, load_stored
from basicsr_effsr.weights.build import build, on_meta
from basicsr_effsr.weights.checkpoint import (
    as_pth,
    load_into,
    open_checkpoint,
    read_state_dict,
)
from basicsr_effsr.weights.recognise import recognise

OPTION = {**TINY_HASN, 'upscale': 2}
NAMED = ['--arch', 'HASN', '--scale', '2', '--set', 'num_feat=8', '--set', 'num_block=1', '--set', 'esa_channels=4']
SECONDS = 120  # only what hangs takes longer, on a loaded machine too


@contextmanager
def within(seconds: int):
    def stop(*_):
        raise TimeoutError(f'took more than {seconds} s')

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def weights() -> dict:
    torch.manual_seed(1)
    return dict(build_network(OPTION).state_dict())


def with_first(change) -> bytes:
    """A checkpoint whose first tensor is changed."""
    state = weights()
    first = next(iter(state))
    return as_pth({'params': {**state, first: change(state[first])}})


def holding(value: float) -> bytes:
    return with_first(lambda t: torch.where(torch.arange(t.numel()).view_as(t) == 3, value, t))


def nested(depth: int) -> dict:
    inner: dict = {'w': torch.ones(1)}
    for _ in range(depth):
        inner = {'params': inner}
    return inner


def wide(depth: int) -> dict:
    inner: dict = {'w': 'none'}
    for _ in range(depth):
        inner = dict.fromkeys(('params', 'params_ema', 'model', 'net_g', 'state_dict', 'net'), inner)
    return inner


def itself() -> dict:
    circle: dict = {}
    circle['params'] = circle
    return circle


def header(text: str, data: bytes = bytes(4)) -> bytes:
    return struct.pack('<Q', len(text)) + text.encode() + data


def stating(options: str) -> bytes:
    """A safetensors file of one value that states a network of ours in its header."""
    facts = {'network': 'HASN', 'options': options}
    return header(json.dumps({'__metadata__': facts, 'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}))


def script() -> bytes:
    traced = torch.jit.trace(torch.nn.Conv2d(3, 3, 3), torch.zeros(1, 3, 8, 8))
    return bytes(traced.save_to_buffer())


def bomb(folder) -> bytes:
    file = folder / 'bomb'
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in ('data.pkl', 'data/0'):
            archive.writestr(f'archive/{name}', bytes(2**26))
    data = file.read_bytes()
    file.unlink()
    return data


def empty_sides() -> bytes:
    state = weights()
    state['conv_1.weight'] = torch.zeros(10**9, 3, 3, 0)
    return as_pth(state)


HOSTILE = {
    'not a number': lambda _: holding(float('nan')),
    'infinite': lambda _: holding(float('inf')),
    'integers': lambda _: with_first(lambda t: t.long()),
    'booleans': lambda _: with_first(lambda t: t > 0),
    'complex': lambda _: with_first(lambda t: t.to(torch.complex64)),
    'sparse': lambda _: with_first(lambda t: t.to_sparse()),
    'without values': lambda _: with_first(lambda t: t.to('meta')),
    'quantised': lambda _: with_first(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    'one value for all': lambda _: with_first(lambda t: torch.ones(()).expand(t.shape)),
    'a billion of one value': lambda _: with_first(lambda t: torch.ones(()).expand(10**6, 10**6)),
    'sides of nothing': lambda _: empty_sides(),
    'nested': lambda _: as_pth(nested(100)),
    'within itself': lambda _: b'\x80\x02}q\x00X\x06\x00\x00\x00paramsq\x01h\x00s.',
    'each in each': lambda _: as_pth(wide(5)),
    'behind module. for ever': lambda _: as_pth({'module.' * 10**4 + 'w': torch.ones(1)}),
    'names for ever': lambda _: as_pth({f'\x1b[31m{i}\n' * 50: torch.ones(1) for i in range(10**3)}),
    'TorchScript': lambda _: script(),
    'a bomb': bomb,
    'cut': lambda _: as_pth(weights())[:-300],
    'empty': lambda _: b'',
    'random': lambda _: np.random.default_rng(0).bytes(5000),
    'an image': lambda _: cv2.imencode('.png', np.zeros((8, 8, 3), np.uint8))[1].tobytes(),
    'a million blocks': lambda _: stating('{"num_block": 1000000}'),
    'a billion channels': lambda _: stating('{"num_feat": 1000000000}'),
    'brackets in the options': lambda _: stating('[' * 10**5),
    'brackets in the header': lambda _: header('{"w":' + '[' * 10**6),
    'a header of 2^60 bytes': lambda _: struct.pack('<Q', 2**60) + b'{}',
    'a tensor beyond the end': lambda _: header('{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    (folder / 'data' / 'Set5' / 'GTmod12').mkdir(parents=True)
    cv2.imwrite(str(folder / 'data' / 'Set5' / 'GTmod12' / 'a.png'), np.zeros((48, 48, 3), np.uint8))
    return folder


@pytest.fixture(params=[*HOSTILE, 'a pipe', 'a folder', 'a device'])
def file(request, folder):
    path = folder / 'hostile.pth'
    if request.param == 'a pipe':
        os.mkfifo(path)
    elif request.param == 'a folder':
        path.mkdir()
    elif request.param == 'a device':
        path.symlink_to('/dev/zero')
    else:
        path.write_bytes(HOSTILE[request.param](folder))
    yield path
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize('named', [NAMED, []], ids=['arch', 'weights'])
@pytest.mark.slow
def test_every_command_says_one_sentence_and_writes_nothing(file, folder, named):
    image = folder / 'data' / 'Set5' / 'GTmod12' / 'a.png'
    for arguments in (
        ('convert', file, folder / 'out.pth', *named),
        ('infer', image, '--weights', file, '--out', folder / 'out.png', *named),
        ('export', '--weights', file, '--form', 'pth', '--out', folder / 'out.pth', *named),
        ('evaluate', '--weights', file, '--data', folder / 'data', '--out', folder / 'out', *named),
        ('benchmark', '--weights', file, '--no-latency', '--size', '16x16', '--out', folder / 'out', *named),
    ):
        with within(SECONDS):
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert isinstance(result.exception, SystemExit), (arguments[0], result.exception)
        assert result.exit_code == 2, (arguments[0], result.output)
        assert result.stderr.count('\n') == 1, (arguments[0], result.stderr)
        assert len(result.stderr) < 1500
        assert result.stderr.isascii() or '\x1b' not in result.stderr
        assert 'hostile.pth' in result.stderr
        assert not list(folder.glob('out*'))


def test_check_and_training_refuse_it_too(file, folder, photos):
    with within(SECONDS), pytest.raises(CheckpointError):
        load_into(build_network(OPTION), file)
    opt = short_run(photos, OPTION, scale=2)
    opt['path']['pretrain_network_g'] = str(file)
    (folder / 'test.yml').write_text(yaml.safe_dump(twin_of(opt, file)))
    with within(SECONDS):
        result = CliRunner().invoke(app, ['check', '-opt', str(folder / 'test.yml'), '--json'])
    assert 'path.pretrain_network_g' in {problem['where'] for problem in json.loads(result.stdout)['problems']}


@pytest.mark.parametrize(
    'option',
    [
        *({'type': 'HASN', key: 10**9} for key in ('num_block', 'num_feat', 'num_in_ch', 'num_out_ch', 'mlp_ratio')),
        {'type': 'DPARNTeacher', 'window_size': 10**6},
        {'type': 'EFRDN', 'share': list(range(10**5))},
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 10**9},
    ],
    ids=lambda option: f'{option["type"]} {[*option][-1]}',
)
@pytest.mark.parametrize('make', [build, on_meta])
def test_options_of_an_absurd_network_are_refused_before_it_is_built(make, option):
    with within(SECONDS), pytest.raises(ValueError, match=str(option['type'])):
        make(option)


AVERAGED = {
    'ema beside model': lambda s, o: {'ema': s, 'model': o},
    'net_g_ema beside net_g': lambda s, o: {'net_g': o, 'net_g_ema': s},
    'state_dict_ema': lambda s, o: {'state_dict': o, 'state_dict_ema': s, 'epoch': 3},
    'mmagic': lambda s, o: {
        'state_dict': {
            'step_counter': torch.ones(1),
            **{f'generator.{n}': t for n, t in o.items()},
            **{f'generator_ema.{n}': t for n, t in s.items()},
        }
    },
    'a number in params': lambda s, _: {'params': {**s, 'epoch': 3, 'note': 'best', 'psnr': 31.2}},
    'lightning with a loss': lambda s, _: {
        'state_dict': {
            **{f'model.{n}': t for n, t in s.items()},
            **{f'loss.vgg.{i}.weight': torch.ones(2, 2) for i in range(50)},
        }
    },
}


@pytest.mark.parametrize('layout', AVERAGED)
def test_the_moving_average_wins_and_what_stands_beside_is_left_out(layout, tmp_path):
    state = weights()
    file = tmp_path / 'net.pth'
    file.write_bytes(as_pth(AVERAGED[layout](state, {name: tensor + 1 for name, tensor in state.items()})))
    for found in (
        recognise(file).state,
        recognise(file, OPTION).state,
        read_state_dict(file, net=build_network(OPTION)),
    ):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_named_entry_is_taken_and_the_one_that_was_taken_is_said(tmp_path):
    state = weights()
    file = tmp_path / 'net.pth'
    file.write_bytes(as_pth({'ema': state, 'model': {name: tensor + 1 for name, tensor in state.items()}, 'odd': 3}))
    assert open_checkpoint(file)[0] == ('ema',)
    assert open_checkpoint(file, 'model')[0] == ('model',)
    assert 'ema' in CliRunner().invoke(app, ['convert', str(file)]).stdout
    for key, words in (('odd', 'holds no parameters under'), ('none', 'has no')):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(file, key)


@pytest.mark.parametrize('name', ['net.pth', 'net.ckpt', 'net'])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    save = pytest.importorskip('safetensors.torch', reason='needs the extra: export').save
    state = weights()
    (tmp_path / name).write_bytes(save(state))
    assert recognise(tmp_path / name).network['type'] == 'HASN'


def test_training_takes_the_moving_average(folder, tmp_path):
    state = weights()
    file = tmp_path / 'net.pth'
    file.write_bytes(as_pth({'net_g_ema': state, 'net_g': {name: tensor + 1 for name, tensor in state.items()}}))
    opt = twin_of(short_run(folder, OPTION, scale=2), file) | {'is_train': False, 'dist': False}
    opt['num_gpu'] = 0
    model = EffSRModel(opt)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net_g.state_dict().items())


@pytest.mark.parametrize('read', [_read_state, read_side_file, load_stored], ids=lambda read: read.__name__)
def test_what_a_file_of_a_run_claims_is_no_more_than_its_bytes(tmp_path, read):
    """torch inflates what is deflated, a thousand bytes for one."""
    state = {'epoch': 0, 'iter': 2, 'optimizers': [], 'schedulers': [], 'random': {'x': torch.zeros(2**24)}}
    with zipfile.ZipFile(io.BytesIO(as_pth(state))) as whole, zipfile.ZipFile(tmp_path / '2.state', 'w') as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / '2.state').stat().st_size < 2**20
    with pytest.raises(CheckpointError, match=r'2\.state claims more bytes than it has'):
        read(tmp_path / '2.state')
