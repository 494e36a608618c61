"""Parameters, multiply-adds, activations and convolutions equal published and hand-made numbers."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from basicsr_effsr.tools.yardsticks import RLFN
from basicsr_effsr.utils.complexity import count_macs, count_params, lr_size_of_720p, peak_memory


def test_rlfn_gives_the_four_numbers_that_the_challenge_published():
    macs = count_macs(RLFN(), (256, 256))
    assert count_params(RLFN()) == 317_218
    assert round(macs.fvcore / 1e9, 2) == 19.67
    assert round(macs.total / 1e9, 4) == 19.6581  # half of what torch's own counter prints
    assert round(macs.activations / 1e6, 2) == 80.05
    assert macs.convolutions == 39


def test_hasn_agrees_with_the_independent_count_of_its_official_code():
    """Multiply-adds of the authors' code, and what fvcore prints for it, at two sizes."""
    net = build_network({'type': 'HASN'})
    at_720p, at_256 = count_macs(net, (180, 320)), count_macs(net, (256, 256))
    assert [round(v / 1e9, 3) for v in (at_720p.total, at_720p.fvcore)] == [23.280, 23.410]
    assert [round(v / 1e9, 3) for v in (at_256.total, at_256.fvcore)] == [26.489, 26.637]


@pytest.mark.parametrize(
    ('layer', 'expected'),
    [
        (nn.Conv2d(4, 6, (3, 5), padding=(1, 2), stride=2, groups=2), 6 * 4 * 6 * (4 // 2) * 15),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 8 * 11 * 4 * (6 // 2) * 9),
    ],
)
def test_convolutions_by_hand(layer, expected):
    """Outputs (6, 4, 6) times 2 x 15 for the first; each of the 4 x 8 x 11 inputs meets 3 x 9 for the second."""
    macs = count_macs(layer, (8, 11), num_in_ch=4)
    assert macs.convolution == macs.total == expected
    assert macs.convolutions == 1
    with torch.no_grad():
        assert macs.activations == layer(torch.rand(1, 4, 8, 11)).numel()


class _Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.fused = nn.Linear(4, 12), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)  # (N, L, 4) each
        if self.fused:
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


@pytest.mark.parametrize('fused', [False, True])
def test_attention_products_count_written_out_or_fused(fused):
    length = 5 * 7
    macs = count_macs(_Attention(fused), (5, 7), num_in_ch=4, batch=2)
    assert macs.linear == 2 * length * 4 * 12
    assert macs.attention == 2 * (length * length * 4 * 2)
    assert macs.activations == macs.convolutions == 0


def flops_by_torch(net: nn.Module, size: tuple[int, int]) -> int:
    """What torch's own counter says, attention written out: it knows only some of the fused kernels of a version."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        net(torch.rand(1, 3, *size))
    return flops.get_total_flops()


@pytest.mark.parametrize('name', CASES)
def test_torchs_own_counter_agrees_on_every_net(name):
    case = CASES[name]
    net = build_network(case.option()).eval()
    assert 2 * count_macs(net, case.size).total == flops_by_torch(net, case.size) > 0


def test_fvcore_agrees_where_it_is_installed():
    fvcore = pytest.importorskip('fvcore.nn', reason='needs the extra: dev')
    for net in (RLFN(), build_network({'type': 'HASN'}).eval()):
        counted = fvcore.FlopCountAnalysis(net, torch.rand(1, 3, 32, 40)).unsupported_ops_warnings(False).total()
        assert count_macs(net, (32, 40)).fvcore == counted


def test_what_is_not_counted_is_listed():
    uncounted = count_macs(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.PixelShuffle(1), nn.GELU(), nn.GELU()), (4, 4)
    ).uncounted
    assert uncounted == {'gelu': 2}


def test_asking_for_a_type_is_free():
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.promote_types(x.dtype, torch.float64))

    assert count_macs(Asks(), (4, 4)).uncounted == {}


def test_counting_touches_neither_weights_nor_mode():
    net = RLFN().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    count_macs(net, (32, 32))
    assert net.training
    assert all(torch.equal(v, before[k]) and v.device.type == 'cpu' for k, v in net.state_dict().items())


def test_sizes_of_the_papers():
    assert [lr_size_of_720p(scale) for scale in (2, 3, 4)] == [(360, 640), (240, 427), (180, 320)]


def test_a_pass_that_needs_values_is_refused_in_words():
    class Peeks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    with pytest.raises(ValueError, match=r'Peeks: .*cost'):
        count_macs(Peeks(), (2, 2))


HOST_NETS = {
    'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1},
    'RCAN': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1},
    'SwinIR': {
        **{'upscale': 4, 'img_size': (64, 64), 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2]},
        **{'upsampler': 'pixelshuffledirect'},
    },
}


@pytest.mark.parametrize('name', HOST_NETS)
def test_nets_of_the_host_that_hold_tensors_as_plain_attributes_are_counted(name, capfd):
    """Their mean is no buffer; SwinIR also makes a mask in its pass, here at another size than its own."""
    net = build_network({'type': name, **HOST_NETS[name]}).eval()
    before = net.mean.clone()
    assert 2 * count_macs(net, (32, 40)).total == flops_by_torch(net, (32, 40)) > 0
    assert peak_memory(net, (32, 40)) > 4 * count_params(net)
    assert type(net.mean) is Tensor
    assert torch.equal(net.mean, before)
    assert capfd.readouterr().err == ''


def test_a_net_that_does_not_take_the_input_is_refused_in_one_sentence(capfd):
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    net = nn.Conv2d(3, 3, 1)
    for count in (count_macs, peak_memory):
        with pytest.raises(ValueError, match=r'Conv2d: .*channels') as caught:
            count(net, (4, 4), num_in_ch=2)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(ValueError, match=r'Asks: .*AssertionError'):
            count(Asks(), (4, 4))
    assert capfd.readouterr().err == ''


def test_peak_memory_by_hand():
    """A linear layer: weights, bias, input and output, nothing twice; its transposed weight is no new memory."""
    net = nn.Sequential(nn.Flatten(2), nn.Linear(20, 1000))
    held = 20 * 1000 + 1000 + 3 * 4 * 5
    assert peak_memory(net, (4, 5)) == 4 * (held + 3 * 1000)


def test_peak_memory_counts_what_is_alive_together():
    class Net(nn.Module):
        def forward(self, x):
            wide = x.repeat(1, 10, 1, 1)
            return wide.sum(1, keepdim=True)

    pixels = 8 * 8
    assert peak_memory(Net(), (8, 8)) == 4 * pixels * (3 + 30 + 1)
