"""Feature-affinity distillation without the affinity matrices in memory.

Papers:       Z. He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image
              Super-Resolution", ICIP 2020; Y. Li et al., "Dual Path Attention and Re-parameterization Network
              for efficient image super-resolution", Eq. 7.
Differences:  Eq. 7 puts the 1 x 1 convolution that widens the student on the affinity matrix, where it has no
              meaning; it acts on the student's features before they are normalised, or is left out as in FAKD
              (the matrix does not depend on the number of channels). The matrices (N x HW x HW, 5 GiB each at
              16 patches of 96 x 96) are visited block by block, loss and gradient at once; values are those of the
              definition. The gradient at a position whose features are all zero is 0, where the definition has NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from basicsr_effsr.archs.effsr_blocks import at_least_float32, check_options, register_in
from basicsr_effsr.losses._inputs import check_above_zero

__all__ = ['FAKDLoss']

BLOCK_ELEMENTS = {'cpu': 2**20, 'cuda': 2**24}  # entries of the matrix in memory at once: L2 cache, 64 MiB


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Products in the type of their factors, whatever autocast, TF32 or bf16 acceleration is switched on.

    The sign of nearly equal affinities decides the gradient; with fewer digits it is not rounded but wrong.
    """
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, 'matmul', None)]
    with torch.autocast(device, enabled=False), ExitStack() as undone:
        if not hasattr(backends[0], 'fp32_precision'):  # torch < 2.9
            undone.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision('highest')
            backends = []
        for backend in backends:
            if backend.fp32_precision not in ('none', 'ieee'):
                undone.callback(setattr, backend, 'fp32_precision', backend.fp32_precision)
                backend.fp32_precision = 'ieee'
        yield


