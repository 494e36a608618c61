"""Checkpoints of every layout are read, misfits are explained, and writing is all or nothing."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from nets import CASES
from torch import nn

from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.archs.dparn_teacher_arch import DPARNTeacher
from basicsr_effsr.archs.efrdn_arch import EFRDN
from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.utils.stored import CheckpointError
from basicsr_effsr.weights.checkpoint import (
    load_into,
    mismatch,
    read_state_dict,
    save_atomic,
)

TINY = {'num_feat': 8, 'num_block': 1, 'esa_channels': 4}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def layouts(tmp_path):
    """name -> (file, the parameters that must come out)"""
    one, two = nn.Conv2d(1, 2, 3).state_dict(), nn.Conv2d(1, 2, 3).state_dict()
    prefixed = {f'module.{k}': v for k, v in one.items()}
    stored = {
        'bare': (one, one),
        'bare with module.': (prefixed, one),
        'params': ({'params': one}, one),
        'both': ({'params': two, 'params_ema': one}, one),
        'state_dict': ({'state_dict': prefixed, 'epoch': 3}, one),
    }
    files = {}
    for i, (name, (content, expected)) in enumerate(stored.items()):
        torch.save(content, tmp_path / f'{i}.pth')
        files[name] = (tmp_path / f'{i}.pth', expected)
    return files


def test_every_layout_is_read(layouts):
    for name, (file, expected) in layouts.items():
        assert same(read_state_dict(file), expected), name


def test_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch', reason='needs the extra: export').save_file
    state = nn.Conv2d(1, 2, 3).state_dict()
    save_file(state, tmp_path / 'net.safetensors')
    assert same(read_state_dict(tmp_path / 'net.safetensors'), state)


def test_key_is_obeyed_and_params_stands_in_for_ema_as_in_the_host(layouts, tmp_path):
    both, ema = layouts['both']
    assert same(read_state_dict(both, 'params_ema'), ema)
    assert not same(read_state_dict(both, 'params'), ema)
    assert same(read_state_dict(layouts['params'][0], 'params_ema'), layouts['params'][1])
    with pytest.raises(CheckpointError, match=r"has no 'weights'.*'params'"):
        read_state_dict(layouts['params'][0], 'weights')


def test_code_in_a_file_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'pwned'),))

    (tmp_path / 'bomb.pth').write_bytes(pickle.dumps({'params': Bomb()}))
    torch.save({'params': Bomb()}, tmp_path / 'bomb2.pth')
    for name in ('bomb.pth', 'bomb2.pth'):
        with pytest.raises(CheckpointError, match='cannot be read'):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / 'pwned').exists()


def test_truncated_missing_and_empty_files_are_named(layouts, tmp_path):
    file = layouts['params'][0]
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r'cut\.pth cannot be read: .* truncated'):
        read_state_dict(cut)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        read_state_dict(tmp_path / 'nowhere.pth')
    torch.save({'epoch': 3}, tmp_path / 'empty.pth')
    with pytest.raises(CheckpointError, match=r"holds no parameters.*'epoch'"):
        read_state_dict(tmp_path / 'empty.pth')


def test_a_checkpoint_of_another_scale_says_so_and_loads_nothing(tmp_path):
    torch.save({'params': HASN(upscale=2, **TINY).state_dict()}, tmp_path / 'x2.pth')
    net = HASN(upscale=4, **TINY)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'x2\.pth does not fit HASN: 2 of another shape .* another scale'):
        load_into(net, tmp_path / 'x2.pth')
    assert same(before, net.state_dict())


def test_a_checkpoint_of_another_network_says_so(tmp_path):
    torch.save({'params': nn.Linear(2, 2).state_dict()}, tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match='of another network: check type'):
        load_into(HASN(**TINY), tmp_path / 'linear.pth')


def test_other_options_name_the_nearest_parameter(tmp_path):
    state = HASN(**TINY).state_dict()
    state['block_1.gg.conv.weight'] = state.pop('block_1.g.conv.weight')
    torch.save(state, tmp_path / 'odd.pth')
    with pytest.raises(
        CheckpointError, match=r'1 unexpected \(block_1\.gg\.conv\.weight, near block_1\.g\.conv\.weight\)'
    ):
        load_into(HASN(**TINY), tmp_path / 'odd.pth')


def test_not_strict_loads_what_fits(tmp_path):
    source, net = HASN(upscale=2, **TINY), HASN(upscale=4, **TINY)
    torch.save(source.state_dict(), tmp_path / 'x2.pth')
    load_into(net, tmp_path / 'x2.pth', strict=False)
    assert torch.equal(net.conv_1.weight, source.conv_1.weight)


def test_equal_content_gives_equal_bytes(tmp_path):
    """Also where one of the two was read from a file, as the state of a resumed run was."""
    betas, key = (0.9, 0.99), 'lr'
    content = {'step': torch.ones(1), 'groups': [{key: 1.0, 'betas': betas}, {key: 1.0, 'betas': betas}]}
    save_atomic(content, tmp_path / 'first.pth')
    again = torch.load(tmp_path / 'first.pth', weights_only=True)
    again['groups'] = [{''.join(k): v for k, v in group.items()} for group in again['groups']]
    save_atomic(again, tmp_path / 'another_name.pth')
    assert (tmp_path / 'first.pth').read_bytes() == (tmp_path / 'another_name.pth').read_bytes()


def test_what_does_not_read_back_is_not_put_in_place(tmp_path):
    file = tmp_path / 'net.pth'
    save_atomic({'w': torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match='pathlib'):
        save_atomic({'w': file}, file)
    assert torch.equal(read_state_dict(file)['w'], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ['net.pth']


def test_names_that_a_network_accepts_are_no_misfit(tmp_path):
    """Official DRCT files hold position indices, plain files may lack the counters of BatchNorm; both load strictly."""
    teacher = DPARNTeacher(num_feat=12, num_block=1, num_heads=2, num_grow_ch=4, window_size=4, tail='drct')
    state = dict(teacher.state_dict())
    state['layers.0.swin1.attn.relative_position_index'] = torch.zeros(16, 16, dtype=torch.long)
    state['layers.0.swin2.attn_mask'] = torch.zeros(4, 16, 16)
    efrdn = EFRDN(**CASES['EFRDN'].tiny)
    counted = efrdn.state_dict()
    plain = {name: tensor for name, tensor in counted.items() if not name.endswith('num_batches_tracked')}
    assert len(plain) < len(counted)
    for i, (net, given) in enumerate(((teacher, state), (efrdn, plain))):
        assert mismatch(net, given) == ''
        torch.save(given, tmp_path / f'{i}.pth')
        load_into(net, tmp_path / f'{i}.pth')
        given['nobody.knows'] = torch.zeros(1)
        assert '(nobody.knows' in mismatch(net, given)
        assert next(net.parameters()).device.type == 'cpu', 'the copy that is tried must not be the network'


@pytest.mark.parametrize(
    ('cls', 'options', 'a', 'b'),
    [
        (EFRDN, CASES['EFRDN'].tiny, 2, 4),
        (EFRDN, CASES['EFRDN'].tiny, 3, 2),
        (DPARNTeacher, {'num_feat': 12, 'num_block': 1, 'num_heads': 2, 'num_grow_ch': 4, 'tail': 'drct'}, 2, 4),
        (DPARNTeacher, {'num_feat': 12, 'num_block': 1, 'num_heads': 2, 'num_grow_ch': 4, 'tail': 'drct'}, 4, 3),
    ],
)
def test_another_scale_is_known_by_tails_of_every_kind(cls, options, a, b):
    told = mismatch(cls(**{**options, 'upscale': b}), cls(**{**options, 'upscale': a}).state_dict())
    assert told.endswith('the checkpoint is of another scale: set upscale to the one it was trained for'), told


def test_the_deployed_form_in_place_of_the_trained_one_is_said():
    options = {'num_feat': 8, 'num_block': 1}
    net = DPARN(**options)
    fused = net.fuse()
    assert mismatch(net, fused.state_dict()).endswith('set deploy: true')
    assert 'of the form that is trained' in mismatch(fused, net.state_dict())
    assert mismatch(DPARN(**options, deploy=True), fused.state_dict()) == ''
