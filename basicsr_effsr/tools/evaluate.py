"""``effsr evaluate``: a network over the benchmark sets, beside the paper's row, as table and as a page."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from basicsr_effsr._registration import lookup
from basicsr_effsr.data.benchmark_sets import SetImage, find_sets, images_of
from basicsr_effsr.data.pairs import check_sizes
from basicsr_effsr.imaging.decode import read_rgb
from basicsr_effsr.imaging.metrics import score_y
from basicsr_effsr.tools import networks
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.fuse import fused
from basicsr_effsr.weights.identify import variant_of

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
ERROR_GAIN = 8  # grey levels of error are shown this many times brighter


@dataclass
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

    def means(self) -> dict[str, dict[str, float]]:
        """Set -> mean of each score over its images."""
        result: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(image.set for image in self.images):
            rows = [image for image in self.images if image.set == name]
            keys = ('psnr', 'ssim', 'bicubic_psnr', 'bicubic_ssim', 'seconds')
            result[name] = {key: float(np.mean([getattr(row, key) for row in rows])) for key in keys}
            result[name]['images'] = len(rows)
        return result

    def paper_scores(self, name: str) -> tuple[float, float] | None:
        """PSNR and SSIM that the paper prints for a set, if it does."""
        found = ((self.paper or {}).get('scores') or {}).get(name)
        return (found[0], found[1]) if found else None

    def gap(self, name: str) -> str | None:
        """PSNR and SSIM of this run minus those of the paper, in words; None if the paper has none."""
        paper, mean = self.paper_scores(name), self.means()[name]
        if paper is None:
            return None
        # + 0.0: a difference that rounds to zero has no sign
        psnr, ssim = round(mean['psnr'] - paper[0], 2) + 0.0, round(mean['ssim'] - paper[1], 4) + 0.0
        return f'{psnr:+.2f} / {ssim:+.4f}'


@dataclass(frozen=True)
class Measured:
    """One image: PSNR [dB] and SSIM on Y of the network and of bicubic, seconds, and the images themselves.

    ``lq``, ``bicubic``, ``net`` and ``gt`` are (H, W, 3) uint8 RGB.
    """

    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float
    seconds: float
    lq: np.ndarray
    bicubic: np.ndarray
    net: np.ndarray
    gt: np.ndarray


def read_pair(pair: SetImage, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(lq, gt) as (H, W, 3) uint8 RGB, gt cut to ``scale`` times lq; a missing lq is made as MATLAB does.

    Raises:
        ValueError: a file cannot be read, or the sizes do not belong together.
    """
    gt = read_rgb(pair.gt)
    if pair.lq is None:
        from basicsr_effsr.imaging.bicubic import imresize, mod_crop

        gt = np.ascontiguousarray(mod_crop(gt, scale))
        return imresize(gt, scale=1 / scale), gt
    lq = read_rgb(pair.lq)
    check_sizes(str(pair.gt), str(pair.lq), gt.shape[:2], lq.shape[:2], scale, training=False)
    return lq, gt[: lq.shape[0] * scale, : lq.shape[1] * scale]


@dataclass(frozen=True)
class Protocol:
    """How a network is run over an image.

    Attributes:
        self_ensemble: mean over the eight flips and rotations.
        tile: side of the tiles in LR pixels; None runs it over whole images.
        overlap: of the tiles, in LR pixels.
        blend: how tiles are joined: mean, feather or halo.
        fuse: networks that have a fused form run in it.
    """

    self_ensemble: bool = False
    tile: int | None = None
    overlap: int = 24
    blend: str = 'mean'
    fuse: bool = True

    def __str__(self) -> str:
        tiles = f'tiles {self.tile}, overlap {self.overlap}, {self.blend}'
        return ('whole images' if self.tile is None else tiles) + (', self-ensemble' if self.self_ensemble else '')


