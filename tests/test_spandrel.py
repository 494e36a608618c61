"""spandrel recognises our checkpoints by their weights and runs them as we do."""

from __future__ import annotations

import builtins

import pytest
import torch
from basicsr.archs import build_network
from nets import CASES

from basicsr_effsr import spandrel_bridge

spandrel = pytest.importorskip('spandrel', reason='needs the extra: spandrel')
LIVELY = {'AGDN': {'num_block': 1}, 'ASID': {'num_block': 2}, 'EFRDN': {}}


@pytest.fixture
def registry():
    """The main registry as it was before the test."""
    spandrel_bridge.install()
    return spandrel.MAIN_REGISTRY


def test_installing_twice_adds_nothing(registry):
    assert spandrel_bridge.install() == []
    ids = [support.architecture.id for support in registry.architectures('insertion')]
    assert len(ids) == len(set(ids))
    assert {f'effsr_{name}' for name in CASES} <= set(ids)


@pytest.mark.parametrize('name', CASES)
def test_a_checkpoint_is_loaded_with_its_options_and_gives_our_output(name, registry, tmp_path):
    case = CASES[name]
    option = {**case.option(), 'upscale': 3} if name not in LIVELY else {'type': name, 'upscale': 3, **LIVELY[name]}
    net = build_network(option).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    loaded = spandrel.ModelLoader().load_from_file(tmp_path / 'net.pth')
    assert loaded.architecture.id == f'effsr_{name}'
    assert (loaded.scale, loaded.input_channels, loaded.output_channels) == (3, 3, 3)
    least = loaded.size_requirements.minimum
    assert least == net.min_size
    image = torch.rand(1, 3, max(least, 17), max(least, 23))
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), net(image).clamp(0, 1), atol=1e-5, rtol=0)


def test_networks_of_spandrel_stay_its_own(registry):
    """None of ours takes weights that only look like them."""
    from spandrel.architectures.DRCT import DRCT
    from spandrel.architectures.RGT import RGT
    from spandrel.architectures.SPAN import SPAN

    for foreign in (
        SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        RGT(embed_dim=12, depth=[2], num_heads=[2]),
        DRCT(embed_dim=12, depths=[6], num_heads=[2], gc=4, window_size=8),
    ):
        found = registry.load(foreign.state_dict())
        assert not found.architecture.id.startswith('effsr_')


def test_official_hasn_is_recognised(registry, reference):
    loaded = spandrel.ModelLoader().load_from_file(reference / 'checkpoints' / 'hasn_x4_official.pth')
    assert (loaded.architecture.id, loaded.scale, loaded.tags) == ('effsr_HASN', 4, ['52nf', '6nb'])


def test_without_spandrel_one_sentence_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split('.')[0] == 'spandrel':
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(ImportError, match=r'pip install basicsr_effsr\[spandrel\]'):
        spandrel_bridge.install()
