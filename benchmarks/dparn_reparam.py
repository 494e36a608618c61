"""What DPARN's re-parameterization costs: one merged kernel against five branches, fused against un-fused.

Training step: forward, backward and Adam, with the merged kernel (the default) and with the five branches run one
by one. Inference: both training forms and the fused network. The forms take turns within each repeat, so that the
machine's state hits all alike; figures are medians. Peak memory is what torch's allocator held at most during one
step or image beyond what it held before (weights, optimiser); scratch space inside the libraries is not in it.
Run:  python benchmarks/dparn_reparam.py [--device cuda] [--lq 64 --batch 16 --frame 180 320 --repeats 50]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from side_by_side import inference_step, machine, measure, table
from torch import Tensor, nn
from torch.nn import functional as F

import basicsr_effsr

TRAINING = {'five branches': {'merged_training': False}, 'merged kernel': {}}
INFERENCE = {**TRAINING, 'fused': {'deploy': True}}


def build(form: str, upscale: int, device: str) -> nn.Module:
    from basicsr.utils.registry import ARCH_REGISTRY

    basicsr_effsr.register()
    torch.manual_seed(0)
    return ARCH_REGISTRY.get('DPARN')(upscale=upscale, **INFERENCE[form]).to(device)


def training_step(net: nn.Module, lq: Tensor, upscale: int) -> Callable[[], object]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    gt = torch.rand(lq.shape[0], 3, upscale * lq.shape[2], upscale * lq.shape[3], device=lq.device)

    def step() -> None:
        optimizer.zero_grad()
        F.l1_loss(net(lq), gt).backward()
        optimizer.step()

    return step


def prepare(kind: str, form: str, args: argparse.Namespace) -> Callable[[], object]:
    net = build(form, args.upscale, args.device)
    if kind == 'training':
        return training_step(net, torch.rand(args.batch, 3, args.lq, args.lq, device=args.device), args.upscale)
    return inference_step(net, torch.rand(1, 3, *args.frame, device=args.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--upscale', type=int, default=4)
    parser.add_argument('--lq', type=int, default=32, help='side of a training patch, LR pixels')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--frame', type=int, nargs=2, default=[90, 160], help='LR image for inference, rows columns')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--warmup', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    console = Console(width=120)
    console.print(machine(f'DPARN x{args.upscale}', args.device, args.threads, args.repeats))
    rows, columns = args.frame
    for kind, forms, what in (
        ('training', TRAINING, f'Training step, {args.batch} patches of {args.lq} x {args.lq} LR pixels'),
        ('inference', INFERENCE, f'Inference, one image of {columns} x {rows} LR pixels'),
    ):
        steps = {form: prepare(kind, form, args) for form in forms}
        console.print(table(what, measure(steps, args.device, args.warmup, args.repeats)))


if __name__ == '__main__':
    main()
