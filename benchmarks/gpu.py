"""Everything that needs a GPU, in under 20 minutes: steps, images, loaders, FAKD, a folder, the tests marked gpu.

"Plain" is our network in eager float32, the other figure that of the named form. Which kernels take the time of a step
stands below the table of the steps. Prints, and writes Markdown and JSON.

Run: python -m benchmarks.gpu [--net HASN ...]
     python -m benchmarks.gpu --device cpu --quick     (tiny, to see that it runs)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks import data
from benchmarks.fakd_memory import definition
from benchmarks.side_by_side import NETS, Case, Row, Settings, facts, measure, peak_memory, profile, run, write
from datasets_prep.files import list_images
from datasets_prep.sample import write_sample

MINUTES = 18  # after which nothing new begins
FORMS: dict[str, dict[str, Any]] = {
    'float32': {},
    'TF32': {'tf32': True},
    'bf16': {'dtype': torch.bfloat16},
    'bf16, channels-last': {'dtype': torch.bfloat16, 'channels_last': True},
    'bf16, channels-last, compiled': {'dtype': torch.bfloat16, 'channels_last': True, 'compiled': True},
}


def forms(settings: Settings) -> dict[str, dict[str, Any]]:
    return {name: how for name, how in FORMS.items() if not (settings.quick and how.get('compiled'))}


def formed(net: nn.Module, how: dict[str, Any], device: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], Any]:
    """The network as a call, and the layout of its input."""
    layout = torch.channels_last if how.get('channels_last') else torch.contiguous_format
    net = net.to(memory_format=layout)
    called: Any = torch.compile(net, dynamic=False) if how.get('compiled') else net
    dtype = how.get('dtype')

    def call(lq: torch.Tensor) -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(how.get('tf32'))
        casting: AbstractContextManager = torch.autocast(device, dtype) if dtype else nullcontext()
        with casting:
            return called(lq).float()

    return call, layout


def compared(case: str, what: str, made: Callable[[dict[str, Any]], Callable], settings: Settings) -> Iterator[Row]:
    """A row for every form; what does not fit the memory is said."""
    steps: dict[str, Callable] = {}
    for form, how in forms(settings).items():
        try:
            steps[form] = made(how)
            steps[form]()
        except torch.OutOfMemoryError:
            steps.pop(form)
            torch.cuda.empty_cache()
            print(f'{case}, {what}, {form}: more memory than there is', flush=True)
    if not steps:
        return
    ms = measure(steps, settings.device, settings.seconds)
    first = next(iter(steps))
    for form, step in steps.items():
        mib = peak_memory(step, settings.device)
        yield Row(case, f'{what}, {form}', ms[first], ms[form], note=f'peak {mib:.0f} MiB')


def steps(settings: Settings) -> Iterator[Row]:
    """Training steps at three batch sizes, and the kernels of the smallest."""
    for name in settings.nets:
        for batch in (1,) if settings.quick else (16, 64, 128):

            def made(how: dict[str, Any], name: str = name, batch: int = batch) -> Callable[[], None]:
                net = settings.build(name).train()
                optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
                call, layout = formed(net, how, settings.device)
                side = settings.patch
                lq = torch.rand(batch, 3, side, side, device=settings.device).contiguous(memory_format=layout)
                gt = torch.rand(batch, 3, 4 * side, 4 * side, device=settings.device)

                def step() -> None:
                    optimizer.zero_grad()
                    F.l1_loss(call(lq), gt).backward()
                    optimizer.step()

                return step

            found = compared('training step', f'{name}, batch {batch}', made, settings)
            for place, row in enumerate(found):
                first = batch in (1, 16) and place == 0
                kernels = f'; kernels: {profile(made({}), settings.device)}' if first else ''
                yield replace(row, note=row.note + kernels)


def images(settings: Settings) -> Iterator[Row]:
    """One image in eval mode, fused where the network fuses."""
    for height, width in ((20, 26),) if settings.quick else ((256, 256), (720, 1280), (1080, 1920)):
        for name in settings.nets:

            def made(how: dict[str, Any], name: str = name, size: tuple[int, int] = (height, width)) -> Callable:
                net: Any = settings.build(name).eval()
                call, layout = formed(net.fuse() if hasattr(net, 'fuse') else net, how, settings.device)
                lq = torch.rand(1, 3, *size, device=settings.device).contiguous(memory_format=layout)
                return torch.inference_mode()(lambda: call(lq))

            yield from compared('image', f'{name}, {height}x{width}', made, settings)


def affinities(settings: Settings) -> Iterator[Row]:
    """FAKD of one pair with its gradient; the definition where its matrices fit."""
    from basicsr.losses import build_loss

    batch, side = (2, 8) if settings.quick else (16, 96)
    student, teacher = (torch.rand(batch, c, side, side, device=settings.device) for c in (52, 96))
    ways = {'plain': definition, 'ours': build_loss({'type': 'FAKDLoss'})}
    found: dict[str, tuple[float, float]] = {}
    for way, loss in ways.items():

        def step(loss: Callable = loss) -> None:
            student.grad = None
            loss(student.requires_grad_(), teacher).backward()

        try:
            found[way] = (
                measure({way: step}, settings.device, settings.seconds)[way],
                peak_memory(step, settings.device),
            )
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    for place, unit in enumerate(('ms', 'MiB')):
        plain = found['plain'][place] if 'plain' in found else None
        yield Row('FAKD against its definition', f'{batch}x{side}x{side}', plain, found['ours'][place], unit)


def loaders(settings: Settings) -> Iterator[Row]:
    """Images per second that reach the device; "plain" is BasicSR's folder."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_sample(work / 'sample')
        data.build(list_images(work / 'sample' / 'train' / 'HR'), work, workers=1 if settings.quick else 8)
        batch, workers = (2, 0) if settings.quick else (64, 8)
        first = None
        for name, dataset in data.data_sets(work).items():
            order = torch.arange(batch * (2 if settings.quick else 60)) % len(dataset)  # type: ignore[arg-type]
            chosen = torch.utils.data.Subset(dataset, order.tolist())
            batches = iter(DataLoader(chosen, batch, num_workers=workers, pin_memory=settings.device == 'cuda'))
            next(batches)  # the start of the workers is not counted
            start, count = time.perf_counter(), 0
            for item in batches:
                count += len(item['lq'].to(settings.device, non_blocking=True))
                item['gt'].to(settings.device, non_blocking=True)
            if settings.device == 'cuda':
                torch.cuda.synchronize()
            rate = count / (time.perf_counter() - start)
            first = rate if first is None else first
            yield Row('loader', name, first, rate, 'images/s')