def protocol_of(
    val: Mapping[str, Any], self_ensemble: bool | None, tile: int | None, overlap: int | None, blend: str | None
) -> Protocol:
    """The protocol of a section ``val`` as EffSRModel follows it; what the command line gave (not None) goes first.

    Args:
        val: section of the option file, empty without one.
        self_ensemble: mean over eight flips and rotations.
        tile: side in LR pixels, 0 for whole images.
        overlap: LR pixels.
        blend: mean, feather or halo.

    Raises:
        UserError: a value is out of its range.
    """
    from basicsr_effsr.imaging.tiling import BLENDS

    told = val.get('tile')
    if told and not (isinstance(told, Mapping) and 'size' in told):
        raise UserError(f'val.tile of the option file must be a section with size, got {told!r}')
    named: dict[str, Any] = {'overlap': 0, **told} if told else {}
    side: Any = named.get('size', 0) if tile is None else tile
    shared: Any = named.get('overlap', 24) if overlap is None else overlap
    join: Any = named.get('blend', 'mean') if blend is None else blend
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (side, shared)):
        raise UserError(f'tile and overlap must be integers of at least 0, got {side!r} and {shared!r}')
    if side == 0:
        useless = [f'--{key}' for key, given in (('overlap', overlap), ('blend', blend)) if given is not None]
        if useless:
            raise UserError(f'{" and ".join(useless)} need tiles; give --tile')
    elif join not in BLENDS:
        raise UserError(f'--blend must be one of {", ".join(BLENDS)}, got {join!r}')
    elif shared >= side and join != 'halo':
        raise UserError(f'--overlap must be from 0 to --tile - 1, got {shared} and {side}')
    ensemble = bool(val.get('self_ensemble')) if self_ensemble is None else self_ensemble
    return Protocol(ensemble, side or None, shared, join, val.get('fuse') is not False)


def forward_function(
    net: nn.Module, scale: int, device: Any, protocol: Protocol
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, float]], str, str]:
    """How images are enlarged.

    Returns:
        A function (H, W, 3) uint8 -> ((rH, rW, 3) uint8, seconds), rounded as BasicSR rounds; the protocol and the
        machine, in words.
    """
    import torch

    from basicsr_effsr.imaging.self_ensemble import self_ensemble as ensemble
    from basicsr_effsr.imaging.tiling import tiled_forward
    from basicsr_effsr.utils.memory import out_of_memory

    net = net.to(device)

    def once(batch: torch.Tensor) -> torch.Tensor:
        if protocol.tile is None:
            return net(batch)
        options: dict[str, Any] = {'tile': protocol.tile, 'overlap': protocol.overlap, 'blend': protocol.blend}
        return tiled_forward(net, batch, upscale=scale, **options)

    def run(lq: np.ndarray) -> tuple[np.ndarray, float]:
        batch = torch.from_numpy(np.ascontiguousarray(lq.transpose(2, 0, 1))).to(device)[None].float() / 255
        start = time.perf_counter()
        try:
            with torch.no_grad():
                out = ensemble(once, batch) if protocol.self_ensemble else once(batch)
            finite = bool(torch.isfinite(out).all())  # on a GPU this waits for the result
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f'an image of {lq.shape[1]}x{lq.shape[0]} needs more memory than there is; give tiles'
            ) from error
        seconds = time.perf_counter() - start
        if not finite:
            raise UserError(f'{type(net).__name__} gave not-a-number or infinity; the weights are damaged or diverged')
        image = (out[0].clamp(0, 1) * 255.0).permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
        return image, seconds

    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    return run, f'Y channel, border {scale}, {protocol}', f'{machine}, torch {torch.__version__}'


def measure(pair: SetImage, scale: int, run: Callable[[np.ndarray], tuple[np.ndarray, float]]) -> Measured:
    """One image through the network and through bicubic, both scored on Y with a border of ``scale`` pixels.

    Args:
        pair: the files.
        scale: of the network.
        run: image -> (enlarged image, seconds), as :func:`forward_function` gives it.

    Raises:
        UserError: a file cannot be read, is too small or of another scale, or the network fails on it.
    """
    from basicsr_effsr.imaging.bicubic import imresize

    lq, gt = read_pair(pair, scale)
    cubic = imresize(np.ascontiguousarray(lq), scale=scale)
    try:
        image, seconds = run(lq)
        return Measured(*score_y(image, gt, scale), *score_y(cubic, gt, scale), seconds, lq, cubic, image, gt)
    except ValueError as error:
        raise UserError(f'{pair.gt}: {error}') from error