def _unit_columns(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Columns of (n, C, L) over their length plus ``eps``, and the lengths (n, 1, L)."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + eps), length


def _visit(x: Tensor, t: Tensor, rows: int, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Sum of |X'X - T'T| and X sign(X'X - T'T) for unit columns X (n, C, L) and T (n, C', L).

    The matrix is symmetric, so a block of rows [a, b) is computed from column a on and counts twice beyond b.
    """
    positions = x.shape[2]
    total = x.new_zeros((), dtype=torch.float64)
    grad = torch.zeros_like(x) if want_grad else x.new_empty(0)
    for a in range(0, positions, rows):
        b = min(a + rows, positions)
        # not one product of (X, T) with (X, -T): equal features would leave rounding there, whose sign is no tie's 0
        gap = x[:, :, a:b].transpose(1, 2) @ x[:, :, a:]  # (n, b - a, L - a)
        gap -= t[:, :, a:b].transpose(1, 2) @ t[:, :, a:]
        size = gap.abs()
        total += size[:, :, : b - a].sum(dtype=torch.float64) + 2 * size[:, :, b - a :].sum(dtype=torch.float64)
        del size
        if want_grad:
            sign = gap.sign_()
            grad[:, :, a:b] += x[:, :, a:] @ sign.transpose(1, 2)
            if b < positions:
                grad[:, :, b:] += x[:, :, a:b] @ sign[:, :, b - a :]
    return total, grad


class _StreamedAffinity(torch.autograd.Function):
    """Mean |A_T - A_S|.  The incoming gradient is one number, so the forward pass computes all of ours."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, rows: int, samples: int, eps: float, want: bool) -> Tensor:
        count, _, positions = student.shape
        total = student.new_zeros((), dtype=torch.float64)
        entries = count * positions**2
        grads = torch.empty_like(student) if want else None
        for i in range(0, count, samples):
            x, length = _unit_columns(student[i : i + samples], eps)
            t, _ = _unit_columns(teacher[i : i + samples], eps)
            part, grad = _visit(x, t, rows, want)
            total += part
            if grads is not None:
                grad *= 2 / entries
                # dL/dx = (g - x^ (x^ . g) (|x| + eps) / |x|) / (|x| + eps), x^ the unit column
                along = (x * grad).sum(dim=1, keepdim=True) * (length + eps) / length
                grad -= x * along
                grad /= length + eps
                grads[i : i + samples] = grad.masked_fill_(length == 0, 0)
        if grads is not None:
            ctx.save_for_backward(grads)
        return (total / entries).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        return grads * upstream, None, None, None, None, None


@register_in(LOSS_REGISTRY)
class FAKDLoss(nn.Module):
    """Mean of |A_T - A_S| over all N * HW * HW entries, A = X'X with X the features over their length.

    One matrix per image; entry (i, j) is the cosine between positions i and j, in [-1, 1]. Memory beyond the
    arguments: the gradient, one block of rows and the unit columns of the images that are worked on together. The
    products run in float32 (or float64) even under autocast and TF32. Not twice differentiable.

    Between the features of one layer pair. Eq. 7 adds the pairs up; Eq. 8 multiplies the sum by gamma. The value
    does not depend on the range of the images, while L1 does: FAKD's gamma = 10 for images in [0, 255] is
    10 / 255 = 0.039 for images in [0, 1].

    Args:
        loss_weight: factor on the returned value.
        block_size: rows of an affinity matrix in memory at once; None chooses by device. Changes memory and speed,
            not the value.
        eps: added to the length of a feature before it divides.
        resize_teacher: resize teacher maps of another H x W to the student's (bilinear) instead of refusing them.
        adapter: 'conv1x1' (DPARN) or 'none' (FAKD). This class compares what it is given; the distillation model
            reads the attribute and puts a trainable 1 x 1 convolution behind each student feature.

    Raises:
        ValueError: an option is out of its range, the grids differ and may not be resized, or the batches differ.
    """

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        block_size: int | None = None,
        eps: float = 1e-7,
        resize_teacher: bool = False,
        adapter: Literal['none', 'conv1x1'] = 'conv1x1',
    ) -> None:
        super().__init__()
        check_options(FAKDLoss, locals())
        check_above_zero('FAKDLoss', eps=eps, block_size=1 if block_size is None else block_size)
        self.loss_weight = loss_weight
        self.block_size = block_size
        self.eps = eps
        self.resize_teacher = resize_teacher
        self.adapter = adapter

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Args: features (N, C, H, W); others (N, C', H, W) or tokens (N, H*W, C') in raster order, without gradient.

        Returns: a scalar in [0, 2 loss_weight], float32 or wider.
        """
        grid = student.shape[-2:]
        if student.ndim != 4 or teacher.ndim not in (3, 4) or len(student) != len(teacher):
            raise ValueError(
                f"FAKDLoss: student features must be (N, C, H, W), the teacher's (N, C, H, W) or (N, H*W, C) with the "
                f'same N, got {tuple(student.shape)} and {tuple(teacher.shape)}; check train.distill.feature_pairs'
            )
        with torch.no_grad():
            teacher = at_least_float32(teacher)
            if teacher.ndim == 4 and teacher.shape[-2:] != grid and self.resize_teacher:
                teacher = F.interpolate(teacher, size=grid, mode='bilinear', align_corners=False)
            columns_t = teacher.flatten(2) if teacher.ndim == 4 else teacher.transpose(1, 2)
        if columns_t.shape[2] != grid.numel() or (teacher.ndim == 4 and teacher.shape[-2:] != grid):
            raise ValueError(
                f'FAKDLoss: student and teacher maps must agree in H x W, got {tuple(student.shape)} and '
                f'{tuple(teacher.shape)}; check train.distill.feature_pairs, or set resize_teacher: true for maps'
            )
        columns_s = at_least_float32(student).flatten(2)
        count, positions = len(student), grid.numel()
        budget = BLOCK_ELEMENTS.get(student.device.type, BLOCK_ELEMENTS['cuda'])
        rows = min(positions, self.block_size or max(1, budget // positions))
        samples = min(count, max(1, budget // (rows * positions)))
        want_grad = student.requires_grad and torch.is_grad_enabled()
        with _full_precision(student.device.type):
            return self.loss_weight * _StreamedAffinity.apply(
                columns_s, columns_t.to(columns_s.dtype), rows, samples, self.eps, want_grad
            )
