"""Which networks ncnn runs: TorchScript, converted by pnnx, run by ncnn on the CPU, compared with PyTorch.

Needs: pip install ncnn pnnx.  Run: python benchmarks/ncnn_check.py [--net HASN ...] [--scale 4]
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
import pnnx
import torch
from rich.console import Console
from rich.table import Table

import basicsr_effsr
from basicsr_effsr.weights.build import build
from basicsr_effsr.weights.export import sample, sizes_for

NETS: dict[str, dict[str, Any]] = {
    'HASN': {'type': 'HASN'},
    'DPARN': {'type': 'DPARN'},
    'IMDN': {'type': 'IMDN'},
    'AGDN, tlc 0': {'type': 'AGDN', 'tlc': 0},
    'EFRDN': {'type': 'EFRDN'},
    'ASID': {'type': 'ASID'},
    'DPARNTeacher': {'type': 'DPARNTeacher'},
}


def converted(net: torch.nn.Module, folder: Path) -> str:
    """Writes net.ncnn.param and net.ncnn.bin; what pnnx complains of, the most frequent first."""
    first, (height, width) = sizes_for(net)
    second = height, width + 16  # whole windows of another number in both directions, or pnnx takes one for fixed
    with torch.no_grad():
        torch.jit.trace(net, sample(net, first, 3), check_trace=False).save(folder / 'net.pt')
    shapes = [f'inputshape{n}=[1,3,{h},{w}]' for n, (h, w) in (('', first), ('2', second))]
    tool = Path(pnnx.__file__).parent / 'pnnx'
    done = subprocess.run([tool, 'net.pt', *shapes, 'fp16=0'], cwd=folder, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    return '; '.join(
        line
        for line, _ in Counter(
            ' '.join(line.split())
            for line in lines
            if 'unsupported' in line or 'not supported' in line or line.startswith('ignore')
        ).most_common(3)
    )


def difference(net: torch.nn.Module, folder: Path, size: tuple[int, int]) -> float:
    """Largest difference of ncnn to PyTorch at an LR size; not a number if it does not run."""
    runner = ncnn.Net()
    runner.opt.num_threads = 1
    runner.opt.use_vulkan_compute = False
    for halved in ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage'):
        setattr(runner.opt, halved, False)
    if runner.load_param(str(folder / 'net.ncnn.param')) or runner.load_model(str(folder / 'net.ncnn.bin')):
        return float('nan')
    image = sample(net, size, 3)
    extractor = runner.create_extractor()
    extractor.input('in0', ncnn.Mat(image[0].numpy()).clone())
    failed, out = extractor.extract('out0')
    with torch.no_grad():
        expected = net(image)[0]
    given = torch.from_numpy(np.array(out))
    return float('nan') if failed or given.shape != expected.shape else (given - expected).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--net', nargs='+', choices=NETS, default=list(NETS))
    parser.add_argument('--scale', type=int, choices=(2, 3, 4), default=4)
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    basicsr_effsr.register()
    table = Table(title=f'ncnn against PyTorch, float32, x{args.scale}, initial weights', title_justify='left')
    for name in ('network', 'largest difference at three sizes', 'pnnx'):
        table.add_column(name)
    for name in args.net:
        net = build({**NETS[name], 'upscale': args.scale}, None)
        with tempfile.TemporaryDirectory() as folder:
            complaints = converted(net, Path(folder))
            if complaints:  # layers that ncnn does not have are left in the file
                table.add_row(name, 'not converted whole', complaints)
                continue
            found = [difference(net, Path(folder), size) for size in (*sizes_for(net), (64, 40))]
            table.add_row(name, ', '.join(f'{value:.1e}' for value in found), 'converted without complaint')
        print(name, file=sys.stderr, flush=True)
    console = Console(width=118)
    console.print(
        f'Python {platform.python_version()}, torch {torch.__version__}, ncnn {version("ncnn")}, pnnx {version("pnnx")}'
    )
    console.print(table)


if __name__ == '__main__':
    main()
