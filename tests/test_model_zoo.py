"""One table of every network: size, cost in our and the papers' convention, golden difference, Set5.

``pytest tests/test_model_zoo.py -s`` prints it; the assertions are its columns. Golden differences and Set5 need the
reference data; without it their columns hold a dash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conventions import thop_macs, torchsummaryx_macs
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
from basicsr_effsr.data.benchmark_sets import images_of
from basicsr_effsr.tools.papers import row_of
from basicsr_effsr.tools.scoring import forward_function, measure, protocol_of
from basicsr_effsr.utils.complexity import count_macs
from basicsr_effsr.weights.checkpoint import load_into
from basicsr_effsr.weights.zoo import published

LR_720P = {2: (360, 640), 3: (240, 426), 4: (180, 320)}
AGDN_720P = {**LR_720P, 3: (240, 427)}  # as its authors counted
DRCT = {'num_feat': 180, 'num_block': 6, 'num_heads': 6, 'tail': 'drct'}


@dataclass(frozen=True)
class Row:
    """A published network.

    Attributes:
        name: as the paper writes it.
        net: class and options.
        params: upscale -> parameters of the network that is counted.
        macs: upscale -> multiply-adds [G] at a 1280 x 720 output, attention included.
        rule: upscale, network on the meta device -> multiply-adds [G] by the convention of the paper.
        by_rule: upscale -> what ``rule`` must give.
        paper: upscale -> multiply-adds [G] as the paper prints them, and its convention.
        golden: file of golden vectors by upscale, and the largest difference allowed.
        weights: name in the zoo of the official x4 weights, whose scores there they must give.
    """

    name: str
    net: type[nn.Module]
    options: dict
    params: dict[int, int]
    macs: dict[int, float]
    rule: Callable[[int, nn.Module], float] | None = None
    by_rule: dict[int, float] = field(default_factory=dict)
    paper: dict[int, str] = field(default_factory=dict)
    golden: tuple[dict[int, str], float] = ({}, 0.0)
    weights: str | None = None


def fvcore_256(_: int, net: nn.Module) -> float:
    return count_macs(net, (256, 256)).fvcore / 1e9


def thop_720p(upscale: int, net: nn.Module) -> float:
    return thop_macs(net, (AGDN_720P if isinstance(net, AGDN) else LR_720P)[upscale])


def torchsummaryx_720p(upscale: int, net: nn.Module) -> float:
    return torchsummaryx_macs(net, LR_720P[upscale])


def convolutions_720p(upscale: int, net: nn.Module) -> float:
    return count_macs(net, AGDN_720P[upscale]).convolution / 1e9


def goldens(pattern: str, *scales: int) -> dict[int, str]:
    return {upscale: pattern.format(upscale) for upscale in scales}


ROWS = [
    Row(
        'HASN', HASN, {}, {2: 418_388, 3: 425_423, 4: 435_272}, {2: 89.25, 3: 40.32, 4: 23.28},
        fvcore_256, {2: 25.532, 3: 25.992, 4: 26.637}, {4: '26.6 (fvcore, 256 x 256)'},
        golden=(goldens('hasn_x{}', 2, 3, 4), 5e-6), weights='hasn_x4',
    ),
    Row(
        'AGDN', AGDN, {}, {2: 280_530, 3: 286_215, 4: 294_174}, {2: 63.43, 3: 28.64, 4: 16.64},
        thop_720p, {2: 61.378, 3: 27.882, 4: 16.128}, {2: '61.4 (thop)', 3: '27.9 (thop, 240 x 427)', 4: '16.1 (thop)'},
        golden=(goldens('agdn_x{}', 4), 2e-6), weights='agdn_x4',
    ),
    Row(
        'AGDN-S', AGDN, {'num_feat': 24, 'num_block': 4, 'tlc': 96}, {4: 69_272}, {4: 3.84},
        thop_720p, {4: 3.733}, {4: '3.7 (thop)'},
        golden=(goldens('agdn_s_x{}', 4), 2e-6), weights='agdn_s_x4',
    ),
    Row(
        'ASID', ASID, {}, {2: 297_516, 3: 304_011, 4: 313_104}, {2: 77.79, 3: 35.68, 4: 20.79},
        thop_720p, {2: 63.592, 3: 29.287, 4: 17.166}, {2: '63.592 (thop)', 4: '17.2 (thop)'},
        golden=(goldens('asid_x{}', 2, 3, 4), 2e-6),
    ),
    Row(
        'ASID-D8', ASID, {'num_block': 8}, {2: 732_146, 3: 738_641, 4: 747_734}, {2: 190.36, 3: 86.33, 4: 49.56},
        thop_720p, {2: 155.590, 3: 70.684, 4: 40.674}, {4: '40.7 (thop)'},
        golden=(goldens('asid_d8_x{}', 2, 3, 4), 2e-6),
    ),
    Row(
        'DPARN (training form)', DPARN, {'merged_training': False}, {2: 463_336, 3: 470_371, 4: 480_220},
        {2: 102.29, 3: 46.12, 4: 26.55},
    ),
    Row(
        'DPARN (fused)', DPARN, {'deploy': True}, {2: 201_256, 3: 208_291, 4: 218_140},
        {2: 42.45, 3: 19.55, 4: 11.58},
    ),
    Row(
        'DPARNTeacher', DPARNTeacher, {}, {2: 4_146_812, 3: 4_155_467, 4: 4_167_584},
        {2: 1336.16, 3: 589.10, 4: 349.84},
    ),
    Row(
        'DRCT (DPARNTeacher)', DPARNTeacher, DRCT, {2: 13_991_867, 3: 14_176_507, 4: 14_139_579},
        {2: 4130.5, 3: 1838.3, 4: 1115.0}, paper={4: '5.92 (README, 64 x 64)'},
        golden=({2: 'drct_small_w16_x2', 3: 'drct_small_x3', 4: 'drct_small_x4'}, 2e-6),
    ),
    Row(
        'DRCT-L (DPARNTeacher)', DPARNTeacher, {**DRCT, 'num_block': 12},
        {2: 27_433_007, 3: 27_617_647, 4: 27_580_719}, {2: 8130.4, 3: 3599.1, 4: 2158.5},
        paper={4: '9.20 (README, 64 x 64)'},
    ),
    Row(
        'EFRDN (training form)', EFRDN, {}, {2: 751_668, 3: 760_338, 4: 772_476}, {2: 7856.69, 3: 1600.44, 4: 532.09},
        torchsummaryx_720p, {2: 107.469, 3: 48.568, 4: 28.056},
        {2: '111.6 (torchsummaryX)', 3: '49.5 (torchsummaryX)', 4: '27.9 (torchsummaryX)'},
    ),
    Row(
        'EFRDN (fused)', EFRDN, {'deploy': True}, {2: 747_684, 3: 756_354, 4: 768_492},
        {2: 7855.63, 3: 1599.97, 4: 531.82}, torchsummaryx_720p, {2: 106.407, 3: 48.097, 4: 27.791},
    ),
    Row(
        'IMDN', IMDN, {}, {2: 694_404, 3: 703_059, 4: 715_176}, {2: 158.77, 3: 71.34, 4: 40.89},
        convolutions_720p, {2: 158.766, 3: 71.503, 4: 40.886},
        {2: '158.8 (AGDN)', 3: '71.5 (AGDN, 240 x 427)', 4: '40.9 (AGDN)'},
        weights='imdn_x4',
    ),
]  # fmt: skip


@cache
def measured(name: str, upscale: int) -> tuple[int, float, float | None]:
    """Parameters, multiply-adds [G] at a 1280 x 720 output, and multiply-adds [G] by the rule of the paper."""
    row = next(row for row in ROWS if row.name == name)
    with torch.device('meta'):
        net = row.net(upscale=upscale, **row.options).eval()
    macs = count_macs(net, LR_720P[upscale]).total / 1e9
    return sum(p.numel() for p in net.parameters()), macs, row.rule(upscale, net) if upscale in row.by_rule else None


def departures(row: Row, upscale: int) -> list[str]:
    """What of size and cost is not as stated."""
    found = zip(('parameters', 'G multiply-adds', "G by the paper's rule"), measured(row.name, upscale), strict=True)
    stated = (row.params[upscale], row.macs[upscale], row.by_rule.get(upscale))
    tolerances = (0, max(0.005, 5e-5 * row.macs[upscale]), 6e-4)
    return [
        f'{row.name} x{upscale} has {value} {what}, must have {must}'
        for (what, value), must, tolerance in zip(found, stated, tolerances, strict=True)
        if must is not None and (value is None or abs(value - must) > tolerance)
    ]


def golden_difference(row: Row, upscale: int, reference: Path | None) -> float | None:
    """The largest difference from the official output; None without golden vectors."""
    file = row.golden[0].get(upscale)
    path = reference / 'golden' / f'{file}.pth' if reference and file else None
    if path is None or not path.is_file():
        return None
    vectors = torch.load(path, map_location='cpu', weights_only=True)
    options, config = row.options, vectors['config']
    if row.net is DPARNTeacher:  # small networks of the same kind
        options = {
            'num_feat': config['embed_dim'],
            'num_block': len(config['depths']),
            'num_heads': config['num_heads'][0],
            'window_size': config['window_size'],
            'tail': 'drct',
        }
    net = row.net(upscale=upscale, **options)
    net.load_state_dict(vectors['state_dict'], strict=True)
    net.train(vectors.get('mode', 'eval') == 'train')
    x, out = vectors['input'], vectors['output']
    with torch.no_grad():
        ours = net((x + 1) / 2) * 2 - 1 if row.net is ASID else net(x)  # its authors' images are in [-1, 1]
    return float((ours - out).abs().max())


def set5(row: Row, reference: Path | None) -> tuple[float, float] | None:
    """PSNR and SSIM of the official x4 weights by the paper's protocol; None without them."""
    if row.weights is None or reference is None:
        return None
    path = reference / 'checkpoints' / f'{row.weights}_official.pth'
    if not path.is_file() or not (reference / 'set5').is_dir():
        return None
    net = row.net(upscale=4, **row.options).eval()
    load_into(net, path)
    paper = row_of(row.net.__name__, row.options, 4)
    assert paper is not None
    protocol = protocol_of(paper['protocol'])
    run, *_ = forward_function(net, 4, torch.device('cpu'), protocol)
    scores = [measure('Set5', pair, 4, run, protocol)[0] for pair in images_of(reference / 'set5', 4)]
    return fmean(score.psnr for score in scores), fmean(score.ssim for score in scores)


