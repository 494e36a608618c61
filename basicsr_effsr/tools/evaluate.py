"""``effsr evaluate``: a network over the benchmark sets, beside the paper's row, as table and as a page."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from enum import Enum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer
from rich.progress import MofNCompleteColumn

from basicsr_effsr.data.benchmark_sets import SetImage, find_sets, images_of
from basicsr_effsr.data.pairs import check_sizes
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from basicsr_effsr.imaging.metrics import score_y, to_y
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.papers import bicubic_of, row_of
from basicsr_effsr.utils.console import Console, progress, say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import enough_memory
from basicsr_effsr.utils.report import csv_table, escaped, markdown_table, strict_json, write_texts
from basicsr_effsr.weights.checkpoint import fused

if TYPE_CHECKING:
    from torch import nn

ERROR_GAIN = 8  # grey levels of error are shown this many times brighter
SAME_SET = 0.1  # dB between bicubic here and in papers, whose authors round and crop in several ways
Run = Callable[[np.ndarray], tuple[np.ndarray, float]]  # image -> (enlarged image, seconds)
Panels = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageScore:
    """One image: PSNR [dB] and SSIM on Y of the network and of bicubic, seconds of the forward pass."""

    set: str
    image: str
    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float
    seconds: float


@dataclass
class EvaluationReport:
    """Everything that was measured, with how."""

    network: str
    parameters: int
    scale: int
    weights: str | None
    protocol: str
    machine: str
    images: list[ImageScore] = field(default_factory=list)
    paper: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)  # what keeps the numbers from being compared, a sentence each

    def means(self) -> dict[str, dict[str, float]]:
        """Set -> mean of each score over its images, and their number."""
        keys = ('psnr', 'ssim', 'bicubic_psnr', 'bicubic_ssim', 'seconds')
        sets: dict[str, list[ImageScore]] = {}
        for image in self.images:
            sets.setdefault(image.set, []).append(image)
        return {
            name: {key: fmean(getattr(row, key) for row in rows) for key in keys} | {'images': len(rows)}
            for name, rows in sets.items()
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows, a set each, beside what the paper prints."""
        rows = []
        for name, mean in self.means().items():
            paper, gap = (self.paper or {}).get('scores', {}).get(name), '-'
            if paper:
                # + 0.0: a difference that rounds to zero has no sign
                psnr, ssim = round(mean['psnr'] - paper[0], 2) + 0.0, round(mean['ssim'] - paper[1], 4) + 0.0
                gap = f'{psnr:+.2f} / {ssim:+.4f}'
            scores = [(mean['bicubic_psnr'], mean['bicubic_ssim']), (mean['psnr'], mean['ssim']), paper]
            shown = [f'{score[0]:.2f} / {score[1]:.4f}' if score else '-' for score in scores]
            rows.append([name, f'{mean["images"]:.0f}', *shown, gap, f'{mean["seconds"]:.3f}'])
        return ['set', 'images', 'bicubic', 'this run', 'paper', 'difference', 's / image'], rows

    def words(self) -> tuple[str, list[str]]:
        """What was measured, and what is to be known of it: where the paper's values stand, the remarks."""
        head = f'{self.network}, x{self.scale}, {self.parameters:,} parameters; PSNR [dB] / SSIM on {self.protocol}'
        paper = self.paper or {}
        source = '; '.join(paper[key] for key in ('source', 'note') if paper.get(key))
        return f'{head}; {self.machine}', [*([f'Paper: {source}'] if source else []), *self.remarks]


