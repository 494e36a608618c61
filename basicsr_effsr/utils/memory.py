"""How much memory there is, and telling that it ran out from every other error."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from basicsr_effsr.utils.errors import UserError

# what torch puts into a plain RuntimeError: the CPU's allocator on Linux and Windows, C++, cuDNN and cuBLAS, Metal
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    'DefaultCPUAllocator: not enough memory',
    'std::bad_alloc',
    'Failed to allocate memory for requested buffer',  # ONNX Runtime
    'CUDNN_STATUS_ALLOC_FAILED',
    'CUBLAS_STATUS_ALLOC_FAILED',
    'CUDA error: out of memory',
    'MPS backend out of memory',
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine was too small.

    On a GPU that is ``torch.OutOfMemoryError``, in Python and numpy ``MemoryError``; torch on a CPU raises a plain
    ``RuntimeError``, which only its message distinguishes from a bug.
    """
    torch = sys.modules.get('torch')  # the commands that import this start without it
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """One sentence where memory runs out.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f'{what} needs more memory than there is; {advice}') from error


def available_memory() -> int | None:
    """Bytes that can be had, as Linux and the limit of a container (cgroup 2) say; None where neither does."""
    found = []
    with suppress(OSError):
        free = re.search(r'MemAvailable:\s+(\d+)', Path('/proc/meminfo').read_text())
        found += [int(free[1]) * 1024] if free else []
    with suppress(OSError, ValueError):  # the limit may be the word max
        group = Path('/sys/fs/cgroup')
        limit, used = (int((group / f'memory.{name}').read_text()) for name in ('max', 'current'))
        cached = re.search(r'^file (\d+)', (group / 'memory.stat').read_text(), re.MULTILINE)
        found.append(limit - used + (int(cached[1]) if cached else 0))
    return min(found, default=None)


def keep_freed_memory() -> None:
    """Lets freed memory stay with the process, for the maps of the next layer; glibc on Linux, nothing elsewhere.

    Otherwise the kernel takes large maps back and hands them out anew page by page, a third of an image's time on a
    CPU (``python -m benchmarks.run allocator``). What a process holds stays at its peak.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing is given back
