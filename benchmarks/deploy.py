"""Cases of benchmarks.run: the best engine, a folder of small images, and 8 bits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.imaging.enlarge_files import enlarge_files, plan
from basicsr_effsr.imaging.enlarger import Enlarger
from basicsr_effsr.imaging.picture import encode, read
from basicsr_effsr.utils.files import write_bytes
from basicsr_effsr.weights.engines import Computer, engine_for, installed
from basicsr_effsr.weights.export import run_onnx, write_onnx
from basicsr_effsr.weights.int8 import ends, quantised
from benchmarks.plain import plain
from benchmarks.side_by_side import Row, Settings, Step, inference_step, measure


def _fused(net: nn.Module) -> nn.Module:
    return net.eval().fuse() if hasattr(net, 'fuse') else net.eval()  # type: ignore[operator]


def _image(call: Computer, lq: torch.Tensor) -> Step:
    return torch.inference_mode()(lambda: call(lq))


def engines(settings: Settings) -> Iterator[Row]:
    """An image by each engine that is installed; an export takes from 5 s (DPARN) to 2 minutes (EFRDN)."""
    for name in settings.nets:
        net = settings.build(name).eval()
        lq = torch.rand(1, 3, *settings.frame)
        found = {engine: engine_for(_fused(settings.build(name)), engine, keep=False) for engine in installed()}
        steps = {'plain': inference_step(plain(net), lq)} | {
            engine: _image(computer, lq) for engine, computer in found.items()
        }
        ms = measure(steps, settings.device, settings.seconds)
        best = min(found, key=ms.__getitem__, default='')
        for engine, computer in found.items():
            target = (3.2 if name == 'HASN' else 2.5) if engine == best else None
            note = f'largest difference to PyTorch {computer.difference:.1e}'
            yield Row('inference, engines', f'{name}, {engine}', ms['plain'], ms[engine], target=target, note=note)


def folder(settings: Settings) -> Iterator[Row]:
    """Images of 64x64 from files to files, by the clock: read, enlarge, write in turn; side by side; with an engine."""
    count = 8 if settings.quick else 100
    if 'HASN' not in settings.nets:
        return
    with tempfile.TemporaryDirectory() as room:
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            (Path(room) / 'in').mkdir(exist_ok=True)
            Image.fromarray(imresize(pixels, scale=4)).save(Path(room) / 'in' / f'{i}.png')
        jobs = plan([f'{room}/in'], Path(room) / 'out', suffix='')
        net = settings.build('HASN').eval()
        forms = {'torch': Enlarger(net)} | {
            engine: Enlarger(net, engine=engine_for(net, engine, keep=False)) for engine in installed()
        }

        def in_turn() -> None:
            for job in jobs:
                made, _ = forms['torch'](read(job.source))
                write_bytes(job.target, encode(made, job.kind, 95), sync=True)

        def side_by_side(form: str) -> None:
            list(enlarge_files(forms[form], jobs, quality=95, overwrite=True))

        rate: dict[str, list[float]] = {'in turn': [], **{form: [] for form in forms}}
        for _ in range(1 if settings.quick else 3):
            for form, seen in rate.items():
                start = time.perf_counter()
                in_turn() if form == 'in turn' else side_by_side(form)
                seen.append(count / (time.perf_counter() - start))
        middle = {form: sorted(seen)[len(seen) // 2] for form, seen in rate.items()}
        best = max(forms, key=middle.__getitem__)
        for form in forms:
            row = Row('folder of 64x64', f'HASN, {form}', middle['in turn'], middle[form], 'images/s')
            yield replace(row, target=2.0) if form == best else row


def int8(settings: Settings) -> Iterator[Row]:
    """An image by ONNX Runtime in float32 and in 8 bits; scores are in docs/tools.md, by ``effsr export --int8``."""
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(4)]
    for name in settings.nets:
        file = write_onnx(_fused(settings.build(name)), 3, {}, half=False)
        lq = torch.rand(1, 3, *settings.frame)
        forms = {'float32': run_onnx(file), 'int8': run_onnx(quantised(file, images, keep=ends(file)))}
        steps = {form: _image(Computer(form, call), lq) for form, call in forms.items()}
        ms = measure(steps, 'cpu', settings.seconds)
        yield Row('int8 against float32', name, ms['float32'], ms['int8'])
