"""The package from Python: networks by name or file, to enlarge images, to be scored, timed (``docs/python.md``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from basicsr_effsr.tools.benchmark import BenchmarkReport
    from basicsr_effsr.tools.evaluate_report import Evaluation

    Model: TypeAlias = str | Path | nn.Module  # a name of the zoo, a checkpoint, a network with its weights

Image = TypeVar('Image')


def register() -> None:
    """Registers everything of this package with BasicSR, also where automatic loading is off; safe to call again."""
    from basicsr_effsr._autoload import install
    from basicsr_effsr._registration import register as _register

    install(force=True)  # without it nobody serves what basicsr 1.4.2 imports and torchvision dropped
    _register()


def ready() -> None:
    """Everything registered; where there is no BasicSR, with our stand-in for its registries."""
    from basicsr_effsr.host.absent import stand_in

    stand_in()
    register()


def load_model(
    source: str | Path, *, device: Any = 'cpu', param_key: str | None = None, fuse: bool = True
) -> nn.Module:
    """A network with its weights, in eval mode.

    Args:
        source: a name of the zoo (``effsr zoo`` lists them; fetched on first use), or a checkpoint: .pth in any of
            the usual layouts, or safetensors.
        device: where it goes.
        param_key: entry of the checkpoint: params, params_ema; default: the best.
        fuse: in its fused form, for inference, where it has one.

    Raises:
        UserError: no such name, or a checkpoint of no known network.
        OSError: the file cannot be read.
    """
    from basicsr_effsr.weights.checkpoint import fused
    from basicsr_effsr.weights.recognise import recognise
    from basicsr_effsr.weights.zoo import model_file

    ready()
    net = recognise(model_file(source), None, param_key).net
    return (fused(net) if fuse else net).to(device)


def upscale(
    image: Image,
    model: str | Path | nn.Module,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    device: Any = None,
    engine: Literal['auto', 'torch', 'compile', 'onnxruntime', 'openvino'] = 'torch',
) -> Image:
    """An image through a network, as large as its scale makes it and of the type it has.

    Args:
        image: RGB or gray. NumPy (H, W), (H, W, 1) or (H, W, 3), uint8, uint16 or float in [0, 1]; PIL; torch
            (C, H, W) or (N, C, H, W), float in [0, 1].
        model: what :func:`load_model` gives, or takes.
        tile: side of the tiles in LR pixels, 0 for whole images; None: tiles of 512 above 512 x 512.
        self_ensemble: mean over the eight flips and rotations.
        device: where it is computed; None: where the network is, or for a name a GPU if there is one.
        engine: what computes it; ``auto``: for much work the fastest that agrees, exported once into the cache.

    Returns:
        The enlarged image; integers are rounded and clipped, floats are clipped to [0, 1]. A tensor is on the device
        of the one given.

    Raises:
        UserError: an image that is none of these, or a network that gives NaN or infinity on it.
    """
    import numpy as np
    import torch
    from PIL import Image as Pillow

    from basicsr_effsr.imaging.enlarger import Enlarger
    from basicsr_effsr.imaging.picture import Picture
    from basicsr_effsr.utils.errors import UserError
    from basicsr_effsr.weights.engines import engine_for

    if isinstance(model, str | Path):
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        model = load_model(model)
    device = device or next(model.parameters()).device
    given: Any = image
    size = given.shape[-2:] if isinstance(given, torch.Tensor) else np.shape(given)[:2]
    computer = engine_for(model, engine, pixels=(8 if self_ensemble else 1) * math.prod(size), device=device)
    enlarge = Enlarger(model, engine=computer, device=device, tile=tile, self_ensemble=self_ensemble)

    def floats(batch: torch.Tensor) -> torch.Tensor:
        if batch.shape[1] not in (1, 3) or not batch.dtype.is_floating_point or not batch.numel():
            wanted = '1 or 3 channels of floats in [0, 1], or of uint8 or uint16'
            raise UserError(f'an image must have {wanted}, got {tuple(batch.shape)} {batch.dtype}')
        side = enlarge.tile_for(*batch.shape[2:])
        return torch.stack([torch.cat(list(enlarge.image_bands(lq, side)), dim=1) for lq in batch.float().cpu()])

    if isinstance(given, torch.Tensor):
        if given.ndim not in (3, 4):
            raise UserError(f'a tensor must be (C, H, W) or (N, C, H, W), got {tuple(given.shape)}')
        out = floats(given if given.ndim == 4 else given[None]).to(given)
        return out if given.ndim == 4 else out[0]  # type: ignore[return-value]
    if isinstance(given, Pillow.Image):
        alpha = None
        if 'A' in given.mode or given.info.get('transparency') is not None:
            given = given.convert('RGBA')
            alpha = np.asarray(given)[..., 3]
        if given.mode.startswith('I'):
            pixels = np.asarray(given).astype(np.uint16)
        else:
            pixels = np.asarray(given.convert('L' if given.mode in ('1', 'L') else 'RGB'))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        made, _ = enlarge(Picture(pixels, alpha))
        planes = made.pixels if made.alpha is None else np.dstack([made.pixels, made.alpha])
        return Pillow.fromarray(planes.squeeze())  # type: ignore[return-value]
    if not isinstance(given, np.ndarray) or given.ndim not in (2, 3):
        shown = given.shape if isinstance(given, np.ndarray) else type(given).__name__
        raise UserError(f'an image must be a NumPy array (H, W[, C]), a PIL image or a tensor, got {shown}')
    pixels = given[..., None] if given.ndim == 2 else given
    if given.dtype in (np.uint8, np.uint16):
        if pixels.shape[2] not in (1, 3):
            raise UserError(f'an image must have 1 or 3 channels, got {given.shape}')
        out_pixels = enlarge(Picture(np.ascontiguousarray(pixels)))[0].pixels
    else:
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        out_pixels = floats(batch)[0].permute(1, 2, 0).numpy().astype(given.dtype)
    return out_pixels[..., 0] if given.ndim == 2 else out_pixels  # type: ignore[return-value]


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    data: str | Path = 'datasets',
    *,
    sets: str | Sequence[str] = 'all',
    make_lr: bool = False,
    protocol: Literal['paper', 'plain'] | None = None,
    self_ensemble: bool | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    blend: Literal['mean', 'feather', 'halo'] | None = None,
    device: str | None = None,
    engine: Literal['auto', 'torch', 'compile', 'onnxruntime', 'openvino'] | None = None,
    out: str | Path | None = None,
    show: int = 6,
) -> Evaluation:
    """PSNR and SSIM on Y of networks of one scale over benchmark sets: ``effsr evaluate`` (``docs/tools.md``).

    Args:
        models: one network, several, or a mapping of what they are to be called.
        data: folder of the sets, or one set.
        sets: names of sets; ``all``: every known one that is there.
        make_lr: make missing LR images with MATLAB's bicubic.
        protocol: as the paper measured, or plainly; None: the paper's for one network of which a paper has scores.
        self_ensemble: mean over the eight flips and rotations; None, as for the next three: as the protocol says.
        tile: side of the tiles in LR pixels, 0 for whole images.
        overlap: LR pixels that neighbouring tiles share.
        blend: how they are joined.
        device: where it is computed; None: a GPU if there is one.
        engine: what computes it; None: PyTorch.
        out: folder for the report; None: none is written.
        show: images on its page.

    Returns:
        ``models``, a report per network with ``images`` and ``means()``, and ``paired``, differences to the first one.

    Raises:
        UserError: a network, a set or an image that cannot be used.
    """
    from basicsr_effsr.tools import evaluate as tool
    from basicsr_effsr.tools.networks import check_folder, choose_from

    ready()
    if out is not None:
        check_folder(Path(out))
    return tool.evaluate(
        choose_from(models, device),
        Path(data),
        sets=[sets] if isinstance(sets, str) else sets,
        make_lr=make_lr,
        protocol=None if protocol is None else tool.Measured(protocol),
        self_ensemble=self_ensemble,
        tile=tile,
        overlap=overlap,
        blend=blend,
        engine=engine,
        out=None if out is None else Path(out),
        show=show,
    )


def benchmark(
    models: Model | Sequence[Model] | Mapping[str, Model],
    *,
    sizes: Sequence[str] = ('256x256', '720p'),
    dtypes: Sequence[Literal['fp32', 'fp16', 'bf16']] = ('fp32',),
    channels_last: bool = False,
    compiled: bool = False,
    runs: int | None = None,
    warmup: int | None = None,
    device: str | None = None,
) -> BenchmarkReport:
    """Parameters, multiply-adds, memory and latency of networks of one scale: ``effsr benchmark`` (``docs/tools.md``).

    Args:
        models: one network, several, or a mapping of what they are to be called; they take turns with RLFN and SPAN.
        sizes: HxW of the input, or 720p, 1080p, 4k of the output.
        dtypes: what is measured; none: networks are only counted.
        channels_last: measure this memory format too.
        compiled: measure with torch.compile too.
        runs: that count; None: 50 on a GPU, 10 on a CPU.
        warmup: runs before; None: 10 on a GPU, 2 on a CPU.
        device: where it is computed; None: a GPU if there is one.

    Returns:
        ``costs``, counted, and ``latencies``, measured, in milliseconds.

    Raises:
        UserError: a network that cannot be used, memory that runs out.
        ValueError: a network that cannot be counted.
    """
    from basicsr_effsr.tools import benchmark as tool
    from basicsr_effsr.tools.networks import choose_from

    ready()
    how: dict[str, Any] = {'channels_last': channels_last, 'compiled': compiled, 'runs': runs, 'warmup': warmup}
    return tool.benchmark(choose_from(models, device), sizes=sizes, dtypes=dtypes, **how)