def read_pair(pair: SetImage, scale: int, modulus: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(lq, gt) as (H, W, 3) uint8 RGB, gt ``scale`` times lq; a missing lq is made as MATLAB does.

    gt is cropped to multiples of ``modulus`` and of ``scale``, lq to the same part.

    Raises:
        ValueError: a file cannot be read, is too small, or the sizes do not belong together.
    """
    gt = read_rgb(pair.gt)
    lq = read_rgb(pair.lq) if pair.lq else None
    if lq is not None:
        check_sizes(str(pair.gt), str(pair.lq), gt.shape[:2], lq.shape[:2], scale, training=False)
        gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
    try:
        gt = np.ascontiguousarray(mod_crop(gt, math.lcm(modulus, scale)))
    except ValueError as error:
        raise UserError(f'{pair.gt}: {error}') from error
    if lq is None:
        return imresize(gt, scale=1 / scale), gt
    return np.ascontiguousarray(lq[: gt.shape[0] // scale, : gt.shape[1] // scale]), gt


class Measured(str, Enum):
    """How ``--protocol`` has scores measured."""

    PAPER = 'paper'
    PLAIN = 'plain'


@dataclass(frozen=True)
class Protocol:
    """How a network is run over an image, and how the result is scored."""

    self_ensemble: bool = False  # mean over the eight flips and rotations
    tile: int | None = None  # side of the tiles in LR pixels; None runs it over whole images
    overlap: int = 24  # of the tiles, in LR pixels
    blend: str = 'mean'  # how tiles are joined: mean, feather or halo
    fuse: bool = True  # networks that have a fused form run in it
    modulus: int = 1  # HR is cropped to multiples of this and of the scale
    ssim: str = 'valid'  # the mean where the window fits, as BasicSR; or matlab: its ssim(), over the whole map

    def words(self, scale: int) -> str:
        """All that changes a score, for a report."""
        tiles = f'tiles {self.tile}, overlap {self.overlap}, {self.blend}'
        parts = [f'Y channel, border {scale}, HR cropped to multiples of {math.lcm(self.modulus, scale)}']
        parts += ['whole images' if self.tile is None else tiles, *(['self-ensemble'] if self.self_ensemble else [])]
        return ', '.join([*parts, "MATLAB's ssim()" if self.ssim == 'matlab' else 'SSIM where its window fits'])


def protocol_of(
    val: Mapping[str, Any],
    self_ensemble: bool | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    blend: str | None = None,
) -> Protocol:
    """The protocol of a section ``val`` as EffSRModel follows it; what the command line gave (not None) goes first.

    A paper's own (``protocols`` of ``papers.json``) is read in the same way. The arguments behind ``val`` are fields of
    :class:`Protocol`, with a tile of 0 for whole images.

    Raises:
        UserError: ``val.tile`` is no section of a tile, or an option matters to tiles and there are none.
    """
    stated = val.get('tile')
    if stated and not (isinstance(stated, Mapping) and isinstance(stated.get('size'), int)):
        raise UserError(f'val.tile of the option file must be a section with size, got {stated!r}')
    named: dict[str, Any] = {'overlap': 0, **stated} if stated else {}
    side = named.get('size', 0) if tile is None else tile
    useless = [f'--{key}' for key, given in (('overlap', overlap), ('blend', blend)) if given is not None]
    if useless and not side:
        raise UserError(f'{" and ".join(useless)} need tiles; give --tile')
    return Protocol(
        bool(val.get('self_ensemble')) if self_ensemble is None else self_ensemble,
        side or None,
        named.get('overlap', 24) if overlap is None else overlap,
        named.get('blend', 'mean') if blend is None else blend,
        val.get('fuse') is not False,
        val.get('modulus', 1),
        val.get('ssim', 'valid'),
    )


def forward_function(net: nn.Module, scale: int, device: Any, protocol: Protocol) -> tuple[Run, str, str]:
    """How images are enlarged.

    Returns:
        A function (H, W, 3) uint8 -> ((rH, rW, 3) uint8, seconds), rounded as BasicSR rounds; the protocol and the
        machine, in words.
    """
    import torch

    from basicsr_effsr.imaging.tiling import self_ensemble as ensemble
    from basicsr_effsr.imaging.tiling import tiled_forward

    net = net.to(device)

    def once(batch: torch.Tensor) -> torch.Tensor:
        if protocol.tile is None:
            return net(batch)
        options: dict[str, Any] = {'tile': protocol.tile, 'overlap': protocol.overlap, 'blend': protocol.blend}
        return tiled_forward(net, batch, upscale=scale, **options)

    def run(lq: np.ndarray) -> tuple[np.ndarray, float]:
        batch = torch.from_numpy(np.ascontiguousarray(lq.transpose(2, 0, 1))).to(device)[None].float() / 255
        start = time.perf_counter()
        with torch.no_grad(), enough_memory(f'an image of {lq.shape[1]}x{lq.shape[0]}', 'give tiles'):
            out = ensemble(once, batch) if protocol.self_ensemble else once(batch)
            finite = bool(torch.isfinite(out).all())  # on a GPU this waits for the result
        seconds = time.perf_counter() - start
        if not finite:
            raise UserError(f'{type(net).__name__} gave not-a-number or infinity; the weights are damaged or diverged')
        image = (out[0].clamp(0, 1) * 255.0).permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
        return image, seconds

    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    return run, protocol.words(scale), f'{machine}, torch {torch.__version__}'


def measure(
    name: str, pair: SetImage, scale: int, run: Run, protocol: Protocol = Protocol()
) -> tuple[ImageScore, Panels]:
    """One image of the set ``name`` through the network and bicubic, scored on Y with a border of ``scale`` pixels.

    Returns:
        The scores, and the images ``lq``, ``bicubic``, ``net``, ``gt``, (H, W, 3) uint8 RGB each.

    Raises:
        UserError: a file cannot be read, is too small or of another scale, or the network fails on it.
    """
    lq, gt = read_pair(pair, scale, protocol.modulus)
    cubic, whole = imresize(lq, scale=scale), protocol.ssim == 'matlab'
    try:
        image, seconds = run(lq)
        scores = (*score_y(image, gt, scale, whole=whole), *score_y(cubic, gt, scale, whole=whole))
    except ValueError as error:
        raise UserError(f'{pair.gt}: {error}') from error
    return ImageScore(name, pair.name, *scores, seconds), {'lq': lq, 'bicubic': cubic, 'net': image, 'gt': gt}


def _data_uri(image: np.ndarray) -> str:
    return 'data:image/png;base64,' + base64.b64encode(cv2.imencode('.png', image[..., ::-1])[1].tobytes()).decode()


def error_map(image: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: absolute luma error, black for none, through red to white for 32 grey levels and more."""
    gap = np.abs(to_y(image) - to_y(gt)) * ERROR_GAIN
    return np.stack([np.clip(gap * 3 - 255 * i, 0, 255) for i in range(3)], axis=-1).astype(np.uint8)


def texts(report: EvaluationReport, shown: list[dict[str, Any]]) -> dict[str, str]:
    """The report in every format: file name -> text.

    Args:
        report: the scores.
        shown: images on the page, each with ``score`` and the data URIs ``bicubic``, ``net``, ``gt``, ``error``.
    """
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    measured, notes = report.words()
    columns = [each.name for each in fields(ImageScore)]
    return {
        'report.md': '\n'.join(
            [f'{escaped(measured)}\n', markdown_table(*report.table()), *(f'{escaped(n)}\n' for n in notes)]
        ),
        'report.csv': csv_table(columns, map(astuple, report.images)),
        'report.json': strict_json({**asdict(report), 'means': report.means()}) + '\n',
        'report.html': pages.get_template('evaluate.html').render(report=report, shown=shown),
    }


def worst(report: EvaluationReport, count: int) -> list[ImageScore]:
    """The images with the least gain over bicubic, worst first."""
    return sorted(report.images, key=lambda image: image.psnr - image.bicubic_psnr)[:count]


def remarks(
    report: EvaluationReport, used: Protocol, theirs: Protocol | None, work: list[tuple[str, SetImage]]
) -> list[str]:
    """What keeps the scores of a report from being compared with the paper's, a sentence each.

    Args:
        report: with its scores.
        used: how they were measured.
        theirs: how the paper's were; None without a paper.
        work: (name of the set, pair) of the images.
    """
    scale, found = report.scale, []
    if theirs is not None:
        crop = math.lcm(theirs.modulus, scale)
        if used.words(scale) != theirs.words(scale):
            found.append(f'Paper and run are not measured alike; the paper: {theirs.words(scale)}.')
        for folder in sorted({pair.gt.parent for _, pair in work}):
            kept = re.fullmatch(r'GTmod(\d+)', folder.name)
            if kept and crop % int(kept[1]):
                found.append(
                    f'Paper and run are not measured alike: the images of {folder} are cropped to multiples of '
                    f'{kept[1]}, those of the paper to multiples of {crop}.'
                )
    for name, mean in report.means().items():
        printed = bicubic_of(name, scale)
        if printed and abs(mean['bicubic_psnr'] - printed[0]) > SAME_SET:
            found.append(
                f'{name} is not the set of the papers: bicubic gives {mean["bicubic_psnr"]:.2f} dB on these '
                f'{mean["images"]:.0f} images, the papers print {printed[0]:.2f} / {printed[1]:.4f}.'
            )
    return found


def evaluate(
    report: EvaluationReport,
    run: Run,
    work: list[tuple[str, SetImage]],
    show: int,
    used: Protocol = Protocol(),
    theirs: Protocol | None = None,
) -> dict[str, str]:
    """Fills ``report`` with the scores of ``work`` and returns it in every format: file name -> text.

    Args:
        report: what is known beforehand.
        run: of :func:`forward_function`.
        work: (name of the set, pair) in the order of the report.
        show: how many images the page shows.
        used: how ``run`` works and its results are scored.
        theirs: how the paper's scores were measured, if there is a paper.
    """
    with progress(MofNCompleteColumn(), shown=Console(stderr=True).is_terminal, transient=True) as bars:
        for name, pair in bars.track(work, description='images'):
            report.images.append(measure(name, pair, report.scale, run, used)[0])
    report.remarks += remarks(report, used, theirs, work)
    by_name = {(name, pair.name): pair for name, pair in work}
    shown = []
    for row in worst(report, show):  # measured again, so that no more than one image is ever in memory
        _, panels = measure(row.set, by_name[row.set, row.image], report.scale, run, used)
        panels['error'] = error_map(panels['net'], panels['gt'])
        shown.append({'score': row, **{key: _data_uri(panels[key]) for key in ('bicubic', 'net', 'gt', 'error')}})
    return texts(report, shown)


@networks.names_network
def command(
    choose: Callable[..., networks.Chosen],
    data: Annotated[Path, typer.Option(help='Folder of the benchmark sets, or one set.')] = Path('datasets'),
    sets: Annotated[list[str] | None, typer.Option('--sets', help='Only this set; repeatable. Default: all.')] = None,
    out: Annotated[Path, typer.Option(help='Folder for report.md, .csv, .json and .html.')] = Path('results/evaluate'),
    make_lr: Annotated[bool, typer.Option('--make-lr', help="Make missing LR images with MATLAB's bicubic.")] = False,
    protocol: Annotated[
        Measured | None,
        typer.Option(
            help="paper: as the paper's row was measured; plain: whole images once, HR cropped to the scale. "
            'Default: what the section val says, for the rest the paper, if there is a row.'
        ),
    ] = None,
    self_ensemble: Annotated[
        bool | None, typer.Option(help='Mean over eight flips and rotations. Default: the protocol.')
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=0, help='Side of the tiles in LR pixels, 0 = whole images. Default: the protocol.')
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help='LR pixels that tiles share. Default: protocol or 24.')
    ] = None,
    blend: Annotated[str | None, typer.Option(help='mean, feather or halo. Default: the protocol, or mean.')] = None,
    show: Annotated[int, typer.Option(min=0, help='Images on the page, those with the least gain over bicubic.')] = 6,
    device: networks.Device = None,
    json_out: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Score a network on Set5, Set14, B100, Urban100, Manga109 beside the paper's row; tables and an HTML page."""
    networks.check_folder(out)
    chosen = choose(device=device)
    factor, val = chosen.scale, chosen.options['val']
    paper = row_of(chosen.network['type'], chosen.network, factor)
    if paper is None and protocol is Measured.PAPER:
        raise UserError(f'no paper has scores of {chosen.network["type"]} x{factor}; leave --protocol paper out')
    own = paper['protocol'] if paper else {}
    stated = {Measured.PAPER: {**own, 'fuse': val.get('fuse')}, Measured.PLAIN: {'fuse': val.get('fuse')}}
    how = protocol_of(stated[protocol] if protocol else {**own, **val}, self_ensemble, tile, overlap, blend)
    net = fused(chosen.net) if how.fuse else chosen.net
    run, words, machine = forward_function(net, factor, chosen.device, how)
    report = EvaluationReport(
        network=type(net).__name__,
        parameters=sum(p.numel() for p in net.parameters()),
        scale=factor,
        weights=str(chosen.weights),
        protocol=words,
        machine=machine,
        paper=paper,
    )
    work = [(name, p) for name, f in find_sets(data, sets, factor).items() for p in images_of(f, factor, make_lr)]
    files = evaluate(report, run, work, show, how, protocol_of(own) if paper else None)
    write_texts(out, files)
    if json_out:
        typer.echo(files['report.json'], nl=False)
        return
    measured, notes = report.words()
    say(measured)
    Console().table('', *report.table())
    for note in notes:
        say(note)
    say(f'written: {", ".join(str(out / name) for name in files)}')
