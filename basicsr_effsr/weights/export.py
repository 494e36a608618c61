"""A network as ONNX, torch.export, TorchScript, safetensors or pth, loaded back and compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.utils.errors import needs, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 18
SIZES = ((24, 32), (37, 29))  # even and odd; enlarged where a network needs more
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


SUFFIXES = {
    Form.onnx: '.onnx',
    Form.export: '.pt2',
    Form.torchscript: '.ts',
    Form.safetensors: '.safetensors',
    Form.pth: '.pth',
}

ENDINGS = {form: {suffix} for form, suffix in SUFFIXES.items()}
ENDINGS[Form.torchscript].add('.pt')


@dataclass(frozen=True)
class Compared:
    """The exported network against PyTorch at one LR size: largest absolute difference."""

    lr_size: tuple[int, int]
    difference: float


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

    @property
    def largest(self) -> float:
        """The largest difference at any size."""
        return max(c.difference for c in self.compared)


class ExportError(ValueError):
    """An export that PyTorch refuses, or that does not give what PyTorch gives; nothing was written."""


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
    local = _local_window(net)
    beyond = max(local + 4 - min(c, d), extra) if local else extra
    beyond += beyond % 2
    return (a + extra, b + extra), (c + beyond, d + beyond)


def trace_size(net: nn.Module) -> tuple[int, int]:
    """LR size at which the graph is recorded: beyond every window, as below one a graph holds for such sizes only."""
    first, (height, width) = sizes_for(net)
    return (height + 3, width + 3) if _local_window(net) else first


def sample(net: nn.Module, size: tuple[int, int], channels: int) -> Tensor:
    """A smooth picture with some noise, (1, C, H, W) in [0, 1], of the network's dtype."""
    import torch

    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    rows = torch.linspace(0, 6.3, size[0])[:, None]
    columns = torch.linspace(0, 4.7, size[1])[None]
    waves = torch.stack([(rows * (i + 1)).sin() * (columns + i).cos() for i in range(channels)])
    noise = torch.rand(channels, *size, generator=generator)
    image = (0.5 + 0.35 * waves + 0.2 * (noise - 0.5)).clamp(0, 1)[None]
    return image.to(next(net.parameters()).dtype)


def smallest_side(net: nn.Module, exported: Callable[[Tensor], Tensor], channels: int, limit: float) -> int:
    """The side from which square LR images give what PyTorch gives, one after the other tried downwards.

    Args:
        net: the network.
        exported: what was exported.
        channels: of the input image.
        limit: largest difference.

    Returns:
        a side between ``min_size`` and the one that the graph was recorded at.
    """
    last = min(trace_size(net))
    for side in reversed(range(int(getattr(net, 'min_size', 1)), last)):
        try:
            fits = compare(net, exported, channels, ((side, side),))[0].difference <= limit
        except ExportError:
            fits = False
        if not fits:
            return side + 1
    return int(getattr(net, 'min_size', 1))


def compare(
    net: nn.Module, exported: Callable[[Tensor], Tensor], channels: int, sizes: tuple[tuple[int, int], ...]
) -> list[Compared]:
    """Differences to PyTorch in float32 at the sizes.

    Raises:
        ExportError: the exported network fails at a size, or gives another shape.
    """
    import torch

    found = []
    for size in sizes:
        image = sample(net, size, channels)
        with torch.no_grad():
            expected = net(image)
            try:
                given = exported(image)
            except Exception as error:  # engines raise their own types
                text = one_line(error)[:200]
                raise ExportError(f'the exported network does not run at {size[0]}x{size[1]}: {text}') from error
        if given.shape != expected.shape:
            raise ExportError(
                f'the exported network gives {tuple(given.shape)} at {size[0]}x{size[1]}, '
                f'PyTorch {tuple(expected.shape)}'
            )
        found.append(Compared(size, (given.float() - expected.float()).abs().max().item()))
    return found


# ---------------------------------------------------------------------- the forms


