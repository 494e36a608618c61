"""The yardstick: each network as its authors' structure reads, layer by layer, without any of our faster paths.

Written from the papers and from descriptions of the authors' code (structure, order of the layers, which maps are
held), no line of theirs. Where no code is public (DPARN, EFRDN) it is the paper's equations as they stand: five
branches one by one, explicit maps of scores. Parameters and their names are those of our networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import basicsr_effsr

basicsr_effsr.register()  # BasicSR is whole only after it
from basicsr_effsr.archs import agdn_arch, asid_arch, dparn_arch, effsr_blocks, efrdn_arch, hasn_arch  # noqa: E402


def norm_of_channels_last(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """HASN: to channels-last and back by copies."""
    out = F.layer_norm(x.permute(0, 2, 3, 1).contiguous(), self.normalized_shape, self.weight, self.bias, self.eps)
    return out.permute(0, 3, 1, 2).contiguous()


def norm_of_tokens(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """AGDN: to tokens and back, mean and variance apart."""
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    mean, var = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, correction=0)
    out = (tokens - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias
    return out.transpose(1, 2).reshape(x.shape)


def norm_of_maps(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """ASID: over the channel axis where it lies."""
    mean = x.mean(1, keepdim=True)
    var = (x - mean).square().mean(1, keepdim=True)
    out = (x - mean) / torch.sqrt(var + self.eps)
    return out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def esa(self: effsr_blocks.ESA, x: Tensor) -> Tensor:
    reduced = self.conv1(x)
    context = F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3)
    for i, name in enumerate(self.inner):
        context = self.get_submodule(name)(F.relu(context) if i else context)
    context = F.interpolate(context, size=x.shape[-2:], mode='bilinear', align_corners=False)
    return x * torch.sigmoid(self.conv4(context + self.conv_f(reduced)))


def std_then_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two reductions, each in two steps."""
    pixels = x.shape[2] * x.shape[3]
    mean = x.sum(3, keepdim=True).sum(2, keepdim=True) / pixels
    return ((x - mean).square().sum(3, keepdim=True).sum(2, keepdim=True) / pixels).sqrt(), mean


def contrast_aware(self: effsr_blocks.CCALayer, x: Tensor) -> Tensor:
    std, mean = std_then_mean(x)
    return x * self.conv_du(std + mean)


def gated_ffn(self: effsr_blocks.GatedDconvFFN, x: Tensor) -> Tensor:
    gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
    return self.project_out(F.gelu(gate) * value)


def hasb(self: hasn_arch.HASB, x: Tensor) -> Tensor:
    normed = self.ln(self.dwconv(x))
    one, two, three = self.f1(normed), self.f2(normed), self.f3(normed)
    mixed = F.relu6(one) * two
    return self.cab(self.dwconv2(self.g(mixed + self.esa(three))) + x)


def variance_of_views(x: Tensor, kernel_size: int) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode='reflect')
    return padded.unfold(2, kernel_size, 3).unfold(3, kernel_size, 3).flatten(-2).var(-1)


def mvsa(self: agdn_arch.MVSA, x: Tensor) -> Tensor:
    reduced = self.conv1(x)
    d5 = F.max_pool2d(self.conv2_1(reduced), 5, 3, padding=1) + variance_of_views(self.conv2_4(reduced), 5)
    d7 = F.max_pool2d(self.conv2_2(reduced), 7, 3, padding=1) + variance_of_views(self.conv2_3(reduced), 7)
    d5 = self.conv3_1(F.gelu(self.conv_max_1(d5)))
    d7 = self.conv3_2(F.gelu(self.conv_max_2(d7)))
    d5 = F.interpolate(d5, size=x.shape[-2:], mode='bilinear', align_corners=False)
    d7 = F.interpolate(d7, size=x.shape[-2:], mode='bilinear', align_corners=False)
    return x * torch.sigmoid(self.conv4(d5 + d7 + self.conv_f(reduced))) + x


def rcca(self: agdn_arch.RCCA, x: Tensor) -> Tensor:
    deep = F.gelu(self.dwconv(x))
    complement = (deep - F.gelu(self.decompose(deep))) * self.sigma['scale']
    return complement + self.cca(deep) + x


