"""The Python API: load networks, enlarge images, evaluate, benchmark (``docs/python.md``)."""

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
    """Registers all classes of this package with BasicSR, even if automatic loading is off; safe to call again."""
    from basicsr_effsr._autoload import install
    from basicsr_effsr._registration import register as _register

    install(force=True)  # supplies what basicsr 1.4.2 imports and torchvision removed
    _register()


def ready() -> None:
    """Everything registered; where there is no BasicSR, with our stand-in for its registries."""
    from basicsr_effsr.host.absent import stand_in

    stand_in()
    register()


def load_model(
    source: str | Path, *, device: Any = 'cpu', param_key: str | None = None, fuse: bool = True
) -> nn.Module:
    """Loads a network with its weights, in eval mode.

    Args:
        source: name from the zoo (``effsr zoo`` lists them; downloaded on first use), or a checkpoint: .pth in any
            layout that ``effsr convert`` reads, or safetensors.
        device: device of the network.
        param_key: entry of the checkpoint, such as params or params_ema; None takes the best.
        fuse: return the fused form of a network that has one.

    Raises:
        UserError: the name does not exist, or the checkpoint belongs to no known network.
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
    """Enlarges an image with a network; the result has the type of the input.

    Args:
        image: RGB or gray. NumPy (H, W), (H, W, 1) or (H, W, 3), uint8, uint16 or float in [0, 1]; PIL; torch
            (C, H, W) or (N, C, H, W), float in [0, 1].
        model: a network, or what :func:`load_model` takes.
        tile: side of the tiles in LR pixels, 0 for whole images; None: tiles of 512 above 512 x 512.
        self_ensemble: average over the eight flips and rotations.
        device: device of the computation; None: that of the network, or for a name a GPU if there is one.
        engine: 'auto' takes, for large jobs, the fastest engine that gives the same image.

    Returns:
        The enlarged image. Integers are rounded and clipped, floats are clipped to [0, 1]. A tensor stays on its
        device.

    Raises:
        UserError: the image is of another type, or the network returns NaN or infinity.
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
    """Scores networks of one scale on benchmark sets, PSNR and SSIM on Y, like ``effsr evaluate``.

    Args:
        models: one network, a list, or a mapping from label to network.
        data: folder of the sets, or one set.
        sets: names of sets; 'all' takes every known set that is there.
        make_lr: make missing LR images with MATLAB's bicubic.
        protocol: 'paper' or 'plain' (``docs/tools.md``); None: 'paper' for one network that has a row in a paper.
        self_ensemble: average over the eight flips and rotations; None, here and below: as the protocol says.
        tile: side of the tiles in LR pixels, 0 for whole images.
        overlap: LR pixels that neighbouring tiles share.
        blend: how tiles are joined.
        device: device of the computation; None: a GPU if there is one.
        engine: engine of the networks; None: PyTorch.
        out: folder for the report; None writes none.
        show: number of images in report.html.

    Returns:
        ``models``: a report per network with ``images`` and ``means()``; ``paired``: differences to the first network.

    Raises:
        UserError: a network, a set or an image cannot be used.
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
    """Counts and times networks of one scale, like ``effsr benchmark``.

    Args:
        models: one network, a list, or a mapping from label to network; timed in turns with RLFN and SPAN.
        sizes: HxW of the input, or 720p, 1080p, 4k of the output.
        dtypes: precisions to time; an empty list only counts.
        channels_last: also time this memory format.
        compiled: also time with torch.compile.
        runs: timed runs; None: 50 on a GPU, 10 on a CPU.
        warmup: runs before them; None: 10 on a GPU, 2 on a CPU.
        device: device of the computation; None: a GPU if there is one.

    Returns:
        ``costs``: counted; ``latencies``: measured, in milliseconds.

    Raises:
        UserError: a network cannot be used, or the memory is too small.
        ValueError: a network cannot be counted.
    """
    from basicsr_effsr.tools import benchmark as tool
    from basicsr_effsr.tools.networks import choose_from

    ready()
    how: dict[str, Any] = {'channels_last': channels_last, 'compiled': compiled, 'runs': runs, 'warmup': warmup}
    return tool.benchmark(choose_from(models, device), sizes=sizes, dtypes=dtypes, **how)
