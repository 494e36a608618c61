"""The losses: values by hand and from independent float64 code, gradients, options, errors."""

from __future__ import annotations

import email.message
import io
import math
import os
import zipfile
from http.client import IncompleteRead
from urllib.error import URLError

import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basicsr_effsr.losses import fakd_loss
from basicsr_effsr.losses.charbonnier_loss import EdgeLoss, EpsCharbonnierLoss, laplacian, laplacian_pyramid
from basicsr_effsr.losses.fakd_loss import FAKDLoss
from basicsr_effsr.losses.kl_loss import PixelKLLoss
from basicsr_effsr.losses.perceptual_loss import VGGFeatureLoss, VGGFeatures, vgg_weights
from basicsr_effsr.utils.feature_tap import semi_orthogonal_conv1x1

IMAGE_LOSSES = {
    'PixelKLLoss': {},
    'EpsCharbonnierLoss': {},
    'EdgeLoss': {},
}


@pytest.fixture(scope='module')
def vectors(reference):
    """Golden values that independent float64 code made."""
    with np.load(reference / 'golden' / 'losses_and_rerb.npz') as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def images(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype), torch.rand(*shape, dtype=dtype)


class Probe(nn.Module):
    """Stands in for VGG: two 'layers' that are known functions of the normalised image."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return {'linear': self.gain * x, 'square': x.square()}


@pytest.mark.parametrize('name', [*IMAGE_LOSSES, 'FAKDLoss', 'VGGFeatureLoss'])
def test_the_registry_finds_it_under_a_name_the_host_does_not_use(name):
    assert LOSS_REGISTRY.get(name).__module__.startswith('basicsr_effsr.losses.')


@pytest.mark.parametrize('name', IMAGE_LOSSES)
def test_loss_weight_multiplies_the_value(name):
    pred, target = images(2, 3, 5, 6)
    once, thrice = (build_loss({'type': name, 'loss_weight': weight})(pred, target) for weight in (1.0, 3.0))
    assert once > 0
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-12, atol=0)


@pytest.mark.parametrize('name', IMAGE_LOSSES)
def test_gradient_agrees_with_finite_differences(name):
    pred, target = images(2, 3, 4, 5)
    assert gradcheck(lambda p: build_loss({'type': name})(p, target), pred.requires_grad_())


@pytest.mark.parametrize('name', IMAGE_LOSSES)
@pytest.mark.parametrize('shape', [(2, 1, 5, 6), (1, 3, 5, 6), (2, 3, 5, 1), (3, 5, 6)])
def test_shapes_that_torch_would_broadcast_are_refused(name, shape):
    with pytest.raises(ValueError, match=rf'{name}: pred and target must .*same shape.*scale'):
        build_loss({'type': name})(torch.rand(2, 3, 5, 6), torch.rand(shape))


@pytest.mark.parametrize('name', [*IMAGE_LOSSES, 'FAKDLoss', 'VGGFeatureLoss'])
def test_an_unknown_option_is_refused(name):
    with pytest.raises(TypeError, match='los_weight'):
        build_loss({'type': name, 'los_weight': 1.0})


@pytest.mark.parametrize('name', IMAGE_LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_images_are_compared_in_float32(name, dtype):
    pred, target = (x.to(dtype) for x in images(1, 3, 8, 8))
    pred.requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = build_loss({'type': name})(pred, target)
    assert value.dtype == torch.float32
    exact = build_loss({'type': name})(pred.detach().double(), target.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-7)
    value.backward()
    assert pred.grad.dtype == dtype


@pytest.mark.parametrize(
    ('name', 'option', 'value'),
    [
        ('PixelKLLoss', 'axis', 'colour'),
        ('PixelKLLoss', 'reduction', 'sum'),
        ('PixelKLLoss', 'temperature', 0.0),
        ('PixelKLLoss', 'eps', -1.0),
        ('EpsCharbonnierLoss', 'eps', 0.0),
        ('EpsCharbonnierLoss', 'root', 'batch'),
        ('EdgeLoss', 'operator', 'sobel'),
        ('EdgeLoss', 'root', 'batch'),
        ('EdgeLoss', 'eps', 0.0),
        ('FAKDLoss', 'adapter', 'linear'),
        ('FAKDLoss', 'block_size', 0),
        ('FAKDLoss', 'eps', 0.0),
        ('VGGFeatureLoss', 'network', 'vgg11'),
        ('VGGFeatureLoss', 'layers', {'relu9_1': 1.0}),
        ('VGGFeatureLoss', 'layers', {}),
        ('VGGFeatureLoss', 'if_missing', 'ignore'),
    ],
)
def test_impossible_options_are_refused_at_construction(name, option, value):
    with pytest.raises(ValueError, match=option):
        build_loss({'type': name, option: value})


class TestPixelKL:
    def test_by_hand(self):
        # logits (0, 0, ln 2) make target probabilities (1/4, 1/4, 1/2); the prediction is uniform:
        # KL = 1/4 ln(3/4) * 2 + 1/2 ln(3/2) = 1/2 ln(9/8); two pixels, the second without error
        target = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
        target[0, 2, 0, 0] = math.log(2)
        pred = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
        kl = 0.5 * math.log(9 / 8)
        assert PixelKLLoss()(pred, target).item() == pytest.approx(kl / 6)
        assert PixelKLLoss(reduction='pixelmean')(pred, target).item() == pytest.approx(kl / 2)
        assert PixelKLLoss(reduction='batchmean')(pred, target).item() == pytest.approx(kl)

    def test_temperature_divides_the_images_and_keeps_the_size(self):
        # the logits of the test above at T = 2 are 2 ln 2, so after division the value is the same, times T^2 = 4
        target = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
        target[0, 2] = 2 * math.log(2)
        value = PixelKLLoss(temperature=2.0, reduction='batchmean')(torch.zeros_like(target), target)
        assert value.item() == pytest.approx(4 * 0.5 * math.log(9 / 8))

    @pytest.mark.parametrize(
        ('name', 'options', 'tolerance'),
        [
            ('kl_official_mean', {'eps': 1e-8}, 1e-12),
            ('kl_official_mean', {}, 1e-6),  # the authors' floor under the logarithm is all that differs
            ('kl_channel_pixelmean', {'reduction': 'pixelmean'}, 1e-12),
            ('kl_spatial_perchannel', {'axis': 'spatial', 'reduction': 'pixelmean'}, 1e-12),
        ],
    )
    def test_golden(self, vectors, name, options, tolerance):
        value = PixelKLLoss(**options)(vectors['loss_sr'], vectors['loss_hr'])
        torch.testing.assert_close(value, vectors[name], rtol=tolerance, atol=0)

    @pytest.mark.parametrize('axis', ['channel', 'spatial', 'all'])
    def test_equals_kl_div_of_torch(self, axis):
        pred, target = images(2, 3, 4, 5)
        first = {'channel': 1, 'spatial': 2, 'all': 1}[axis]
        last = {'channel': 1, 'spatial': 3, 'all': 3}[axis]
        log_p, log_q = (x.flatten(first, last).log_softmax(first) for x in (pred, target))
        for reduction in ('mean', 'batchmean'):
            count = log_p.numel() if reduction == 'mean' else len(pred)
            expected = nn.functional.kl_div(log_p, log_q, reduction='sum', log_target=True) / count
            torch.testing.assert_close(PixelKLLoss(axis=axis, reduction=reduction)(pred, target), expected)
        count = {'channel': 2 * 4 * 5, 'spatial': 2 * 3, 'all': 2}[axis]
        expected = nn.functional.kl_div(log_p, log_q, reduction='sum', log_target=True) / count
        torch.testing.assert_close(PixelKLLoss(axis=axis, reduction='pixelmean')(pred, target), expected)

    def test_the_default_is_blind_to_grey(self):
        pred, target = images(1, 3, 4, 4)
        grey = 0.05 * torch.rand(1, 1, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(PixelKLLoss()(pred + grey, target), PixelKLLoss()(pred, target), rtol=1e-12, atol=0)
        assert PixelKLLoss(axis='spatial')(pred + grey, target) != PixelKLLoss(axis='spatial')(pred, target)

    def test_direction_is_target_to_prediction(self):
        pred, target = images(1, 3, 4, 4)
        log_p, log_q = pred.log_softmax(1), target.log_softmax(1)
        assert PixelKLLoss()(pred, target).item() == pytest.approx((log_q.exp() * (log_q - log_p)).mean().item())
        assert PixelKLLoss()(pred, target).item() != pytest.approx(PixelKLLoss()(target, pred).item(), rel=1e-3)

    def test_finite_where_a_softmax_underflows(self):
        pred = torch.tensor([0.0, 0.0, 200.0]).view(1, 3, 1, 1).requires_grad_()
        target = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1)
        value = PixelKLLoss()(pred, target)
        value.backward()
        assert value.item() == pytest.approx(200 / 3)
        assert pred.grad.isfinite().all()

    def test_target_gets_no_gradient(self):
        pred, target = (x.requires_grad_() for x in images(1, 3, 2, 2))
        PixelKLLoss()(pred, target).backward()
        assert pred.grad.any()
        assert target.grad is None


class TestCharbonnier:
    def test_by_hand(self):
        # differences 3 and 0 with eps 4: roots 5 and 4, mean 4.5; one root over the image: sqrt(9 + 16) = 5
        pred = torch.tensor([[[[3.0, 0.0]]]])
        assert EpsCharbonnierLoss(eps=4.0)(pred, torch.zeros_like(pred)).item() == pytest.approx(4.5)
        assert EpsCharbonnierLoss(eps=4.0, root='image')(pred, torch.zeros_like(pred)).item() == pytest.approx(5.0)

    def test_root_per_image_is_a_mean_over_the_batch(self):
        pred, target = images(2, 3, 4, 5)
        each = [EpsCharbonnierLoss(root='image')(p[None], t[None]) for p, t in zip(pred, target, strict=True)]
        torch.testing.assert_close(EpsCharbonnierLoss(root='image')(pred, target), sum(each) / 2)
        assert each[0].item() == pytest.approx(math.sqrt((pred[0] - target[0]).square().sum().item() + 1e-6))

    def test_golden(self, vectors):
        value = EpsCharbonnierLoss()(vectors['loss_sr'], vectors['loss_hr'])
        torch.testing.assert_close(value, vectors['charbonnier'], rtol=1e-12, atol=0)

    def test_differs_from_the_hosts_near_zero(self):
        pred, target = torch.full((1, 3, 2, 2), 1e-3, dtype=torch.float64), torch.zeros(1, 3, 2, 2).double()
        assert EpsCharbonnierLoss()(pred, target).item() == pytest.approx(math.sqrt(2) * 1e-3)
        host = build_loss({'type': 'CharbonnierLoss'})(pred, target)
        assert host.item() == pytest.approx(1e-3, rel=1e-5)


class TestEdge:
    def test_golden(self, vectors):
        value = EdgeLoss()(vectors['loss_sr'], vectors['loss_hr'])
        torch.testing.assert_close(value, vectors['edge'], rtol=1e-12, atol=0)

    @pytest.mark.parametrize('operator', [laplacian_pyramid, laplacian])
    def test_a_flat_image_has_no_edges(self, operator):
        """The pyramid replicates the border of a map in which three of four pixels are zero, so it is judged inside."""
        flat = torch.full((1, 2, 8, 10), 0.7, dtype=torch.float64)
        inner = operator(flat)[..., 2:-2, 2:-2] if operator is laplacian_pyramid else operator(flat)
        assert inner.abs().max() < 1e-15

    def test_laplacian_by_hand(self):
        # a single 1 in the middle: -4 there, 1 at its four neighbours, 0 in the corners
        x = torch.zeros(1, 1, 3, 3)
        x[0, 0, 1, 1] = 1
        assert torch.equal(laplacian(x)[0, 0], torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]))
        # replicated border: a corner pixel has itself as two of its neighbours, so -4 + 2
        y = torch.zeros(1, 1, 3, 3)
        y[0, 0, 0, 0] = 1
        assert laplacian(y)[0, 0, 0, 0] == -2

    def test_root_by_hand(self):
        # edges -4 once and 1 four times, eps 3: roots 5, sqrt(10) and four times 3 in nine; or sqrt(16 + 4 + 9) of all
        x = torch.zeros(2, 1, 3, 3)
        x[:, 0, 1, 1] = 1
        pixel, image = (EdgeLoss(eps=3.0, operator='laplacian', root=root)(x, 0 * x) for root in ('pixel', 'image'))
        assert pixel.item() == pytest.approx((5 + 4 * math.sqrt(10) + 4 * 3) / 9)
        assert image.item() == pytest.approx(math.sqrt(29))

    def test_pyramid_by_hand(self):
        # A single 1 at an even position far from the border. Blurring leaves k_i k_j around it, of which the entries
        # at even offsets survive times 4. Blurring again: the value at offset 0 is
        # 4 (k_-2 k_2 + k_0 k_0 + k_2 k_-2)^2 = 4 (0.05^2 + 0.4^2 + 0.05^2)^2, and the operator returns 1 minus that.
        x = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
        x[0, 0, 8, 8] = 1
        assert laplacian_pyramid(x)[0, 0, 8, 8].item() == pytest.approx(1 - 4 * (0.4**2 + 2 * 0.05**2) ** 2)

    def test_one_pass_over_the_difference_equals_two(self):
        pred, target = images(2, 3, 7, 9)
        for name, operator in (('pyramid', laplacian_pyramid), ('laplacian', laplacian)):
            expected = EpsCharbonnierLoss()(operator(pred), operator(target))
            torch.testing.assert_close(EdgeLoss(operator=name)(pred, target), expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize('size', [(1, 1), (2, 1), (3, 5)])
    def test_tiny_images_work(self, size):
        pred, target = images(1, 3, *size)
        assert EdgeLoss()(pred, target).isfinite()

    def test_plain_laplacian_passes_gradcheck(self):
        pred, target = images(1, 2, 4, 3)
        assert gradcheck(lambda p: EdgeLoss(operator='laplacian')(p, target), pred.requires_grad_())


def vgg_file(path, network='vgg16', prefix='features.', classifier=True):
    """A file in torchvision's layout with random weights."""
    features = VGGFeatures(network, ['pool5'])
    state = {prefix + key: value for key, value in features.state_dict().items()}
    if classifier:
        state['classifier.0.weight'] = torch.zeros(1)
    torch.save(state, path)
    return features


