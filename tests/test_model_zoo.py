"""One table of every network: size, cost in our and the papers' convention, golden difference, Set5.

``pytest tests/test_model_zoo.py -s`` prints it; the assertions are its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from basicsr_effsr.archs.agdn_arch import AGDN
from basicsr_effsr.archs.asid_arch import ASID
from basicsr_effsr.archs.dparn_arch import DPARN
from basicsr_effsr.archs.dparn_teacher_arch import DPARNTeacher
from basicsr_effsr.archs.efrdn_arch import EFRDN
from basicsr_effsr.archs.hasn_arch import HASN
from basicsr_effsr.archs.imdn_arch import IMDN
from basicsr_effsr.utils.checkpoint import load_into
from basicsr_effsr.utils.complexity import count_macs
from basicsr_effsr.utils.metrics import score_y

LR_720P = {2: (360, 640), 3: (240, 426), 4: (180, 320)}
DRCT = {'num_feat': 180, 'num_block': 6, 'num_heads': 6, 'tail': 'drct'}


@dataclass(frozen=True)
class Row:
    """A published network.

    Attributes:
        name: as the paper writes it.
        net: class and options.
        params: upscale -> parameters of the network that is counted.
        macs: upscale -> multiply-adds [G] at a 1280 x 720 output, attention included.
        paper: upscale -> multiply-adds [G] as the paper prints them.
        weights: official checkpoint, its key, and Set5 PSNR / SSIM that it must give (x4).
    """

    name: str
    net: type[nn.Module]
    options: dict
    params: dict[int, int]
    macs: dict[int, float]
    paper: dict[int, str]
    weights: tuple[str, str | None, float, float | None] | None = None
    fused: bool = False


ROWS = [
    Row(
        'HASN', HASN, {}, {2: 418_388, 3: 425_423, 4: 435_272}, {2: 89.25, 3: 40.32, 4: 23.28},
        {4: '26.6 (fvcore, 256 x 256)'}, ('hasn_x4_official', 'params', 32.18, 0.8948),
    ),
    Row(
        'AGDN', AGDN, {}, {2: 280_530, 3: 286_215, 4: 294_174}, {2: 63.43, 3: 28.64, 4: 16.64},
        {2: '61.4 (thop)', 3: '27.9 (thop)', 4: '16.1 (thop)'}, ('agdn_x4_official', 'params_ema', 32.43, 0.8980),
    ),
    Row(
        'AGDN-S', AGDN, {'num_feat': 24, 'num_block': 4, 'tlc': 96}, {4: 69_272}, {4: 3.84}, {4: '3.7 (thop)'},
        ('agdn_s_x4_official', None, 32.03, None),
    ),
    Row(
        'ASID', ASID, {}, {2: 297_516, 3: 304_011, 4: 313_104}, {2: 77.79, 3: 35.68, 4: 20.79},
        {2: '63.592 (thop)', 4: '17.2 (thop)'},
    ),
    Row(
        'ASID-D8', ASID, {'num_block': 8}, {2: 732_146, 3: 738_641, 4: 747_734}, {2: 190.36, 3: 86.33, 4: 49.56},
        {4: '40.7 (thop)'},
    ),
    Row(
        'DPARN (training form)', DPARN, {'merged_training': False}, {2: 463_336, 3: 470_371, 4: 480_220},
        {2: 102.29, 4: 26.55}, {},
    ),
    Row('DPARN (fused)', DPARN, {}, {2: 201_256, 3: 208_291, 4: 218_140}, {2: 42.45, 4: 11.58}, {}, fused=True),
    Row(
        'DRCT (DPARNTeacher)', DPARNTeacher, DRCT, {2: 13_991_867, 3: 14_176_507, 4: 14_139_579},
        {2: 4130.5, 4: 1115.0}, {4: '5.92 (README, 64 x 64)'},
    ),
    Row(
        'EFRDN (training form)', EFRDN, {}, {2: 751_668, 3: 760_338, 4: 772_476}, {2: 7856.69, 3: 1600.44, 4: 532.09},
        {2: '111.6 (torchsummaryX)', 3: '49.5 (torchsummaryX)', 4: '27.9 (torchsummaryX)'},
    ),
    Row(
        'EFRDN (fused)', EFRDN, {}, {2: 747_684, 3: 756_354, 4: 768_492}, {2: 7855.63, 3: 1599.97, 4: 531.82}, {},
        fused=True,
    ),
    Row(
        'IMDN', IMDN, {}, {2: 694_404, 3: 703_059, 4: 715_176}, {2: 158.77, 3: 71.34, 4: 40.89},
        {4: '40.9 (HASN, Table 1)'}, ('imdn_x4_official', None, 32.21, 0.8948),
    ),
]  # fmt: skip
GOLDEN = {
    'HASN': ('hasn_x{}', 5e-6),
    'AGDN': ('agdn_x{}', 2e-6),
    'AGDN-S': ('agdn_s_x{}', 2e-6),
    'ASID': ('asid_x{}', 2e-6),
    'ASID-D8': ('asid_d8_x{}', 2e-6),
}


def build(row: Row, upscale: int) -> nn.Module:
    net = row.net(upscale=upscale, **row.options)
    return net.fuse() if row.fused else net


def golden_difference(row: Row, upscale: int, golden, reference: Path) -> float | None:
    if row.name not in GOLDEN:
        return None
    name = GOLDEN[row.name][0].format(upscale)
    if not (reference / 'golden' / f'{name}.pth').is_file():
        return None
    vectors = golden(name)
    net = build(row, upscale)
    net.load_state_dict(vectors['state_dict'], strict=True)
    net.train(vectors.get('mode', 'eval') == 'train')
    x, out = vectors['input'], vectors['output']
    with torch.no_grad():
        ours = net((x + 1) / 2) * 2 - 1 if 'ASID' in row.name else net(x)
    return float((ours - out).abs().max())


def set5(row: Row, reference: Path) -> tuple[float, float] | None:
    if row.weights is None:
        return None
    file, key, *_ = row.weights
    net = build(row, 4).eval()
    load_into(net, reference / 'checkpoints' / f'{file}.pth', param_key=key)
    scores = []
    for source in sorted((reference / 'set5' / 'HR').glob('*.png')):
        lq = np.asarray(Image.open(reference / 'set5' / 'LR_bicubic' / 'X4' / f'{source.stem}x4.png').convert('RGB'))
        gt = np.asarray(Image.open(source).convert('RGB'))[: 4 * lq.shape[0], : 4 * lq.shape[1]]
        with torch.no_grad():
            out = net(torch.from_numpy(lq.transpose(2, 0, 1).copy())[None].float() / 255)
        image = (out[0].clamp(0, 1) * 255).permute(1, 2, 0).numpy().round().astype(np.uint8)
        scores.append(score_y(image, gt, 4))
    psnr, ssim = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
def test_sizes_and_multiply_adds(row):
    for upscale, expected in row.params.items():
        with torch.device('meta'):
            net = row.net(upscale=upscale, **row.options)
        if row.fused:
            net = build(row, upscale)
        assert sum(p.numel() for p in net.parameters()) == expected
    for upscale, expected in row.macs.items():
        net = build(row, upscale).eval()
        assert count_macs(net, LR_720P[upscale]).total / 1e9 == pytest.approx(expected, rel=5e-4, abs=0.005)


@pytest.mark.slow
def test_the_table(golden, reference, capsys):
    """Prints everything; golden differences and Set5 scores must hold."""
    table = Table(
        *('network', 'scale', 'parameters', 'G multiply-adds', 'paper', 'golden difference', 'Set5'),
        title='1280 x 720 output, one multiply-add counts 1, attention included; Set5 on Y with official weights',
    )
    wrong = []
    for row in ROWS:
        scores = set5(row, reference)
        for upscale, params in row.params.items():
            difference = golden_difference(row, upscale, golden, reference)
            if difference is not None and difference > GOLDEN[row.name][1]:
                wrong.append(f'{row.name} x{upscale} differs from the official output by {difference:.1e}')
            shown = f'{scores[0]:.2f} / {scores[1]:.4f}' if scores and upscale == 4 else ''
            macs = f'{row.macs[upscale]:.2f}' if upscale in row.macs else ''
            printed = f'{difference:.1e}' if difference is not None else ''
            table.add_row(row.name, f'x{upscale}', f'{params:,}', macs, row.paper.get(upscale, ''), printed, shown)
        if row.weights and scores:
            _, _, psnr, ssim = row.weights
            if abs(scores[0] - psnr) > 0.01 or (ssim is not None and abs(scores[1] - ssim) > 5e-4):
                wrong.append(f'{row.name} gives {scores} on Set5, must give {psnr} / {ssim}')
    with capsys.disabled():
        Console(width=150).print(table)
    assert not wrong