def folder(settings: Settings) -> Iterator[Row]:
    """1,000 images of 64x64 through ``effsr infer``, start of the program included."""
    import cv2
    import numpy as np

    count = 2 if settings.quick else 1000
    with tempfile.TemporaryDirectory() as name:
        work, net = Path(name), settings.build('HASN')
        (work / 'in').mkdir()
        for i in range(count):
            cv2.imwrite(str(work / 'in' / f'{i}.png'), np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8))
        torch.save({'params': net.cpu().state_dict()}, work / 'net.pth')
        words = [sys.executable, '-m', 'basicsr_effsr.cli', 'infer', str(work / 'in'), '--out', str(work / 'out')]
        start = time.perf_counter()
        subprocess.run([*words, '--weights', str(work / 'net.pth'), '--device', settings.device], check=True)
        yield Row('folder', f'{count} of 64x64', None, count / (time.perf_counter() - start), 'images/s')


def tests(settings: Settings) -> Iterator[Row]:
    """Those marked gpu; minutes, and how it ended."""
    if settings.device != 'cuda':
        return
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '0', '-m', 'gpu'], capture_output=True, text=True
    )
    last = (done.stdout.strip().splitlines() or ['no output'])[-1]
    yield Row('tests marked gpu', 'all', None, (time.perf_counter() - start) * 1e3, note=last)


CASES: dict[str, Case] = {
    'tests': tests,
    'steps': steps,
    'images': images,
    'affinities': affinities,
    'loaders': loaders,
    'folder': folder,
}


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('case', nargs='*', help=f'of {", ".join(CASES)}; default: all')
    parser.add_argument('--net', nargs='+', choices=NETS, default=list(NETS))
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='tiny networks and images, to see that it runs')
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/gpu'), help='without its ending')
    args = parser.parse_args(argv)
    if unknown := set(args.case) - set(CASES):
        parser.error(f'there is no case {" ".join(sorted(unknown))}; there are {", ".join(CASES)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no CUDA device here; run it where there is one, or with --device cpu --quick')
    if args.device == 'cpu' and not args.quick:
        parser.error('on a CPU it runs as a check only, add --quick; python -m benchmarks.run measures CPUs')
    settings = Settings(tuple(args.net), args.quick, args.device, seconds=0 if args.quick else 2.0)
    if args.quick:
        settings = replace(settings, patch=18)
    chosen = {name: CASES[name] for name in args.case or CASES}
    rows = list(run(chosen, settings, until=time.monotonic() + 60 * MINUTES))
    write(rows, facts(args.device), 'python -m benchmarks.gpu', args.out)
    return rows


if __name__ == '__main__':
    main()
