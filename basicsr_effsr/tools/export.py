"""``effsr export``: a network as ONNX, torch.export, TorchScript or safetensors, loaded back and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import torch
import typer
from torch import nn

from basicsr_effsr.data.benchmark_sets import find_sets, images_in, images_of
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.tools import networks
from basicsr_effsr.tools.scoring import Protocol, forward_function, measure
from basicsr_effsr.utils.console import say
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import write_bytes
from basicsr_effsr.utils.latency import interleaved
from basicsr_effsr.utils.report import strict_json
from basicsr_effsr.weights import zoo
from basicsr_effsr.weights.checkpoint import can_be_fused, fused
from basicsr_effsr.weights.engines import Computer
from basicsr_effsr.weights.export import (
    ENDINGS,
    TOLERANCE,
    ExportError,
    Form,
    export,
    run_onnx,
    sample,
    sizes_for,
    write_onnx,
)
from basicsr_effsr.weights.int8 import ends, quantised
from basicsr_effsr.weights.recognise import metadata_of

MOST_IMAGES = 64  # of a calibration folder
DROP = 0.1  # dB of PSNR that 8 bits may cost


@dataclass
class Int8Report:
    """A network in 8 bits beside itself in float32; scores are None without a benchmark set."""

    file: str
    network: str
    scale: int
    bytes: int
    bytes_fp32: int
    images: int  # that it was calibrated on
    kept: list[str]  # convolutions in float32
    speed: float  # times that of float32, both by ONNX Runtime on this machine
    set: str | None = None
    psnr: float | None = None
    psnr_fp32: float | None = None


def export_int8(
    net: nn.Module, out: Path, files: Sequence[Path], data: Path | None, metadata: dict[str, str], scale: int
) -> Int8Report:
    """Writes ``net`` as ONNX in 8 bits, and measures what that costs and gives.

    All convolutions are quantised, or all but the first and the last: where these cost more than ``DROP`` on the set,
    and without a set.

    Args:
        net: of RGB, in float32, eval mode, on the CPU.
        files: LR images to calibrate on, of which the first ``MOST_IMAGES`` are taken.
        data: a benchmark set.

    Raises:
        UserError: no images, or a network of other channels.
        ExportError: PyTorch or ONNX Runtime refuses.
    """
    if not files or getattr(net, 'num_in_ch', 3) != 3:
        raise UserError('--calibrate must be a folder of images, for a network of three channels')
    sets = {} if data is None else find_sets(data, None, scale)
    pairs = [(name, pair) for name, folder in sets.items() for pair in images_of(folder, scale)]
    images = [read_rgb(file) for file in files[:MOST_IMAGES]]
    whole = write_onnx(net, 3, metadata, half=False)
    runs = {'fp32': run_onnx(whole)}

    def psnr(form: str) -> float:
        run, *_ = forward_function(net, scale, torch.device('cpu'), Protocol(), Computer(form, runs[form]))
        return mean(measure(name, pair, scale, run)[0].psnr for name, pair in pairs)

    scores = {'fp32': psnr('fp32')} if pairs else {}
    for kept in ([], ends(whole)) if pairs else (ends(whole),):
        made = quantised(whole, images, keep=kept)
        runs['int8'] = run_onnx(made)
        scores |= {'int8': psnr('int8')} if pairs else {}
        if pairs and scores['fp32'] - scores['int8'] < DROP:
            break
    side = max(64, *sizes_for(net)[1])
    times = interleaved(runs, sample(net, (side, side), 3), 1, 5)
    usual, faster = (median(each[1:]) for each in times.values())
    write_bytes(out, made, sync=True)
    about = (str(out), type(net).__name__, scale, len(made), len(whole), len(images), kept, usual / faster)
    return Int8Report(*about, ', '.join(sets) or None, scores.get('int8'), scores.get('fp32'))


def show(report: Int8Report, as_json: bool) -> None:
    """Prints a report."""
    if as_json:
        typer.echo(strict_json(asdict(report)))
        return
    sizes = f'{report.bytes:,} bytes (fp32 {report.bytes_fp32:,})'
    say(f'{report.file}: {report.network} x{report.scale}, onnx, int8, {sizes}, calibrated on {report.images} images')
    say(f'  in float32: {", ".join(report.kept) or "no convolution"}, and all other operators')
    if report.psnr is None or report.psnr_fp32 is None:
        say('  not scored; --data SET measures PSNR')
    else:
        drop = f'{report.psnr_fp32 - report.psnr:+.3f} dB lost'
        say(f'  {report.set}: {report.psnr:.3f} dB, fp32 {report.psnr_fp32:.3f} dB, {drop}')
    say(f'  {report.speed:.2f} times the speed of fp32 in ONNX Runtime on this machine')


@networks.names_network
def command(
    choose: Callable[..., networks.Chosen],
    form: Annotated[Form, typer.Option('--form', help='What to write.')] = Form.onnx,
    dtype: Annotated[str, typer.Option(help='fp32 or fp16.')] = 'fp32',
    no_fuse: Annotated[bool, typer.Option('--no-fuse', help='Export the training form.')] = False,
    int8: Annotated[bool, typer.Option('--int8', help='ONNX with convolutions in 8 bits; needs --calibrate.')] = False,
    calibrate: Annotated[Path | None, typer.Option(help='Folder of LR images to calibrate --int8 on.')] = None,
    data: Annotated[Path | None, typer.Option(help='Benchmark set, such as Set5, on which --int8 is scored.')] = None,
    random: Annotated[bool, typer.Option('--random', help='Export without weights, to inspect the graph.')] = False,
    tolerance: Annotated[float | None, typer.Option(help='Largest difference; fp32 1e-4, fp16 2e-2.')] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            '--out', '-o', help='File to write; default: beside the weights, for a zoo name the current folder.'
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the report as JSON.')] = False,
) -> None:
    """Export a network, load the file back, compare it with PyTorch at two sizes; exit code 1 if they differ."""
    if (calibrate is not None) != int8 or (data is not None and not int8):
        raise UserError('--int8 needs --calibrate, a folder of LR images; --calibrate and --data need --int8')
    if int8 and (form is not Form.onnx or dtype != 'fp32' or tolerance is not None):
        raise UserError('--int8 writes ONNX and cannot be combined with --form, --dtype or --tolerance')
    if dtype not in TOLERANCE:
        raise UserError(f'--dtype must be one of {", ".join(TOLERANCE)}, got {dtype!r}')
    chosen = choose(without='always' if random else None)
    net, network, checkpoint = chosen.net, chosen.network, chosen.weights
    if not no_fuse and can_be_fused(net):
        net, network = fused(net), {**network, 'deploy': True}
    stem = checkpoint.with_suffix('') if checkpoint is not None else Path(f'{network["type"]}_random'.lower())
    if checkpoint is not None and checkpoint.parent == zoo.folder():
        stem = Path(stem.name)  # the cache is no place for results
    halved = '_int8' if int8 else '_fp16' if dtype == 'fp16' else ''
    target = out or stem.with_name(f'{stem.name}{halved}{ENDINGS[form][0]}')
    if target.suffix not in ENDINGS[form]:
        raise UserError(f'{target}: files of --form {form.value} end in {" or ".join(ENDINGS[form])}')
    if checkpoint is not None and target.resolve() == checkpoint.resolve():
        raise UserError(f'--out {target} is the file the weights come from; give another name')
    metadata = metadata_of(network, net, checkpoint, 'int8' if int8 else dtype)
    try:
        if calibrate is not None:
            show(export_int8(net, target, images_in(calibrate), data, metadata, chosen.scale), as_json)
            return
        report = export(
            net,
            form,
            target,
            metadata=metadata,
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
        say(f'  smallest image: {report.smallest}x{report.smallest}')
    if report.operators:
        say('  operators: ' + ', '.join(f'{name} {n}' for name, n in report.operators.items()))
        odd = f'look at {", ".join(report.tensorrt)} first' if report.tensorrt else 'takes all'
        say(f'  TensorRT: {odd} (by the names of operators, not run)')
        say(f'  maps of {report.dimensions} dimensions at most; TensorRT takes 8, Core ML 5')
    if form in (Form.onnx, Form.torchscript):
        say(f'  ncnn: {report.ncnn}')
