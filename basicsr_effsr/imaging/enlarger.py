"""Images of any kind and size through a network, tile by tile where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr_effsr.imaging.picture import Picture
from basicsr_effsr.imaging.tiling import Progress, self_ensemble, tiled_bands
from basicsr_effsr.utils.errors import UserError, one_line
from basicsr_effsr.utils.memory import out_of_memory

# larger images go in tiles; in float32, x4, HASN takes 0.9 GiB and AGDN 1.2 GiB (one CPU thread)
AUTO_PIXELS = 512 * 512
AUTO_TILE = 512
LEAST_TILE = 64  # --tile auto does not go below it when the GPU's memory runs out
FEATHER = 32  # LR pixels that blended tiles share
LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow turns colour to gray


class Alpha(str, Enum):
    """How transparency is enlarged."""

    bicubic = 'bicubic'
    net = 'net'
    drop = 'drop'


class Blend(str, Enum):
    """How tiles are joined."""

    auto = 'auto'
    halo = 'halo'
    feather = 'feather'
    mean = 'mean'


def at_least(image: Tensor, side: int) -> Tensor:
    """(N, C, H, W) with H, W >= ``side``, continued at the right and below: mirrored as far as there is image."""
    height, width = image.shape[-2:]
    down, right = max(side - height, 0), max(side - width, 0)
    if not (down or right):
        return image
    mirrored = F.pad(image, (0, min(right, width - 1), 0, min(down, height - 1)), mode='reflect')
    rest = (0, right - min(right, width - 1), 0, down - min(down, height - 1))
    return F.pad(mirrored, rest, mode='replicate') if any(rest) else mirrored


def spread_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, C) in which invisible pixels (alpha 0) have the colour of the nearest visible pixel.

    Otherwise networks, which see colours only, would let hidden colours bleed into visible edges.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.empty((int(nearest.max()) + 1, pixels.shape[2]), pixels.dtype)
    colours[nearest[~hidden]] = pixels[~hidden]
    return colours[nearest]


class Enlarger:
    """A network with all that makes it work on any image.

    Args:
        net: in eval mode, of 1 or 3 channels in and as many out.
        engine: what computes it, (N, C, H, W) -> (N, C, rH, rW); None: the network itself.
        device: where it runs; images and results stay on the CPU.
        dtype: of its weights and maps.
        tile: side of the tiles in LR pixels, 0 for whole images, None for the rule of ``auto``.
        overlap: LR pixels that tiles share; None takes the halo, or 32.
        blend: how tiles are joined; ``auto`` is halo where the network states one and feather elsewhere.
        self_ensemble: mean over the eight flips and rotations of each tile.
        alpha: how transparency is enlarged.

    Raises:
        UserError: options that contradict the network or each other.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        engine: Callable[[Tensor], Tensor] | None = None,
        device: Any = 'cpu',
        dtype: Any = None,
        tile: int | None = None,
        overlap: int | None = None,
        blend: Blend = Blend.auto,
        self_ensemble: bool = False,
        alpha: Alpha = Alpha.bicubic,
    ) -> None:
        self.dtype = dtype or torch.float32
        self.device = torch.device(device)
        name = type(net).__name__
        if not hasattr(net, 'upscale'):
            raise UserError(f'{name} must state its scale as its attribute upscale; set it in its class')
        self.scale = int(net.upscale)  # type: ignore[arg-type]
        self.least = int(getattr(net, 'min_size', 1))
        self.channels = int(getattr(net, 'num_in_ch', 3))
        halo = getattr(net, 'halo', None)
        given = getattr(net, 'num_out_ch', self.channels)
        if self.channels not in (1, 3) or given != self.channels:
            raise UserError(f'{name} must have 1 or 3 input and output channels, got {self.channels} and {given}')
        if tile == 0 and (overlap is not None or blend is not Blend.auto):
            raise UserError('--tile 0 processes whole images, so --overlap and --blend have no effect; leave them out')
        if blend is Blend.auto:
            blend = Blend.feather if halo is None else Blend.halo
        if overlap is None:
            overlap = halo if blend is Blend.halo and halo is not None else FEATHER
        if blend is Blend.halo and halo is not None and overlap < halo:
            raise UserError(f'--overlap must be at least {halo}, the halo of {name}, for exact tiles, got {overlap}')
        lowest = max(self.least, 1 if blend is Blend.halo else overlap + 1)
        if tile is not None and tile != 0 and tile < lowest:
            raise UserError(
                f'--tile must be 0 (whole images) or at least {lowest} for {name} with --overlap {overlap}, got {tile}'
            )
        if overlap < 0 or (tile is None and overlap >= LEAST_TILE and blend is not Blend.halo):
            raise UserError(f'--overlap must be from 0 to {LEAST_TILE - 1}, or below --tile, got {overlap}')
        self.net = net.to(self.device, self.dtype)
        self.engine = engine or self.net
        self.tile, self.overlap, self.blend = tile, overlap, blend
        self.self_ensemble, self.alpha = self_ensemble, alpha

    def tile_for(self, height: int, width: int) -> int:
        """Side of the tiles for an image of this size, 0 for none."""
        auto = 0 if height * width <= AUTO_PIXELS else AUTO_TILE
        tile = auto if self.tile is None else self.tile
        return 0 if max(height, width) <= tile else tile

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) on the CPU through the network to (N, C, rh, rw) in at least float32 on the CPU.

        Raises:
            UserError: the result is not finite.
        """
        height, width = lq.shape[-2:]
        batch = at_least(lq.to(self.device, self.dtype), self.least)
        with torch.no_grad():
            out = self_ensemble(self.engine, batch) if self.self_ensemble else self.engine(batch)
        out = out[..., : self.scale * height, : self.scale * width]
        out = out.to('cpu', torch.promote_types(out.dtype, torch.float32))
        if not out.isfinite().all():
            fix = 'give --dtype fp32' if self.dtype is torch.float16 else 'its weights are damaged or not its own'
            raise UserError(f'the network gave NaN or infinity; {fix}')
        return out

    def bands(self, lq: Tensor, tile: int, progress: Progress | None = None) -> Iterator[Tensor]:
        """The result from top to bottom, (N, C, h, rW) each; ``tile`` 0 gives it at once."""
        if tile == 0:
            yield self.forward(lq)
            return
        options = {'upscale': self.scale, 'tile': tile, 'overlap': self.overlap}
        yield from tiled_bands(self.forward, lq, **options, blend=self.blend.value, progress=progress)

    def image_bands(self, lq: Tensor, tile: int, progress: Progress | None = None) -> Iterator[Tensor]:
        """One image, (1 or 3, h, w) in [0, 1], from top to bottom, (same, h, rW) each; gray too."""
        gray = lq.shape[0] == 1
        lq = lq.expand(self.channels, -1, -1) if gray else lq
        # a network of one channel sees the three colours as a batch
        batch = lq[:, None] if self.channels == 1 else lq[None]
        for band in self.bands(batch, tile, progress):
            image = band[:, 0] if self.channels == 1 else band[0]
            if gray and self.channels == 3:
                image = (image * image.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
            yield image.clamp(0, 1)

    def _plane(self, pixels: np.ndarray, dtype: np.dtype[Any], tile: int, progress: Progress | None) -> np.ndarray:
        """(H, W, 1 or 3) integers to (rH, rW, same) of ``dtype``; only these two and a row of tiles are in memory."""
        height, width, channels = pixels.shape
        lq = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / np.iinfo(pixels.dtype).max)
        out = np.empty((self.scale * height, self.scale * width, channels), dtype)
        top = 0
        for image in self.image_bands(lq, tile, progress):
            levels = (image * np.iinfo(dtype).max).round().permute(1, 2, 0).numpy()
            out[top : top + levels.shape[0]] = levels.astype(dtype)
            top += levels.shape[0]
        return out

    def __call__(self, picture: Picture, *, deep: bool = True, progress: Progress | None = None) -> tuple[Picture, int]:
        """The enlarged image and the side of the tiles, 0 for a whole image; gray stays gray.

        Args:
            picture: the image.
            deep: keep 16 bits where the image has them.
            progress: called with (tiles done, tiles in all).

        Raises:
            UserError: the network gave NaN or infinity, or the memory is too small for it.
        """
        dtype = picture.pixels.dtype if deep else np.dtype(np.uint8)
        tile = self.tile_for(*picture.pixels.shape[:2])
        given = picture.pixels
        if picture.alpha is not None and self.alpha is not Alpha.drop:
            given = spread_colours(given, picture.alpha)
        while True:
            try:
                pixels = self._plane(given, dtype, tile, progress)
                alpha = self._alpha(picture.alpha, dtype, tile)
                break
            except RuntimeError as error:  # MemoryError comes from numpy, which tiles do not help
                if not out_of_memory(error):
                    if self.device.type == 'cpu' and self.dtype is torch.float16:  # some versions lack kernels
                        what = f'{type(self.net).__name__} cannot compute in fp16 on this CPU ({one_line(error)})'
                        raise UserError(f'{what}; give --dtype fp32') from error
                    raise
                smaller = (tile or AUTO_TILE) // 2
                if self.tile is not None or smaller < max(LEAST_TILE, self.least, self.overlap + 1):
                    fix = f'--tile below {tile}' if tile else f'--tile, such as {AUTO_TILE // 2}'
                    raise UserError(f'the memory of {self.device} is too small; give a {fix}') from error
                tile = smaller
                torch.cuda.empty_cache()
        return replace(picture, pixels=pixels, alpha=alpha), tile

    def _alpha(self, alpha: np.ndarray | None, dtype: np.dtype[Any], tile: int) -> np.ndarray | None:
        if alpha is None or self.alpha is Alpha.drop:
            return None
        if self.alpha is Alpha.net:
            return self._plane(alpha[..., None], dtype, tile, None)[..., 0]
        size = (self.scale * alpha.shape[1], self.scale * alpha.shape[0])
        part = alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max)
        smooth = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
        return (smooth.clip(0, 1) * np.iinfo(dtype).max).round().astype(dtype)
