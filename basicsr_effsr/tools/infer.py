"""``effsr infer``: images of any kind and size through a network, tile by tile where they are large."""

from __future__ import annotations

import glob
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from basicsr_effsr.imaging.picture import DEEP, ENDINGS, SUFFIXES, Picture, check_size, fitting, read, write
from basicsr_effsr.tools import networks
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import out_of_memory
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.fuse import fused

if TYPE_CHECKING:
    from torch import Tensor, nn

AUTO_PIXELS = (
    512 * 512
)  # larger images go in tiles; in float32, x4, HASN takes 0.9 GiB and AGDN 1.2 GiB (one CPU thread)
AUTO_TILE = 512
LEAST_TILE = 64  # --tile auto does not go below it when the GPU's memory runs out
FEATHER = 32  # LR pixels that blended tiles share
LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow turns colour to gray
DTYPES = {'fp32': 'float32', 'fp16': 'float16', 'bf16': 'bfloat16'}


class Format(str, Enum):
    """File format of the results."""

    same = 'same'
    png = 'png'
    jpeg = 'jpeg'
    webp = 'webp'
    tiff = 'tiff'


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


@dataclass(frozen=True)
class Job:
    """An image to enlarge, the file to write, and its format."""

    source: Path
    target: Path
    kind: str


@dataclass
class Done:
    """What became of an image; sizes are (height, width), ``tile`` 0 for a whole image, seconds those of the network.

    ``status`` is written, skipped (it was there) or failed (``error`` says why); ``lost`` is what of the input the
    output does not carry.
    """

    input: str
    output: str
    status: str
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    bits: int | None = None
    tile: int | None = None
    seconds: float | None = None
    error: str | None = None
    lost: str = ''


