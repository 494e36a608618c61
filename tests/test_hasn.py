"""HASN against the authors' network and the paper's tables."""

from __future__ import annotations

import pytest
import torch

from basicsr_effsr.archs.hasn_arch import HASN


def size(**options) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in HASN(**options).parameters())


@pytest.mark.parametrize('name', ['hasn_x2', 'hasn_x3', 'hasn_x4'])
def test_golden_vectors(golden, name):
    vectors = golden(name)
    net = HASN(upscale=vectors['config']['upscale']).eval()
    net.load_state_dict(vectors['state_dict'])
    with torch.no_grad():
        torch.testing.assert_close(net(vectors['input']), vectors['output'], rtol=0, atol=5e-6)


@pytest.mark.parametrize('name', ['hasn_x2', 'hasn_x4'])
def test_golden_probes(golden, name):
    vectors = golden(name)
    net = HASN(upscale=vectors['config']['upscale']).eval()
    net.load_state_dict(vectors['state_dict'])
    seen = {}
    for key, module in net.named_modules():
        if key in vectors['probes']:
            module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out.detach()))
    with torch.no_grad():
        net(vectors['input'])
    assert set(seen) == set(vectors['probes'])
    for key, out in seen.items():
        probe = vectors['probes'][key]
        out = out.movedim(1, -1).contiguous() if key.endswith('.ln') else out  # theirs lies channels-last there
        assert tuple(out.shape) == tuple(probe['shape']), key
        where = torch.linspace(0, out.numel() - 1, 16, dtype=torch.float64).long()
        values = torch.as_tensor(probe['samples'])
        torch.testing.assert_close(out.flatten()[where], values, rtol=0, atol=2e-5, msg=key)


def test_official_checkpoint_loads_strictly(reference):
    stored = torch.load(reference / 'checkpoints' / 'hasn_x4_official.pth', weights_only=True)
    for key in ('params', 'params_ema'):
        HASN().load_state_dict(stored[key], strict=True)


def test_depth_row_of_table_3():
    depths = {2: 177_328, 4: 306_300, 6: 435_272, 8: 564_244, 10: 693_216, 12: 822_188}
    assert {depth: size(num_block=depth) for depth in depths} == depths


def test_kernel_row_of_table_4():
    """The convolutional block alone; the paper prints 202 / 212 / 227 / 247 K, 624 fewer (no layer norm)."""
    sizes = {k: size(kernel_size=k, use_esa=False, use_cab=False) for k in (3, 5, 7, 9)}
    assert sizes == {3: 203_420, 5: 213_404, 7: 228_380, 9: 248_348}
    assert [(n - 6 * 2 * 52) // 1000 for n in sizes.values()] == [202, 212, 227, 247]


def test_width_row_of_table_2():
    sizes = [size(num_feat=width, use_esa=False, use_cab=False) for width in (30, 52, 90)]
    assert sizes == [90_198, 228_380, 610_698]
