"""A network as ONNX, torch.export, TorchScript, safetensors or pth, put together in memory, loaded back, compared."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_effsr.utils.errors import needs, one_line
from basicsr_effsr.utils.files import write_bytes
from basicsr_effsr.utils.stored import stored_in
from basicsr_effsr.weights.checkpoint import as_pth, as_safetensors

OPSET = 18
SIZES = ((24, 32), (37, 29))  # even and odd; enlarged where a network needs more
HARD = ('checkerboard', 'hatching', 'dither', 'text')
TOLERANCE = {'fp32': 1e-4, 'fp16': 2e-2}  # on images in [0, 1]; fp16 resolves 5e-4 near 1

# ONNX operators that TensorRT takes, after its documentation; it is not run here
TENSORRT = frozenset(
    """
    Abs Add And AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose CumSum
    DepthToSpace Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less LessOrEqual LogSoftmax MatMul Max MaxPool Min Mod Mul Neg Not Or PRelu Pad Pow
    Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round ScatterElements
    ScatterND Shape Sigmoid Sign Size Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Trilu Unsqueeze
    Where
    """.split()
)


class Form(str, Enum):
    """What is written."""

    onnx = 'onnx'
    export = 'export'
    torchscript = 'torchscript'
    safetensors = 'safetensors'
    pth = 'pth'


# what a file of each form ends in, the usual one first
ENDINGS = {
    Form.onnx: ('.onnx',),
    Form.export: ('.pt2',),
    Form.torchscript: ('.ts', '.pt'),
    Form.safetensors: ('.safetensors',),
    Form.pth: ('.pth',),
}


@dataclass(frozen=True)
class Compared:
    """The exported network against PyTorch on one image: largest absolute difference."""

    lr_size: tuple[int, int]
    difference: float
    image: str


@dataclass
class ExportReport:
    """What an export has written and how it compares."""

    file: str
    form: str
    dtype: str
    network: str
    scale: int
    bytes: int
    compared: list[Compared]
    tolerance: float
    smallest: int
    operators: dict[str, int]
    ncnn: str
    tensorrt: list[str]
    dimensions: int  # of the map that has most, in ONNX

    @property
    def largest(self) -> float:
        """The largest difference at any size."""
        return max(c.difference for c in self.compared)


class ExportError(ValueError):
    """An export that PyTorch refuses, or that does not give what PyTorch gives; nothing was written."""


@contextmanager
def or_refuse(what: str) -> Iterator[None]:
    """Turns any exception of torch or an engine into an error that says ``what``; silences their warnings."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:
        raise ExportError(f'{what}: {one_line(error)[:300]}') from error
    finally:
        logger.setLevel(level)


def _local_window(net: nn.Module) -> int:
    """Side from which AGDN's test-time windows begin; 0 for networks without them."""
    return max((int(getattr(module, 'tlc', 0) or 0) for module in net.modules()), default=0)


