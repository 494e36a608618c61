"""The commands of ``python -m datasets_prep``, also mounted as ``effsr prepare``."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from basicsr_effsr.utils.console import Commands, Console, say
from basicsr_effsr.utils.interrupt import sigterm_interrupts

app = typer.Typer(
    name='datasets_prep',
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help='From nothing to a verified, fast data set for super-resolution. Every command can be interrupted at any '
    'moment and run again; what is finished is skipped.',
)

Workers = Annotated[int, typer.Option('--workers', '-j', min=0, help='Processes; 0 works in this one.')]
Shard = Annotated[str, typer.Option('--shard', help='i/n: this machine takes every n-th item from the i-th on.')]
DryRun = Annotated[bool, typer.Option('--dry-run', help='Only say what would be done.')]
Overwrite = Annotated[bool, typer.Option('--overwrite', help='Make again what is there.')]
FilenameTmpl = Annotated[str, typer.Option(help='LR stem from the HR stem; DIV2K: {}x{scale}.')]
Compression = Annotated[int, typer.Option(help='PNG level, 0 to 9.')]
_SHARED: dict[str, Any] = {'workers': 0, 'shard': '1/1', 'dry_run': False}
_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@app.callback()
def _app() -> None:
    """Keeps the commands sub-commands."""


def _run(function: str, options: dict[str, Any]) -> None:
    """Calls ``module:function`` of this package, prints its summary and leaves with its exit code.

    Args:
        function: loaded only now, because what it imports takes a while.
        options: of the command line; those that all commands share become the schedule.
    """
    from datasets_prep.jobs import Schedule, parse_shard

    module, _, name = function.partition(':')
    workers, shard, dry_run = (options.pop(key, other) for key, other in _SHARED.items())
    if 'scales' in options:
        options['scales'] = _scales(options['scales'])
    schedule = Schedule(workers, parse_shard(shard), dry_run, progress=Console(stderr=True).is_terminal)
    try:
        with sigterm_interrupts():
            summary = getattr(import_module(f'datasets_prep.{module}'), name)(**options, schedule=schedule)
    except KeyboardInterrupt:
        say('interrupted; run the same command again to go on', err=True)
        raise typer.Exit(130) from None
    for line in summary.lines():
        say(line)
    raise typer.Exit(summary.exit_code)


def _scales(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(','))
    except ValueError:
        raise ValueError(f'--scales must be integers with commas between, as in 2,3,4, got {text!r}') from None


@app.command()
def download(
    names: Annotated[list[str] | None, typer.Argument(help='Data sets; without any, the table is shown.')] = None,
    root: Annotated[Path, typer.Option(help='Folder of all data sets.')] = Path('datasets'),
    archives: Annotated[
        Path | None, typer.Option(help='Folder with archives that had to be requested by hand.')
    ] = None,
    sources: Annotated[Path | None, typer.Option(help='Another table of sources, for a mirror.')] = None,
    keep_archives: Annotated[bool, typer.Option('--keep-archives', help='Keep archives after unpacking.')] = False,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Fetches, verifies and unpacks data sets (DIV2K, Flickr2K, DF2K, LSDIR, Set5, ...)."""
    options = locals()
    if not names:
        _show_sources(sources)
        return
    _run('download:download', options)


def _show_sources(path: Path | None) -> None:
    from datasets_prep.sources import read_sources

    sets = read_sources(path)
    rows = []
    for name, entry in sets.items():
        how = f'needs {", ".join(entry.needs)}' if entry.needs else f'{len(entry.files)} archives'
        rows.append((name, entry.about, entry.licence, 'by hand' if entry.manual else how))
    Console().table('', ('data set', 'what', 'licence', 'how'), rows)
    archives = {file.url: file for entry in sets.values() for file in entry.files}
    known = sum(file.checksum is not None for file in archives.values())
    say(f'checksums known: {known} of {len(archives)} archives')


