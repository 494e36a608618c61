"""``effsr convert``: any checkpoint of our networks to BasicSR's layout, and back."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from basicsr_effsr.tools import networks
from basicsr_effsr.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ('module.', 'net_g.', 'model.', '_orig_mod.', 'generator.')  # put in front of names by training programs
COMPUTED = ('rel_pos_indices', 'relative_position_index', 'attn_mask', 'total_ops', 'total_params')
SHOWN = 4


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
    assumed: dict[str, Any]


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

    Buffers that are computed (position indices, attention masks, counts of profilers) are left out.
    """
    renamed, dropped, out = {}, [], {}
    for name, tensor in state.items():
        if name.endswith(COMPUTED):
            dropped.append(name)
            continue
        new = name
        for old, ours in (('upsampler.up.', 'upsampler.'), ('to_img.', 'upsampler.')):
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
    from basicsr_effsr.weights.identify import shapes_of

    wanted, given = shapes_of(net.state_dict()), shapes_of(state)
    missing = [name for name in wanted if name not in given]
    lines = [f'{n} is {given[n]}, must be {wanted[n]}' for n in wanted if n in given and given[n] != wanted[n]]
    for name in given:
        if name not in wanted:
            close = get_close_matches(name, missing, 1)
            missing = [other for other in missing if other not in close]
            lines.append(f'{name} is unknown' + (f', nearest {close[0]}' if close else ''))
    lines += [f'{name} is missing' for name in missing]
    more = f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
    return '; '.join(lines[:SHOWN]) + more


def _yaml(value: Any) -> str:
    """A value as an option file has it."""
    return json.dumps(value).replace('"', '') if not isinstance(value, str) else value


def _described(network: Mapping[str, Any]) -> str:
    options = ', '.join(f'{k}: {_yaml(v)}' for k, v in network.items() if k != 'type')
    return f'{network["type"]} ({options})'


def stated(source: Path) -> dict[str, Any] | None:
    """Network and options that a safetensors file of ours states in its header; None if it states none."""
    from basicsr_effsr.weights.checkpoint import read_metadata
    from basicsr_effsr.weights.identify import NETWORKS

    facts = read_metadata(source)
    try:
        options = json.loads(facts['options'])
    except (KeyError, ValueError):
        return None
    if facts.get('network') not in NETWORKS or not isinstance(options, dict):
        return None
    return {**options, 'type': facts['network']}


def assumed_of(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that weights say nothing about and ``given`` neither, with the values they were taken to have."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from basicsr_effsr.weights.identify import UNSEEN

    known = inspect.signature(ARCH_REGISTRY.get(found['type'])).parameters
    unseen = [name for name in UNSEEN.get(found['type'], ()) if name not in given]
    return {name: found.get(name, known[name].default) for name in unseen}


def recognise(
    source: Path, network: Mapping[str, Any] | None, param_key: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str], list[str]]:
    """Parameters of a file under our names, and the network they are of.

    Args:
        source: the checkpoint.
        network: ``type`` and options; None finds out, from the header of a safetensors file of ours, otherwise from
            names and shapes.
        param_key: entry of the file.

    Returns:
        state, network option, old name -> new name, names left out.

    Raises:
        UserError: no network of ours, or not the given one; the message lists what does not fit.
    """
    from basicsr_effsr.weights.checkpoint import read_state_dict
    from basicsr_effsr.weights.deploy import can_be_deployed
    from basicsr_effsr.weights.identify import NETWORKS, candidates, identify, looks_like

    state, renamed, dropped = to_official_names(strip_wrappers(read_state_dict(source, param_key)))
    if network is not None:
        net = on_meta(network)
        problem = misfit(net, state)
        if problem and can_be_deployed(net) and not misfit(on_meta({**network, 'deploy': True}), state):
            return state, {**network, 'deploy': True}, renamed, dropped
        if problem:
            own = identify(state, on_meta)
            if own is not None:
                problem = f'by its weights it is {_described(own)}'
            raise UserError(f'{source} does not fit {network["type"]} with the given options: {problem}')
        return state, dict(network), renamed, dropped
    header = stated(source)
    if header is not None:
        try:
            if not misfit(on_meta(header), state):
                return state, header, renamed, dropped
        except ValueError:
            pass  # a header of other versions or by other hands; the weights decide
    found = identify(state, on_meta)
    if found is not None:
        return state, found, renamed, dropped
    for likely in NETWORKS:
        if looks_like(likely, state):
            problem = _nearest(likely, candidates(likely, state), state)
            raise UserError(f'{source} looks like {likely} and does not fit it: {problem}; give --arch and --set')
    raise UserError(
        f'{source} is of none of our networks ({", ".join(NETWORKS)}); its names begin {", ".join(list(state)[:4])}'
    )


