"""What EFRDN's fused attention saves: the fused network with it and with explicit maps of scores.

"Explicit" is the definition, strip after strip: a map of heads x (HW/4) x (HW/4) scores, its softmax, the product.
The forms take turns within each repeat, so that the machine's state hits all alike; figures are medians. Peak memory
is what torch's allocator held at most during one image beyond the weights. "Counted" is the same from shapes alone
(basicsr_effsr.utils.complexity.peak_memory), also where explicit maps would not fit: frames of --only-fused run in
the fused form, once.
Run:  python benchmarks/efrdn_attention.py [--device cuda] [--frames 60x80 90x160] [--only-fused 180x320]
"""

from __future__ import annotations

import argparse
import copy

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import inference_step, machine, measure
from torch import Tensor, nn

import basicsr_effsr
from basicsr_effsr.utils import complexity

basicsr_effsr.register()
from basicsr_effsr.archs.efrdn_arch import EFRDN, EMHA  # noqa: E402  (BasicSR is whole only after register)


class Explicit(EMHA):
    """The same attention with every map of scores in memory, one strip at a time."""

    def forward(self, x: Tensor) -> Tensor:
        strips = self.qkv(self.reduce(x)).split(-(-x.shape[1] // self.attn_chunks), dim=1)
        return self.proj(torch.cat([self.attend(strip) for strip in strips], dim=1))

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (self.scale * q) @ k.transpose(-2, -1)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def build(upscale: int, device: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    fused = EFRDN(upscale=upscale, deploy=True).eval().to(device)
    explicit = copy.deepcopy(fused)
    for transformer in explicit.transformers:
        transformer.attn.__class__ = Explicit
    return {'explicit maps': explicit, 'fused': fused}


def frame(text: str) -> tuple[int, int]:
    rows, columns = text.split('x')
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--upscale', type=int, default=4)
    parser.add_argument('--frames', type=frame, nargs='*', default=[(60, 80), (90, 160)], help='LR, ROWSxCOLUMNS')
    parser.add_argument('--only-fused', type=frame, nargs='*', default=[(180, 320)], help='LR, ROWSxCOLUMNS')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--warmup', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    console = Console(width=120)
    console.print(machine(f'EFRDN x{args.upscale}, fused', args.device, args.threads, args.repeats))
    nets = build(args.upscale, args.device)
    weights = sum(p.numel() * p.element_size() for p in nets['fused'].parameters())
    table = Table()
    for title in ('LR frame', 'attention', 'ms', 'spread', 'ratio', 'peak MiB', 'ratio', 'counted MiB', 'one map MiB'):
        table.add_column(title, justify='left' if title == 'attention' else 'right')
    for size in [*args.frames, *args.only_fused]:
        x = torch.rand(1, 3, *size, device=args.device)
        steps = {form: inference_step(net, x) for form, net in nets.items() if size in args.frames or form == 'fused'}
        if len(steps) == 2:
            with torch.inference_mode():
                difference = (nets['fused'](x) - nets['explicit maps'](x)).abs().max()
            console.print(f'{size[1]} x {size[0]}: largest difference of the outputs {difference:.1e}')
        repeats = args.repeats if len(steps) == 2 else 1
        measured = measure(steps, args.device, args.warmup, repeats)
        base = next(iter(steps))
        for form, net in nets.items():
            counted = complexity.peak_memory(copy.deepcopy(net).cpu(), size) - weights
            strip = -(-size[0] * size[1] // 4)
            shown = [f'{counted / 2**20:.1f}', f'{8 * strip**2 * 4 / 2**20:.1f}' if form != 'fused' else '-']
            if form in steps:
                m, first = measured[form], measured[base]
                spread = m.spread if repeats > 1 else '-'
                ratios = [f'{m.ms / first.ms:.2f}', f'{m.mib / first.mib:.3f}']
                shown = [f'{m.ms:.0f}', spread, ratios[0], f'{m.mib:.1f}', ratios[1], *shown]
                if len(steps) == 1:
                    shown[2] = shown[4] = '-'
            else:
                shown = ['not run', '', '', '', '', *shown]
            table.add_row(f'{size[1]} x {size[0]}', form, *shown)
    console.print(table)


if __name__ == '__main__':
    main()
