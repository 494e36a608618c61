"""IMDN against the authors' weights and published sizes."""

from __future__ import annotations

import cv2
import pytest
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img

from basicsr_effsr.archs.imdn_arch import IMDN


def official(reference) -> dict:
    stored = torch.load(reference / 'checkpoints' / 'imdn_x4_official.pth', map_location='cpu', weights_only=True)
    return {key.removeprefix('module.'): value for key, value in stored.items()}


def test_official_checkpoint_loads_strictly(reference):
    IMDN().load_state_dict(official(reference), strict=True)


def test_gradients_are_finite_on_constant_channels():
    net = IMDN(num_feat=8, num_block=2).train()
    with torch.no_grad():
        for i in (1, 2):
            for name in ('c1', 'c2', 'c3', 'c4'):
                net.get_submodule(f'IMDB{i}.{name}').weight.zero_()
    x = torch.full((2, 3, 9, 9), 0.5, requires_grad=True)
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert x.grad.isfinite().all()


def test_each_step_of_a_block_leaves_a_quarter_of_the_channels():
    block = IMDN().get_submodule('IMDB1')
    assert block.split == (16, 48)
    assert {name: tuple(block.get_submodule(name).weight.shape[:2]) for name in ('c1', 'c2', 'c3', 'c4', 'c5')} == {
        'c1': (64, 64),
        'c2': (64, 48),
        'c3': (64, 48),
        'c4': (16, 48),
        'c5': (64, 64),
    }


@pytest.mark.slow
def test_set5_scores_of_the_official_weights(reference):
    """Mean over Set5 at x4, Y channel, border 4: published 32.21 / 0.8948."""
    net = IMDN().eval()
    net.load_state_dict(official(reference))
    scores = []
    for file in sorted((reference / 'set5' / 'HR').glob('*.png')):
        gt = cv2.imread(str(file))
        lq = cv2.imread(str(reference / 'set5' / 'LR_bicubic' / 'X4' / f'{file.stem}x4.png')) / 255.0
        with torch.no_grad():
            out = tensor2img(net(img2tensor(lq.astype('float32'))[None]))
        gt = gt[: out.shape[0], : out.shape[1]]
        scores.append([f(out, gt, crop_border=4, test_y_channel=True) for f in (calculate_psnr, calculate_ssim)])
    psnr, ssim = torch.tensor(scores).mean(0).tolist()
    assert len(scores) == 5
    assert (round(psnr, 2), round(ssim, 4)) == (32.21, 0.8948)