def _nearest(network: str, options: list[dict[str, Any]], state: Mapping[str, Tensor]) -> str:
    """What does not fit the likeliest form that can be built, or the published one."""
    for option in [*options, {'type': network}]:
        try:
            return misfit(on_meta(option), state)
        except ValueError:
            continue
    return 'no form of it can be built'


def _equal(a: Tensor, b: Tensor) -> bool:
    """The same dtype, shape and values, not-a-number included."""
    import torch

    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


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
    import torch

    from basicsr_effsr.utils.files import write_atomic
    from basicsr_effsr.weights.checkpoint import read_state_dict
    from basicsr_effsr.weights.deploy import can_be_deployed, deployed

    state, found, renamed, dropped = recognise(source, network, param_key)
    assumed = assumed_of(found, network or stated(source) or {})
    net = networks.build(found, None, fuse=False)
    net.load_state_dict(state, strict=True)
    kept: Mapping[str, Tensor] = state
    if fuse:
        if not can_be_deployed(net):
            raise UserError(f'{found["type"]} of {source} has no other form to be deployed; leave --fuse out')
        net = deployed(net)
        found, kept = {**found, 'deploy': True}, {}
    # the dtype of the source stays; counters that it lacks are the network's
    plain = {name: kept.get(name, tensor).detach().contiguous() for name, tensor in net.state_dict().items()}

    def write(temporary: Path) -> None:
        path = temporary.with_name(f'{temporary.name}{out.suffix}')  # readers look at the ending
        try:
            if layout is Layout.safetensors:
                from basicsr_effsr.tools.export import metadata_of, needs

                dtypes = sorted({str(t.dtype).removeprefix('torch.') for t in plain.values() if t.is_floating_point()})
                facts = metadata_of(found, net, source, ', '.join(dtypes))
                needs('safetensors.torch').save_file(plain, path, metadata=facts)
                path.chmod(0o644)  # the library writes files that only their owner can read
            else:
                stored: dict[str, Any] = {'params': plain} if layout is Layout.basicsr else plain
                if layout is Layout.module:
                    stored = {f'module.{name}': tensor for name, tensor in plain.items()}
                torch.save(stored, path)
            again = read_state_dict(path)
            if again.keys() != plain.keys() or not all(_equal(again[n], plain[n]) for n in plain):
                raise UserError(f'{out} does not read back as it was written; check the disk')
            path.replace(temporary)
        finally:
            path.unlink(missing_ok=True)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, write)
    return Report(
        str(source),
        str(out),
        layout.value,
        found,
        sum(p.numel() for p in net.parameters()),
        renamed,
        dropped,
        bool(getattr(net, 'deploy', False)),
        assumed,
    )


def command(
    source: Annotated[Path, typer.Argument(help='Checkpoint: .pth of any layout, or .safetensors.')],
    out: Annotated[Path | None, typer.Argument(help='File to write; left out, only says what the source is.')] = None,
    to: Annotated[Layout, typer.Option('--to', help='Layout of the new file.')] = Layout.basicsr,
    arch: networks.Arch = None,
    scale: networks.Scale = None,
    settings: networks.Settings = None,
    param_key: networks.ParamKey = None,
    fuse: Annotated[bool, typer.Option('--fuse', help='Write the deployed form (DPARN, EFRDN).')] = False,
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
            is_deployed = bool(found.get('deploy'))
            count = sum(tensor.numel() for tensor in state.values())
            assumed = assumed_of(found, network or stated(source) or {})
            report = Report(str(source), '', '', found, count, renamed, dropped, is_deployed, assumed)
        else:
            if out.resolve() == source.resolve():
                raise UserError(f'{out} is the source; give another name')
            endings = ('.safetensors',) if to is Layout.safetensors else ('.pth', '.pt')
            if out.suffix not in endings:
                raise UserError(f'{out}: files of --to {to.value} end in {" or ".join(endings)}')
            report = convert(source, out, to, network=network, param_key=param_key, fuse=fuse)
    except (OSError, ValueError, KeyError) as error:
        raise networks.stop('convert', error) from error
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(f'{report.source}: {_described(report.network)}, {report.parameters:,} parameters')
    for old, new in report.renamed.items():
        typer.echo(f'  renamed {old} to {new}')
    if report.assumed:
        guessed = ', '.join(f'{name}: {_yaml(value)}' for name, value in report.assumed.items())
        typer.echo(f'  not told by weights, taken as usual: {guessed}')
    if report.dropped:
        typer.echo(f'  left out, they are computed: {", ".join(report.dropped[:SHOWN])}')
    if report.file:
        typer.echo(f'{report.file}: written as {report.layout}, read back and equal')