DOWNLOAD = torch.hub.download_url_to_file


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))

    def refuse(*args, **kwargs):
        raise AssertionError('a download was tried')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    return tmp_path


class TestPerceptual:
    def test_by_hand(self):
        # one pixel, red off by 0.229 = one deviation: the linear layer is off by 2 in one of three values,
        # mean square 4/3; the squares are off by 1, mean square 1/3; weights 3 and 6, loss_weight 0.5
        target = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
        pred = target + torch.tensor([0.229, 0, 0], dtype=torch.float64).view(1, 3, 1, 1)
        loss = VGGFeatureLoss(loss_weight=0.5, layers={'linear': 3.0, 'square': 6.0}, extractor=Probe())
        assert loss(pred, target).item() == pytest.approx(0.5 * (3 * 4 / 3 + 6 / 3))
        assert loss(target, target) == 0

    def test_gradient_agrees_with_finite_differences(self):
        pred, target = images(2, 3, 3, 2)
        loss = VGGFeatureLoss(layers={'linear': 1.0, 'square': 0.5}, extractor=Probe())
        assert gradcheck(lambda p: loss(p, target), pred.requires_grad_())

    def test_module_equals_function(self):
        pred, target = images(2, 3, 3, 2)
        loss = VGGFeatureLoss(layers={'square': 0.5}, extractor=Probe())
        assert torch.equal(loss(pred, target), VGGFeatureLoss(layers={'square': 0.5}, extractor=Probe())(pred, target))

    def test_extractor_is_frozen_and_stays_in_evaluation_mode(self):
        extractor = Probe()
        loss = VGGFeatureLoss(layers={'linear': 1.0}, extractor=extractor).train()
        assert not extractor.training
        pred, target = (x.requires_grad_() for x in images(1, 3, 2, 2))
        loss(pred, target).backward()
        assert pred.grad.any()
        assert target.grad is None
        assert extractor.gain.grad is None

    @pytest.mark.parametrize('network', ['vgg16', 'vgg19'])
    def test_layers_are_torchvisions(self, network):
        """Same parameters, same values at a layer before and at one after its activation."""
        import torchvision

        with torch.device('meta'):
            theirs = getattr(torchvision.models, network)().features
        ours = VGGFeatures(network, ['conv3_2', 'relu4_1', 'pool5'])
        theirs.load_state_dict(ours.state_dict(), assign=True)
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
        assert [type(m).__name__ for m in theirs] == [type(m).__name__ for m in ours.children()]
        index = {'vgg16': {'conv3_2': 12, 'relu4_1': 18}, 'vgg19': {'conv3_2': 12, 'relu4_1': 20}}[network]
        x = torch.rand(1, 3, 32, 48)
        with torch.no_grad():
            found = ours(x)
            for layer, last in {**index, 'pool5': len(theirs) - 1}.items():
                torch.testing.assert_close(found[layer], theirs[: last + 1](x), msg=f'{layer} differs')
        assert (found['conv3_2'] < 0).any()
        assert found['pool5'].shape == (1, 512, 1, 1)

    def test_named_layers_are_the_right_activations(self):
        features = VGGFeatures('vgg19', ['relu2_2', 'conv2_2', 'conv1_1'])
        x = torch.rand(1, 3, 8, 8)
        found = features(x)
        steps = list(features.children())
        torch.testing.assert_close(found['conv1_1'], steps[0](x))
        conv2_2 = nn.Sequential(*steps[:8])(x)
        torch.testing.assert_close(found['conv2_2'], conv2_2)
        assert (found['conv2_2'] < 0).any()
        torch.testing.assert_close(found['relu2_2'], conv2_2.relu())
        assert found['relu2_2'].shape == (1, 128, 4, 4)
        assert features.names[-1] == 'relu2_2'

    def test_conv5_4_is_before_its_activation(self):
        features = VGGFeatures('vgg19', ['conv5_4'])
        assert features.names[-1] == 'conv5_4'
        assert features.min_size == 16
        with pytest.raises(ValueError, match='H and W must be at least 16'):
            features(torch.rand(1, 3, 15, 16))

    @pytest.mark.parametrize('prefix', ['features.', ''])
    def test_weights_from_a_file(self, no_cache, prefix):
        theirs = vgg_file(no_cache / 'vgg.pth', prefix=prefix, classifier=bool(prefix))
        loss = VGGFeatureLoss(weights_path=str(no_cache / 'vgg.pth'))
        assert torch.equal(loss.extractor.get_parameter('7.weight'), theirs.get_parameter('7.weight'))
        assert loss.extractor.names[-1] == 'relu2_2'

    def test_weights_from_the_cache(self, no_cache):
        (no_cache / 'hub' / 'checkpoints').mkdir(parents=True)
        theirs = vgg_file(no_cache / 'hub' / 'checkpoints' / 'vgg16-397923af.pth')
        pred, target = images(1, 3, 6, 5, dtype=torch.float32)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        steps = nn.Sequential(*list(theirs.children())[:9])
        phi = [steps((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)) for x in (pred, target)]
        expected = (phi[0] - phi[1]).square().mean()
        torch.testing.assert_close(VGGFeatureLoss()(pred, target), expected, rtol=1e-4, atol=0)

    def test_a_missing_file_says_how_to_get_it(self, no_cache):
        with pytest.raises(
            FileNotFoundError, match=r'vgg16 must be in .*vgg16-397923af\.pth.*https.*weights_path.*dow'
        ):
            VGGFeatureLoss()
        with pytest.raises(FileNotFoundError, match=r'must be in .*mine\.pth'):
            VGGFeatureLoss(weights_path=str(no_cache / 'mine.pth'), download=True)

    def test_download_only_when_asked(self, no_cache):
        with pytest.raises(AssertionError, match='a download was tried'):
            VGGFeatureLoss(download=True)

    def test_zero_if_missing_warns_and_returns_zero(self, no_cache, caplog):
        with caplog.at_level('WARNING', logger='basicsr'):
            loss = VGGFeatureLoss(if_missing='zero')
        assert 'perceptual term is 0' in caplog.text
        pred, target = images(1, 3, 4, 4)
        value = loss(pred.requires_grad_(), target)
        value.backward()
        assert value == 0
        assert not pred.grad.any()

    @pytest.fixture
    def offline(self, no_cache, monkeypatch):
        """No network, but torch's own download; the folder of the cache."""
        monkeypatch.setattr(torch.hub, 'download_url_to_file', DOWNLOAD)

        def refuse(*args, **kwargs):
            raise URLError('no route to host')

        monkeypatch.setattr(torch.hub, 'urlopen', refuse)
        return no_cache / 'hub' / 'checkpoints'

    def test_a_download_that_fails_is_a_missing_file(self, offline, caplog):
        with pytest.raises(
            FileNotFoundError, match=r'vgg16-397923af\.pth, .* fetched \(<urlopen .*no route.*weights_path'
        ):
            VGGFeatureLoss(download=True)
        with caplog.at_level('WARNING', logger='basicsr'):
            loss = VGGFeatureLoss(download=True, if_missing='zero')
        assert loss.extractor is None
        assert 'no route to host' in caplog.text
        assert list(offline.iterdir()) == []

    @pytest.mark.parametrize('break_off', [True, False])
    def test_a_part_of_a_download_is_no_file(self, offline, monkeypatch, break_off):
        """Whether the connection breaks with an error, or the file just ends."""

        class Response(io.BytesIO):
            def info(self):
                return email.message.Message()

            def read(self, size=-1):
                part = super().read(size)
                if break_off and not part:
                    raise IncompleteRead(b'')
                return part

        monkeypatch.setattr(torch.hub, 'urlopen', lambda *args, **kwargs: Response(b'half of it'))
        with pytest.raises(FileNotFoundError, match='could not be fetched'):
            VGGFeatureLoss(download=True)
        assert list(offline.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_said(self, offline):
        offline.parent.write_bytes(b'a file where the folder should be')
        with pytest.raises(FileNotFoundError, match='could not be fetched'):
            VGGFeatureLoss(download=True)

    def test_what_was_fetched_is_used(self, offline, monkeypatch):
        def fetch(url, to, hash_prefix=None, progress=True):
            assert (url.rsplit('/')[-1], hash_prefix) == ('vgg16-397923af.pth', '397923af')
            vgg_file(to)

        monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
        assert VGGFeatureLoss(download=True).extractor is not None

    @pytest.mark.parametrize('stored', [b'junk' * 1000, b'', [1, 2]])
    @pytest.mark.parametrize('if_missing', ['error', 'zero'])
    def test_a_damaged_file_is_named(self, no_cache, stored, if_missing):
        file = no_cache / 'vgg.pth'
        file.write_bytes(stored) if isinstance(stored, bytes) else torch.save(stored, file)
        with pytest.raises(ValueError, match=rf"^VGGFeatureLoss: {file} must be a state dict of torchvision's vgg16"):
            VGGFeatureLoss(weights_path=str(file), if_missing=if_missing)

    @pytest.mark.parametrize('kind', ['nan', 'integers', 'shape', 'text', 'number', 'sparse', 'bytes', 'pipe', 'long'])
    def test_what_no_network_can_use_is_refused_as_in_any_checkpoint(self, no_cache, kind):
        file = no_cache / ('vgg.pth' if kind != 'long' else 'x' * 300)
        if kind == 'pipe':
            os.mkfifo(file)
        elif kind != 'long':
            vgg_file(file, classifier=False)
            state = torch.load(file, weights_only=True)
            first = state['features.0.bias']
            state |= {
                'nan': {'features.0.bias': first.clone().fill_(torch.nan)},
                'integers': {'features.0.bias': first.long()},
                'shape': {'features.0.bias': first[1:]},
                'text': {'features.0.bias': 'none'},
                'number': {7: first},
                'sparse': {'features.0.bias': first.to_sparse()},
                'bytes': {},
            }[kind]
            torch.save(state, file)
        if kind == 'bytes':
            with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as whole, zipfile.ZipFile(file, 'w') as small:
                for name in whole.namelist():
                    small.writestr(name, bytes(len(whole.read(name))), zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match=rf"^VGGFeatureLoss: {file} must be a state dict of torchvision's vgg16"):
            VGGFeatureLoss(weights_path=str(file), if_missing='zero')

    def test_a_path_in_the_home_folder(self, no_cache, monkeypatch):
        monkeypatch.setenv('HOME', str(no_cache))
        vgg_file(no_cache / 'vgg.pth')
        assert VGGFeatureLoss(weights_path='~/vgg.pth').extractor is not None

    @pytest.mark.parametrize('channels', [1, 4])
    def test_other_images_than_rgb_are_refused(self, channels):
        loss = VGGFeatureLoss(layers={'linear': 1.0}, extractor=Probe())
        with pytest.raises(ValueError, match=rf'must be RGB, \(N, 3, H, W\), got \(2, {channels}, 8, 8\)'):
            loss(torch.rand(2, channels, 8, 8), torch.rand(2, channels, 8, 8))

    def test_weights_of_another_network_are_refused(self, no_cache):
        vgg_file(no_cache / 'vgg19.pth', 'vgg19')
        with pytest.raises(ValueError, match="must be a state dict of torchvision's vgg16, it differs at '1"):
            vgg_weights('vgg16', str(no_cache / 'vgg19.pth'))


def definition(student, teacher, eps=1e-7):
    """Eq. 7 as it reads, with the matrices in memory; the length of a zero column has no gradient."""

    def affinity(x):
        x = x.flatten(2)
        square = x.square().sum(1, keepdim=True)
        length = torch.where(square > 0, square, 1).sqrt() * (square > 0)
        unit = x / (length + eps)
        return unit.transpose(1, 2) @ unit

    return (affinity(student) - affinity(teacher.detach())).abs().mean()


def gradient(loss, student, teacher):
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf, teacher)
    value.backward()
    return value.detach(), leaf.grad