@dataclass
class Report:
    """How a run was made, and every image of it."""

    network: str
    scale: int
    weights: str
    dtype: str
    device: str
    blend: str
    overlap: int
    self_ensemble: bool
    rank: int
    world_size: int
    images: list[Done] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Number of images of a status."""
        return sum(image.status == status for image in self.images)


# ---------------------------------------------------------------------- which images, into which files


def _expand(text: str, recursive: bool, out: Path) -> list[tuple[Path, Path]]:
    """(image, its path below the folder or glob it came from) of one argument."""
    given = Path(text).expanduser()
    if given.is_file():
        return [(given, Path(given.name))]
    if given.is_dir():
        base, found = given, sorted(given.rglob('*') if recursive else given.iterdir())
        found = [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith('.')]
        what = f'{text} holds no images ({", ".join(SUFFIXES)})' + ('' if recursive else '; --recursive looks below it')
    elif glob.has_magic(text):
        parts = given.parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:fixed])
        found = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
        what = f'{text} matches no file'
    else:
        raise UserError(f'{text} does not exist; give a file, a folder or a pattern in quotes')
    found = [path for path in found if path.is_file()]
    home = out.resolve()
    if home != base.resolve() and home.is_relative_to(base.resolve()):
        found = [path for path in found if not path.resolve().is_relative_to(home)]
    elif any(path.parent.resolve() == home for path in found):
        raise UserError(f'--out {out} is where the images of {text} are; give another folder')
    if not found:
        raise UserError(what)
    return [(path, path.relative_to(base)) for path in found]


def plan(
    inputs: Iterable[str], out: Path, *, suffix: str, kind: Format = Format.same, recursive: bool = False
) -> list[Job]:
    """The images and where their results go.

    Args:
        inputs: files, folders, globs; an image named twice is taken once.
        out: folder for the results, which keeps the folders below an input folder; or, with the ending of an image,
            the file for the only input.
        suffix: put behind the names.
        kind: format of the results.
        recursive: look into folders below the input folders.

    Raises:
        UserError: nothing is there; two results would have one name, or a result would be an input.
    """
    one_file = out.suffix.lower() in SUFFIXES and not out.is_dir()
    if not one_file and out.exists() and not out.is_dir():
        raise UserError(f'--out {out} is a file; give a folder, or a name that ends as an image')
    found: dict[str, tuple[Path, Path]] = {}
    for text in inputs:
        for path, below in _expand(text, recursive, out.parent / '.no folder' if one_file else out):
            found.setdefault(os.path.abspath(path), (path, below))
    jobs = []
    for path, below in found.values():
        if one_file:
            if len(found) > 1:
                raise UserError(f'--out {out} is one file for {len(found)} images; give a folder')
            wanted = SUFFIXES[out.suffix.lower()]
            if kind is not Format.same and kind.value != wanted:
                raise UserError(f'--out {out} and --format {kind.value} contradict each other; give one of the two')
            if wanted == 'png' and out.suffix.lower() != '.png':
                raise UserError(f'--out {out} is of a format that is only read; let it end in .png')
            jobs.append(Job(path, out, wanted))
            continue
        chosen = SUFFIXES.get(path.suffix.lower(), 'png') if kind is Format.same else kind.value
        ending = path.suffix if SUFFIXES.get(path.suffix.lower()) == chosen else ENDINGS[chosen]
        if chosen == 'png':
            ending = '.png'
        jobs.append(Job(path, out / below.with_name(f'{below.stem}{suffix}{ending}'), chosen))
    _check_targets(jobs)
    return jobs


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_targets(jobs: list[Job]) -> None:
    taken: dict[str, Path] = {}
    sources = {_identity(job.source): job.source for job in jobs}
    for job in jobs:
        key = os.path.normcase(os.path.abspath(job.target))
        if key in taken:
            raise UserError(
                f'{taken[key]} and {job.source} would both become {job.target}; rename one or enlarge them separately'
            )
        taken[key] = job.source
        same = _identity(job.target)
        if same is not None and same in sources:
            raise UserError(f'{job.target} would overwrite the input {sources[same]}; give another --out or --suffix')
        if job.target.is_dir():
            raise UserError(f'{job.target} is a folder; give another --out or --suffix')


# ---------------------------------------------------------------------- the network


def load_network(
    opt: Path | None,
    arch: str | None,
    scale: int | None,
    weights: Path | None,
    settings: list[str] | None,
    param_key: str | None,
) -> tuple[nn.Module, dict[str, Any], Path]:
    """The network, its options, and its checkpoint; what it is follows from the weights if nobody says.

    Raises:
        UserError: no weights, no network of ours, an option it does not have.
        ValueError, FileNotFoundError: a checkpoint that cannot be read, or does not fit.
    """
    if opt is not None or arch is not None:
        network, checkpoint, key = networks.describe(opt, arch, scale, weights, settings, param_key)
        if checkpoint is None:
            raise UserError('no weights to enlarge with; give --weights')
        return build(network, checkpoint, key), network, checkpoint
    if weights is None:
        raise UserError('give an option file (-opt), or --weights, alone or with --arch')
    from basicsr_effsr.weights.recognise import recognise

    state, found, _, _ = recognise(weights, None, param_key)
    changed, _, _ = networks.describe(None, found['type'], scale, weights, settings, param_key)
    network = {**found, **changed}
    net = build(network, None, fuse=False)
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f'{weights} is of {found}, which --scale or --set contradict; leave them out') from error
    return fused(net), network, weights


def at_least(image: Tensor, side: int) -> Tensor:
    """(N, C, H, W) with H, W >= ``side``, continued at the right and below: mirrored as far as there is image."""
    from torch.nn import functional as F

    height, width = image.shape[-2:]
    down, right = max(side - height, 0), max(side - width, 0)
    if not (down or right):
        return image
    mirrored = F.pad(image, (0, min(right, width - 1), 0, min(down, height - 1)), mode='reflect')
    rest = (0, right - min(right, width - 1), 0, down - min(down, height - 1))
    return F.pad(mirrored, rest, mode='replicate') if any(rest) else mirrored


class Enlarger:
    """A network with all that makes it work on any image.

    Args:
        net: in eval mode, of 1 or 3 channels in and as many out.
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
        device: Any = 'cpu',
        dtype: Any = None,
        tile: int | None = None,
        overlap: int | None = None,
        blend: Blend = Blend.auto,
        self_ensemble: bool = False,
        alpha: Alpha = Alpha.bicubic,
    ) -> None:
        import torch

        self.dtype = dtype or torch.float32
        self.device = torch.device(device)
        name = type(net).__name__
        if not hasattr(net, 'upscale'):
            raise UserError(f'{name} must state its scale as its attribute upscale; set it in its class')
        self.scale = int(net.upscale)  # type: ignore[arg-type]
        self.least = int(getattr(net, 'min_size', 1))
        self.channels = int(getattr(net, 'num_in_ch', 3))
        halo = getattr(net, 'halo', None)
        if self.channels not in (1, 3) or getattr(net, 'num_out_ch', self.channels) != self.channels:
            raise UserError(f'{name} must take and give 1 or 3 channels to enlarge images, this one is of other kind')
        if tile == 0 and (overlap is not None or blend is not Blend.auto):
            raise UserError('--tile 0 takes whole images, which --overlap and --blend contradict; leave them out')
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
        self.tile, self.overlap, self.blend = tile, overlap, blend
        self.self_ensemble, self.alpha = self_ensemble, alpha

    def tile_for(self, height: int, width: int) -> int:
        """Side of the tiles for an image of this size, 0 for none."""
        tile = self.tile
        if tile is None:
            tile = 0 if height * width <= AUTO_PIXELS else AUTO_TILE
        return 0 if max(height, width) <= tile else tile

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) on the CPU through the network to (N, C, rh, rw) in at least float32 on the CPU.

        Raises:
            UserError: the result is not finite.
        """
        import torch

        from basicsr_effsr.imaging.self_ensemble import self_ensemble

        height, width = lq.shape[-2:]
        batch = at_least(lq.to(self.device, self.dtype), self.least)
        with torch.no_grad():
            out = self_ensemble(self.net, batch) if self.self_ensemble else self.net(batch)
        out = out[..., : self.scale * height, : self.scale * width]
        out = out.to('cpu', torch.promote_types(out.dtype, torch.float32))
        if not out.isfinite().all():
            fix = 'give --dtype fp32' if self.dtype is torch.float16 else 'its weights are damaged or not its own'
            raise UserError(f'the network gave NaN or infinity; {fix}')
        return out

    def bands(self, lq: Tensor, tile: int, progress: Callable[[int, int], None] | None = None) -> Iterator[Tensor]:
        """The result from top to bottom, (N, C, h, rW) each; ``tile`` 0 gives it at once."""
        from basicsr_effsr.imaging.tiling import tiled_bands

        if tile == 0:
            yield self.forward(lq)
            return
        options = {'upscale': self.scale, 'tile': tile, 'overlap': self.overlap}
        yield from tiled_bands(self.forward, lq, **options, blend=self.blend.value, progress=progress)

    def _plane(
        self, pixels: np.ndarray, dtype: np.dtype[Any], tile: int, progress: Callable[[int, int], None] | None
    ) -> np.ndarray:
        """(H, W, 1 or 3) integers to (rH, rW, same) of ``dtype``; only these two and a row of tiles are in memory."""
        import torch

        height, width, channels = pixels.shape
        lq = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / np.iinfo(pixels.dtype).max)
        if channels == 1:
            lq = lq.expand(self.channels, -1, -1)
        # a network of one channel sees the three colours as a batch
        batch = lq[:, None] if self.channels == 1 else lq[None]
        out = np.empty((self.scale * height, self.scale * width, channels), dtype)
        top = 0
        for band in self.bands(batch, tile, progress):
            image = band[:, 0] if self.channels == 1 else band[0]
            if channels == 1 and self.channels == 3:
                image = (image * torch.tensor(LUMA, dtype=image.dtype)[:, None, None]).sum(0, keepdim=True)
            levels = (image.clamp(0, 1) * np.iinfo(dtype).max).round().permute(1, 2, 0).numpy()
            out[top : top + levels.shape[0]] = levels.astype(dtype)
            top += levels.shape[0]
        return out

    def __call__(
        self, picture: Picture, *, deep: bool = True, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Picture, int]:
        """Enlarges an image.

        Args:
            picture: the image; gray stays gray.
            deep: keep 16 bits where the image has them.
            progress: called with (tiles done, tiles in all).

        Returns:
            the result and the side of the tiles, 0 for a whole image.

        Raises:
            UserError: the network gave NaN or infinity, or the memory is too small for it.
        """
        import torch

        dtype = picture.pixels.dtype if deep else np.dtype(np.uint8)
        tile = self.tile_for(*picture.pixels.shape[:2])
        while True:
            try:
                pixels = self._plane(picture.pixels, dtype, tile, progress)
                alpha = self._alpha(picture.alpha, dtype, tile)
                break
            except RuntimeError as error:  # MemoryError comes from numpy, which tiles do not help
                if not out_of_memory(error):
                    raise
                smaller = (tile or AUTO_TILE) // 2
                if self.tile is not None or smaller < max(LEAST_TILE, self.least, self.overlap + 1):
                    fix = f'--tile below {tile}' if tile else f'--tile, such as {AUTO_TILE // 2}'
                    raise UserError(f'the memory of {self.device} is too small; give a {fix}') from error
                tile = smaller
                torch.cuda.empty_cache()
        return Picture(pixels, alpha, picture.exif, picture.icc, picture.lost), tile

    def _alpha(self, alpha: np.ndarray | None, dtype: np.dtype[Any], tile: int) -> np.ndarray | None:
        if alpha is None or self.alpha is Alpha.drop:
            return None
        if self.alpha is Alpha.net:
            return self._plane(alpha[..., None], dtype, tile, None)[..., 0]
        import cv2

        size = (self.scale * alpha.shape[1], self.scale * alpha.shape[0])
        part = alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max)
        smooth = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
        return (smooth.clip(0, 1) * np.iinfo(dtype).max).round().astype(dtype)


# ---------------------------------------------------------------------- running


def enlarge_file(enlarge: Enlarger, job: Job, quality: int, progress: Callable[[int, int], None] | None = None) -> Done:
    """One image from file to file; the result appears under its name only when it is complete.

    Raises:
        UserError: the image cannot be read, the network fails on it, or its result cannot be held by the format.
        OSError: the result cannot be written.
    """
    from basicsr_effsr.utils.files import write_atomic

    picture = read(job.source)
    height, width = picture.pixels.shape[:2]
    check_size(job.kind, enlarge.scale * height, enlarge.scale * width)
    if job.kind == 'jpeg' and picture.alpha is not None and enlarge.alpha is not Alpha.drop:
        raise UserError(f'{job.source} is transparent, which jpeg cannot be; give --alpha drop or another --format')
    start = time.perf_counter()
    try:
        result, tile = enlarge(picture, deep=job.kind in DEEP, progress=progress)
    except UserError as error:
        raise UserError(f'{job.source} failed: {error}') from error
    seconds = time.perf_counter() - start
    result = fitting(result, job.kind)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(job.target, partial(_write, result, job.kind, quality))
    size = (enlarge.scale * height, enlarge.scale * width)
    return Done(
        str(job.source),
        str(job.target),
        'written',
        input_size=(height, width),
        output_size=size,
        bits=result.bits,
        tile=tile,
        seconds=round(seconds, 4),
        lost=result.lost,
    )


def _write(picture: Picture, kind: str, quality: int, file: Path) -> None:
    write(picture, file, kind, quality)


def run(
    enlarge: Enlarger, jobs: list[Job], *, quality: int, overwrite: bool, tell: Callable[[Done], None]
) -> Iterator[Done]:
    """Works through the jobs; a result that is there is left, an image that fails does not stop the others.

    Args:
        enlarge: the network.
        jobs: what to do.
        quality: of JPEG and WebP.
        overwrite: make results anew that are there.
        tell: called with what became of each image.

    Yields:
        what became of each image.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole = bars.add_task('images', total=len(jobs))
        for job in jobs:
            if job.target.exists() and not overwrite:
                done = Done(str(job.source), str(job.target), 'skipped')
            else:
                tiles = bars.add_task('tiles', total=None, visible=False)
                try:
                    done = enlarge_file(enlarge, job, quality, partial(_advance, bars, tiles))
                except (OSError, ValueError, RuntimeError, MemoryError) as error:
                    if isinstance(error, RuntimeError) and not out_of_memory(error):
                        raise
                    reason = str(error)
                    if out_of_memory(error):
                        reason = f'{job.source} failed: the memory is too small for the image and its result'
                    done = Done(str(job.source), str(job.target), 'failed', error=reason)
                finally:
                    bars.remove_task(tiles)
            tell(done)
            bars.advance(whole)
            yield done


