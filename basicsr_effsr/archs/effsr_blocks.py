"""Blocks shared by two or more networks of this package.

Needs torch and nothing else, so that an architecture file works inside any BasicSR fork once this
file lies next to it. Shapes: N batch, C channels, H x W pixels, r upscale.
"""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, Literal, Mapping, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of the DIV2K training set, as EDSR published it
UPSAMPLER_NAMES = {'upsampler.up.': 'upsampler.', 'to_img.': 'upsampler.'}  # what other programs call its layers


def register_in(registry):
    """Class decorator: registers a class with BasicSR as ``<name>_effsr`` and, where that is free, as ``<name>``.

    A class that is itself called ``<name>_effsr`` takes that name alone.

    A registry refuses a name a second time. A fork that has a class of this name could then not be imported any more,
    whichever of both comes first; so whoever else registers the name has it. Works with every registry since 1.3.
    """

    def decorate(cls):
        name, do_register = cls.__name__, registry._do_register

        def give_way(other, obj, *suffix):
            if other == name and not any(suffix) and registry._obj_map.get(name) is cls:
                del registry._obj_map[name]
            do_register(other, obj, *suffix)

        for free in (name,) if name.endswith('_effsr') else (name, name + '_effsr'):
            if free not in registry:
                do_register(free, cls)
                registry._do_register = give_way
        return cls

    return decorate


def check_options(cls: type, options: Mapping[str, object]) -> None:
    """Refuses options that the annotations of a constructor do not allow.

    ``Literal`` lists the choices, an ``int`` is at least 1, a ``bool`` is true or false.

    Args:
        cls: the class whose ``__init__`` takes them.
        options: name -> value, such as ``locals()``.

    Raises:
        ValueError: names the class, the option, what was found and what is possible.
    """
    kinds = get_type_hints(cls.__init__)  # type: ignore[misc]
    for option, value in options.items():
        kind, wanted = kinds.get(option), ''
        if get_origin(kind) is Literal and value not in get_args(kind):
            wanted = f'one of {list(get_args(kind))}'
        elif kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            wanted = 'an integer of at least 1'
        elif kind is bool and not isinstance(value, bool):
            wanted = 'true or false'
        if wanted:
            raise ValueError(f'{cls.__name__}: {option} must be {wanted}, got {value!r}')


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is at work; False where PyTorch is too old (before 2.1) to tell."""
    return hasattr(torch, 'compiler') and hasattr(torch.compiler, 'is_compiling') and torch.compiler.is_compiling()


def exporting() -> bool:
    """Whether a graph is recorded for other engines, which have fewer operators and dimensions than PyTorch."""
    told = hasattr(torch, 'compiler') and hasattr(torch.compiler, 'is_exporting')
    return torch.jit.is_tracing() or (torch.compiler.is_exporting() if told else is_compiling())


def check_input(net: nn.Module, x: Tensor, num_in_ch: int) -> None:
    """Refuses what is not an (N, num_in_ch, H, W) batch with H, W >= ``net.min_size``.

    Silent while a graph is being traced or compiled: there the sizes are symbols, and the caller sets the bounds.

    Raises:
        ValueError: says what was expected and what was found.
    """
    if torch.jit.is_tracing() or is_compiling():
        return
    name, side = type(net).__name__, int(net.min_size)  # type: ignore[arg-type]
    if x.dim() != 4 or x.shape[1] != num_in_ch:
        raise ValueError(f'{name}: the input must be (N, {num_in_ch}, H, W), got {tuple(x.shape)}')
    if min(x.shape[-2:]) < side:
        raise ValueError(
            f'{name}: height and width must be at least {side} pixels, got {x.shape[-2]} x {x.shape[-1]}; '
            'pad the image or use a larger patch (gt_size)'
        )


def eager_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is computed now and on a CPU: no GPU, no graph traced or compiled, no counting of operators."""
    if torch.jit.is_tracing() or is_compiling():
        return False
    counted = type(x) is not Tensor or getattr(torch._C, '_len_torch_dispatch_stack', int)()
    return not counted and x.device.type == 'cpu'


def unobserved(block: nn.Module) -> bool:
    """Whether no hook looks at a layer of ``block``: those that count or draw want each to be called."""
    return not any(layer._forward_hooks or layer._forward_pre_hooks for layer in block.modules())


