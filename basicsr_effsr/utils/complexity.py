"""Size and cost of a network: parameters, multiply-adds, activations, convolutions. Numbers out, no printing.

Every operator that runs is seen, on tensors without content, so that a 4K input costs neither memory
nor time and nothing is extrapolated. The tensors are fake ones of the CPU instead of the meta device's:
autocast does not know the latter, and networks may use it.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basicsr_effsr.utils.training import DTYPES, blocks_of

# operators beside views that move or make data and compute nothing
_FREE = frozenset(
    """
    _reshape_alias _to_copy _unsafe_view arange as_strided_ cat channel_shuffle clone constant_pad_nd contiguous copy
    copy_ device empty empty_like empty_strided eye fill fill_ flip full full_like gather im2col index index_select
    lift_fresh native_channel_shuffle new_empty new_empty_strided new_full new_ones new_zeros ones ones_like
    pixel_shuffle pixel_unshuffle promote_types reflection_pad2d repeat replication_pad2d resize_ roll scalar_tensor
    scatter scatter_ slice_scatter stack sym_size tril triu zero_ zeros zeros_like
    """.split()
)


@dataclass(frozen=True)
class Macs:
    """Cost of one forward pass."""

    lr_size: tuple[int, int]  # H, W of the input it was counted at
    convolution: int = 0  # multiply-adds of convolutions and transposed convolutions
    linear: int = 0  # multiply-adds of products with a matrix (linear layers)
    attention: int = 0  # multiply-adds of batched products of two activations, fused attention included
    elementwise: int = 0  # what fvcore adds for normalisation, interpolation and pooling, see _elementwise
    activations: int = 0  # elements of the outputs of all 2-D convolutions (NTIRE's count)
    convolutions: int = 0  # 2-D convolutions that run (NTIRE's count)
    uncounted: dict[str, int] = field(default_factory=dict)  # operator that computes, and is not in total -> calls

    @property
    def total(self) -> int:
        """Multiply-adds of convolutions, linear layers and matrix products; biases and element-wise work are not in."""
        return self.convolution + self.linear + self.attention

    @property
    def fvcore(self) -> int:
        """What fvcore reports as FLOPs, the column of the NTIRE challenges: ``total`` plus ``elementwise``."""
        return self.total + self.elementwise


def count_params(net: nn.Module) -> int:
    """All parameters of ``net``, each once, trainable or not; buffers are no parameters."""
    return sum(p.numel() for p in net.parameters())


def lr_size_of_720p(scale: int) -> tuple[int, int]:
    """H, W of the input whose output is 1280x720 or nearest to it, where papers count: 360x640, 240x427, 180x320."""
    return round(720 / scale), round(1280 / scale)


@contextmanager
def _passing(
    net: nn.Module, lr_size: tuple[int, int], num_in_ch: int, batch: int = 1
) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy of ``net`` in eval mode and an input, both with shapes and no content, for one pass in the block.

    ``net`` keeps its own tensors. Gradients are off.
    """
    logger = logging.getLogger('torch._subclasses.fake_tensor')  # writes a traceback before torch raises
    before, logger.disabled = logger.disabled, True
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # takes the real ones that a network holds besides its weights
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    memo: dict[int, Any] = {}
    try:
        with mode:
            for old in [*net.parameters(), *net.buffers()]:
                new = torch.empty(old.shape, dtype=old.dtype)
                memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        # outside the mode, because it cannot copy a tensor that is a plain attribute (the mean of BasicSR's EDSR)
        empty = copy.deepcopy(net, memo).eval()
        with torch.no_grad(), mode:
            yield empty, torch.empty(batch, num_in_ch, *lr_size, dtype=dtype)
    except ValueError:
        raise  # the network's own sentence about its input
    except Exception as error:  # whatever a foreign forward pass may raise
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f'{type(net).__name__}: its cost cannot be counted: {reason[0]}; see whether it takes this input size and '
            'channels, and computes with values nowhere'
        ) from error
    finally:
        logger.disabled = before


def count_macs(net: nn.Module, lr_size: tuple[int, int], *, num_in_ch: int = 3, batch: int = 1) -> Macs:
    """Counts one forward pass in eval mode, exactly, on tensors without content.

    Args:
        net: the bare network, in the form to be counted (a net with ``fuse()`` costs less when fused).
        lr_size: H, W of the input; the net's own padding is counted, as it is computed.
        num_in_ch: channels of the input.
        batch: images per pass; all counts are proportional to it.

    Raises:
        ValueError: the forward pass needs values, which tensors without content do not have, or does not take
            such an input.
    """
    with _passing(net, lr_size, num_in_ch, batch) as (empty, image), _Counter() as counter:
        empty(image)
    uncounted = dict(sorted(counter.uncounted.items()))
    return Macs(lr_size=lr_size, **{name: counter.sums[name] for name in _KINDS}, uncounted=uncounted)


