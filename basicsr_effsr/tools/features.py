"""``effsr features`` and ``effsr lam``: what a network sees in an image, and which of its pixels it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import MofNCompleteColumn
from torch import nn

from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.compare import busiest_crop, frame_of
from basicsr_effsr.utils.attribution import diffusion_index, local_attribution
from basicsr_effsr.utils.console import Console, progress, say
from basicsr_effsr.utils.errors import UserError, needs, printable
from basicsr_effsr.utils.feature_tap import FeatureTap, as_map
from basicsr_effsr.utils.memory import enough_memory
from basicsr_effsr.utils.report import PAGE, new_figure, strict_json, write_figure

COLUMNS = 6
LQ = Annotated[Path, typer.Option('--image', help='LR image.')]


def _taken(choose: Callable[..., networks.Chosen], device: str | None, image: Path) -> tuple[Any, Any, np.ndarray, Any]:
    """What was chosen, its network, the LR image as (H, W, 3) float32 in [0, 1] and as a batch, on the device."""
    chosen, lq = choose(device=device), (read_rgb(image) / 255).astype(np.float32)
    batch = torch.from_numpy(lq.transpose(2, 0, 1)[None].copy()).to(chosen.device)
    return chosen, chosen.net.to(chosen.device), lq, batch


def modules_of(net: nn.Module, run: Callable[[], Any]) -> list[tuple[str, str, list[int]]]:
    """(name, class, shape of its last output) of every submodule that gives one tensor when ``run`` is called."""
    shapes: dict[str, list[int]] = {}
    modules = {name: module for name, module in net.named_modules() if name}

    def keep(name: str, _: Any, __: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            shapes[name] = list(out.shape)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        run()
    return [(name, type(module).__name__, shapes[name]) for name, module in modules.items() if name in shapes]


def feature_maps(net: nn.Module, names: Sequence[str], run: Callable[[], Any], grid: tuple[int, int]) -> list[Any]:
    """(C, H, W) of each named submodule, as ``run`` leaves them; ``grid`` is the LR size, for outputs of tokens."""
    try:
        tap = FeatureTap(net, names)
        with tap.recording():
            run()
        found = [as_map(tap.take(name), grid) for name in names]
    except (KeyError, TypeError) as error:
        raise UserError(f'--module: {error.args[0]} (without --module every submodule is listed)') from error
    for name, features in zip(names, found, strict=True):
        if features.ndim != 4 or features.shape[0] != 1:
            shape = 'x'.join(map(str, features.shape))
            raise UserError(f'--module: {name} gives {shape}, must be one map, 1xCxHxW; name a submodule around it')
    return [features[0].float().cpu().numpy() for features in found]


def panel(axes: Any, image: np.ndarray, title: str, **how: Any) -> Any:
    """One image in a figure, without axes."""
    axes.axis('off')
    axes.set_title(title, fontsize=6, pad=2, parse_math=False)
    return axes.imshow(image, interpolation='nearest', **how)


def draw_maps(lq: np.ndarray, maps: Sequence[tuple[str, np.ndarray]], channels: int) -> Any:
    """Of each module the image, the mean of the absolute values over channels, and the channels that vary most.

    Every map has its own range of values, which stands above it.
    """
    lines = [-(-(2 + min(channels, len(features))) // COLUMNS) for _, features in maps]
    each = PAGE / COLUMNS * lq.shape[0] / lq.shape[1] + 0.14
    page = new_figure(figsize=(PAGE, sum(n * each + 0.25 for n in lines)), layout='constrained', dpi=300)
    parts = page.subfigures(len(maps), 1, squeeze=False, height_ratios=lines)[:, 0]
    for part, (name, features), rows in zip(parts, maps, lines, strict=True):
        shown = np.sort(np.argsort(-features.var(axis=(1, 2)), kind='stable')[:channels])
        size = 'x'.join(map(str, features.shape))
        part.suptitle(f'{name}, {size}, {len(shown)} of {len(features)} channels', fontsize=7, parse_math=False)
        axes = part.subplots(rows, COLUMNS, squeeze=False).ravel()
        panel(axes[0], lq, 'LR')
        mean = 'mean of |x|', np.abs(features).mean(axis=0)
        for at, (what, image) in zip(axes[1:], [mean, *((str(c), features[c]) for c in shown)], strict=False):
            panel(at, image, f'{what}: {image.min():.2g} to {image.max():.2g}', cmap='viridis')
        for at in axes[2 + len(shown) :]:
            at.axis('off')
    return page


@networks.names_network
def features(
    choose: Callable[..., networks.Chosen],
    image: LQ,
    module: Annotated[
        list[str] | None, typer.Option(help='Submodule whose output is drawn; repeatable; without it all are listed.')
    ] = None,
    channels: Annotated[int, typer.Option(min=0, help='Channels to draw of each, those that vary most.')] = 16,
    device: networks.Device = None,
    out: Annotated[Path, typer.Option(help='PNG, PDF or SVG to write.')] = Path('results/features.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print the list of submodules as JSON.')] = False,
) -> None:
    """Draw feature and attention maps of named submodules for one image; without --module list what there is."""
    if module:
        networks.check_file(out, '.png', '.pdf', '.svg')
        if as_json:
            raise UserError('--json lists submodules; leave out --module')
    _, net, lq, batch = _taken(choose, device, image)

    def run() -> None:
        with torch.no_grad(), enough_memory(f'an image of {lq.shape[1]}x{lq.shape[0]}', 'give a smaller one'):
            net(batch)

    if module:
        maps = feature_maps(net, module, run, lq.shape[:2])
        write_figure(draw_maps(lq, list(zip(map(printable, module), maps, strict=True)), channels), out)
        say(f'written: {out}')
        return
    found = modules_of(net, run)
    if as_json:
        typer.echo(strict_json([dict(zip(('name', 'type', 'shape'), each, strict=True)) for each in found]))
        return
    rows = [(name, kind, 'x'.join(map(str, shape))) for name, kind, shape in found]
    Console().table(f'Submodules of {type(net).__name__}, {lq.shape[1]}x{lq.shape[0]}', ('name', 'type', 'out'), rows)


@networks.names_network
def lam(
    choose: Callable[..., networks.Chosen],
    image: LQ,
    crop: Annotated[
        str | None, typer.Option(help='x,y,w,h of the patch in SR pixels; default: 16x16 with most detail.')
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help='Steps of the path from blurred to sharp.')] = 50,
    sigma: Annotated[float, typer.Option(min=0.1, help='Blur where the path begins, LR pixels.')] = 1.2,
    device: networks.Device = None,
    out: Annotated[Path, typer.Option(help='PNG, PDF or SVG to write.')] = Path('results/lam.png'),
    as_json: Annotated[bool, typer.Option('--json', help='Print patch and diffusion index as JSON.')] = False,
) -> None:
    """Draw which LR pixels a network uses for a patch: local attribution map and diffusion index (Gu, Dong 2021)."""
    networks.check_file(out, '.png', '.pdf', '.svg')
    needs('matplotlib', 'plots')
    chosen, net, lq, batch = _taken(choose, device, image)
    net.requires_grad_(False)
    with enough_memory(f'an image of {lq.shape[1]}x{lq.shape[0]}', 'give a smaller one'):
        with torch.no_grad():
            sr = net(batch)
        pixels = sr[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        if crop is None:
            side = min(16, *pixels.shape[:2])
            top, left = busiest_crop((pixels * 255).astype(np.uint8), side)
            crop = f'{left},{top},{side},{side}'
        patch = frame_of(crop, pixels.shape)
        with progress(MofNCompleteColumn(), shown=Console(stderr=True).is_terminal, transient=True) as bars:
            task = bars.add_task('pieces', total=steps)
            found = local_attribution(net, lq, patch, steps=steps, sigma=sigma, report=lambda: bars.advance(task))
    strength = np.abs(found.sum(axis=2))
    if not np.isfinite(strength).all() or not strength.any():
        raise UserError(f'--crop {crop}: no pixel contributes to this patch; choose one with edges')
    index = diffusion_index(found)
    size = (PAGE, PAGE / 3 * lq.shape[0] / lq.shape[1] + 0.3)
    page = new_figure(figsize=size, layout='constrained', dpi=300)
    axes = page.subplots(1, 3)
    panel(axes[0], lq, f'LR, {printable(image.name)}')
    panel(axes[1], pixels, f'SR x{chosen.scale}, patch {crop}')
    rectangle = needs('matplotlib.patches', 'plots').Rectangle
    axes[1].add_patch(rectangle(patch[:2], *patch[2:], fill=False, edgecolor='red', linewidth=0.8))
    pale, title = 0.6 + lq.mean(axis=2) * 0.4, f'LAM of {type(net).__name__}, diffusion index {index:.2f}'
    panel(axes[2], pale, title, cmap='gray', vmin=0, vmax=1)
    red = np.zeros((*strength.shape, 4))
    red[..., 0], red[..., 3] = 1, np.sqrt(strength / strength.max())  # the eye sees weak contributions, too
    axes[2].imshow(red, interpolation='nearest')
    write_figure(page, out)
    if as_json:
        typer.echo(strict_json({'crop': crop, 'diffusion_index': index, 'steps': steps, 'sigma': sigma}))
        return
    say(f'diffusion index {index:.2f}, --crop {crop}')
    say(f'written: {out}')
