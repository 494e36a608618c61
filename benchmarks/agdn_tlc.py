"""What AGDN's windowed self-attention costs: gathers (ours) against the loop over windows that defines TLC.

Both nets hold the same weights and take turns within each repeat; figures are medians. Peak memory is what torch's
allocator held at most during one image beyond what it held before.
Run:  python benchmarks/agdn_tlc.py [--device cuda] [--frame 180 320 --repeats 20 --tlc 48]
"""

from __future__ import annotations

import argparse
from types import MethodType

import torch
from rich.console import Console
from side_by_side import inference_step, machine, measure, table
from torch import Tensor, nn

import basicsr_effsr


def starts(length: int, kernel: int) -> list[int]:
    side = min(length, kernel)
    count = (length - 1) // side + 1
    step = -((side - length) // max(count - 1, 1))
    return sorted({min(i * step, length - side) for i in range(count)})


def attend_in_a_loop(self: nn.Module, qkv: Tensor, kernel: int) -> Tensor:
    """(N, 3, heads, C / heads, H, W) -> (N, heads, C / heads, H, W), one window after the other."""
    height, width = qkv.shape[-2:]
    total, count = torch.zeros_like(qkv[:, 0]), qkv.new_zeros(height, width)
    for top in starts(height, kernel):
        for left in starts(width, kernel):
            here = (..., slice(top, top + kernel), slice(left, left + kernel))
            q, k, v = qkv[here].flatten(-2).unsqueeze(3).unbind(1)
            total[here] += self.attend(q, k, v).squeeze(2).view_as(total[here])
            count[here] += 1
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--frame', type=int, nargs=2, default=[180, 320], help='LR image, rows columns')
    parser.add_argument('--tlc', type=int, default=48)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--warmup', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    basicsr_effsr.register()
    from basicsr.utils.registry import ARCH_REGISTRY

    lq = torch.rand(1, 3, *args.frame, device=args.device)
    steps, outputs = {}, []
    for form in ('loop over windows', 'gathers'):
        torch.manual_seed(0)
        net = ARCH_REGISTRY.get('AGDN')(tlc=args.tlc).to(args.device)
        if form == 'loop over windows':
            for module in net.modules():
                if hasattr(module, 'attend_locally'):
                    module.attend_locally = MethodType(attend_in_a_loop, module)
        steps[form] = inference_step(net, lq)
        outputs.append(steps[form]())
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-4)

    rows, columns = args.frame
    console = Console(width=120)
    console.print(machine('AGDN x4', args.device, args.threads, args.repeats))
    title = f'AGDN x4, one image of {columns} x {rows} LR pixels, windows of {args.tlc}'
    console.print(table(title, measure(steps, args.device, args.warmup, args.repeats)))


if __name__ == '__main__':
    main()
