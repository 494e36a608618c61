"""What the tools share: which network, from which option file or name, and where results may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.tools.networks import check_folder, describe, read_options
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
        ('network_g: {type: HASN}\npath: {pretrain_network_g: 5}\n', 'path.pretrain_network_g must be a text, got 5'),
        ('network_g: {type: HASN}\npath: {param_key_g: [a]}\n', 'path.param_key_g must be a text'),
        ('network_g: [\n', 'is not YAML in UTF-8'),
        ('name: caf\xe9\nnetwork_g: {type: HASN}\n', 'is not YAML in UTF-8'),
        ('- network_g\n', 'must hold options with network_g'),
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
    file.write_text('network_g: {type: HASN, upscale: 2}\npath:\ndatasets: ~\nval:\n')
    network, weights, key = describe(file, None, None, None, None, None)
    assert (network, weights, key) == ({'type': 'HASN', 'upscale': 2}, None, None)


def test_settings_are_values_of_an_option_file():
    network = describe(None, 'HASN', 2, None, ['num_feat=8', 'act=[a, b]', 'name='], None)[0]
    assert network == {'type': 'HASN', 'upscale': 2, 'num_feat': 8, 'act': ['a', 'b'], 'name': None}
    with pytest.raises(UserError, match=r"--set num_feat must be a value as in an option file, got '\['"):
        describe(None, 'HASN', 2, None, ['num_feat=['], None)


def test_folder_for_results_is_checked_and_not_made(tmp_path):
    check_folder(tmp_path / 'a' / 'b')
    assert not (tmp_path / 'a').exists()
    (tmp_path / 'file').touch()
    for taken in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='file is a file, must be a folder'):
            check_folder(taken)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'locked').mkdir(mode=0o500)
    with pytest.raises(UserError, match='cannot be written'):
        check_folder(Path(tmp_path / 'locked' / 'below'))


def test_scale_comes_from_the_network_the_file_or_the_default():
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1}
    assert scale_of(build_network({**network, 'scale': 2}), {**network, 'scale': 2}, 2) == 2
    assert scale_of(torch.nn.Identity(), {**network, 'scale': 2}) == 2
    assert scale_of(torch.nn.Identity(), network) == 4
    assert scale_of(HASN(num_feat=8, num_block=1, upscale=2), {'type': 'HASN'}, 4) == 2
    with pytest.raises(UserError, match='does not say its scale factor'):
        scale_of(torch.nn.Identity(), {'type': 'VGGStyleDiscriminator'})


def test_nothing_is_printed_where_a_name_is_taken_for_another(capsys):
    """BasicSR says so on standard output, where JSON may be wanted."""
    net = build({'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1}, None)
    assert scale_of(net, {'type': 'SRVGGNetCompact'}) == 4
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        ({'type': 'HASM'}, "there is no network 'HASM'; did you mean 'HASN'"),
        ({'type': 'HASN', 'num_feats': 3}, 'HASN: .*num_feats.*; correct its options'),
        ({'type': 'SwinIR', 'img_size': 30, 'window_size': 8}, 'SwinIR: .*; correct its options'),
        ({'type': 'RRDBNet', 'num_in_ch': 3}, 'RRDBNet: .*num_out_ch.*; correct its options'),
    ],
)
def test_networks_that_cannot_be_built_are_one_sentence(network, words):
    with pytest.raises(UserError, match=words):
        build(network, None)
