"""``effsr convert``: any checkpoint of our networks to BasicSR's layout, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from basicsr_effsr.tools import networks
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import atomic_path
from basicsr_effsr.utils.report import strict_json
from basicsr_effsr.weights.checkpoint import as_pth, as_safetensors, can_be_fused, fused, read_state_dict
from basicsr_effsr.weights.recognise import as_yaml, described, metadata_of, recognise


class Layout(str, Enum):
    """How the parameters lie in the file."""

    basicsr = 'basicsr'
    bare = 'bare'
    safetensors = 'safetensors'
    module = 'module'


@dataclass
class ConversionReport:
    """What was converted."""

    source: str
    file: str
    layout: str
    network: dict[str, Any]
    parameters: int
    renamed: dict[str, str]
    dropped: list[str]
    fused: bool
    assumed: dict[str, Any]
    entry: tuple[str, ...]


def convert(
    source: Path,
    out: Path | None,
    layout: Layout,
    *,
    network: Mapping[str, Any] | None = None,
    param_key: str | None = None,
    fuse: bool = False,
) -> ConversionReport:
    """Reads ``source``, proves that it loads strictly, and writes it in another layout; nothing on failure.

    ``out`` None only says what the source is, ``network`` (``type`` and options) None finds out. Layouts are
    ``basicsr`` ({params: ...}), ``bare``, ``safetensors`` (with metadata), ``module`` (every name behind ``module.``).
    """
    known = recognise(source, network, param_key)
    net, found, kept = known.net, known.network, known.state
    if fuse:
        if not can_be_fused(net):
            raise UserError(f'{found["type"]} of {source} has no fused form; leave --fuse out')
        net, found, kept = fused(net), {**found, 'deploy': True}, {}
    if out is not None:
        # the dtype of the source stays; counters that it lacks are the network's
        plain = {name: kept.get(name, tensor).detach().contiguous() for name, tensor in net.state_dict().items()}
        if layout is Layout.safetensors:
            dtypes = sorted({str(t.dtype).removeprefix('torch.') for t in plain.values() if t.is_floating_point()})
            file = as_safetensors(plain, metadata_of(found, net, source, ', '.join(dtypes)))
        else:
            prefix = 'module.' if layout is Layout.module else ''
            stored: dict[str, Any] = {f'{prefix}{name}': tensor for name, tensor in plain.items()}
            file = as_pth({'params': stored} if layout is Layout.basicsr else stored)
        with atomic_path(out, sync=True) as part:
            part.write_bytes(file)
            again = read_state_dict(part)
            same = (again[n].dtype == plain[n].dtype and torch.equal(again[n], plain[n]) for n in plain)
            if again.keys() != plain.keys() or not all(same):
                raise UserError(f'{out} does not read back as it was written; check the disk')
    return ConversionReport(
        source=str(source),
        file=str(out or ''),
        layout=layout.value if out is not None else '',
        network=found,
        parameters=sum(p.numel() for p in net.parameters()),
        renamed=known.renamed,
        dropped=known.dropped,
        fused=bool(getattr(net, 'deploy', False)),
        assumed=known.assumed,
        entry=known.entry,
    )


def command(
    source: Annotated[Path, typer.Argument(help='Checkpoint: .pth of any layout, or .safetensors.')],
    out: Annotated[Path | None, typer.Argument(help='File to write; without it the source is only identified.')] = None,
    to: Annotated[Layout, typer.Option('--to', help='Layout of the new file.')] = Layout.basicsr,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    fuse: Annotated[bool, typer.Option('--fuse', help='Write the fused form (DPARN, EFRDN).')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Convert a checkpoint of any layout; network and options are inferred from its names and shapes."""
    if arch is None and (scale is not None or settings):
        raise UserError('--scale and --set need --arch')
    if out is not None:
        if out.resolve() == source.resolve():
            raise UserError(f'{out} is the source; give another name')
        endings = ('.safetensors',) if to is Layout.safetensors else ('.pth', '.pt')
        if out.suffix not in endings:
            raise UserError(f'{out}: files of --to {to.value} end in {" or ".join(endings)}')
    network = None if arch is None else {'type': arch, **networks.settings_of(scale, settings)}
    report = convert(source, out, to, network=network, param_key=param_key, fuse=fuse)
    if as_json:
        typer.echo(strict_json(report))
        return
    say(f'{report.source}: {described(report.network)}, {report.parameters:,} parameters')
    if report.entry:
        say(f'  read from the entry {".".join(report.entry)}; --param-key selects another')
    for old, new in report.renamed.items():
        say(f'  renamed {old} to {new}')
    if report.assumed:
        guessed = ', '.join(f'{name}={as_yaml(value)}' for name, value in report.assumed.items())
        say(f'  cannot be inferred from the weights; assumed {guessed}')
    if report.dropped:
        say(f'  dropped, computed by the network: {", ".join(report.dropped[:4])}')
    if report.file:
        say(f'{report.file}: written as {report.layout}, read back and equal')
