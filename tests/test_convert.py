"""Checkpoints of every layout become ours and go back; networks are recognised by their weights alone."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from nets import ABLATIONS, CASES
from typer.testing import CliRunner

from basicsr_effsr.cli import app
from basicsr_effsr.tools.convert import Layout, convert
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import on_meta
from basicsr_effsr.weights.checkpoint import named_for, read_state_dict, views
from basicsr_effsr.weights.recognise import identify, known_networks, recognise

TINY = {'type': 'HASN', 'upscale': 3, 'num_feat': 8, 'num_block': 2, 'esa_channels': 4, 'squeeze_factor': 4}


def dealt(name: str):
    """The tiny network, and one for every other value of an option that its case knows."""
    case = (CASES | ABLATIONS)[name]
    yield case.option(upscale=2)
    usual = {k: v.default for k, v in inspect.signature(ARCH_REGISTRY.get(name)).parameters.items()} | case.tiny
    for key, values in case.live.items():
        for value in values:
            changes = value if isinstance(value, dict) else {key: value}
            if any(usual[k] != v for k, v in changes.items()):
                yield case.option(**changes)


def unseen_of(name: str) -> tuple[str, ...]:
    return getattr(known_networks()[name], 'unseen', ())


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_published_network_is_known():
    assert set(known_networks()) == set(CASES | ABLATIONS)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('name', CASES)
def test_published_networks_are_recognised_with_their_options(name, scale):
    net = on_meta({'type': name, 'upscale': scale})
    found = identify(net.state_dict())
    assert found is not None
    assert (found['type'], found['upscale']) == (name, scale)
    shapes = {k: v.shape for k, v in on_meta(found).state_dict().items()}
    assert shapes == {k: v.shape for k, v in net.state_dict().items()}


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.has_fuse])
def test_deployed_forms_are_recognised(name):
    found = identify(on_meta({'type': name, 'deploy': True}).state_dict())
    assert found is not None
    assert (found['type'], found['deploy']) == (name, True)


@pytest.mark.parametrize('name', [*CASES, *ABLATIONS])
def test_every_option_is_found_and_gives_the_same_network(name):
    """Strictly loaded, equal output; what leaves no trace in weights is given."""
    case = (CASES | ABLATIONS)[name]
    for option in dealt(name):
        net = build_network(option).eval()
        found = identify(net.state_dict())
        assert found is not None, option
        assert found['type'] in (name, name.removesuffix('Ablation'))
        unseen = {key: option[key] for key in unseen_of(name) if key in option}
        again = build_network({**found, **unseen, 'type': name}).eval()
        again.load_state_dict(net.state_dict(), strict=True)
        image = torch.rand(1, option.get('num_in_ch', 3), *(max(side, net.min_size) for side in case.size))
        with torch.no_grad():
            assert torch.equal(again(image), net(image)), option


@pytest.mark.parametrize('name', [*CASES, *ABLATIONS])
def test_only_options_without_a_trace_are_called_so(name):
    case = (CASES | ABLATIONS)[name]
    for key in unseen_of(name):
        if key == 'share':
            a, b = case.option(share=(0, 1, 0, 1)), case.option(share=(0, 0, 1, 1))
        elif key == 'tlc' or key not in case.live:
            a, b = case.option(), case.option(tlc=0) if key == 'tlc' else case.option()
        else:
            a, b = (case.option(**{key: value}) for value in case.live[key])
        shapes = [{k: v.shape for k, v in on_meta(option).state_dict().items()} for option in (a, b)]
        assert shapes[0] == shapes[1], key


@pytest.mark.parametrize(
    'option',
    [
        {'type': 'HASN', 'num_feat': 40, 'num_block': 3, 'kernel_size': 5, 'mlp_ratio': 2, 'compress_ratio': 4},
        {'type': 'HASN', 'use_esa': False},
        {'type': 'HASN', 'use_cab': False, 'num_in_ch': 1, 'num_out_ch': 1},
        {'type': 'AGDN', 'num_feat': 24, 'num_block': 4, 'channel_attn': 'cca'},
        {'type': 'AGDN', 'use_sgsa': False, 'spatial_attn': 'esa'},
        {'type': 'ASID', 'num_block': 8},
        {'type': 'ASID', 'attention_sharing': 'none', 'channel_split': False},
        {'type': 'DPARN', 'num_feat': 32, 'num_block': 2, 'branches': ('esa', 'esa'), 'esa_channels': 8},
        {'type': 'DPARN', 'expansion': 2, 'expand_bias': False},
        {'type': 'DPARN', 'branch_ratio': 6, 'num_rerb': 1, 'esa_type': 'rfdn', 'mix': 'conv'},
        {'type': 'DPARNTeacher', 'num_feat': 64, 'window_size': 8, 'num_heads': 2, 'num_grow_ch': 16},
        {'type': 'DPARNTeacher', 'mlp_ratio': 1.3, 'tail': 'drct', 'upscale': 3},
        {'type': 'EFRDN', 'share': (0, 1, 0, 1, 0, 1), 'distill': 12, 'mlp_hidden': 200, 'conv4_out': 40},
        {'type': 'EFRDNAblation', 'block': 'rfdb', 'share': (0, 1, 2), 'esa_channels': 12, 'upscale': 2},
        {'type': 'EFRDNAblation', 'num_feat': 48, 'cc_mode': 'four', 'cc_reduction': 8, 'gcrb': False, 'effb': False},
        {'type': 'EFRDNAblation', 'mscc': False, 'acrb': 'conv3', 'sc_groups': 2, 'effb_groups': 4},
        {'type': 'EFRDNAblation', 'deploy': True, 'gcrb_groups': 4, 'cc': False, 'upscale': 3},
    ],
    ids=str,
)
def test_other_options_are_found_too(option):
    state = on_meta(option).state_dict()
    found = identify(state)
    assert found is not None
    assert {k: found.get(k, option[k]) for k in option} == option
    assert {k: v.shape for k, v in on_meta(found).state_dict().items()} == {k: v.shape for k, v in state.items()}


def test_agdn_s_gets_its_window():
    found = identify(on_meta({'type': 'AGDN', 'num_feat': 24, 'num_block': 4}).state_dict())
    assert found is not None
    assert found['tlc'] == 96


def test_foreign_weights_are_of_no_network():
    assert identify(torch.nn.Conv2d(3, 3, 3).state_dict()) is None
    cut = dict(on_meta({'type': 'HASN'}).state_dict())
    del cut['block_3.f1.conv.weight']
    assert identify(cut) is None


@pytest.mark.parametrize('prefix', ['module.', 'net_g.', 'module.model.', '_orig_mod.'])
def test_prefixes_of_other_programs_go(prefix):
    state = build_network(TINY).state_dict()
    assert same(next(views({f'{prefix}{k}': v for k, v in state.items()})), state)


def test_files_of_drct_are_known_although_they_store_what_follows_from_the_options(tmp_path):
    option = {**CASES['DPARNTeacher'].option(), 'tail': 'drct', 'upscale': 4}
    state = build_network(option).state_dict()
    derived = {'layers.0.swin1.attn.relative_position_index': torch.zeros(2), 'layers.0.swin2.attn_mask': torch.ones(1)}
    torch.save({'params_ema': state | derived}, tmp_path / 'drct.pth')
    known = recognise(tmp_path / 'drct.pth')
    ours, found, renamed, dropped = known.state, known.network, known.renamed, known.dropped
    assert same(ours, state)
    assert (found['tail'], renamed, sorted(dropped)) == ('drct', {}, sorted(derived))


def test_counters_of_batch_norms_may_be_missing(tmp_path):
    net = build_network(CASES['EFRDN'].option())
    torch.save({k: v for k, v in net.state_dict().items() if 'num_batches' not in k}, tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'b.pth', Layout.basicsr)
    assert same(read_state_dict(tmp_path / 'b.pth'), net.state_dict())


def test_halved_weights_stay_halved(tmp_path):
    state = {k: v.half() for k, v in build_network(TINY).state_dict().items()}
    torch.save(state, tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', Layout.safetensors)
    again = read_state_dict(tmp_path / 'b.safetensors')
    assert {t.dtype for t in again.values()} == {torch.float16}
    assert same(again, state)


@pytest.mark.parametrize('layout', [*Layout])
def test_equal_content_gives_equal_bytes(tmp_path, layout):
    torch.save(build_network(TINY).state_dict(), tmp_path / 'a.pth')
    for name in ('b', 'another name'):
        convert(tmp_path / 'a.pth', tmp_path / name, layout)
    assert (tmp_path / 'b').read_bytes() == (tmp_path / 'another name').read_bytes()


def test_the_header_of_our_own_file_tells_what_weights_do_not(tmp_path):
    pytest.importorskip('safetensors', reason='needs the extra: export')
    option = {**CASES['DPARN'].option(), 'act': 'silu', 'mix': 'shuffle', 'zero_mean': True}
    torch.save(build_network(option).state_dict(), tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', Layout.bare).assumed['act'] == 'relu'
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', Layout.safetensors, network=option)
    report = convert(tmp_path / 'b.safetensors', tmp_path / 'c.pth', Layout.basicsr)
    assert {k: report.network[k] for k in option} == option
    assert not {'act', 'mix', 'zero_mean'} & set(report.assumed)


def test_a_pickle_that_would_run_code_is_refused_in_one_sentence(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'pwned'),))

    torch.save({'params': build_network(TINY).state_dict(), 'extra': Bomb()}, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_bytes(pickle.dumps(Bomb()))
    for name in ('a.pth', 'b.pth'):
        result = run(tmp_path / name, tmp_path / 'x.pth')
        assert (result.exit_code, result.stderr.count('\n')) == (2, 1)
    assert 'would call posix.mkdir' in run(tmp_path / 'a.pth').stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'b.pth']


def test_computed_buffers_and_other_upsamplers_are_understood():
    state = build_network(TINY).state_dict()
    foreign = {k.replace('upsampler.0', 'to_img.0'): v for k, v in state.items()} | {
        'a.rel_pos_indices': torch.zeros(1)
    }
    ours, renamed, dropped = named_for(build_network(TINY), foreign)
    assert same(ours, state)
    assert renamed == {'to_img.0.weight': 'upsampler.0.weight', 'to_img.0.bias': 'upsampler.0.bias'}
    assert dropped == ['a.rel_pos_indices']


@pytest.mark.parametrize('layout', list(Layout))
def test_there_and_back(layout, tmp_path):
    state = build_network(TINY).state_dict()
    torch.save({'params': {}, 'params_ema': {f'module.{k}': v for k, v in state.items()}}, tmp_path / 'a.pth')
    suffix = '.safetensors' if layout is Layout.safetensors else '.pth'
    report = convert(tmp_path / 'a.pth', tmp_path / f'b{suffix}', layout)
    assert {k: report.network[k] for k in TINY} == TINY
    assert same(read_state_dict(tmp_path / f'b{suffix}'), state)
    if suffix == '.pth':
        raw = torch.load(tmp_path / 'b.pth', weights_only=True)
        first = {'basicsr': 'params', 'bare': 'conv_1.weight', 'module': 'module.conv_1.weight'}[layout.value]
        assert first in raw
    convert(tmp_path / f'b{suffix}', tmp_path / 'c.pth', Layout.basicsr)
    assert same(torch.load(tmp_path / 'c.pth', weights_only=True)['params'], state)


def test_safetensors_carry_network_options_and_the_hash_of_the_source(tmp_path):
    safe_open = pytest.importorskip('safetensors', reason='needs the extra: export').safe_open
    torch.save(build_network(TINY).state_dict(), tmp_path / 'a.pth')
    convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', Layout.safetensors)
    with safe_open(tmp_path / 'b.safetensors', 'pt') as file:
        facts = file.metadata()
    assert facts['network'] == 'HASN'
    assert json.loads(facts['options'])['num_feat'] == 8
    assert facts['scale'] == '3'
    assert facts['source sha256'] == hashlib.sha256((tmp_path / 'a.pth').read_bytes()).hexdigest()


def test_fused_weights_load_into_the_deployed_network(tmp_path):
    option = {'type': 'DPARN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4}
    net = build_network(option).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'a.pth')
    report = convert(tmp_path / 'a.pth', tmp_path / 'b.pth', Layout.basicsr, fuse=True)
    assert report.fused
    deployed = build_network({**option, 'deploy': True}).eval()
    deployed.load_state_dict(read_state_dict(tmp_path / 'b.pth'))
    image = torch.rand(1, 3, 17, 19)
    torch.testing.assert_close(deployed(image), net(image), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match='--fuse'):
        convert(tmp_path / 'b.pth', tmp_path / 'c.pth', Layout.basicsr, fuse=True)
    assert not (tmp_path / 'c.pth').exists()


def test_a_misfit_names_the_nearest_parameter(tmp_path):
    state = build_network(TINY).state_dict()
    state['block_2.gg.conv.weight'] = state.pop('block_2.g.conv.weight')
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'looks like HASN .*block_2\.gg\.conv\.weight, near block_2\.g'):
        recognise(tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'does not fit HASN with .*, near block_2\.g\.conv\.weight'):
        recognise(tmp_path / 'a.pth', TINY)
    torch.save(build_network(TINY).state_dict(), tmp_path / 'c.pth')
    with pytest.raises(UserError, match=r'does not fit HASN with .*; by its weights it is HASN \(.*upscale: 3, '):
        recognise(tmp_path / 'c.pth', {**TINY, 'upscale': 2})
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / 'b.pth')
    with pytest.raises(UserError, match='unrecognised architecture'):
        recognise(tmp_path / 'b.pth')


def run(*arguments):
    return CliRunner().invoke(app, ['convert', *map(str, arguments)])


def test_command_says_what_a_file_is_and_refuses_in_one_sentence(tmp_path):
    torch.save(build_network(TINY).state_dict(), tmp_path / 'a.pth')
    report = json.loads(run(tmp_path / 'a.pth', '--json').stdout)
    assert (report['network']['type'], report['network']['upscale']) == ('HASN', 3)
    (tmp_path / 'bad.pth').write_bytes(b'nothing')
    (tmp_path / 'bad.safetensors').write_bytes(b'nothing')
    for arguments in (
        (tmp_path / 'none.pth',),
        (tmp_path / 'bad.pth', tmp_path / 'x.pth'),
        (tmp_path / 'bad.safetensors', tmp_path / 'x.pth'),
        (tmp_path, tmp_path / 'x.pth'),
        (tmp_path / 'a.pth', tmp_path / 'a.pth'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--fuse'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--arch', 'HASM'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--arch', 'HASN', '--set', 'num_blok=2'),
        (tmp_path / 'a.pth', tmp_path / 'bad.pth' / 'x.pth'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--to', 'safetensors'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--arch', 'IMDN'),
        (tmp_path / 'a.pth', tmp_path / 'x.pth', '--scale', '2'),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count('\n')) == (2, 1), arguments
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'bad.pth', 'bad.safetensors']


def test_official_checkpoints_are_recognised(reference):
    expected = {
        'hasn_x4': ('HASN', 52, 6),
        'agdn_x4': ('AGDN', 42, 7),
        'agdn_s_x4': ('AGDN', 24, 4),
        'imdn_x4': ('IMDN', 64, 6),
    }
    for name, (network, width, blocks) in expected.items():
        found = recognise(reference / 'checkpoints' / f'{name}_official.pth').network
        assert (found['type'], found['num_feat'], found['num_block'], found['upscale']) == (network, width, blocks, 4)


@pytest.mark.parametrize(('name', 'layout'), [('b.onnx', 'bare'), ('b', 'basicsr'), ('b.pth', 'safetensors')])
def test_a_file_is_named_by_its_layout(tmp_path, name, layout):
    torch.save(build_network(TINY).state_dict(), tmp_path / 'a.pth')
    result = run(tmp_path / 'a.pth', tmp_path / name, '--to', layout)
    assert result.exit_code == 2
    assert f'{name}: files of --to {layout} end in .' in result.output
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']
