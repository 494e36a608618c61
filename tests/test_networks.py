"""What the tools share: which network, from which option file or name, and where results may go."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.cli import COMMANDS
from basicsr_effsr.tools.networks import check_folder, choose, read_options, settings_of
from basicsr_effsr.utils.console import as_command
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.build import build, scale_of


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('network_g:\n', 'network_g must be a section with type'),
        ('network_g: [HASN]\n', 'network_g must be a section with type'),
        ('network_g: HASN\n', 'network_g must be a section with type'),
        ('network_g: {type: [HASN]}\n', 'network_g must be a section with type'),
        ('network_g: {upscale: 4}\n', 'network_g must be a section with type'),
        ('network_g: {type: HASN}\npath: abc\n', "path must be a section of options, got 'abc'"),
        ('network_g: {type: HASN}\ndatasets: abc\n', "datasets must be a section of options, got 'abc'"),
        ('network_g: {type: HASN}\nval: 3\n', 'val must be a section of options, got 3'),
        ('network_g: {type: HASN}\npath: {pretrain_network_g: 5}\n', 'path.pretrain_network_g must be a string, got 5'),
        ('network_g: {type: HASN}\npath: {param_key_g: [a]}\n', 'path.param_key_g must be a string'),
        ('network_g: [\n', 'is not YAML'),
        ('name: caf\xe9\nnetwork_g: {type: HASN}\n', 'must be saved as UTF-8'),
        ('- network_g\n', 'must hold sections'),
        ('name: x\n', 'network_g'),
    ],
)
def test_option_files_of_another_form_are_refused_by_name(tmp_path, text, words):
    file = tmp_path / 'net.yml'
    file.write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError) as caught:
        read_options(file)
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)


def test_empty_sections_are_as_absent_ones(tmp_path):
    file = tmp_path / 'net.yml'
    file.write_text('network_g: {type: HASN, upscale: 2, num_feat: 8, num_block: 1}\npath:\ndatasets: ~\nval:\n')
    chosen = choose(file, without='missing')
    assert (chosen.network['upscale'], chosen.weights, chosen.scale) == (2, None, 2)


def test_settings_are_values_of_an_option_file():
    network = settings_of(2, ['num_feat=8', 'act=[a, b]', 'name='])
    assert network == {'upscale': 2, 'num_feat': 8, 'act': ['a', 'b'], 'name': None}
    with pytest.raises(UserError, match='--set num_feat'):
        settings_of(2, ['num_feat=['])


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({}, '--weights'),
        ({'arch': 'HASN'}, '--weights'),
        ({'arch': 'HASN', 'opt': Path('net.yml')}, '--arch'),
        ({'arch': 'hasn', 'without': 'always'}, "'HASN'"),
        ({'arch': 'agdn', 'without': 'always'}, "'AGDN'"),
        ({'weights': Path()}, 'folder'),
        ({'arch': 'HASN', 'weights': Path()}, 'folder'),
    ],
    ids=str,
)
def test_what_names_no_network_or_no_weights_is_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        choose(**arguments)
    assert '\n' not in str(caught.value)


def test_weights_alone_tell_the_network_and_settings_what_they_do_not_show(tmp_path):
    option = {'type': 'DPARN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 3}
    torch.save(build_network(option).state_dict(), tmp_path / 'a.pth')
    chosen = choose(weights=tmp_path / 'a.pth', settings=['act=silu'])
    assert (chosen.network['type'], chosen.network['act'], chosen.scale) == ('DPARN', 'silu', 3)
    with pytest.raises(UserError, match='upscale: 3'):
        choose(weights=tmp_path / 'a.pth', scale=2)


def test_folder_for_results_is_checked_and_not_made(tmp_path):
    check_folder(tmp_path / 'a' / 'b')
    assert not (tmp_path / 'a').exists()
    (tmp_path / 'file').touch()
    for taken in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match=rf'{tmp_path}/file '):
            check_folder(taken)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'locked').mkdir(mode=0o500)
    with pytest.raises(UserError, match=str(tmp_path / 'locked')):
        check_folder(Path(tmp_path / 'locked' / 'below'))


def test_scale_comes_from_the_network_the_file_or_the_default():
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1}
    assert scale_of(build_network({**network, 'scale': 2}), {**network, 'scale': 2}, 2) == 2
    assert scale_of(torch.nn.Identity(), {**network, 'scale': 2}) == 2
    assert scale_of(torch.nn.Identity(), network) == 4
    assert scale_of(HASN(num_feat=8, num_block=1, upscale=2), {'type': 'HASN'}, 4) == 2
    with pytest.raises(UserError, match='VGGStyleDiscriminator'):
        scale_of(torch.nn.Identity(), {'type': 'VGGStyleDiscriminator'})


def test_nothing_is_printed_where_a_name_is_taken_for_another(capsys):
    """BasicSR says so on standard output, where JSON may be wanted."""
    net = build({'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1}, None)
    assert scale_of(net, {'type': 'SRVGGNetCompact'}) == 4
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        ({'type': 'HASM'}, "'HASM'.*'HASN'"),
        ({'type': 'HASN', 'num_feats': 3}, 'HASN: .*num_feats'),
        ({'type': 'SwinIR', 'img_size': 30, 'window_size': 8}, 'SwinIR: '),
        ({'type': 'RRDBNet', 'num_in_ch': 3}, 'RRDBNet: .*num_out_ch'),
    ],
)
def test_networks_that_cannot_be_built_are_one_sentence(network, words):
    with pytest.raises(UserError, match=words):
        build(network, None)


@pytest.mark.parametrize('name', [*'evaluate compare benchmark plot runs infer export'.split()])
def test_o_says_where_results_go(name):
    module, attribute, _ = COMMANDS[name]
    (out,) = (p for p in as_command(name, getattr(import_module(module), attribute)).params if p.name == 'out')
    assert {'-o', '--out'} <= set(out.opts)