def _advance(bars: Any, task: Any, done: int, total: int) -> None:
    bars.update(task, completed=done, total=total, visible=True)


def share_of_this_process() -> tuple[int, int, int]:
    """(rank, number of processes, local rank) as torchrun tells them; (0, 1, 0) without it.

    Raises:
        UserError: the variables contradict each other.
    """
    try:
        rank, world, local = (int(os.environ.get(k, d)) for k, d in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    except ValueError as error:
        raise UserError('RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; torchrun sets them') from error
    if not 0 <= rank < world or local < 0:
        raise UserError(f'RANK must be from 0 to WORLD_SIZE - 1, got {rank} of {world}; torchrun sets them')
    return rank, world, local


def _device(wanted: str | None, local_rank: int) -> Any:
    import torch

    if wanted in (None, 'cuda') and torch.cuda.is_available():
        wanted = f'cuda:{local_rank % torch.cuda.device_count()}'
    return networks.pick_device(wanted)


def _tile(text: str) -> int | None:
    if text == 'auto':
        return None
    if not text.isdecimal():
        raise UserError(f'--tile must be auto, 0 or a side in LR pixels, got {text!r}')
    return int(text)


def in_words(done: Done) -> str:
    """One line on an image."""
    if done.status == 'skipped':
        return f'{done.input}: skipped, {done.output} is there (--overwrite makes it anew)'
    if done.input_size is None or done.output_size is None:
        return f'{done.input}: failed'
    (h, w), (height, width) = done.input_size, done.output_size
    how = f'tiles of {done.tile}' if done.tile else 'whole'
    lost = f', {done.lost} left out' if done.lost else ''
    return f'{done.input} {w}x{h} -> {done.output} {width}x{height}, {done.bits} bit, {how}, {done.seconds:.2f} s{lost}'


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which torchrun and schedulers send, unwinds as Ctrl-C does, so that temporary files go."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(
    inputs: Annotated[list[str], typer.Argument(help='Images: files, folders, patterns in quotes.')],
    opt: networks.OptFile = None,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    weights: networks.Weights = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder of the results; or a file for one image.')] = Path(
        'results/infer'
    ),
    suffix: Annotated[str | None, typer.Option(help='Put behind the names; default: _x and the scale.')] = None,
    kind: Annotated[Format, typer.Option('--format', help='same: that of the input.')] = Format.same,
    quality: Annotated[int, typer.Option(help='Of JPEG and WebP, 1 to 100; WebP at 100 is lossless.')] = 95,
    recursive: Annotated[bool, typer.Option('--recursive', help='Look into folders below the given ones.')] = False,
    alpha: Annotated[Alpha, typer.Option(help='How transparency is enlarged.')] = Alpha.bicubic,
    tile: Annotated[str, typer.Option(help='Side of the tiles in LR pixels; 0: none; auto: 512 above 512 x 512.')] = (
        'auto'
    ),
    overlap: Annotated[int | None, typer.Option(help='LR pixels that tiles share; default: the halo, or 32.')] = None,
    blend: Annotated[Blend, typer.Option(help='auto: halo where it is exact, else feather.')] = Blend.auto,
    dtype: Annotated[str, typer.Option(help='fp32, fp16 or bf16.')] = 'fp32',
    self_ensemble: Annotated[
        bool, typer.Option('--self-ensemble', help='Mean over eight flips and rotations.')
    ] = False,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Make results anew that are there.')] = False,
    device: networks.Device = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Enlarge images; results that are there are left, so a stopped run goes on where it was.

    Exit code 1 if an image failed, 2 for bad input. Under torchrun each process takes its share.
    """
    import torch

    try:
        if dtype not in DTYPES:
            raise UserError(f'--dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
        if not 1 <= quality <= 100:
            raise UserError(f'--quality must be from 1 to 100, got {quality}')
        if suffix is not None and ('/' in suffix or os.sep in suffix):
            raise UserError(f'--suffix must be part of a file name, got {suffix!r}')
        rank, world, local_rank = share_of_this_process()
        side = _tile(tile)
        net, network, checkpoint = load_network(opt, arch, scale, weights, settings, param_key)
        enlarge = Enlarger(
            net,
            device=_device(device, local_rank),
            dtype=getattr(torch, DTYPES[dtype]),
            tile=side,
            overlap=overlap,
            blend=blend,
            self_ensemble=self_ensemble,
            alpha=alpha,
        )
        ending = f'_x{enlarge.scale}' if suffix is None else suffix
        jobs = plan(inputs, out, suffix=ending, kind=kind, recursive=recursive)
    except (OSError, ValueError, KeyError) as error:
        raise networks.stop('infer', error) from error

    def tell(done: Done) -> None:
        if done.status == 'failed':
            typer.echo(f'effsr infer: {done.error}', err=True)
        elif not as_json:
            typer.echo(in_words(done))

    report = Report(
        network=str(network['type']),
        scale=enlarge.scale,
        weights=str(checkpoint),
        dtype=dtype,
        device=str(enlarge.device),
        blend=enlarge.blend.value,
        overlap=enlarge.overlap,
        self_ensemble=self_ensemble,
        rank=rank,
        world_size=world,
    )
    try:
        with _terminated_like_interrupted():
            for done in run(enlarge, jobs[rank::world], quality=quality, overwrite=overwrite, tell=tell):
                report.images.append(done)
    except KeyboardInterrupt:
        typer.echo(
            f'effsr infer: stopped after {len(report.images)} of {len(jobs[rank::world])} images; the same command '
            'goes on from there',
            err=True,
        )
        raise typer.Exit(130) from None
    counts = {status: report.count(status) for status in ('written', 'skipped', 'failed')}
    if as_json:
        # one line per process, so that the reports of several can be told apart
        typer.echo(json.dumps(asdict(report) | counts, indent=2 if world == 1 else None))
    else:
        words = ', '.join(f'{number} {status}' for status, number in counts.items())
        typer.echo(words + (f' by process {rank} of {world}' if world > 1 else ''))
    if counts['failed']:
        raise typer.Exit(2 if len(jobs) == 1 else 1)
