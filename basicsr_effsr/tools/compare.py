"""``effsr compare``: networks and bicubic on images, as a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont

from basicsr_effsr.data.benchmark_sets import SetImage
from basicsr_effsr.data.pairs import BICUBIC, is_lmdb, is_packed, list_pairs
from basicsr_effsr.imaging.header import read_header
from basicsr_effsr.imaging.metrics import to_y
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.scoring import ImageScore, forward_function, measure, protocol_of
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError, needs, printable
from basicsr_effsr.utils.files import atomic_path
from basicsr_effsr.utils.report import PAGE, new_figure, score_words, strict_json, write_figure
from basicsr_effsr.weights.checkpoint import fused
from basicsr_effsr.weights.engines import Engine

GAP, LINES, SMALLEST = 0.06, 0.3, 0.8  # inches: between panels, two lines of text, a panel
MARGIN, CAPTION, CROP, PANEL = 12, 26, 48, 288  # pixels; CROP is the side of the enlarged detail in HR pixels


def fullest(weight: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Top left corner of the window that holds most of an (H, W) map, away from the border if there is room."""
    sums = cv2.boxFilter(weight.astype(np.float32), -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    sums = sums[: weight.shape[0] - height + 1, : weight.shape[1] - width + 1]
    top, left = (side if room > 3 * side else 0 for side, room in zip((height, width), sums.shape, strict=True))
    inner = sums[top : sums.shape[0] - top, left : sums.shape[1] - left]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(y) + top, int(x) + left


def busiest_crop(gt: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the window with the most detail, away from the border."""
    gray = gt.astype(np.float32).mean(axis=2)
    detail = np.abs(np.diff(gray, axis=0, append=gray[-1:])) + np.abs(np.diff(gray, axis=1, append=gray[:, -1:]))
    return fullest(detail, side, side)


def differing_crop(images: Sequence[np.ndarray], side: int) -> tuple[int, int]:
    """Top left corner of the window where the luma of (H, W, 3) uint8 images differs most."""
    return fullest(np.stack([to_y(image) for image in images]).var(axis=0), side, side)


def picture(rows: list[tuple[str, list[tuple[str, np.ndarray]]]]) -> Image.Image:
    """One line per image: the panels side by side, under each the same detail enlarged.

    Args:
        rows: title of the image and its (caption, (H, W, 3) uint8) panels: the LR image, the methods, the ground
            truth. The detail is where the methods differ most.
    """
    font = ImageFont.load_default(size=15)
    width = MARGIN + max(len(panels) for _, panels in rows) * (PANEL + MARGIN)
    lines = []
    for title, panels in rows:
        ratio = PANEL / max(panels[-1][1].shape[:2])
        overview = round(panels[-1][1].shape[0] * ratio)
        detail_y = MARGIN + CAPTION + overview + MARGIN // 2
        line = Image.new('RGB', (width, detail_y + PANEL + CAPTION + MARGIN), 'white')
        draw = ImageDraw.Draw(line)
        draw.text((MARGIN, MARGIN), title, fill='black', font=font)
        side = min(CROP, *panels[0][1].shape[:2])
        top, left = differing_crop([image for _, image in panels[1:-1]], side)
        for x, (caption, image) in zip(range(MARGIN, width, PANEL + MARGIN), panels):  # noqa: B905
            size = (round(image.shape[1] * ratio), overview)
            small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
            marked = ImageDraw.Draw(small)
            marked.rectangle([v * ratio for v in (left, top, left + side, top + side)], outline='red', width=2)
            line.paste(small, (x, MARGIN + CAPTION))
            detail = Image.fromarray(image[top : top + side, left : left + side])
            line.paste(detail.resize((PANEL, PANEL), Image.Resampling.NEAREST), (x, detail_y))
            draw.text((x, detail_y + PANEL + 2), caption, fill='black', font=font)
        lines.append(np.asarray(line))
    return Image.fromarray(np.concatenate(lines))


def figure(
    title: str, gt: np.ndarray, crop: tuple[int, int, int, int], panels: list[tuple[str, str, np.ndarray]], best: str
) -> Any:
    """A figure as papers print it: HR with a frame on the left, beside it what is in the frame, two rows of methods.

    ``title`` stands below ``gt``, (H, W, 3) uint8; ``crop`` is x, y, width, height of the frame; ``panels`` are name,
    scores and (H, W, 3) uint8 of each method; the scores ``best`` are printed bold.
    """
    page = new_figure(dpi=300)  # texts are measured as they will be printed
    x, y, width, height = crop
    columns, wide, aspect = -(-len(panels) // 2), gt.shape[1] / gt.shape[0], width / height
    # all panels share one height h: the page is wide * (2 h + LINES) + columns * (aspect * h + GAP) wide
    h = max((PAGE - wide * LINES - columns * GAP) / (2 * wide + columns * aspect), SMALLEST)
    left, total = wide * (2 * h + LINES), 2 * (h + LINES)
    page_width = left + columns * (aspect * h + GAP)
    page.set_size_inches(page_width, total)

    def place(image: np.ndarray, at: float, top: float, size: tuple[float, float], lines: list[str]) -> Any:
        box = (at / page_width, 1 - (top + size[1]) / total, size[0] / page_width, size[1] / total)
        axes = page.add_axes(box)
        times = max(1, round(size[1] * 600 / image.shape[0]))  # viewers of PDF blur enlarged pixels
        axes.imshow(image.repeat(times, 0).repeat(times, 1), interpolation='none', extent=(0, 1, 1, 0), aspect='auto')
        axes.axis('off')
        for number, line in enumerate(lines):
            how = {'fontsize': 7, 'ha': 'center', 'va': 'top', 'parse_math': False}
            weight = 'bold' if line == best else 'normal'
            y_text = 1 + (0.03 + number * 0.125) / size[1]
            text = axes.text(0.5, y_text, line, fontweight=weight, **how)
            if (needed := text.get_window_extent().width / page.dpi / size[0]) > 1:
                text.set_fontsize(6.7 / needed)  # hinting makes small type wider
        return axes

    overview = place(gt, 0, 0, (left, 2 * h + LINES), [title])
    frame = (x / gt.shape[1], y / gt.shape[0]), width / gt.shape[1], height / gt.shape[0]
    rectangle = needs('matplotlib.patches', 'plots').Rectangle
    overview.add_patch(rectangle(*frame, fill=False, edgecolor='red', linewidth=1.2))
    for number, (name, scores, image) in enumerate(panels):
        row, column = divmod(number, columns)
        at = left + GAP + column * (aspect * h + GAP)
        place(image[y : y + height, x : x + width], at, row * (h + LINES), (aspect * h, h), [name, scores])
    return page


def frame_of(crop: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """``x,y,w,h`` in HR pixels."""
    try:
        x, y, width, height = map(int, crop.split(','))
    except ValueError as error:
        raise UserError(f'--crop must be x,y,w,h in HR pixels, got {crop!r}') from error
    if min(x, y) < 0 or min(width, height) < 4 or x + width > shape[1] or y + height > shape[0]:
        raise UserError(f'--crop must lie in the image of {shape[1]}x{shape[0]} with 4 pixels at least, got {crop}')
    return x, y, width, height


def compare_models(
    models: list[str],
    pair: SetImage,
    crop: str | None,
    device: str | None,
    self_ensemble: bool,
    tile: int | None,
    engine: str = 'torch',
) -> tuple[list[tuple[str, ImageScore]], str, str, Any]:
    """Every network on one image; arguments are the options of the command, ``pair`` the HR image and its LR image.

    Returns:
        (name, scores) of each network; the protocol; the crop as ``x,y,w,h``; the figure.
    """
    how = protocol_of({}, self_ensemble, tile)
    found: list[tuple[str, ImageScore]] = []
    made: list[np.ndarray] = []
    for chosen in networks.choose_several(model=models, device=device):
        name = printable(chosen.name)
        work = math.prod(read_header(pair.gt).size) / chosen.scale**2
        run, protocol, _ = forward_function(fused(chosen.net), chosen.scale, chosen.device, how, engine, work)
        score, panels = measure(name, pair, chosen.scale, run)
        found.append((name, score))
        made.append(panels['net'])
    gt, scale, first = panels['gt'], chosen.scale, found[0][1]
    if crop is None:
        side = min(max(48, min(gt.shape[:2]) // 4), *gt.shape[:2])
        top, left = differing_crop(made if len(made) > 1 else [*made, panels['bicubic']], side)
        crop = f'{left},{top},{side},{side}'
    frame = frame_of(crop, gt.shape)
    words = {name: score_words((score.psnr, score.ssim)) for name, score in found}
    best = words[max(found, key=lambda each: (each[1].psnr, each[1].ssim))[0]] if len(found) > 1 else ''
    shown = [
        ('HR', 'PSNR [dB] / SSIM', gt),
        ('LR', f'x{scale}', panels['lq'].repeat(scale, axis=0).repeat(scale, axis=1)),
        ('Bicubic', score_words(first.bicubic), panels['bicubic']),
        *((name, words[name], image) for (name, _), image in zip(found, made, strict=True)),
    ]
    return found, protocol, crop, figure(printable(pair.name), gt, frame, shown, best)


def _gain(psnr: float, ssim: float, bicubic: tuple[float, float]) -> str:
    return f'{psnr - bicubic[0]:+.2f} / {ssim - bicubic[1]:+.4f}'


def of_option_file(opt: Path, out: Path, device: str | None, as_json: bool) -> None:
    """Bicubic beside the network of an option file on its test images."""
    networks.check_file(out, '.png')
    chosen = networks.choose(opt, device=device)
    how = protocol_of(chosen.options['val'])
    net, scale = fused(chosen.net) if how.fuse else chosen.net, chosen.scale
    run, protocol, _ = forward_function(net, scale, chosen.device, how, chosen.options['val'].get('engine') or 'torch')
    scores, shown = [], []
    for phase, data in chosen.options['datasets'].items():
        if not isinstance(data, dict):
            raise UserError(f'{opt}: datasets.{phase} must be a section of options, got {data!r}')
        if is_packed(data) or is_lmdb(data) or data.get('dataroot_lq') == BICUBIC:
            raise UserError(f'datasets.{phase}: image files are read, not LMDBs, packs or bicubic; name folders')
        for files in list_pairs(f'datasets.{phase}', data):
            pair = SetImage(Path(files.gt).stem, Path(files.gt), Path(files.lq))
            score, panels = measure(str(phase), pair, scale, run)
            scores.append(score)
            captions = {
                'LR, pixels repeated': panels['lq'].repeat(scale, axis=0).repeat(scale, axis=1),
                f'bicubic  {score.bicubic_psnr:.2f} dB / {score.bicubic_ssim:.4f}': panels['bicubic'],
                f'{type(net).__name__}  {score.psnr:.2f} dB / {score.ssim:.4f}': panels['net'],
                'HR': panels['gt'],
            }
            shown.append((f'{printable(pair.name)}, x{scale}', list(captions.items())))
    if not scores:
        raise UserError(f'{opt} names no images; give it a section datasets')
    with atomic_path(out, sync=True) as part:
        picture(shown).save(part, format='png')
    if as_json:
        typer.echo(strict_json(scores))
        return
    rows = [
        (row.image, score_words(row.bicubic), score_words((row.psnr, row.ssim)), _gain(row.psnr, row.ssim, row.bicubic))
        for row in scores
    ]
    Console().table(f'PSNR in dB / SSIM, {protocol}', ('image', 'bicubic', 'network', 'gain'), rows)
    say(f'picture: {out}')


def command(
    opt: Annotated[
        Path | None, typer.Option('-opt', '--opt', help='Option file of a test, as for basicsr.test.')
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help='Name of the zoo or checkpoint, LABEL=... to name it; repeatable; instead of -opt.'),
    ] = None,
    image: Annotated[Path | None, typer.Option(help='HR image, for --model.')] = None,
    lr: Annotated[Path | None, typer.Option(help="Its LR image; default: made by MATLAB's bicubic.")] = None,
    crop: Annotated[
        str | None, typer.Option(help='x,y,w,h of the detail in HR pixels; default: where the networks differ most.')
    ] = None,
    self_ensemble: networks.SelfEnsemble = False,
    tile: Annotated[
        int | None, typer.Option(min=0, help='Side of the tiles in LR pixels, for --model; default: whole images.')
    ] = None,
    device: networks.Device = None,
    engine: networks.Computed = Engine.torch,
    out: Annotated[
        Path, typer.Option('--out', '-o', help='Picture to write: PNG; with --model also PDF or SVG.')
    ] = Path('results/compare.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print the scores as JSON.')] = False,
) -> None:
    """Compare networks (--model, repeatable) on an image, as papers print it; a table and one figure.

    Or bicubic with the network of an option file on its test images (-opt), run as the section val of the file says.
    """
    if opt is not None:
        given = {'--model': model, '--image': image, '--lr': lr, '--crop': crop, '--tile': tile}
        if useless := [name for name, value in given.items() if value] + ['--self-ensemble'] * self_ensemble:
            raise UserError(f'-opt cannot be combined with {", ".join(useless)}; the option file says what is compared')
        of_option_file(opt, out, device, as_json)
        return
    if not model or image is None:
        raise UserError('give networks (--model) and an HR image (--image), or an option file (-opt)')
    networks.check_file(out, '.png', '.pdf', '.svg')
    needs('matplotlib', 'plots')
    pair = SetImage(image.stem, image, lr)
    found, protocol, where, page = compare_models(model, pair, crop, device, self_ensemble, tile, engine)
    write_figure(page, out)
    base = found[0][1].bicubic
    scores = {'bicubic': base} | {n: (s.psnr, s.ssim) for n, s in found}
    if as_json:
        rows = [{'method': name, 'psnr': psnr, 'ssim': ssim} for name, (psnr, ssim) in scores.items()]
        typer.echo(strict_json({'image': str(image), 'protocol': protocol, 'crop': where, 'scores': rows}))
        return
    gains = [(name, score_words(score), _gain(*score, base)) for name, score in scores.items()]
    gains[0] = (*gains[0][:2], '-')
    Console().table(f'PSNR in dB / SSIM of {image}, {protocol}', ('method', 'score', 'gain'), gains)
    say(f'picture: {out}, --crop {where}')
