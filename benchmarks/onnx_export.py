"""Every network, every scale, published size: exported to ONNX, loaded back, compared with PyTorch at two sizes.

Run: python benchmarks/onnx_export.py [--net ASID ...] [--scale 4] [--dtype fp16]
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

import basicsr_effsr
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.export import ExportError, Form, export, sample, sizes_for

NETS: dict[str, dict[str, Any]] = {
    'HASN': {'type': 'HASN'},
    'DPARN': {'type': 'DPARN'},
    'AGDN': {'type': 'AGDN'},
    'AGDN-S': {'type': 'AGDN', 'num_feat': 24, 'num_block': 4, 'tlc': 96},
    'IMDN': {'type': 'IMDN'},
    'EFRDN': {'type': 'EFRDN'},
    'ASID': {'type': 'ASID'},
    'ASID-D8': {'type': 'ASID', 'num_block': 8},
    'DPARNTeacher': {'type': 'DPARNTeacher'},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--net', nargs='+', choices=NETS, default=list(NETS))
    parser.add_argument('--scale', nargs='+', type=int, choices=(2, 3, 4), default=[2, 3, 4])
    parser.add_argument('--dtype', choices=('fp32', 'fp16'), default='fp32')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    basicsr_effsr.register()
    table = Table(title=f'ONNX, {args.dtype}, against PyTorch, float32', title_justify='left')
    for name in ('network', 'scale', 'LR sizes', 'difference', 'difference', 'of outputs up to', 'from', 'MB', 's'):
        table.add_column(name, justify='left' if name in ('network', 'LR sizes') else 'right')
    with tempfile.TemporaryDirectory() as folder:
        for name in args.net:
            for scale in args.scale:
                net = build({**NETS[name], 'upscale': scale}, None)
                start = time.perf_counter()
                try:
                    report = export(net, Form.onnx, Path(folder) / 'net.onnx', metadata={}, dtype=args.dtype)
                except ExportError as error:
                    table.add_row(name, f'x{scale}', str(error))
                    continue
                seconds = time.perf_counter() - start
                with torch.no_grad():
                    peak = max(net(sample(net, size, 3)).abs().max().item() for size in sizes_for(net))
                table.add_row(
                    name,
                    f'x{scale}',
                    ', '.join(f'{h}x{w}' for h, w in (c.lr_size for c in report.compared)),
                    *(f'{c.difference:.1e}' for c in report.compared),
                    f'{peak:.2f}',
                    str(report.smallest),
                    f'{report.bytes / 1e6:.2f}',
                    f'{seconds:.0f}',
                )
                print(name, scale, report.largest, flush=True)
    console = Console(width=110)
    console.print(
        f'initial weights, 1 thread, Python {platform.python_version()}, torch {torch.__version__}, '
        f'onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}'
    )
    console.print(table)


if __name__ == '__main__':
    main()
