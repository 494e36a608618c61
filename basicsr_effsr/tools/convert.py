"""``effsr convert``: any checkpoint of our networks to BasicSR's layout, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from basicsr_effsr.tools import networks
from basicsr_effsr.tools.networks import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ('module.', 'net_g.', 'model.', '_orig_mod.', 'generator.')  # put in front of names by training programs
SHOWN = 8


class Layout(str, Enum):
    """How the parameters lie in the file."""

    basicsr = 'basicsr'
    bare = 'bare'
    safetensors = 'safetensors'
    module = 'module'


@dataclass
class Report:
    """What was converted."""

    source: str
    file: str
    layout: str
    network: dict[str, Any]
    parameters: int
    renamed: dict[str, str]
    dropped: list[str]
    deployed: bool


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that every name carries."""
    found = dict(state)
    changed = True
    while changed and found:
        changed = False
        for prefix in WRAPPERS:
            if all(name.startswith(prefix) for name in found):
                found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
                changed = True
    return found


def to_official_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Names of our networks for those of other programs: (state, old name -> new name, names left out).

    Buffers that are computed (position indices, attention masks, counters of batch norms) are left out.
    """
    renamed, dropped, out = {}, [], {}
    for name, tensor in state.items():
        if name.endswith(('rel_pos_indices', 'attn_mask', 'num_batches_tracked', 'total_ops', 'total_params')):
            dropped.append(name)
            continue
        new = name
        for old, ours in ((r'upsampler.up.', 'upsampler.'), ('to_img.', 'upsampler.'), ('upsample.0.', 'upsampler.0.')):
            if name.startswith(old) and not any(n.startswith('upsampler.0.') for n in state):
                new = ours + name.removeprefix(old)
        if new != name:
            renamed[name] = new
        out[new] = tensor
    return out, renamed, dropped


def on_meta(option: Mapping[str, Any]) -> nn.Module:
    """A network without memory for its weights."""
    import torch

    with torch.device('meta'):
        return networks.build(dict(option), None, fuse=False)


def misfit(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Every name and shape that does not fit, with the closest match; empty if all do."""
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in wanted if name not in given]
    lines = [f'{n} is {given[n]}, must be {wanted[n]}' for n in wanted if n in given and given[n] != wanted[n]]
    for name in given:
        if name not in wanted:
            close = get_close_matches(name, missing, 1)
            lines.append(f'{name} is unknown' + (f', nearest {close[0]}' if close else ''))
    lines += [f'{name} is missing' for name in missing]
    more = f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
    return '; '.join(lines[:SHOWN]) + more


def recognise(
    source: Path, network: Mapping[str, Any] | None, param_key: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str], list[str]]:
    """Parameters of a file under our names, and the network they are of.

    Args:
        source: the checkpoint.
        network: ``type`` and options; None finds out from the names and shapes.
        param_key: entry of the file.

    Returns:
        state, network option, old name -> new name, names left out.

    Raises:
        UserError: no network of ours, or not the given one; the message lists what does not fit.
    """
    from basicsr_effsr.utils.checkpoint import read_state_dict
    from basicsr_effsr.utils.identify import NETWORKS, identify, looks_like

    state, renamed, dropped = to_official_names(strip_wrappers(read_state_dict(source, param_key)))
    if network is not None:
        net = on_meta(network)
        problem = misfit(net, state)
        if problem and hasattr(net, 'fuse') and not misfit(on_meta({**network, 'deploy': True}), state):
            return state, {**network, 'deploy': True}, renamed, dropped
        if problem:
            raise UserError(f'{source} does not fit {network["type"]}: {problem}')
        return state, dict(network), renamed, dropped
    found = identify(state, on_meta)
    if found is not None:
        return state, found, renamed, dropped
    likely = [name for name in NETWORKS if looks_like(name, state)]
    if likely:
        nearest = next(iter(NETWORKS[likely[0]][1](state)))
        problem = misfit(on_meta({'type': likely[0], **nearest}), state)
        raise UserError(f'{source} looks like {likely[0]} and does not fit it: {problem}; give --arch and --set')
    raise UserError(
        f'{source} is of none of our networks ({", ".join(NETWORKS)}); its names begin {", ".join(list(state)[:4])}'
    )