def _exported_program(net: nn.Module, channels: int, *, guarded: bool = False) -> Any:
    """The program of ``torch.export``; ``guarded``: one whose own guards let the second size through."""
    import torch

    config: Any = import_module('torch.fx.experimental._config')  # installs what it holds, unseen by type checkers
    image = sample(net, trace_size(net), channels)
    if not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise ExportError(f'onnx and export need torch 2.6 or later, this is {torch.__version__}; give another --form')
    shapes = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    later = {'prefer_deferred_runtime_asserts_over_guards': True}
    # networks that cut windows: whether the recorded size is a multiple of them must not become part of the program
    oblivious = {'backed_size_oblivious': True} if hasattr(config, 'backed_size_oblivious') else {}
    attempts: list[tuple[dict[str, Any], dict[str, bool]]] = [({}, {}), (later, oblivious), (later, {})]
    for option, settings in attempts:
        try:
            with warnings.catch_warnings(), config.patch(settings):
                warnings.simplefilter('ignore')
                program = torch.export.export(net, (image,), dynamic_shapes=shapes, strict=False, **option)
                if guarded:
                    program.module()(sample(net, sizes_for(net)[1], channels))
                return program
        except Exception as error:  # torch raises many types
            failed = error
    text = one_line(failed)[:300]
    raise ExportError(f'{type(net).__name__} cannot be exported with any height and width: {text}') from failed