def infers_on_cpu(x: Tensor, pixels: int, block: nn.Module) -> bool:
    """Whether the map ``x`` of more than ``pixels`` goes through ``block`` so that strips of it pay.

    That is on a CPU, without gradients, and without hooks.
    """
    large = x.shape[2] * x.shape[3] > pixels
    return eager_on_cpu(x) and not torch.is_grad_enabled() and large and unobserved(block)


def channels_last(x: Tensor) -> Tensor:
    """``x`` with the channels of a pixel side by side, as CPUs like it; on other devices, and in graphs, as it is.

    What is computed from it keeps the layout, so that a network asks once.
    """
    return x.contiguous(memory_format=torch.channels_last) if eager_on_cpu(x) else x


def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with zero padding that leaves the size, of these values, and otherwise as ``conv``."""
    height, width = weight.shape[2:]
    padding = (height // 2, width // 2)
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, (height, width), padding=padding, groups=conv.groups)
    fused.to(conv.weight).load_state_dict({'weight': weight, 'bias': bias})
    return fused


class Network(nn.Module):
    """What the networks have in common.

    Args:
        options: the ``locals()`` of the constructor; checked by ``check_options``.
        centred: keep DIV2K's mean as ``mean_in`` and ``mean_out``, of as many channels as input and output.

    Raises:
        ValueError: an option is out of its range, or, from ``forward``, an input is not of the stated shape.
    """

    min_size = 1
    mean_in: Tensor
    mean_out: Tensor

    def __init__(self, options: Mapping[str, Any], *, centred: bool = False) -> None:
        super().__init__()
        self._options = {name: value for name, value in options.items() if name not in ('self', '__class__')}
        check_options(type(self), self._options)
        self.upscale: int = options['upscale']
        self.num_in_ch: int = options['num_in_ch']
        if centred:
            self.register_buffer('mean_in', rgb_mean(options['num_in_ch']), persistent=False)
            self.register_buffer('mean_out', rgb_mean(options['num_out_ch']), persistent=False)


class Fusable(Network):
    """A network whose ``parts`` give a plain layer each by their own ``fuse()``; with option ``deploy`` it is fused."""

    parts: tuple[type, ...] = ()
    deploy: bool

    def fuse(self, *, inplace: bool = False) -> nn.Module:
        """The fused form, equal to this network in eval mode: every part one plain layer, computed in float64.

        Args:
            inplace: change this network instead of a copy. Hooks do not follow into a copy.

        Returns:
            The fused network, with ``deploy`` True; its state dict loads into the class with ``deploy=True``.
        """
        net = self
        if not inplace:
            net = type(self)(**self._options).to(next(self.parameters())).train(self.training)
            net.load_state_dict(self.state_dict())
        for parent in list(net.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, self.parts):
                    setattr(parent, name, child.fuse())  # type: ignore[operator]
        net.deploy = True
        net._options = {**net._options, 'deploy': True}
        return net


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is of a smaller floating type, unchanged otherwise; the gradient returns in its type.

    Sums, norms and deviations do not fit the 8 or 11 significant bits of bf16 and fp16.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def std_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Biased deviation and mean of each channel, computed in float32 at least.  (N, C, H, W) -> two (N, C, 1, 1).

    The gradient on a constant channel is 0, not the NaN that the square root of a zero variance would give.
    """
    if torch.jit.is_tracing():  # ncnn has the parts
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (x - mean).square().mean(dim=(2, 3), keepdim=True).sqrt(), mean
    wide = at_least_float32(x)
    if not eager_on_cpu(x):
        std, mean = torch.std_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    else:  # a seventh of that one's time there
        mean = wide.mean(dim=(2, 3), keepdim=True)
        std = torch.linalg.vector_norm(wide - mean, dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3]) ** 0.5
    return std.to(x.dtype), mean.to(x.dtype)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channel axis of an (N, C, H, W) map.

    Equal to ``nn.LayerNorm(C)`` on the channels-last view, with the same parameters and names.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ESA(nn.Module):
    """Enhanced spatial attention in the form of RLFN: a mask from a pooled map of ``esa_channels``, times the input.

    There is no activation around the inner convolution. Bilinear resizing makes the mask depend on the
    size of the whole map. (N, C, H, W) -> same; H, W >= 15.
    """

    min_size = 15  # below it the stride-2 convolution leaves less than the 7 x 7 pool needs
    inner: tuple[str, ...] = ('conv3',)  # 3 x 3 on the pooled map, ReLU between them

    def __init__(self, num_feat: int, esa_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, esa_channels, 1)
        self.conv_f = nn.Conv2d(esa_channels, esa_channels, 1)
        self.conv2 = nn.Conv2d(esa_channels, esa_channels, 3, stride=2)
        for name in self.inner:
            self.add_module(name, nn.Conv2d(esa_channels, esa_channels, 3, padding=1))
        self.conv4 = nn.Conv2d(esa_channels, num_feat, 1)

    def forward(self, x: Tensor, reduced: Tensor | None = None) -> Tensor:
        """``reduced`` is given by who has ``conv1(x)`` at less cost."""
        return x * torch.sigmoid(self.conv4(self.context(self.conv1(x) if reduced is None else reduced)))

    def context(self, reduced: Tensor) -> Tensor:
        """What the mask is made of at each pixel.  (N, esa_channels, H, W) -> same."""
        pooled = F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3)
        for i, name in enumerate(self.inner):
            pooled = self.get_submodule(name)(F.relu(pooled) if i else pooled)
        pooled = F.interpolate(pooled, size=reduced.shape[-2:], mode='bilinear', align_corners=False)
        return pooled + self.conv_f(reduced)