def bsconv(self: agdn_arch.BSConv, x: Tensor) -> Tensor:
    return self.dw(self.pw(x))


def starts(length: int, kernel: int) -> list[int]:
    """First pixels of TLC's windows on an axis."""
    side = min(length, kernel)
    count = (length - 1) // side + 1
    step = -((side - length) // max(count - 1, 1))
    return sorted({min(i * step, length - side) for i in range(count)})


def sgsa(self: agdn_arch.SGSA, x: Tensor) -> Tensor:
    """TLC as it is defined: windows cut out one by one into a batch, results added one by one, divided by a count."""
    height, width = x.shape[-2:]
    kernel = self.tlc if self.tlc and not self.training else max(height, width)

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = (part.flatten(-2) for part in qkv.unflatten(1, (3, self.num_heads, -1)).unbind(1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return (F.relu(scores) @ v).flatten(1, 2).unflatten(-1, qkv.shape[-2:])

    qkv = self.qkv_dwconv(self.qkv(x))
    if max(height, width) <= kernel:
        return self.project_out(attend(qkv))
    places = [(top, left) for top in starts(height, kernel) for left in starts(width, kernel)]
    down, right = min(height, kernel), min(width, kernel)
    windows = torch.cat([qkv[..., top : top + down, left : left + right] for top, left in places])
    total, count = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for (top, left), out in zip(places, attend(windows).chunk(len(places)), strict=True):
        total[..., top : top + down, left : left + right] += out
        count[..., top : top + down, left : left + right] += 1
    return self.project_out(total / count)


def agdb(self: agdn_arch.AGDB, x: Tensor) -> Tensor:
    d1, r1 = F.gelu(self.c1_d(x)), F.gelu(self.c1_r(x) + x)
    d2, r2 = F.gelu(self.c2_d(r1)), F.gelu(self.c2_r(r1) + r1)
    d3, r3 = F.gelu(self.c3_d(r2)), F.gelu(self.c3_r(r2) + r2)
    fused = self.c5(torch.cat((d1, d2, d3, F.gelu(self.c4(r3))), dim=1))
    return self.ea(self.cca(self.esa(fused))) + x


def squeeze_excitation(self: asid_arch.SqueezeExcitation, x: Tensor) -> Tensor:
    return x * self.gate(F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None]


def shared_attention(self: asid_arch.SharedAttention, tokens: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    if self.own_map:
        q, k, v = self.to_qkv(tokens).chunk(3, dim=-1)
        scores = torch.einsum('bgic,bgjc->bgij', q * q.shape[-1] ** -0.5, k)
        attention = torch.softmax(scores + self.rel_pos_bias(self.index).squeeze(-1), dim=-1)
    else:
        v, attention = self.to_v(tokens), given
    return self.to_out(torch.einsum('bgij,bgjc->bgic', attention, v)), attention


def groups(x: Tensor, grid: tuple[int, int], spread: bool) -> Tensor:
    """(N, C, H, W) -> (N, groups, 64, C): blocks of 8 x 8, or 64 pixels spread over the image."""
    (rows, columns), side = grid, asid_arch.WINDOW
    if spread:
        parts = x.unflatten(3, (side, columns)).unflatten(2, (side, rows)).permute(0, 3, 5, 2, 4, 1)
    else:
        parts = x.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(x.shape[0], rows * columns, side * side, x.shape[1])


def ungroup(tokens: Tensor, grid: tuple[int, int], spread: bool) -> Tensor:
    """Undoes ``groups``."""
    (rows, columns), side = grid, asid_arch.WINDOW
    parts = tokens.reshape(tokens.shape[0], rows, columns, side, side, -1)
    order = (0, 5, 3, 1, 4, 2) if spread else (0, 5, 1, 3, 2, 4)
    return parts.permute(*order).reshape(tokens.shape[0], -1, side * rows, side * columns)


def spatial_layer(
    self: asid_arch.SpatialLayer, x: Tensor, grid: tuple[int, int], given: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens = groups(x, grid, self.spread)
    out, attention = self.attn(self.norm(tokens), given)
    x = ungroup(out + tokens, grid, self.spread)
    return self.gfn(self.cnorm(x)) + x, attention


def transposed_attention(self: asid_arch.TransposedAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    (rows, columns), side = grid, asid_arch.WINDOW
    n, c, height, width = x.shape
    order = (0, 3, 5, 1, 2, 4) if self.spread else (0, 2, 4, 1, 3, 5)
    q, k, v = (
        part.reshape(n, c, rows, side, columns, side).permute(*order).flatten(1, 2).flatten(3)
        for part in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
    )
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    out = torch.softmax(scores * self.temperature, dim=-1) @ v
    outer, inner = ((side, side), (rows, columns)) if self.spread else ((rows, columns), (side, side))
    back = (0, 3, 4, 1, 5, 2) if self.spread else (0, 3, 1, 4, 2, 5)
    return self.project_out(out.reshape(n, *outer, c, *inner).permute(*back).reshape(n, c, height, width))


def cam(self: asid_arch.CAM, x: Tensor, grid: tuple[int, int]) -> Tensor:
    x = self.cttn1(self.canorm1(x), grid) + x
    x = self.gfn1(self.cnorm1(x)) + x
    x = self.cttn2(self.canorm2(x), grid) + x
    return self.gfn2(self.cnorm2(x)) + x


def five_branches(self: dparn_arch.ReRB, x: Tensor) -> Tensor:
    return self.branches(x)


def explicit_maps(self: efrdn_arch.EMHA, x: Tensor) -> Tensor:
    """Strip by strip, each with its map of heads x (HW / 4) x (HW / 4) scores."""
    outs = []
    for strip in self.qkv(self.reduce(x)).split(-(-x.shape[1] // self.attn_chunks), dim=1):
        q, k, v = strip.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(self.scale * q @ k.transpose(-2, -1), dim=-1)
        outs.append((scores @ v).transpose(1, 2).flatten(2))
    return self.proj(torch.cat(outs, dim=1))


def coefficient(self: efrdn_arch.CC, x: Tensor) -> Tensor:
    std, mean = std_then_mean(x)
    return 0.5 * (self.mean(mean) + self.std(std))


PLAIN: dict[str, dict[type[nn.Module], Callable]] = {
    'HASN': {effsr_blocks.LayerNorm2d: norm_of_channels_last, effsr_blocks.ESA: esa, hasn_arch.HASB: hasb},
    'AGDN': {
        effsr_blocks.LayerNorm2d: norm_of_tokens,
        effsr_blocks.CCALayer: contrast_aware,
        effsr_blocks.GatedDconvFFN: gated_ffn,
        agdn_arch.BSConv: bsconv,
        agdn_arch.MVSA: mvsa,
        agdn_arch.RCCA: rcca,
        agdn_arch.SGSA: sgsa,
        agdn_arch.AGDB: agdb,
    },
    'ASID': {
        effsr_blocks.LayerNorm2d: norm_of_maps,
        effsr_blocks.GatedDconvFFN: gated_ffn,
        effsr_blocks.ESA: esa,
        asid_arch.SqueezeExcitation: squeeze_excitation,
        asid_arch.SharedAttention: shared_attention,
        asid_arch.SpatialLayer: spatial_layer,
        asid_arch.TransposedAttention: transposed_attention,
        asid_arch.CAM: cam,
    },
    'DPARN': {effsr_blocks.ESA: esa, dparn_arch.ReRB: five_branches},
    'EFRDN': {effsr_blocks.ESARFDN: esa, efrdn_arch.EMHA: explicit_maps, efrdn_arch.CC: coefficient},
}


def plain(net: nn.Module) -> nn.Module:
    """A copy of ``net`` in its plain form: same parameters, same function, every layer as the structure reads."""
    twin = copy.deepcopy(net)
    forms = PLAIN[type(net).__name__]
    for module in twin.modules():
        if type(module) in forms:
            module.__class__ = type(type(module).__name__, (type(module),), {'forward': forms[type(module)]})
    return twin