@app.command()
def lr(
    hr: Annotated[Path, typer.Argument(help='Folder of HR images.')],
    out: Annotated[Path, typer.Argument(help='Folder for the folders of LR images.')],
    scales: Annotated[str, typer.Option(help='Scales, with commas between.')] = '2,3,4',
    modulus: Annotated[
        int | None, typer.Option(help='HR sides are cropped to multiples of it; by default the LCM of the scales.')
    ] = None,
    hr_out: Annotated[Path | None, typer.Option(help='Folder for the cropped HR images.')] = None,
    folder_tmpl: Annotated[str, typer.Option(help='Name of the folder of a scale.')] = 'X{scale}',
    filename_tmpl: FilenameTmpl = '{}',
    alpha: Annotated[str, typer.Option(help='What to do with transparency: refuse or drop.')] = 'refuse',
    overwrite: Overwrite = False,
    workers: Workers = _CPUS,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Makes LR images with MATLAB's bicubic, bit for bit."""
    _run('lr:make_lr', locals())


@app.command()
def subimages(
    folder: Annotated[Path, typer.Argument(help='Folder of images.')],
    out: Annotated[Path, typer.Argument(help='Folder for the sub-images.')],
    scale: Annotated[int, typer.Option(help='1 for HR; for LR its scale, which divides crop and step.')] = 1,
    crop: Annotated[int, typer.Option(help='Side of a sub-image in HR pixels.')] = 480,
    step: Annotated[int, typer.Option(help='Distance of two sub-images in HR pixels.')] = 240,
    thresh: Annotated[int, typer.Option(help='A rest up to this many HR pixels is left out.')] = 0,
    compression: Compression = 3,
    overwrite: Overwrite = False,
    workers: Workers = _CPUS,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Cuts images into overlapping sub-images, named as BasicSR names them."""
    _run('subimages:make_subimages', locals())


@app.command()
def meta_info(
    folder: Annotated[Path, typer.Argument(help='Folder of HR (sub-)images.')],
    out: Annotated[Path, typer.Argument(help='The text file.')],
    dry_run: DryRun = False,
) -> None:
    """Writes BasicSR's meta_info_file: the name and shape of every image."""
    _run('meta_info:make_meta_info', locals())


@app.command()
def lmdb(
    folder: Annotated[Path, typer.Argument(help='Folder of (sub-)images.')],
    out: Annotated[Path, typer.Argument(help='The LMDB, ending in .lmdb.')],
    compression: Compression = 1,
    strip: Annotated[str, typer.Option(help='Ending left out of the keys, as x4 of DIV2K.')] = '',
    overwrite: Overwrite = False,
    workers: Workers = _CPUS,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Builds an LMDB in BasicSR's format."""
    _run('lmdb_maker:make_lmdb', locals())


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help='Folder of images, or an LMDB.')],
    out: Annotated[Path, typer.Argument(help='The pack, ending in .pack.')],
    overwrite: Overwrite = False,
    workers: Workers = _CPUS,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Packs images, uncompressed, for PackedPairedImageDataset."""
    _run('pack:make_pack', locals())


@app.command()
def verify(
    hr: Annotated[Path, typer.Argument(help='HR images: a folder, an .lmdb or a .pack.')],
    lr: Annotated[Path | None, typer.Argument(help='LR images, likewise.')] = None,
    scale: Annotated[int, typer.Option(help='HR size over LR size.')] = 1,
    filename_tmpl: FilenameTmpl = '{}',
    bicubic: Annotated[bool, typer.Option(help='Compare LR with the bicubic of HR.')] = True,
    tolerance: Annotated[float, typer.Option(help='Allowed fraction of differing values.')] = 0.0,
    border: Annotated[int, typer.Option(help='LR pixels along the sides not compared; 2 for sub-images.')] = 0,
    report: Annotated[Path | None, typer.Option(help='Write every finding to this JSON file.')] = None,
    workers: Workers = _CPUS,
    shard: Shard = '1/1',
    dry_run: DryRun = False,
) -> None:
    """Checks pairs, sizes, decodability, and that LR is the bicubic of HR."""
    _run('verify:verify', locals())


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help='Folder of the data set.')] = Path('datasets/sample'),
    pack: Annotated[bool, typer.Option('--pack', help='Pack the training photographs, too.')] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Writes a small paired data set from the photographs inside scikit-image; needs no network."""
    _run('sample:write_sample', locals())