class Operators(TorchDispatchMode):
    """Name of every operator that runs -> whether float32 products are full then, and the type of its result."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, matmul = func(*args, **(kwargs or {})), torch.backends.cuda.matmul
        full = matmul.fp32_precision == 'ieee' if hasattr(matmul, 'fp32_precision') else not matmul.allow_tf32
        self.seen[func.overloadpacket.__name__] = full, getattr(out, 'dtype', None)
        return out


class TestFAKD:
    def test_by_hand(self):
        # two positions; 60 degrees apart in the student (affinity 1/2), parallel in the teacher (1):
        # two of the four entries differ by 1/2, so the mean is 1/4
        student = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.75**0.5]]]])
        teacher = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
        assert FAKDLoss(loss_weight=3.0)(student, teacher).item() == pytest.approx(0.75)

    @pytest.mark.parametrize('block_size', [None, 1, 5, 41, 42, 1000])
    def test_golden(self, vectors, block_size):
        value, grad = gradient(FAKDLoss(block_size=block_size), vectors['fakd_fS'], vectors['fakd_fT'])
        torch.testing.assert_close(value, vectors['fakd_loss'], rtol=0, atol=1e-12)
        torch.testing.assert_close(grad, vectors['fakd_grad'], rtol=0, atol=1e-12)

    @pytest.mark.parametrize('block_size', [None, 1, 7, 64, 500])
    @pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
    def test_equals_the_definition(self, block_size, dtype, tolerance):
        student, teacher = torch.randn(3, 6, 9, 11, dtype=dtype), torch.randn(3, 10, 9, 11, dtype=dtype)
        value, grad = gradient(FAKDLoss(block_size=block_size), student, teacher)
        expected, expected_grad = gradient(definition, student, teacher)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
        assert (grad - expected_grad).norm() <= tolerance * expected_grad.norm()

    @pytest.mark.parametrize('elements', [50, 99, 99 * 99, 2 * 99 * 99])
    def test_any_split_of_the_batch_is_the_same(self, monkeypatch, elements):
        """Without a block size the blocks come from a budget: part of a row, a row, one image, two images."""
        student, teacher = torch.randn(3, 4, 9, 11).double(), torch.randn(3, 5, 9, 11).double()
        monkeypatch.setitem(fakd_loss.BLOCK_ELEMENTS, 'cpu', elements)
        value, grad = gradient(FAKDLoss(), student, teacher)
        expected, expected_grad = gradient(definition, student, teacher)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-16)

    def test_gradient_agrees_with_finite_differences(self):
        student, teacher = torch.randn(2, 3, 2, 3).double().requires_grad_(), torch.randn(2, 5, 2, 3).double()
        assert gradcheck(lambda s: FAKDLoss(loss_weight=2.0)(s, teacher), student)

    def test_teacher_gets_no_gradient(self):
        student, teacher = torch.randn(1, 3, 2, 3).requires_grad_(), torch.randn(1, 5, 2, 3).requires_grad_()
        FAKDLoss()(student, teacher).backward()
        assert student.grad.any()
        assert teacher.grad is None

    def test_upstream_factor_reaches_the_gradient(self):
        student, teacher = torch.randn(1, 3, 3, 4).double(), torch.randn(1, 5, 3, 4).double()
        _, once = gradient(FAKDLoss(), student, teacher)
        _, scaled = gradient(lambda s, t: FAKDLoss(loss_weight=3.0)(s, t) * 7, student, teacher)
        torch.testing.assert_close(scaled, 21 * once)

    def test_all_zero_positions_get_no_gradient_and_no_nan(self):
        student, teacher = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 4, 3, 5).double()
        student[0, :, 1, 2] = 0
        teacher[1, :, 0, 0] = 0
        value, grad = gradient(FAKDLoss(block_size=4), student, teacher)
        expected, expected_grad = gradient(definition, student, teacher)
        assert not grad[0, :, 1, 2].any()
        expected_grad[0, :, 1, 2] = 0  # the definition divides by eps there
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, expected_grad)

    def test_student_of_zeros_is_finite(self):
        value, grad = gradient(FAKDLoss(), torch.zeros(1, 3, 4, 4), torch.randn(1, 3, 4, 4))
        assert value > 0
        assert not grad.any()

    def test_a_student_equal_to_its_teacher_has_nothing_to_learn(self):
        features = torch.randn(2, 5, 6, 7)
        assert FAKDLoss()(features, features).item() == pytest.approx(0, abs=1e-6)
        assert FAKDLoss()(features, 3 * features).item() == pytest.approx(0, abs=1e-6)
        student = features.clone().requires_grad_()
        FAKDLoss(block_size=5)(student, features).backward()
        assert not student.grad.any(), 'the sign of a tie is 0, and not that of rounding'

    def test_no_graph_no_gradient_work(self):
        student, teacher = torch.randn(1, 3, 3, 4, requires_grad=True), torch.randn(1, 3, 3, 4)
        with Operators() as quietly, torch.no_grad():
            quiet = FAKDLoss()(student, teacher)
        with Operators() as fully:
            assert torch.equal(quiet, FAKDLoss()(student, teacher).detach())
        assert 'sign_' in fully.seen, 'the gradient is of the signs'
        assert 'sign_' not in quietly.seen

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_products_stay_in_float32(self, dtype):
        """Under autocast, with half features, and with reduced-precision float32 products switched on."""
        student, teacher = torch.randn(1, 8, 6, 7).to(dtype), torch.randn(1, 8, 6, 7).to(dtype)
        expected, expected_grad = gradient(FAKDLoss(), student.float(), teacher.float())
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('medium')
        try:
            with torch.autocast('cpu', dtype=torch.bfloat16):
                value, grad = gradient(FAKDLoss(), student, teacher)
            assert torch.get_float32_matmul_precision() == 'medium'
            assert torch.backends.cuda.matmul.allow_tf32
        finally:
            torch.set_float32_matmul_precision(before)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        assert torch.equal(grad, expected_grad.to(dtype))

    def test_reduced_precision_is_off_inside(self):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('high')
        try:
            with torch.autocast('cpu', dtype=torch.bfloat16), Operators() as run:
                FAKDLoss()(torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2))
        finally:
            torch.set_float32_matmul_precision(before)
        assert run.seen['bmm'] == (True, torch.float32)

    @pytest.mark.parametrize('block_size', [1, 8, 100])
    def test_no_tensor_is_larger_than_a_block(self, monkeypatch, block_size):
        """The matrix of one image would have 400 x 400 entries, a block has ``block_size`` x 400."""

        class Largest(TorchDispatchMode):
            entries = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                self.entries = max(
                    [self.entries, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))]
                )
                return out

        monkeypatch.setitem(fakd_loss.BLOCK_ELEMENTS, 'cpu', block_size * 400)
        student, teacher = torch.randn(3, 2, 20, 20, requires_grad=True), torch.randn(3, 4, 20, 20)
        with Largest() as largest:
            FAKDLoss(block_size=block_size)(student, teacher).backward()
        assert largest.entries == max(block_size * 400, 3 * 4 * 400)  # a block, or the teacher's features

    def test_tokens_of_a_swin_trunk_are_taken_in_raster_order(self):
        student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
        tokens = teacher.flatten(2).transpose(1, 2)
        assert torch.equal(FAKDLoss()(student, tokens), FAKDLoss()(student, teacher))

    def test_another_grid_is_refused_or_resized(self):
        student, teacher = torch.randn(1, 3, 4, 6), torch.randn(1, 5, 8, 12)
        with pytest.raises(ValueError, match=r'agree in H x W.*\(1, 3, 4, 6\).*\(1, 5, 8, 12\).*feature_pairs'):
            FAKDLoss()(student, teacher)
        resized = nn.functional.interpolate(teacher, size=(4, 6), mode='bilinear')
        torch.testing.assert_close(FAKDLoss(resize_teacher=True)(student, teacher), definition(student, resized))

    @pytest.mark.parametrize(
        ('student', 'teacher'),
        [((1, 3, 4, 6), (1, 3, 6, 4)), ((1, 3, 4, 6), (1, 23, 5))],
        ids=['transposed', 'tokens'],
    )
    def test_as_many_positions_is_not_the_same_grid(self, student, teacher):
        with pytest.raises(ValueError, match='agree in H x W'):
            FAKDLoss()(torch.randn(student), torch.randn(teacher))

    def test_other_batches_are_refused(self):
        with pytest.raises(ValueError, match='with the same N'):
            FAKDLoss()(torch.randn(2, 3, 4, 4), torch.randn(1, 3, 4, 4))

    def test_inputs_are_left_alone(self):
        student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
        before = student.clone(), teacher.clone()
        gradient(FAKDLoss(block_size=3), student, teacher)
        assert torch.equal(student, before[0])
        assert torch.equal(teacher, before[1])


class TestAdapter:
    def test_starts_at_plain_fakd(self):
        student, teacher = torch.randn(2, 5, 4, 6), torch.randn(2, 9, 4, 6)
        adapter = semi_orthogonal_conv1x1(5, 9)
        assert adapter.bias is None
        torch.testing.assert_close(FAKDLoss()(adapter(student), teacher), FAKDLoss()(student, teacher))

    @pytest.mark.parametrize(('c_in', 'c_out'), [(5, 9), (6, 6), (9, 5)])
    def test_is_semi_orthogonal(self, c_in, c_out):
        weight = semi_orthogonal_conv1x1(c_in, c_out).weight[:, :, 0, 0]
        gram = weight.T @ weight if c_out >= c_in else weight @ weight.T
        torch.testing.assert_close(gram, torch.eye(min(c_in, c_out)), atol=1e-6, rtol=0)

    def test_gradients_of_student_and_adapter_equal_the_definition(self):
        student, teacher = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 5, 4, 6).double()
        found = []
        for loss in (FAKDLoss(block_size=7), definition):
            torch.manual_seed(1)
            adapter = semi_orthogonal_conv1x1(3, 5).double()
            value, grad = gradient(lambda s, t, a=adapter, f=loss: f(a(s), t), student, teacher)
            found.append((value, grad, adapter.weight.grad))
        assert found[0][2].abs().max() > 0
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