def saved_for_backward(
    net: nn.Module,
    lr_size: tuple[int, int],
    *,
    batch: int,
    num_in_ch: int = 3,
    amp: str | None = None,
    checkpointing: bool = False,
) -> int:
    """Bytes of activations that a forward pass in train mode keeps for the backward pass.

    The larger part of what training needs beside weights, gradients and optimizer; work space of the kernels and the
    holes of the allocator come on top. ``amp`` is bf16 or fp16 under autocast; with ``checkpointing`` the inputs of all
    blocks count, and of their activations those of the largest block; the rest as for :func:`count_macs`.
    """
    kept: dict[int, tuple[Any, Any]] = {}  # storages by identity, alive as long as they are counted, and their blocks
    inside: list[nn.Module | None] = [None]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, (storage, inside[-1]))
        return tensor

    def enter(block: nn.Module, inputs: Any) -> None:
        for tensor in filter(lambda leaf: isinstance(leaf, Tensor), tree_leaves(inputs)):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage, None
        inside.append(block)

    with (
        _passing(net, lr_size, num_in_ch, batch) as (empty, image),
        torch.enable_grad(),
        torch.autocast('cpu', dtype=DTYPES[amp or 'bf16'], enabled=amp is not None),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        own = {p.untyped_storage()._cdata for p in [*empty.parameters(), *empty.buffers()]}
        for block in dict.fromkeys(blocks_of(empty).values()) if checkpointing else ():
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(lambda *_: inside.pop() and None)
        keep(empty.train()(image))
    sums: Counter[Any] = Counter()
    for key, (storage, block) in kept.items():
        sums[block] += storage.nbytes() if key not in own else 0
    return sums.pop(None, 0) + max(sums.values(), default=0)


_KINDS = ('convolution', 'linear', 'attention', 'elementwise', 'activations', 'convolutions')


class _Counter(TorchDispatchMode):
    """Adds up every operator that is dispatched within the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ('convolution', '_convolution', 'convolution_overrideable', 'mkldnn_convolution'):
            image, weight, transposed = args[0], args[1], args[6]
            self.sums['convolution'] += (image if transposed else out).numel() * prod(weight.shape[1:])
            if weight.dim() == 4:
                self.sums['convolutions'] += 1
                self.sums['activations'] += out.numel()
        elif name in ('mm', 'addmm', 'mv', 'addmv', 'dot', 'vdot', '_addmm_activation'):
            matrix = args[0] if name in ('mm', 'mv', 'dot', 'vdot') else args[1]
            self.sums['linear'] += out.numel() * matrix.shape[-1]
        elif name in ('bmm', 'baddbmm'):
            left = args[0] if name == 'bmm' else args[1]
            self.sums['attention'] += out.numel() * left.shape[-1]
        elif 'scaled_dot_product' in name:
            query, key, value = args[:3]  # (..., L, E), (..., S, E), (..., S, V): query x key, weights x value
            self.sums['attention'] += prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        else:
            self.sums['elementwise'] += _elementwise(name, args, out)
            if not func.is_view and name not in _FREE:
                self.uncounted[name] += 1
        return out


# operator -> operations per element of its input without a weight, and where its weight stands, which adds one more
_NORMS = {
    **dict.fromkeys(('native_group_norm', '_native_group_norm'), (4, 1)),
    **dict.fromkeys(('native_batch_norm', '_native_batch_norm_legit_no_training', 'cudnn_batch_norm'), (1, 1)),
    'native_layer_norm': (4, 2),
}
_RESIZING = {  # operator -> operations per element of its output
    **dict.fromkeys(('upsample_bilinear2d', '_upsample_bilinear2d_aa', 'grid_sampler_2d'), 4),
    **dict.fromkeys(('upsample_nearest2d', '_upsample_nearest_exact2d'), 1),
}


def _elementwise(name: str, args: Any, out: Any) -> int:
    """What fvcore's table of operators adds."""
    if name in _NORMS:
        each, weight = _NORMS[name]
        return args[0].numel() * (each + (args[weight] is not None))
    # adaptive pooling to 1x1 arrives as a mean over the axes -1, -2, in this order
    if name == '_adaptive_avg_pool2d' or (name == 'mean' and len(args) > 2 and list(args[1]) == [-1, -2]):
        return args[0].numel()
    return _RESIZING[name] * out.numel() if name in _RESIZING else 0


class _Peak(TorchDispatchMode):
    """The largest sum of bytes of tensors that are alive at one time within the ``with`` block, ``held`` included."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
        self.own = storages.keys()  # a view of these is no new memory
        self.held = self.peak = sum(storages.values())
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.own:
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: item for key, item in self.alive.items() if not item[0].expired()}
        self.peak = max(self.peak, self.held + sum(size for _, size in self.alive.values()))
        return out


def peak_memory(net: nn.Module, lr_size: tuple[int, int], *, num_in_ch: int = 3) -> int:
    """Bytes of weights, input and largest set of tensors alive at one time in a forward pass without gradients.

    Counted, not measured: the work space of the kernels comes on top. The same on every machine. The dtype is that of
    ``net``; arguments and errors are those of :func:`count_macs`.
    """
    with _passing(net, lr_size, num_in_ch) as (empty, image):
        held = [*empty.parameters(), *empty.buffers(), image]
        with _Peak(held) as found:
            empty(image)
    return found.peak
