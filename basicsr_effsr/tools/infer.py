"""``effsr infer``: images of any kind and size through a network, tile by tile where they are large."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn

from basicsr_effsr.imaging.enlarge_files import Done, Enlargement, Format, enlarge_files, lr_pixels, plan
from basicsr_effsr.imaging.enlarger import Alpha, Blend, Enlarger
from basicsr_effsr.tools import networks
from basicsr_effsr.utils.console import progress, say, sigterm_interrupts
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import WriteError
from basicsr_effsr.utils.report import strict_json
from basicsr_effsr.utils.training import DTYPES
from basicsr_effsr.weights.checkpoint import fused
from basicsr_effsr.weights.engines import Engine, engine_for


@contextmanager
def run(enlarge: Enlarger, jobs: list[Enlargement], **how: Any) -> Iterator[Iterable[Done]]:
    """What :func:`enlarge_files` yields, with progress bars on a terminal; nothing runs after the block."""
    with progress(MofNCompleteColumn(), shown=sys.stderr.isatty(), transient=True) as bars:
        tiles = bars.add_task('tiles', visible=False)

        def advance(done: int, total: int) -> None:
            bars.update(tiles, completed=done, total=total, visible=done < total)

        with closing(enlarge_files(enlarge, jobs, progress=advance, **how)) as images:
            yield bars.track(images, total=len(jobs), description='images')


def in_words(done: Done) -> str:
    """One line on an image that was written or skipped."""
    if done.status == 'skipped':
        return f'{done.input}: skipped, {done.output} exists (--overwrite replaces it)'
    (h, w), (height, width) = done.input_size, done.output_size  # type: ignore[misc]
    how = f'tiles of {done.tile}' if done.tile else 'whole'
    lost = f', {done.lost} left out' if done.lost else ''
    return f'{done.input} {w}x{h} -> {done.output} {width}x{height}, {done.bits} bit, {how}, {done.seconds:.2f} s{lost}'


@networks.names_network
def command(
    choose: Callable[..., networks.Chosen],
    inputs: Annotated[list[str], typer.Argument(help='Images: files, folders, patterns in quotes.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder for the results, or a file for one image.')] = Path(
        'results/infer'
    ),
    suffix: Annotated[str | None, typer.Option(help='Suffix of the file names; default: _x and the scale.')] = None,
    kind: Annotated[
        Format, typer.Option('--format', help='Format of the results; same: that of the input.')
    ] = Format.same,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help='Quality of JPEG and WebP; WebP at 100 is lossless.')
    ] = 95,
    recursive: Annotated[bool, typer.Option('--recursive', help='Include subfolders.')] = False,
    alpha: Annotated[Alpha, typer.Option(help='How transparency is enlarged.')] = Alpha.bicubic,
    tile: Annotated[str, typer.Option(help='Side of the tiles in LR pixels; 0: none; auto: 512 above 512 x 512.')] = (
        'auto'
    ),
    overlap: Annotated[int | None, typer.Option(help='LR pixels that tiles share; default: the halo, or 32.')] = None,
    blend: Annotated[Blend, typer.Option(help='auto: halo where it is exact, else feather.')] = Blend.auto,
    dtype: Annotated[str, typer.Option(help='fp32, fp16 or bf16.')] = 'fp32',
    self_ensemble: networks.SelfEnsemble = False,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Overwrite results that exist.')] = False,
    device: networks.Device = None,
    engine: networks.Computed = Engine.auto,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
    rank: Annotated[int, typer.Option(envvar='RANK', min=0, hidden=True)] = 0,
    world: Annotated[int, typer.Option(envvar='WORLD_SIZE', hidden=True)] = 1,
) -> None:
    """Enlarge images; existing results are skipped, so the same command resumes a stopped run.

    Exit code 1 if an image failed, 2 for bad input. Under torchrun each process takes its share.
    """
    if dtype not in DTYPES:
        raise UserError(f'--dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
    if suffix is not None and ('/' in suffix or os.sep in suffix):
        raise UserError(f'--suffix must be part of a file name, got {suffix!r}')
    if tile != 'auto' and not tile.isdecimal():
        raise UserError(f'--tile must be auto, 0 or a side in LR pixels, got {tile!r}')
    if rank >= world:
        raise UserError(f'RANK must be from 0 to WORLD_SIZE - 1, got {rank} of {world}; torchrun sets them')
    chosen = choose(device=device)
    if dtype != 'fp32' and not getattr(chosen.net, 'supports_half', True):
        say(
            f'effsr infer: {chosen.network["type"]} is visibly wrong on text, hatching and dither in {dtype}',
            err=True,
        )
    ending = f'_x{chosen.scale}' if suffix is None else suffix
    jobs = plan(inputs, out, suffix=ending, kind=kind, recursive=recursive)
    net = fused(chosen.net)
    # of all images, also those that are there: a run that goes on computes as it began
    pixels = lr_pixels(jobs) * (8 if self_ensemble else 1) if engine is Engine.auto else 0
    computer = engine_for(net, engine, pixels=pixels, device=chosen.device, dtype=DTYPES[dtype])
    if words := computer.words():
        say(f'effsr infer: {words}', err=True)
    enlarge = Enlarger(
        net,
        engine=computer,
        device=chosen.device,
        dtype=DTYPES[dtype],
        tile=None if tile == 'auto' else int(tile),
        overlap=overlap,
        blend=blend,
        self_ensemble=self_ensemble,
        alpha=alpha,
    )

    images: list[Done] = []
    mine = jobs[rank::world]
    try:
        with sigterm_interrupts(), run(enlarge, mine, quality=quality, overwrite=overwrite) as found:
            for done in found:
                images.append(done)
                if done.status == 'failed':
                    say(f'effsr infer: {done.error}', err=True)
                elif not as_json:
                    say(in_words(done))
    except (KeyboardInterrupt, WriteError) as stop:
        why = '' if isinstance(stop, KeyboardInterrupt) else f'{stop}; '
        done_of = f'{len(images)} of {len(mine)}'
        say(f'effsr infer: {why}stopped after {done_of} images; run the same command again to continue', err=True)
        raise typer.Exit(1 if why else 130) from None
    counts = {name: sum(image.status == name for image in images) for name in ('written', 'skipped', 'failed')}
    if as_json:
        report = {
            'network': str(chosen.network['type']),
            'scale': enlarge.scale,
            'weights': str(chosen.weights),
            'dtype': dtype,
            'device': str(enlarge.device),
            'engine': computer.name,
            'blend': enlarge.blend.value,
            'overlap': enlarge.overlap,
            'self_ensemble': self_ensemble,
            'rank': rank,
            'world_size': world,
            'images': [asdict(image) for image in images],
        }
        # one line per process, so that the reports of several can be told apart
        typer.echo(strict_json(report | counts, indent=2 if world == 1 else None))
    else:
        words = ', '.join(f'{number} {status}' for status, number in counts.items())
        say(words + (f' by process {rank} of {world}' if world > 1 else ''))
    if counts['failed']:
        raise typer.Exit(2 if len(jobs) == 1 else 1)