class ESARFDN(ESA):
    """Enhanced spatial attention in the form of RFDN: as ``ESA``, with two more 3 x 3 and two ReLUs."""

    inner = ('conv_max', 'conv3', 'conv3_')


def bottleneck_gate(num_feat: int, hidden: int) -> nn.Sequential:
    """Gains in (0, 1) by two 1 x 1 convolutions with ReLU between them.  (N, num_feat, 1, 1) -> same."""
    return nn.Sequential(
        nn.Conv2d(num_feat, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, num_feat, 1), nn.Sigmoid()
    )


class CCALayer(nn.Module):
    """Contrast-aware channel attention (IMDN): gains from the mean plus the deviation per channel.

    The deviation is the biased one, with no epsilon; ``hidden`` channels lie between the two 1 x 1 convolutions.
    (N, C, H, W) -> same.
    """

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.conv_du = bottleneck_gate(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        std, mean = std_and_mean(x)
        return x * self.conv_du(std + mean)


class IMDB(nn.Module):
    """Information multi-distillation block of IMDN: a quarter of the channels leaves at each of four steps.

    (N, C, H, W) -> same.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        distilled = num_feat // 4
        remaining = num_feat - distilled
        self.split = (distilled, remaining)
        self.c1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.c2 = nn.Conv2d(remaining, num_feat, 3, padding=1)
        self.c3 = nn.Conv2d(remaining, num_feat, 3, padding=1)
        self.c4 = nn.Conv2d(remaining, distilled, 3, padding=1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.cca = CCALayer(num_feat, max(num_feat // 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        d1, rest = F.leaky_relu(self.c1(x), 0.05).split(self.split, dim=1)
        d2, rest = F.leaky_relu(self.c2(rest), 0.05).split(self.split, dim=1)
        d3, rest = F.leaky_relu(self.c3(rest), 0.05).split(self.split, dim=1)
        return self.c5(self.cca(torch.cat((d1, d2, d3, self.c4(rest)), dim=1))) + x


class GatedDconvFFN(nn.Module):
    """Gated feed-forward layer with a depth-wise 3 x 3 (Restormer's GDFN), without biases.

    Gate and value have ``hidden`` channels each.  (N, C, H, W) -> same.
    """

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(num_feat, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, num_feat, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if infers_on_cpu(x, 4096, self):
            return self.in_strips(x)
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)

    def in_strips(self, x: Tensor, pixels: int = 20_000) -> Tensor:
        """The same without gradients, gate and value apart (a GELU of part of a map takes twice the time).

        Rows of so many pixels at a time, so that wide maps of a large image are never whole.
        """
        out, rows = torch.empty_like(x), max(pixels // x.shape[3], 12)
        for top in range(0, x.shape[2], rows):
            above, below = min(top, 1), min(top + rows, x.shape[2])  # a row more on either side, for the 3 x 3
            strip = in_parts(x[:, :, top - above : below + 1], self.project_in, self.dwconv, 2)
            gate, value = (part[:, :, above : above + below - top] for part in strip)
            out[:, :, top:below] = F.conv2d(gelu(gate).mul_(value), self.project_out.weight)
        return out


def in_parts(x: Tensor, point: nn.Conv2d, depth: nn.Conv2d, count: int) -> Iterator[Tensor]:
    """What a 1 x 1 and a depth-wise 3 x 3, without biases, give: ``count`` parts of the channels in turn."""
    for enter, across in zip(point.weight.chunk(count), depth.weight.chunk(count)):  # noqa: B905 (Python 3.8)
        yield F.conv2d(F.conv2d(x, enter), across, padding=1, groups=len(across))


def gelu(x: Tensor) -> Tensor:
    """``F.gelu``, which on a CPU has a faster form for what lies in memory in the order of its axes."""
    if eager_on_cpu(x) and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.gelu(x)


def position_index(window: int) -> Tensor:
    """Row of a table of (2 window - 1)^2 relative positions for every two tokens of a window: (T, T), T = window^2."""
    row, col = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    span = 2 * window - 1
    return (row[:, None] - row + window - 1) * span + (col[:, None] - col + window - 1)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v by torch's fused kernels.  (..., T, C) each -> same."""
    width = q.shape[-1]
    if width % 8 and q.is_cuda:  # the memory-efficient kernels want whole vectors; zeros change no product
        q, k, v = (F.pad(part, (0, -width % 8)) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :width]


def normalize(x: Tensor) -> Tensor:
    """``x`` over its Euclidean norm along the last axis, computed in float32 at least; a zero vector stays zero.

    In float16 the norm of a large map overflows; the bound of ``F.normalize``, 1e-12, is 0 and its gradient infinite.
    """
    if torch.jit.is_tracing():  # ncnn has the parts
        return x / x.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
    return F.normalize(at_least_float32(x), dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny)).to(x.dtype)


def cosines(q: Tensor, k: Tensor) -> Tensor:
    """Cosines between the rows of ``q`` and of ``k``, 0 for a row of zeros: (..., C, P) each -> (..., C, C)."""
    if q.dtype in (torch.float16, torch.bfloat16) or not eager_on_cpu(q):  # whose products need float32's range
        return normalize(q) @ normalize(k).transpose(-2, -1)
    # lengths divide the small matrix instead of the maps; vector_norm is slow along other axes than the last in memory
    long_q, long_k = (x.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).sqrt() for x in (q, k))
    return q @ k.transpose(-2, -1) / (long_q @ long_k.transpose(-2, -1))