def sizes_for(net: nn.Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two LR sizes to compare at, the second odd; the second is beyond every window of the network."""
    window = int(getattr(net, 'window_size', 1) or 1)
    least = max(int(getattr(net, 'min_size', 1)), 3 * window if window > 1 else 1)
    (a, b), (c, d) = SIZES
    extra = max(least - min(a, b, c, d), 0)
    extra += extra % 2  # an even step keeps the odd size odd
    beyond = max(_local_window(net) + 4 - min(c, d), extra)
    beyond += beyond % 2
    return (a + extra, b + extra), (c + beyond, d + beyond)


def trace_size(net: nn.Module) -> tuple[int, int]:
    """LR size at which the graph is recorded: beyond every window, as below one a graph holds for such sizes only."""
    first, (height, width) = sizes_for(net)
    return (height + 3, width + 3) if _local_window(net) else first


def sample(net: nn.Module, size: tuple[int, int], channels: int, image: str = 'picture') -> Tensor:
    """A test image, (1, C, H, W) in [0, 1], of the network's dtype.

    A 'picture' is smooth with some noise; those of ``HARD`` are what few digits do not suffice for.
    """
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    rows, columns = torch.linspace(0, 6.3, size[0])[:, None], torch.linspace(0, 4.7, size[1])[None]
    waves = torch.stack([(rows * (i + 1)).sin() * (columns + i).cos() for i in range(channels)])
    noise = torch.rand(channels, *size, generator=generator)
    made = {
        'picture': (0.5 + 0.35 * waves + 0.2 * (noise - 0.5)).clamp(0, 1),
        'checkerboard': (row + column) % 2,
        'hatching': (row + column) % 4 < 2,
        'dither': 0.5 + 0.35 * waves > noise,
        'text': (row % 9 < 2) | (noise[:1, row // 9, column // 5] < 0.5) | (column % 5 > 3),
    }[image]
    return made.to(next(net.parameters()).dtype).expand(1, channels, *size).contiguous()


def smallest_side(net: nn.Module, exported: Callable[[Tensor], Tensor], channels: int, limit: float) -> int:
    """The side from which square LR images give what PyTorch gives within ``limit``.

    Sides are tried one after the other, from the one that the graph was recorded at down to ``min_size``.
    """
    side, least = min(trace_size(net)), int(getattr(net, 'min_size', 1))
    with suppress(ExportError):
        while side > least and compare(net, exported, channels, ((side - 1, side - 1),))[0].difference <= limit:
            side -= 1
    return side


def compare(
    net: nn.Module,
    exported: Callable[[Tensor], Tensor],
    channels: int,
    sizes: tuple[tuple[int, int], ...],
    images: tuple[str, ...] = ('picture',),
) -> list[Compared]:
    """Differences to PyTorch in float32 on the images at the sizes.

    Raises:
        ExportError: the exported network fails at a size, or gives another shape.
    """
    found = []
    for kind, size in product(images, sizes):
        image, place = sample(net, size, channels, kind), f'at {size[0]}x{size[1]}'
        with torch.no_grad():
            expected = net(image)
            with or_refuse(f'the exported network does not run {place}'):
                given = exported(image)
        if given.shape != expected.shape:
            shapes = f'{tuple(given.shape)} {place}, PyTorch {tuple(expected.shape)}'
            raise ExportError(f'the exported network gives {shapes}')
        largest = (given.float() - expected.float()).abs().max().item()
        found.append(Compared(size, largest if isfinite(largest) else inf, kind))
    return found


def _exported_program(net: nn.Module, channels: int, *, guarded: bool = False) -> Any:
    """The program of ``torch.export``; ``guarded``: one whose own guards let the second size through."""
    config: Any = import_module('torch.fx.experimental._config')  # installs what it holds, unseen by type checkers
    if not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ExportError(f'onnx and export need torch 2.6 or later, this is {torch.__version__}; give another --form')
    image = (sample(net, trace_size(net), channels),)
    shapes = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    later = {'prefer_deferred_runtime_asserts_over_guards': True}
    # networks that cut windows: whether the recorded size is a multiple of them must not become part of the program
    oblivious = {'backed_size_oblivious': True} if hasattr(config, 'backed_size_oblivious') else {}
    attempts: list[tuple[dict[str, Any], dict[str, bool]]] = [({}, {}), (later, oblivious), (later, {})]
    for option, settings in attempts:
        try:
            with config.patch(settings), or_refuse(f'{type(net).__name__} cannot be exported at any height and width'):
                program = torch.export.export(net, image, dynamic_shapes=shapes, strict=False, **option)
                if guarded:
                    program.module()(sample(net, sizes_for(net)[1], channels))
                return program
        except ExportError as error:
            failed = error
    raise failed


def write_onnx(net: nn.Module, channels: int, metadata: dict[str, str], half: bool) -> bytes:
    """ONNX of a float32 network in eval mode on the CPU, with dynamic height and width, names ``lq`` and ``sr``.

    With ``half`` it stores weights, and computes, in float16.
    """
    onnx = needs('onnx')
    needs('onnxscript')
    program = _exported_program(net, channels)
    with or_refuse(f'{type(net).__name__} cannot be exported to ONNX'):
        exported: Any = torch.onnx.export(
            program,
            (sample(net, trace_size(net), channels),),
            dynamo=True,
            opset_version=OPSET,
            input_names=['lq'],
            output_names=['sr'],
            optimize=True,
            verbose=False,
        )
    model = exported.model_proto
    for name, tensor in (('lq', model.graph.input[0]), ('sr', model.graph.output[0])):
        for axis, label in ((2, 'height'), (3, 'width')):
            tensor.type.tensor_type.shape.dim[axis].dim_param = f'{name}_{label}'
    if half:
        # the weights and maps of the float32 graph are halved; sizes, resizing and ranges stay as they are
        model = needs('onnxruntime.transformers.float16').convert_float_to_float16(model)
    _forget_origin(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _forget_origin(message: Any) -> None:
    """Clears what PyTorch notes of its origin: paths of this machine, symbols in an order that hashes decide."""
    for field, value in message.ListFields():
        if field.name in ('doc_string', 'metadata_props'):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, 'ListFields') else value:
                _forget_origin(part)


def run_onnx(file: bytes, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """The ONNX file as a function, on the CPU."""
    runtime = needs('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # threads that spin while they wait took a fifth more time of the processor, from what reads and writes beside them
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = runtime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    half = session.get_inputs()[0].type == 'tensor(float16)'

    def call(image: Tensor) -> Tensor:
        array = image.half().numpy() if half else image.float().numpy()
        return torch.from_numpy(session.run(None, {'lq': array})[0])

    return call


def operators_of(file: bytes) -> dict[str, int]:
    """ONNX operators of a file and how often each occurs; inlined functions are looked into."""
    onnx, inliner = needs('onnx'), needs('onnx.inliner')
    model = inliner.inline_local_functions(onnx.load_from_string(file))
    found: Counter[str] = Counter()

    def walk(graph: Any) -> None:
        for node in graph.node:
            found[node.op_type] += 1
            for attribute in node.attribute:
                walk(attribute.g)  # empty where there is none

    walk(model.graph)
    return dict(sorted(found.items()))


def dimensions_of(file: bytes) -> int:
    """The most dimensions that a map of an ONNX file has, as ONNX infers them."""
    onnx, inliner = needs('onnx'), needs('onnx.inliner')
    model = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(onnx.load_from_string(file)))
    maps = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return max(len(each.type.tensor_type.shape.dim) for each in maps)


def write_export(net: nn.Module, channels: int, metadata: dict[str, str], half: bool) -> bytes:
    """The program of ``torch.export`` with dynamic height and width."""
    file = io.BytesIO()
    program = _exported_program(net, channels, guarded=True)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)
    torch.export.save(program, file, extra_files={'metadata.json': json.dumps(metadata)})
    return file.getvalue()


def run_export(file: bytes) -> Callable[[Tensor], Tensor]:
    """The saved program as a function."""
    return torch.export.load(io.BytesIO(file)).module()


def write_torchscript(net: nn.Module, channels: int, metadata: dict[str, str], half: bool) -> bytes:
    """TorchScript by tracing; the comparison at a second size shows whether sizes were frozen into it."""
    file = io.BytesIO()
    with torch.no_grad(), or_refuse(f'{type(net).__name__} cannot be traced, use --form export or onnx'):
        traced = torch.jit.trace(net, (sample(net, trace_size(net), channels),), check_trace=False)
        torch.jit.save(traced, file, _extra_files={'metadata.json': json.dumps(metadata)})
    return _without_lines(file)


def _without_lines(file: io.BytesIO) -> bytes:
    """TorchScript without the files and lines that led to it, and without the hash of what it then no longer is."""
    out = io.BytesIO()
    with zipfile.ZipFile(file) as script, zipfile.ZipFile(out, 'w') as kept:
        for name in script.namelist():
            if not name.endswith(('.debug_pkl', '/.data/serialization_id')):
                kept.writestr(zipfile.ZipInfo(name), script.read(name))
    return out.getvalue()


def run_torchscript(file: bytes) -> Callable[[Tensor], Tensor]:
    """The saved script as a function."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the format is deprecated, and asked for
        return torch.jit.load(io.BytesIO(file))


def _run_weights(net: nn.Module, file: bytes) -> Callable[[Tensor], Tensor]:
    """A second network of the same form, initialised otherwise, into which the weights are loaded strictly."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    state = stored_in(io.BytesIO(file))
    twin.load_state_dict(state.get('params', state), strict=True)
    return twin


WRITERS: dict[Form, Callable[[Any, int, dict[str, str], bool], bytes]] = {
    Form.onnx: write_onnx,
    Form.export: write_export,
    Form.torchscript: write_torchscript,
    Form.safetensors: lambda net, channels, metadata, half: as_safetensors(net.state_dict(), metadata),
    Form.pth: lambda net, channels, metadata, half: as_pth({'params': dict(net.state_dict())}),  # as BasicSR stores it
}
RUNNERS: dict[Form, Callable[[bytes], Callable[[Tensor], Tensor]]] = {
    Form.onnx: run_onnx,
    Form.export: run_export,
    Form.torchscript: run_torchscript,
}


def export(
    net: nn.Module,
    form: Form,
    out: Path,
    *,
    metadata: dict[str, str],
    dtype: str = 'fp32',
    tolerance: float | None = None,
    channels: int = 3,
    scale: int | None = None,
) -> ExportReport:
    """Writes ``net`` to ``out`` if, loaded back, it gives what PyTorch gives at two sizes; nothing otherwise.

    Args:
        net: on the CPU, in float32, eval mode and the form to be exported.
        form: what to write.
        out: the file.
        metadata: written into the file where the form has room for it.
        dtype: fp32, or fp16 for halved weights (compared with float32 all the same).
        tolerance: largest difference that passes; None takes the one of the dtype.
        channels: of the input image.
        scale: stated in the report; None takes the network's ``upscale``.

    Raises:
        ExportError: PyTorch refuses, or the difference is larger than the tolerance.
        UserError: a package of the extra is missing.
    """
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    factor = int(getattr(net, 'upscale', 0)) if scale is None else scale
    half = dtype == 'fp16'
    file = WRITERS[form](copy.deepcopy(net).half() if half and form is not Form.onnx else net, channels, metadata, half)
    run = RUNNERS[form](file) if form in RUNNERS else _run_weights(net, file)
    takes_half = half and form in (Form.export, Form.torchscript)
    call = (lambda image: run(image.half())) if takes_half else run
    sizes = sizes_for(net)
    if form is Form.export and _local_window(net):
        sizes = (trace_size(net), sizes[1])  # the program states that smaller images are not its own
    found = compare(net, call, channels, sizes) + compare(net, call, channels, sizes[1:], HARD if half else ())
    operators = operators_of(file) if form is Form.onnx else {}
    report = ExportReport(
        str(out),
        form.value,
        dtype,
        type(net).__name__,
        factor,
        len(file),
        found,
        limit,
        smallest_side(net, call, channels, limit) if form in RUNNERS else 0,
        operators,
        getattr(net, 'ncnn', 'not tried'),
        sorted(set(operators) - TENSORRT),
        dimensions_of(file) if form is Form.onnx else 0,
    )
    worst = max(found, key=lambda compared: compared.difference)
    if worst.difference > limit:
        raise ExportError(
            f'{type(net).__name__} as {form.value} ({dtype}) differs from PyTorch by {worst.difference:.2e} on a '
            f'{worst.image}, more than {limit:.0e}; nothing was written'
        )
    write_bytes(out, file, sync=True)
    return report