def table_of(rows: list[Row], reference: Path | None) -> tuple[Table, list[str]]:
    """The table, and in words everything in it that is not as stated."""
    table = Table(
        *('network', 'scale', 'parameters', 'G mult-adds', "by paper's rule", 'paper', 'golden diff.', 'Set5'),
        title='1280 x 720 output, one multiply-add counts 1, attention included; Set5 on Y with official weights',
        caption='golden diff. of DRCT: smaller networks of the same kind',
    )
    wrong = []
    for row in rows:
        scores = set5(row, reference)
        for upscale in row.params:
            wrong += departures(row, upscale)
            difference = golden_difference(row, upscale, reference)
            if difference is not None and difference > row.golden[1]:
                wrong.append(f'{row.name} x{upscale} differs from the official output by {difference:.1e}')
            params, macs, by_rule = measured(row.name, upscale)
            table.add_row(
                row.name,
                f'x{upscale}',
                f'{params:,}',
                f'{macs:.2f}',
                '-' if by_rule is None else f'{by_rule:.2f}',
                row.paper.get(upscale, '-'),
                '-' if difference is None else f'{difference:.1e}',
                f'{scores[0]:.2f} / {scores[1]:.4f}' if scores and upscale == 4 else '-',
            )
        if row.weights and scores:
            psnr, ssim = published()[row.weights].scores['Set5']
            if abs(scores[0] - psnr) > 0.005 or abs(scores[1] - ssim) > 6e-5:
                wrong.append(f'{row.name} gives {scores} on Set5, must give {psnr} / {ssim}')
    return table, wrong


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
def test_sizes_and_multiply_adds(row):
    assert set(row.macs) == set(row.params)
    for upscale in row.params:
        assert not departures(row, upscale)


