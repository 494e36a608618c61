"""``effsr compare``: bicubic against a network, as a small table and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont

from basicsr_effsr.data.benchmark_sets import SetImage
from basicsr_effsr.data.pairs import BICUBIC, is_lmdb, is_packed, list_pairs
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.evaluate import forward_function, measure, protocol_of
from basicsr_effsr.utils.console import Console, say
from basicsr_effsr.utils.errors import UserError, printable
from basicsr_effsr.utils.files import atomic_path
from basicsr_effsr.utils.report import strict_json
from basicsr_effsr.weights.checkpoint import fused

MARGIN, CAPTION, CROP, PANEL = 12, 26, 72, 288  # pixels; CROP is the side of the enlarged detail in HR pixels


def busiest_crop(gt: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the window with the most detail, away from the border."""
    gray = gt.astype(np.float32).mean(axis=2)
    detail = np.abs(np.diff(gray, axis=0, append=gray[-1:])) + np.abs(np.diff(gray, axis=1, append=gray[:, -1:]))
    sums = cv2.boxFilter(detail, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    sums = sums[: gray.shape[0] - side + 1, : gray.shape[1] - side + 1]
    inner = sums[side:-side, side:-side] if min(sums.shape) > 3 * side else sums
    offset = side if inner is not sums else 0
    top, left = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(top) + offset, int(left) + offset


def picture(rows: list[tuple[str, list[tuple[str, np.ndarray]]]]) -> Image.Image:
    """One line per image: the panels side by side, under each the same detail enlarged.

    Args:
        rows: title of the image and its (caption, (H, W, 3) uint8) panels, the last being the ground
            truth. The detail is chosen in the first, the LR image: fine texture that is lost there says little.
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
        top, left = busiest_crop(panels[0][1], side)
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


def command(
    opt: Annotated[Path, typer.Option('-opt', '--opt', help='Option file of a test, as for basicsr.test.')],
    out: Annotated[Path, typer.Option(help='PNG to write.')] = Path('results/compare.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print the scores as JSON.')] = False,
) -> None:
    """Compare bicubic with the network of an option file on its test images; a table and one picture.

    The network runs as the section val of the file says.
    """
    networks.check_file(out, '.png')
    chosen = networks.choose(opt, device=None)
    how = protocol_of(chosen.options['val'])
    net, scale = fused(chosen.net) if how.fuse else chosen.net, chosen.scale
    run, protocol, _ = forward_function(net, scale, chosen.device, how)
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
        (
            row.image,
            f'{row.bicubic_psnr:.2f} / {row.bicubic_ssim:.4f}',
            f'{row.psnr:.2f} / {row.ssim:.4f}',
            f'{row.psnr - row.bicubic_psnr:+.2f} / {row.ssim - row.bicubic_ssim:+.4f}',
        )
        for row in scores
    ]
    Console().table(f'PSNR in dB / SSIM, {protocol}', ('image', 'bicubic', 'network', 'gain'), rows)
    say(f'picture: {out}')
