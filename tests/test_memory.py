"""Which errors mean that memory ran out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.memory import SIGNS, enough_memory, out_of_memory


def raised(function) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: PT011
        function()
    return found.value


def test_what_torch_and_numpy_raise_when_memory_runs_out():
    """A petabyte, which no machine has."""
    on_cpu = raised(lambda: torch.empty(1 << 50, dtype=torch.uint8))
    assert type(on_cpu) is RuntimeError
    assert out_of_memory(on_cpu)
    assert out_of_memory(raised(lambda: np.empty(1 << 50, dtype=np.uint8)))
    assert out_of_memory(torch.OutOfMemoryError('CUDA out of memory'))
    assert all(out_of_memory(RuntimeError(f'before: {sign}, after')) for sign in SIGNS)


def test_bugs_are_not_taken_for_it():
    assert not out_of_memory(raised(lambda: torch.zeros(3) + torch.zeros(4)))
    assert not out_of_memory(raised(lambda: torch.empty(1 << 62)))  # a size that cannot be counted
    assert not out_of_memory(RuntimeError('CUDA error: an illegal memory access was encountered'))
    assert not out_of_memory(ValueError(f'{SIGNS[0]} 8 bytes'))
    assert not out_of_memory(KeyboardInterrupt())


def test_errors_that_are_not_of_memory_stay_what_they_are():
    with pytest.raises(RuntimeError, match='a bug'), enough_memory('it', 'take less'):
        raise RuntimeError('a bug')
    with (
        pytest.raises(UserError, match='it needs more memory than there is; take less'),
        enough_memory('it', 'take less'),
    ):
        raise torch.OutOfMemoryError('CUDA out of memory')