def pixelshuffle_upsampler(num_feat: int, num_out_ch: int, upscale: int) -> nn.Sequential:
    """3 x 3 convolution and pixel shuffle: (N, num_feat, H, W) -> (N, num_out_ch, r H, r W)."""
    return nn.Sequential(nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))


def rgb_mean(channels: int) -> Tensor:
    """DIV2K's mean as (1, channels, 1, 1); the mean of its three values where images are not RGB."""
    mean = torch.tensor(RGB_MEAN) if channels == 3 else torch.full((channels,), sum(RGB_MEAN) / 3)
    return mean.view(1, channels, 1, 1)


def count_numbers(names: Iterable[str], pattern: str) -> int:
    """How many different things the first group of ``pattern`` matches at the beginning of the names."""
    return len({match.group(1) for match in (re.match(pattern, name) for name in names) if match})


def pixelshuffle_tails(channels: int, num_in_ch: int) -> list[tuple[int, int]]:
    """(num_out_ch, upscale) that a pixel shuffle of ``channels`` channels may be; the likeliest first."""
    return [(out, r) for out in dict.fromkeys((num_in_ch, 3, 1)) for r in (2, 3, 4) if out * r * r == channels]


def usual_options(state: Mapping[str, Tensor], head: str, block: str, tail: str) -> Iterator[dict[str, Any]]:
    """What most networks show in the same way: channels, width, blocks and scale; the likeliest first.

    Args:
        state: the weights.
        head: name of the first convolution's weight.
        block: pattern of the names in a block, whose first group is the block's number.
        tail: name of the weight before the pixel shuffle.
    """
    num_feat, num_in_ch = state[head].shape[:2]
    for num_out_ch, upscale in pixelshuffle_tails(len(state[tail]), num_in_ch):
        yield {
            'num_in_ch': num_in_ch,
            'num_out_ch': num_out_ch,
            'num_feat': num_feat,
            'num_block': count_numbers(state, block),
            'upscale': upscale,
        }


def divisor(whole: int, part: int, usual: int) -> int:
    """n with max(whole // n, 1) == part: the usual one, else one that divides, else the smallest."""
    likely = (usual, max(whole // part, 1), whole // (part + 1) + 1)
    return next((n for n in likely if max(whole // n, 1) == part), usual)
