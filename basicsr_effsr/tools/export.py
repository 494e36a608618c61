"""``effsr export``: a network as ONNX, torch.export, TorchScript or safetensors, loaded back and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.tools import networks
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.report import strict_json
from basicsr_effsr.weights import zoo
from basicsr_effsr.weights.checkpoint import can_be_fused, fused
from basicsr_effsr.weights.export import ENDINGS, TOLERANCE, ExportError, Form, export
from basicsr_effsr.weights.recognise import metadata_of


@networks.names_network
def command(
    choose: Callable[..., networks.Chosen],
    form: Annotated[Form, typer.Option('--form', help='What to write.')] = Form.onnx,
    dtype: Annotated[str, typer.Option(help='fp32 or fp16.')] = 'fp32',
    no_fuse: Annotated[bool, typer.Option('--no-fuse', help='Export the form that was trained.')] = False,
    random: Annotated[bool, typer.Option('--random', help='Without weights, for a look at the graph.')] = False,
    tolerance: Annotated[float | None, typer.Option(help='Largest difference; fp32 1e-4, fp16 2e-2.')] = None,
    out: Annotated[
        Path | None, typer.Option('--out', '-o', help='File to write; default: beside the weights, of a zoo name here.')
    ] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Export a network, load the file back, compare it with PyTorch at two sizes; exit code 1 if they differ."""
    if dtype not in TOLERANCE:
        raise UserError(f'--dtype must be one of {", ".join(TOLERANCE)}, got {dtype!r}')
    chosen = choose(without='always' if random else None)
    net, network, checkpoint = chosen.net, chosen.network, chosen.weights
    if not no_fuse and can_be_fused(net):
        net, network = fused(net), {**network, 'deploy': True}
    stem = checkpoint.with_suffix('') if checkpoint is not None else Path(f'{network["type"]}_random'.lower())
    if checkpoint is not None and checkpoint.parent == zoo.folder():
        stem = Path(stem.name)  # the cache is no place for results
    halved = '_fp16' if dtype == 'fp16' else ''
    target = out or stem.with_name(f'{stem.name}{halved}{ENDINGS[form][0]}')
    if target.suffix not in ENDINGS[form]:
        raise UserError(f'{target}: files of --form {form.value} end in {" or ".join(ENDINGS[form])}')
    if checkpoint is not None and target.resolve() == checkpoint.resolve():
        raise UserError(f'--out {target} is the file the weights come from; give another name')
    try:
        report = export(
            net,
            form,
            target,
            metadata=metadata_of(network, net, checkpoint, dtype),
            dtype=dtype,
            tolerance=tolerance,
            channels=int(network.get('num_in_ch', 3)),
            scale=chosen.scale,
        )
    except ExportError as error:
        say(f'effsr export: {error}', err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(strict_json(asdict(report) | {'largest': report.largest}))
        return
    say(f'{report.file}: {report.network} x{report.scale}, {report.form}, {report.dtype}, {report.bytes:,} bytes')
    for each in report.compared:
        height, width = each.lr_size
        say(f'  {each.image} of {height}x{width}: largest difference to PyTorch {each.difference:.2e}')
    say(f'  largest of all {report.largest:.2e}, tolerance {report.tolerance:.0e}: passed')
    if report.smallest:
        say(f'  takes images from {report.smallest}x{report.smallest} on')
    if report.operators:
        say('  operators: ' + ', '.join(f'{name} {n}' for name, n in report.operators.items()))
        odd = f'look at {", ".join(report.tensorrt)} first' if report.tensorrt else 'all known to it'
        say(f'  TensorRT: {odd} (by the names of operators, not run)')
    if form in (Form.onnx, Form.torchscript):
        say(f'  ncnn: {report.ncnn}')
