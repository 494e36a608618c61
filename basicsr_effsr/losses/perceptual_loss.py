"""Perceptual loss: squared distance of VGG features, fine-tuning of DPARN.

Papers:       Y. Li et al., "Dual Path Attention and Re-parameterization Network for efficient image
              super-resolution", Section 3.4, Eq. 11; J. Johnson et al., "Perceptual Losses for Real-Time Style
              Transfer and Super-Resolution", ECCV 2016.
Weights:      torchvision's ImageNet weights, from its cache or a given file. Never random: a missing file is an
              error, or, asked for, a term that is 0 and says so.
Differences:  Eq. 11 does not name the layer. Its formula and citation are Johnson's, so relu2_2 of VGG-16 is the
              default; conv5_4 of VGG-19 before its activation (SRGAN, ESRGAN) and every other layer are options.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from basicsr_effsr.archs.effsr_blocks import at_least_float32, check_options, register_in
from basicsr_effsr.losses._inputs import check_pair, constant
from basicsr_effsr.utils.stored import CheckpointError, listed, load_stored, refuse_unusable

__all__ = ['VGGFeatureLoss', 'VGGFeatures', 'vgg_weights']

# convolutions of each stage, which ends in a 2 x 2 max-pool, and their width
CONVOLUTIONS = {'vgg16': (2, 2, 3, 3, 3), 'vgg19': (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _layer_names(network: str) -> list[str]:
    """Names in order: conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1 ...; the position is torchvision's index."""
    names = []
    for stage, count in enumerate(CONVOLUTIONS[network], start=1):
        for i in range(1, count + 1):
            names += [f'conv{stage}_{i}', f'relu{stage}_{i}']
        names.append(f'pool{stage}')
    return names


class VGGFeatures(nn.Module):
    """The named activations of a VGG, up to the deepest one asked for.  (N, 3, H, W) -> name -> features.

    Parameter names are torchvision's without the prefix ``features.``.

    Args:
        network: 'vgg16' or 'vgg19'.
        layers: names such as 'relu2_2' or 'conv5_4' (before its activation).

    Raises:
        ValueError: the network or a layer does not exist.
    """

    def __init__(self, network: Literal['vgg16', 'vgg19'], layers: list[str]) -> None:
        super().__init__()
        check_options(VGGFeatures, locals())
        names = _layer_names(network)
        if not layers or not set(layers) <= set(names):
            raise ValueError(f'VGGFeatures: layers must be some of {", ".join(names)}, got {list(layers)}')
        self.names = names[: max(map(names.index, layers)) + 1]
        self.layers = list(layers)
        self.min_size = 2 ** sum(name.startswith('pool') for name in self.names)
        channels = 3
        for index, name in enumerate(self.names):
            if name.startswith('conv'):
                width = WIDTHS[int(name[4]) - 1]
                self.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            else:
                # an activation in place would overwrite the features before it
                self.add_module(str(index), nn.ReLU() if name.startswith('relu') else nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(f'VGGFeatures: H and W must be at least {self.min_size}, got {tuple(x.shape)}')
        found = {}
        for name, module in zip(self.names, self.children(), strict=True):
            x = module(x)
            if name in self.layers:
                found[name] = x
        return found


def vgg_weights(
    network: Literal['vgg16', 'vgg19'], weights_path: str | None = None, download: bool = False
) -> dict[str, Tensor]:
    """The convolutions of an ImageNet VGG, keys as in ``VGGFeatures``.

    Args:
        network: 'vgg16' or 'vgg19'.
        weights_path: a state dict of torchvision's VGG, whole or its ``features`` alone; None looks in the cache.
        download: let torchvision fetch the file into its cache if it is not there.

    Raises:
        FileNotFoundError: the file is not there, or could not be fetched; the message says how to get it.
        ValueError: the file is damaged or holds something else.
    """
    from torchvision.models import VGG16_Weights, VGG19_Weights

    url = {'vgg16': VGG16_Weights, 'vgg19': VGG19_Weights}[network].IMAGENET1K_V1.url
    file = Path(weights_path or Path(torch.hub.get_dir()) / 'checkpoints' / Path(url).name).expanduser()
    reason = 'which does not exist'
    if download and weights_path is None and not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # torchvision's names end in the first digits of the SHA-256 sum
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.split('-')[-1], progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # the last for a file with another sum
            reason = f'which does not exist and could not be fetched ({" ".join(str(error).split())[:120]})'
    wrong = f"VGGFeatureLoss: {file} must be a state dict of torchvision's {network}"
    try:
        state = load_stored(file)
        if not isinstance(state, Mapping):
            raise ValueError(f'{wrong}, found a {type(state).__name__}')
        named = {str(key).removeprefix('features.'): value for key, value in state.items()}
        found = {key: value for key, value in named.items() if not key.startswith('classifier.')}
        with torch.device('meta'):
            whole = VGGFeatures(network, _layer_names(network))
        shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
        for name in sorted(found.keys() | shapes.keys()):
            its = found.get(name)
            if not isinstance(its, Tensor) or not its.is_floating_point() or its.shape != shapes.get(name):
                raise ValueError(f'{wrong}, it differs at {listed([name])}')
        refuse_unusable(file, found)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'VGGFeatureLoss: the ImageNet weights of {network} must be in {file}, {reason}; put {url} there, or set '
            'weights_path to your copy, or download: true to fetch it once, or if_missing: zero to train without this '
            'term'
        ) from error
    except CheckpointError as error:
        raise ValueError(f'{wrong}: {error}') from error
    return found


