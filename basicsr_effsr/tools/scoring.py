"""How one image is scored: what a protocol is, how a network is run by it, PSNR and SSIM beside those of bicubic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from basicsr_effsr.data.benchmark_sets import SetImage
from basicsr_effsr.data.pairs import check_sizes
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from basicsr_effsr.imaging.metrics import score_y
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.imaging.tiling import self_ensemble as ensemble
from basicsr_effsr.imaging.tiling import tiled_forward
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import enough_memory
from basicsr_effsr.weights.engines import Computer, engine_for

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

    @property
    def bicubic(self) -> tuple[float, float]:
        """PSNR [dB] and SSIM of bicubic."""
        return self.bicubic_psnr, self.bicubic_ssim


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


def forward_function(
    net: nn.Module,
    scale: int,
    device: Any,
    protocol: Protocol,
    engine: str | Computer = 'torch',
    pixels: float = math.inf,
) -> tuple[Run, str, str]:
    """How images are enlarged; ``engine`` and ``pixels`` as for ``engine_for``.

    Returns:
        A function (H, W, 3) uint8 -> ((rH, rW, 3) uint8, seconds), rounded as BasicSR rounds; the protocol and the
        machine, in words.
    """
    pixels *= 8 if protocol.self_ensemble else 1
    computer = engine if isinstance(engine, Computer) else engine_for(net, engine, pixels=pixels, device=device)
    net = net.to(device)

    def once(batch: torch.Tensor) -> torch.Tensor:
        if protocol.tile is None:
            return computer(batch)
        options: dict[str, Any] = {'tile': protocol.tile, 'overlap': protocol.overlap, 'blend': protocol.blend}
        return tiled_forward(computer, batch, upscale=scale, **options)

    def run(lq: np.ndarray) -> tuple[np.ndarray, float]:
        batch = torch.from_numpy(np.ascontiguousarray(lq.transpose(2, 0, 1))).to(device)[None].float() / 255
        start = time.perf_counter()
        with torch.no_grad(), enough_memory(f'an image of {lq.shape[1]}x{lq.shape[0]}', 'give tiles'):
            out = ensemble(once, batch) if protocol.self_ensemble else once(batch)
            finite = bool(torch.isfinite(out).all())  # on a GPU this waits for the result
        seconds = time.perf_counter() - start
        if not finite:
            raise UserError(f'{type(net).__name__} gave NaN or infinity; the weights are damaged or diverged')
        image = (out[0].clamp(0, 1) * 255.0).permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
        return image, seconds

    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    how = [machine, f'torch {torch.__version__}', *filter(None, [computer.words()])]
    return run, protocol.words(scale), ', '.join(how)


def measure(
    name: str, pair: SetImage, scale: int, run: Run, protocol: Protocol = Protocol()
) -> tuple[ImageScore, Panels]:
    """One image of the set ``name`` through the network and bicubic, scored on Y with a border of ``scale`` pixels.

    Returns:
        The scores, and the images ``lq``, ``bicubic``, ``net``, ``gt``, (H, W, 3) uint8 RGB each.
    """
    lq, gt = read_pair(pair, scale, protocol.modulus)
    cubic, whole = imresize(lq, scale=scale), protocol.ssim == 'matlab'
    try:
        image, seconds = run(lq)
        scores = (*score_y(image, gt, scale, whole=whole), *score_y(cubic, gt, scale, whole=whole))
    except ValueError as error:
        raise UserError(f'{pair.gt}: {error}') from error
    return ImageScore(name, pair.name, *scores, seconds), {'lq': lq, 'bicubic': cubic, 'net': image, 'gt': gt}