def find_paper(network: str, options: dict[str, Any], scale: int) -> dict[str, Any] | None:
    """The paper's row of this network and scale, from ``papers.json``."""
    file = HERE / 'papers.json'
    if not file.is_file():
        return None
    cls, _ = lookup('ARCH', network)
    name = variant_of(cls, options) or cls.__name__
    for row in json.loads(file.read_text(encoding='utf-8'))['rows']:
        if row['method'] == name and row['scale'] == scale and row.get('scores'):
            return row
    return None


# ---------------------------------------------------------------------- writing


def markdown(report: EvaluationReport) -> str:
    """The table for a README."""
    lines = [
        f'{report.network}, x{report.scale}, {report.parameters:,} parameters; PSNR [dB] / SSIM on {report.protocol}; '
        f'{report.machine}',
        '',
        '| set | images | bicubic | this run | paper | difference |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for name, mean in report.means().items():
        paper = report.paper_scores(name)
        printed = f'{paper[0]:.2f} / {paper[1]:.4f}' if paper else '-'
        lines.append(
            f'| {name} | {mean["images"]:.0f} | {mean["bicubic_psnr"]:.2f} / {mean["bicubic_ssim"]:.4f} '
            f'| {mean["psnr"]:.2f} / {mean["ssim"]:.4f} | {printed} | {report.gap(name) or "-"} |'
        )
    if report.paper:
        note = report.paper.get('note')
        lines += ['', f'Paper: {report.paper.get("source", "")}' + (f'; {note}' if note else '')]
    return '\n'.join(lines) + '\n'


def table_csv(report: EvaluationReport) -> str:
    """One line per image."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ImageScore.__dataclass_fields__), lineterminator='\n')
    writer.writeheader()
    writer.writerows(asdict(image) for image in report.images)
    return out.getvalue()


def as_json(report: EvaluationReport) -> str:
    """Everything, with the means."""
    return json.dumps({**asdict(report), 'means': report.means()}, indent=2) + '\n'


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, 'PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


def error_map(image: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: absolute luma error, black for none, through red to white for 32 grey levels and more."""
    from basicsr_effsr.imaging.metrics import to_y

    gap = np.abs(to_y(image) - to_y(gt)) * ERROR_GAIN
    return np.stack([np.clip(gap * 3 - 255 * i, 0, 255) for i in range(3)], axis=-1).astype(np.uint8)


def page(report: EvaluationReport, shown: list[dict[str, Any]]) -> str:
    """The self-contained HTML page.

    Args:
        report: the scores.
        shown: images to show, each with ``score`` and the data URIs ``bicubic``, ``net``, ``gt``, ``error``.
    """
    from jinja2 import Environment, select_autoescape

    template = (HERE / 'evaluate.html').read_text(encoding='utf-8')
    environment = Environment(
        autoescape=select_autoescape(default_for_string=True), trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(report=report, means=report.means(), shown=shown)


def worst(report: EvaluationReport, count: int) -> list[ImageScore]:
    """The images with the least gain over bicubic, worst first."""
    return sorted(report.images, key=lambda image: image.psnr - image.bicubic_psnr)[:count]


def evaluate(
    report: EvaluationReport,
    run: Callable[[np.ndarray], tuple[np.ndarray, float]],
    work: list[tuple[str, SetImage]],
    show: int,
) -> dict[str, str]:
    """Fills ``report`` with the scores of ``work`` and returns it in every form.

    Args:
        report: what is known beforehand.
        run: image -> (enlarged image, seconds).
        work: (name of the set, pair) in the order of the report.
        show: images on the page.

    Returns:
        File name -> text.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    for name, pair in track(work, description='images', console=console, transient=True):
        found = measure(pair, report.scale, run)
        scores = (found.psnr, found.ssim, found.bicubic_psnr, found.bicubic_ssim, found.seconds)
        report.images.append(ImageScore(name, pair.name, *scores))
    by_name = {(name, pair.name): pair for name, pair in work}
    shown = []
    for row in worst(report, show):  # measured again, so that no more than one image is ever in memory
        found = measure(by_name[row.set, row.image], report.scale, run)
        panels = {'bicubic': found.bicubic, 'net': found.net, 'gt': found.gt, 'error': error_map(found.net, found.gt)}
        shown.append({'score': row, **{key: _data_uri(panel) for key, panel in panels.items()}})
    return {
        'report.md': markdown(report),
        'report.csv': table_csv(report),
        'report.json': as_json(report),
        'report.html': page(report, shown),
    }


def write(texts: dict[str, str], folder: Path) -> None:
    """Puts each text into its file, all or nothing."""
    from basicsr_effsr.utils.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, partial(_write_text, text))


def _write_text(text: str, file: Path) -> None:
    file.write_text(text, encoding='utf-8')


def command(
    opt: networks.OptFile = None,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    weights: networks.Weights = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    data: Annotated[Path, typer.Option(help='Folder of the benchmark sets, or one set.')] = Path('datasets'),
    sets: Annotated[list[str] | None, typer.Option('--sets', help='Only this set; repeatable. Default: all.')] = None,
    out: Annotated[Path, typer.Option(help='Folder for report.md, .csv, .json and .html.')] = Path('results/evaluate'),
    make_lr: Annotated[bool, typer.Option('--make-lr', help="Make missing LR images with MATLAB's bicubic.")] = False,
    self_ensemble: Annotated[
        bool | None,
        typer.Option(
            '--self-ensemble/--no-self-ensemble',
            help="Mean over eight flips and rotations. Default: the option file's val.self_ensemble.",
            show_default=False,
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=0, help="Side of the tiles in LR pixels, 0 = whole images. Default: the option file's val.tile."
        ),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help='Overlap of the tiles in LR pixels. Default: val.tile, or 24.')
    ] = None,
    blend: Annotated[str | None, typer.Option(help='mean, feather or halo. Default: val.tile, or mean.')] = None,
    show: Annotated[int, typer.Option(min=0, help='Images on the page, those with the least gain over bicubic.')] = 6,
    device: networks.Device = None,
    json_out: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Score a network on Set5, Set14, B100, Urban100, Manga109 beside the paper's row; tables and an HTML page."""
    from rich.console import Console
    from rich.markdown import Markdown

    try:
        networks.check_folder(out)
        chosen = networks.choose(opt, arch, scale, weights, settings, param_key)
        val = chosen.options.get('val')
        how = protocol_of(val if isinstance(val, Mapping) else {}, self_ensemble, tile, overlap, blend)
        net, factor = fused(chosen.net) if how.fuse else chosen.net, chosen.scale
        run, protocol, machine = forward_function(net, factor, networks.pick_device(device), how)
        report = EvaluationReport(
            network=type(net).__name__,
            parameters=sum(p.numel() for p in net.parameters()),
            scale=factor,
            weights=str(chosen.weights),
            protocol=protocol,
            machine=machine,
            paper=find_paper(chosen.network['type'], chosen.network, factor),
        )
        work = [(name, p) for name, f in find_sets(data, sets, factor).items() for p in images_of(f, factor, make_lr)]
        texts = evaluate(report, run, work, show)
        write(texts, out)
    except (OSError, ValueError, KeyError) as error:
        raise networks.stop('evaluate', error) from error
    if json_out:
        typer.echo(texts['report.json'], nl=False)
        return
    terminal = Console()
    terminal.print(Markdown(texts['report.md']))
    terminal.print(f'written: {", ".join(str(out / name) for name in texts)}', markup=False, soft_wrap=True)
