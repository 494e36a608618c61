"""Telling that memory ran out from every other error."""

from __future__ import annotations

# what torch puts into a plain RuntimeError: the CPU's allocator on Linux and Windows, C++, cuDNN and cuBLAS, Metal
SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    'DefaultCPUAllocator: not enough memory',
    'std::bad_alloc',
    'CUDNN_STATUS_ALLOC_FAILED',
    'CUBLAS_STATUS_ALLOC_FAILED',
    'CUDA error: out of memory',
    'MPS backend out of memory',
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine was too small.

    On a GPU that is ``torch.OutOfMemoryError``, in Python and numpy ``MemoryError``; torch on a CPU raises a plain
    ``RuntimeError``, which only its words tell from a bug.
    """
    import torch  # here, as the commands that import this start without it

    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