def test_every_printed_figure_is_met_by_its_rule():
    """But for EFRDN at x2 and x3, which its paper took from the x4 network, and for the figures of DRCT's README."""
    for row in ROWS:
        for upscale, text in row.paper.items():
            printed = text.split()[0]
            if row.net is DPARNTeacher or (row.net is EFRDN and upscale < 4):
                continue
            unit = 10 ** -len(printed.split('.')[1])
            allowed = 0.0065 * float(printed) if row.net is EFRDN else unit / 2 + 6e-4
            assert abs(row.by_rule[upscale] - float(printed)) <= allowed, (row.name, upscale)


def test_a_table_without_reference_data_holds_dashes_and_reports_departures():
    row = next(row for row in ROWS if row.name == 'AGDN-S')
    table, wrong = table_of([row], None)
    assert not wrong
    assert [list(column.cells) for column in table.columns] == [
        *(['AGDN-S'], ['x4'], ['69,272'], ['3.84'], ['3.73'], ['3.7 (thop)'], ['-'], ['-'])
    ]
    _, wrong = table_of([replace(row, params={4: 69_273}, macs={4: 3.86}, by_rule={4: 3.74})], None)
    assert [line.partition(', must have ')[2] for line in wrong] == ['69273', '3.86', '3.74']


@pytest.mark.slow
def test_the_table(request, capsys):
    """Prints everything; golden differences and Set5 scores must hold where the reference data is."""
    try:
        reference = request.getfixturevalue('reference')
    except pytest.skip.Exception:
        reference = None
    table, wrong = table_of(ROWS, reference)
    with capsys.disabled():
        Console(width=150).print(table)
    assert not wrong
