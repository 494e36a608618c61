"""Engines: PyTorch, eager or compiled, ONNX Runtime, OpenVINO; compared with PyTorch before use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr._version import __version__
from basicsr_effsr.utils.errors import UserError, needs, one_line
from basicsr_effsr.utils.files import WriteError, read_regular, read_text, write_bytes
from basicsr_effsr.weights.zoo import cache_folder, content_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4  # largest difference to PyTorch, on images in [0, 1], of what auto may pick
PAYS = 1e12  # products (LR pixels x parameters, about) from which an export costs less than it saves
GAIN = 1.1  # times PyTorch's speed that auto asks for
EXTRAS = {'openvino': 'openvino', 'onnxruntime': 'export'}  # runtimes of exported files -> extra of this package


class Engine(str, Enum):
    """What is asked for."""

    auto = 'auto'
    torch = 'torch'
    compile = 'compile'
    onnxruntime = 'onnxruntime'
    openvino = 'openvino'


@dataclass(frozen=True)
class Computer:
    """A network as ``name`` computes it, (N, C, H, W) -> (N, C', r H, r W) of any size.

    ``difference`` is the largest to PyTorch on the images of the check, smooth ones and hard ones (checkerboard, text
    ...), ``gain`` how many times as fast it was there; None where it was not compared.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    difference: float | None = None
    gain: float | None = None

    def __call__(self, lq: Tensor) -> Tensor:
        return self.call(lq)

    def words(self) -> str:
        """One line on an engine that is not PyTorch; empty for PyTorch."""
        if self.name == 'torch':
            return ''
        if self.difference is None:
            return f'computed by {self.name}, not compared with torch'
        gain = f', {self.gain:.2f} times as fast' if self.gain else ''
        return f'computed by {self.name}: at most {self.difference:.1e} from torch{gain}'


def engine_for(
    net: nn.Module,
    wanted: str = 'auto',
    *,
    pixels: float = float('inf'),
    device: Any = 'cpu',
    dtype: Any = None,
    keep: bool = True,
) -> Computer:
    """Chooses the engine for a network.

    ``auto`` depends on the work and on what is installed, never on the clock of this run: PyTorch on a GPU, in fp16 and
    bf16, and for less than ``PAYS`` products; otherwise the fastest runtime that gave PyTorch's image when these
    weights were first exported. File and verdict are kept beside each other in the cache.

    Args:
        net: in eval mode, float32, on the CPU; already fused where the fused form is wanted.
        wanted: a name of :class:`Engine`.
        pixels: LR pixels that will be computed; infinite if unknown.
        device: device of the computation.
        dtype: of the computation.
        keep: write file and verdict into the cache; False for weights that will soon change.

    Raises:
        UserError: a package is missing, the engine has no such device or dtype, or cannot compute this network.
    """
    import torch

    if wanted not in list(Engine):
        raise UserError(f'the engine must be one of {", ".join(Engine)}, got {wanted!r}')
    engine, device, dtype = Engine(wanted), torch.device(device), dtype or torch.float32
    plain = Computer('torch', net)
    if engine is Engine.torch:
        return plain
    if engine is Engine.compile:
        return _compiled(net, compared=device.type == 'cpu' and dtype is torch.float32)
    if engine is Engine.auto:
        work = pixels * sum(parameter.numel() for parameter in net.parameters())
        if device.type != 'cpu' or dtype is not torch.float32 or work < PAYS:
            return plain
        best = plain
        for name in installed():
            with suppress(UserError):
                found = exported(net, name, dtype, keep)
                if (found.difference or 0) <= TOLERANCE and (found.gain or 0) > max(GAIN, best.gain or 0):
                    best = found
        return best
    if device.type != 'cpu':
        raise UserError(f'{engine.value} computes on the CPU here, not on {device}; use the engine torch or compile')
    if dtype not in (torch.float32, *([torch.bfloat16] if engine is Engine.openvino else [])):
        raise UserError(f'{engine.value} does not compute in {dtype} here; use fp32, or the engine torch')
    needs(engine.value, EXTRAS[engine.value])
    return exported(net, engine.value, dtype, keep)


def installed() -> list[str]:
    """The runtimes of exported files that can be had here."""
    exports = all(map(find_spec, ('onnx', 'onnxscript')))
    return [name for name in EXTRAS if exports and find_spec(name)]


def _versions(*packages: str) -> str:
    found = []
    for package in packages:
        with suppress(PackageNotFoundError):
            found.append(f'{package} {version(package)}')
    return ', '.join(found)


def fingerprint(net: nn.Module) -> str:
    """Of structure, weights and whatever makes an ONNX file of them."""
    parts = [repr(net), repr(getattr(net, '_options', '')), __version__, _versions('torch', 'onnx', 'onnxscript')]
    return hashlib.sha256('\n'.join([*parts, content_of(net.state_dict())]).encode()).hexdigest()[:32]


def exported(net: nn.Module, name: str, dtype: Any, keep: bool) -> Computer:
    """The network exported to ONNX, as the runtime ``name`` computes it; file and verdict from the cache if there."""
    import torch

    from basicsr_effsr.weights.export import ExportError, write_onnx

    threads, half = torch.get_num_threads(), dtype is torch.bfloat16
    file = cache_folder('engines') / f'{fingerprint(net)}.onnx'
    try:
        data, verdicts = _kept(file) if keep else (b'', {})
        data = data or write_onnx(net, int(getattr(net, 'num_in_ch', 3)), {}, half=False)
        call = _opened(name, data, threads, half)
        key = f'{_versions(name)}, {threads} threads, {"bf16" if half else "fp32"}'
        if key not in verdicts:
            verdicts[key] = _judged(net, call)
            record = {'sha256': hashlib.sha256(data).hexdigest(), 'engines': verdicts}
            if keep:
                with suppress(WriteError):
                    write_bytes(file, data, sync=True)
                    write_bytes(file.with_suffix('.json'), json.dumps(record, indent=2).encode(), sync=True)
    except ExportError as error:
        raise UserError(f'{name} cannot compute {type(net).__name__}: {error}; take the engine torch') from error
    return Computer(name, call, *verdicts[key])


def _kept(file: Path) -> tuple[bytes, dict[str, tuple[float, float]]]:
    """An exported file and its verdicts; nothing where they are not there or not as they were written."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data, record = read_regular(file), json.loads(read_text(file.with_suffix('.json')))
        if record['sha256'] == hashlib.sha256(data).hexdigest():
            return data, dict(record['engines'])
    return b'', {}


@lru_cache(maxsize=2)
def _opened(name: str, file: bytes, threads: int, half: bool) -> Callable[[Tensor], Tensor]:
    """An ONNX file as a function; images of a batch go one after the other."""
    import torch

    from basicsr_effsr.weights.export import or_refuse, run_onnx

    with or_refuse(f'{name} does not take the exported network'):
        run = run_onnx(file, threads) if name == 'onnxruntime' else _openvino(file, threads, half)

    def call(batch: Tensor) -> Tensor:
        try:
            return torch.cat([run(image) for image in batch.float().split(1)])
        except Exception as error:  # each runtime has types of its own; the message shows what ran out of memory
            raise RuntimeError(f'{name}: {one_line(error)}') from error

    return call


def _openvino(file: bytes, threads: int, half: bool) -> Callable[[Tensor], Tensor]:
    import torch

    core = needs('openvino', 'openvino').Core()
    # of its own accord it computes in bf16 where the CPU can
    settings = {'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'bf16' if half else 'f32'}
    request = core.compile_model(core.read_model(file), 'CPU', settings).create_infer_request()
    lock = threading.Lock()

    def call(image: Tensor) -> Tensor:
        with lock:
            return torch.from_numpy(request.infer([image.contiguous().numpy()])[0].copy())

    return call


def _judged(net: nn.Module, call: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(largest difference to PyTorch, times its speed) on images of several sizes, the least one among them."""
    from basicsr_effsr.utils.latency import interleaved
    from basicsr_effsr.weights.export import HARD, compare, sample, sizes_for

    channels, least, sizes = int(getattr(net, 'num_in_ch', 3)), int(getattr(net, 'min_size', 1)), sizes_for(net)
    found = compare(net, call, channels, (*sizes, (least, least))) + compare(net, call, channels, sizes[1:], HARD)
    side = max(64, *sizes[1])
    times = interleaved({'torch': net, 'engine': call}, sample(net, (side, side), channels), 1, 3)
    usual, engine = (min(each[1:]) for each in times.values())
    return max(each.difference for each in found), usual / engine


def _compiled(net: nn.Module, compared: bool) -> Computer:
    import torch

    from basicsr_effsr.weights.export import ExportError

    frozen = next(net.parameters()).device.type == 'cpu'  # weights become constants in the layout of the kernels
    compiled = torch.compile(net, dynamic=True, options={'freezing': True} if frozen and compared else {})
    if not compared:
        return Computer('compile', compiled)
    try:
        return Computer('compile', compiled, *_judged(net, compiled))
    except ExportError as error:
        raise UserError(f'{error}; take the engine torch') from error