def convert(
    source: Path,
    out: Path,
    layout: Layout,
    *,
    network: Mapping[str, Any] | None = None,
    param_key: str | None = None,
    fuse: bool = False,
) -> Report:
    """Reads ``source``, proves that it loads strictly, and writes it in another layout; nothing on failure.

    Args:
        source: any checkpoint of one of our networks.
        out: the file to write.
        layout: ``basicsr`` ({params: ...}), ``bare``, ``safetensors`` (with metadata), or ``module`` (bare, every
            name behind ``module.``).
        network: ``type`` and options; None finds out.
        param_key: entry of the source.
        fuse: write the deployed form of a network that has one.

    Raises:
        UserError: the file is of no network of ours, or the form cannot be changed.
        OSError: it cannot be read or written.
    """
    from basicsr_effsr.utils.checkpoint import read_state_dict, save_atomic, write_atomic

    state, found, renamed, dropped = recognise(source, network, param_key)
    net = networks.build(found, None, fuse=False)
    net.load_state_dict(state, strict=True)
    if fuse:
        if not hasattr(net, 'fuse') or getattr(net, 'deploy', False):
            raise UserError(f'{found["type"]} of {source} has no other form to be deployed; leave --fuse out')
        net = net.fuse()  # type: ignore[operator]
        found = {**found, 'deploy': True}
    plain = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if layout is Layout.safetensors:
        from basicsr_effsr.tools.export import metadata_of, needs

        save_file = needs('safetensors.torch').save_file
        facts = metadata_of(found, net, source, 'fp32')

        def write(path: Path) -> None:
            save_file(plain, path, metadata=facts)
            path.chmod(0o644)  # the library writes files that only their owner can read

        write_atomic(out, write)
    else:
        stored: dict[str, Any] = {'params': plain} if layout is Layout.basicsr else plain
        if layout is Layout.module:
            stored = {f'module.{name}': tensor for name, tensor in plain.items()}
        save_atomic(stored, out)
    again = read_state_dict(out)
    if again.keys() != plain.keys() or any((again[n] != plain[n]).any() for n in plain):
        out.unlink()
        raise UserError(f'{out} does not hold what was written; check the disk')
    return Report(
        str(source),
        str(out),
        layout.value,
        found,
        sum(p.numel() for p in net.parameters()),
        renamed,
        dropped,
        bool(getattr(net, 'deploy', False)),
    )


def command(
    source: Annotated[Path, typer.Argument(help='Checkpoint: .pth of any layout, or .safetensors.')],
    out: Annotated[Path | None, typer.Argument(help='File to write; left out, only says what the source is.')] = None,
    to: Annotated[Layout, typer.Option('--to', help='Layout of the new file.')] = Layout.basicsr,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    fuse: Annotated[bool, typer.Option('--fuse', help='Write the deployed form (DPARN).')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Convert a checkpoint of any layout, network and options found out from its names and shapes alone."""
    try:
        network: dict[str, Any] | None = None
        if arch is not None:
            network, _, _ = networks.describe(None, arch, scale, None, settings, None)
        elif scale is not None or settings:
            raise UserError('--scale and --set need --arch')
        if out is None:
            state, found, renamed, dropped = recognise(source, network, param_key)
            deployed = bool(found.get('deploy'))
            count = sum(tensor.numel() for tensor in state.values())
            report = Report(str(source), '', '', found, count, renamed, dropped, deployed)
        else:
            if out.resolve() == source.resolve():
                raise UserError(f'{out} is the source; give another name')
            if (out.suffix == '.safetensors') != (to is Layout.safetensors):
                raise UserError(
                    f'{out}: files of --to {to.value} end in '
                    + ('.safetensors' if to is Layout.safetensors else '.pth')
                )
            report = convert(source, out, to, network=network, param_key=param_key, fuse=fuse)
    except (OSError, ValueError, KeyError) as error:
        raise networks.stop('convert', error) from error
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    options = ', '.join(f'{k}: {v}' for k, v in report.network.items() if k != 'type')
    typer.echo(f'{report.source}: {report.network["type"]} ({options}), {report.parameters:,} parameters')
    for old, new in report.renamed.items():
        typer.echo(f'  renamed {old} to {new}')
    if report.dropped:
        typer.echo(f'  left out, they are computed: {", ".join(report.dropped[:SHOWN])}')
    if report.file:
        typer.echo(f'{report.file}: written as {report.layout}, read back and equal')