@register_in(LOSS_REGISTRY)
class VGGFeatureLoss(nn.Module):
    """Weighted sum over layers of mean (Phi_j(pred) - Phi_j(target))^2, Phi_j the features of a VGG, Eq. 11 of DPARN.

    The mean runs over C_j, H_j, W_j and the batch. Images are normalised by ImageNet's mean and deviation first.

    Not the host's ``PerceptualLoss``: that one takes an L1 distance by default, returns a pair with a style term, and
    fetches VGG-19 when it is built. This one returns one scalar.

    Args:
        loss_weight: factor on the returned value (DPARN, Eq. 11: 0.005).
        network: 'vgg16' or 'vgg19'.
        layers: layer name -> weight; None is {relu2_2: 1.0}. 'conv5_4' is before its activation.
        weights_path: file with torchvision's weights; None is torchvision's cache
            (``torch.hub.get_dir()/checkpoints``, set by the environment variable TORCH_HOME).
        download: fetch the weights into that cache if they are not there.
        if_missing: what to do without the file: 'error', or 'zero' to log a warning and return 0 always.
        extractor: a module used instead of VGG: normalised images -> {layer name: features}. From Python only.

    Raises:
        FileNotFoundError: there are no weights, and ``if_missing`` is 'error'.
        ValueError: an option is out of its range, or the two images differ in shape or are not RGB.
    """

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        network: Literal['vgg16', 'vgg19'] = 'vgg16',
        layers: Mapping[str, float] | None = None,
        weights_path: str | None = None,
        download: bool = False,
        if_missing: Literal['error', 'zero'] = 'error',
        extractor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_options(VGGFeatureLoss, locals())
        self.loss_weight = loss_weight
        self.layers = dict(layers) if layers is not None else {'relu2_2': 1.0}
        self.extractor: nn.Module | None = extractor
        if extractor is None:
            features = VGGFeatures(network, list(self.layers))
            try:
                weights = vgg_weights(network, weights_path, download)
            except FileNotFoundError as error:
                if if_missing == 'error':
                    raise
                logging.getLogger('basicsr').warning('%s. The perceptual term is 0 in this run.', error)
            else:
                features.load_state_dict({key: weights[key] for key in features.state_dict()})
                self.extractor = features
        if self.extractor is not None:
            self.extractor.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> VGGFeatureLoss:
        """Keeps the extractor in evaluation mode."""
        super().train(mode)
        if self.extractor is not None:
            self.extractor.eval()
        return self

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Args: output and ground truth, (N, 3, H, W) in [0, 1].  Returns: a scalar >= 0, float32 or wider."""
        if self.extractor is None:  # part of the graph, so that a run with this loss alone still has gradients
            return at_least_float32(pred).sum() * 0.0
        check_pair('VGGFeatureLoss', pred, target)
        if pred.shape[1] != 3:
            raise ValueError(
                f'VGGFeatureLoss: pred and target must be RGB, (N, 3, H, W), got {tuple(pred.shape)}; remove it from '
                'train.losses for gray images'
            )
        mean, std = (constant(v, pred.device, pred.dtype).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        with torch.no_grad():
            wanted = self.extractor((target - mean) / std)
        found = self.extractor((pred - mean) / std)
        terms = [
            weight * (at_least_float32(found[name]) - at_least_float32(wanted[name])).square().mean()
            for name, weight in self.layers.items()
        ]
        return self.loss_weight * torch.stack(terms).sum()