def write_onnx(net: nn.Module, path: Path, channels: int, metadata: dict[str, str], *, half: bool = False) -> None:
    """ONNX of a float32 network with dynamic height and width, names ``lq`` and ``sr``.

    Args:
        net: in eval mode on the CPU.
        path: the file.
        channels: of the input image.
        metadata: put into the file.
        half: store weights, and compute, in float16.
    """
    import logging

    import torch

    onnx = needs('onnx')
    needs('onnxscript')
    program = _exported_program(net, channels)
    level = logging.getLogger('torch.onnx').level
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            exported = torch.onnx.export(
                program,
                (sample(net, trace_size(net), channels),),
                dynamo=True,
                opset_version=OPSET,
                input_names=['lq'],
                output_names=['sr'],
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        text = one_line(error)[:300]
        raise ExportError(f'{type(net).__name__} cannot be exported to ONNX: {text}') from error
    finally:
        logging.getLogger('torch.onnx').setLevel(level)
    assert exported is not None
    model = exported.model_proto
    for name, tensor in (('lq', model.graph.input[0]), ('sr', model.graph.output[0])):
        for axis, label in ((2, 'height'), (3, 'width')):
            tensor.type.tensor_type.shape.dim[axis].dim_param = f'{name}_{label}'
    if half:
        # the weights and maps of the float32 graph are halved; sizes, resizing and ranges stay as they are
        model = needs('onnxruntime.transformers.float16').convert_float_to_float16(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The ONNX file as a function, on one CPU thread."""
    import torch

    runtime = needs('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    half = session.get_inputs()[0].type == 'tensor(float16)'

    def call(image: Tensor) -> Tensor:
        array = image.half().numpy() if half else image.float().numpy()
        return torch.from_numpy(session.run(None, {'lq': array})[0])

    return call


def operators_of(path: Path) -> dict[str, int]:
    """ONNX operators of a file and how often each occurs; inlined functions are looked into."""
    onnx, inliner = needs('onnx'), needs('onnx.inliner')
    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    found: dict[str, int] = {}

    def walk(graph: Any) -> None:
        for node in graph.node:
            found[node.op_type] = found.get(node.op_type, 0) + 1
            for attribute in node.attribute:
                if attribute.HasField('g'):
                    walk(attribute.g)

    walk(model.graph)
    return dict(sorted(found.items()))


def write_export(net: nn.Module, path: Path, channels: int, metadata: dict[str, str]) -> None:
    """The program of ``torch.export`` with dynamic height and width."""
    import torch

    program = _exported_program(net, channels, guarded=True)
    torch.export.save(program, path, extra_files={'metadata.json': json.dumps(metadata)})


def run_export(path: Path) -> Callable[[Tensor], Tensor]:
    """The saved program as a function."""
    import torch

    return torch.export.load(path).module()


def write_torchscript(net: nn.Module, path: Path, channels: int, metadata: dict[str, str]) -> None:
    """TorchScript by tracing; the comparison at a second size shows whether sizes were frozen into it."""
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            traced = torch.jit.trace(net, (sample(net, trace_size(net), channels),), check_trace=False)
    except Exception as error:  # whatever the network's code raises on traced sizes
        text = one_line(error)[:200]
        raise ExportError(f'{type(net).__name__} cannot be traced, use --form export or onnx: {text}') from error
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the format is deprecated, and asked for
        torch.jit.save(traced, path, _extra_files={'metadata.json': json.dumps(metadata)})


def run_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """The saved script as a function."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the format is deprecated, and asked for
        return torch.jit.load(path)


def write_safetensors(net: nn.Module, path: Path, channels: int, metadata: dict[str, str]) -> None:
    """The weights, with the metadata in the header."""
    save_file = needs('safetensors.torch').save_file
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path, metadata=metadata)
    path.chmod(0o644)  # the library writes files that only their owner can read


def write_pth(net: nn.Module, path: Path, channels: int, metadata: dict[str, str]) -> None:
    """The weights as BasicSR stores them, under ``params``."""
    import torch

    torch.save({'params': dict(net.state_dict())}, path)


def _run_weights(net: nn.Module) -> Callable[[Path], Callable[[Tensor], Tensor]]:
    """Weights are loaded strictly into a second network of the same form, initialised otherwise."""
    import copy

    import torch

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        from basicsr_effsr.weights.checkpoint import load_into

        twin = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        load_into(twin, path)
        return twin

    return load


WRITERS: dict[Form, Callable[[Any, Path, int, dict[str, str]], None]] = {
    Form.export: write_export,
    Form.torchscript: write_torchscript,
    Form.safetensors: write_safetensors,
    Form.pth: write_pth,
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
    import copy

    from basicsr_effsr.utils.files import write_atomic

    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    factor = int(getattr(net, 'upscale', 0)) if scale is None else scale
    half = dtype == 'fp16'
    written = copy.deepcopy(net).half() if half and form is not Form.onnx else net
    loaders = {Form.onnx: run_onnx, Form.export: run_export, Form.torchscript: run_torchscript}
    load: Callable[[Path], Callable[[Tensor], Tensor]] = loaders.get(form) or _run_weights(net)
    report: list[ExportReport] = []

    def write_and_compare(temporary: Path) -> None:
        # engines and torch.save look at the ending, which a temporary name must therefore keep
        path = temporary.with_name(f'{temporary.name}{SUFFIXES[form]}')
        try:
            if form is Form.onnx:
                write_onnx(written, path, channels, metadata, half=half)
            else:
                WRITERS[form](written, path, channels, metadata)
            run = load(path)
            takes_half = half and form in (Form.export, Form.torchscript)
            sizes = sizes_for(net)
            if form is Form.export and _local_window(net):
                sizes = (trace_size(net), sizes[1])  # the program states that smaller images are not its own
            call = (lambda image: run(image.half())) if takes_half else run
            found = compare(net, call, channels, sizes)
            operators = operators_of(path) if form is Form.onnx else {}
            report.append(
                ExportReport(
                    str(out),
                    form.value,
                    dtype,
                    type(net).__name__,
                    factor,
                    path.stat().st_size,
                    found,
                    limit,
                    smallest_side(net, call, channels, limit) if form not in (Form.safetensors, Form.pth) else 0,
                    operators,
                    getattr(net, 'ncnn', 'not tried'),
                    sorted(set(operators) - TENSORRT),
                )
            )
            largest = report[0].largest
            if not largest <= limit:
                raise ExportError(
                    f'{type(net).__name__} as {form.value} ({dtype}) differs from PyTorch by {largest:.2e}, more than '
                    f'{limit:.0e}; nothing was written'
                )
            path.replace(temporary)
        finally:
            path.unlink(missing_ok=True)

    new_folder = not out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomic(out, write_and_compare)
    except BaseException:
        if new_folder and not any(out.parent.iterdir()):
            out.parent.rmdir()
        raise
    return report[0]
