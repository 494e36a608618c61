"""Cases of benchmarks.run: engines, 8 bits, a folder of small images."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
from basicsr_effsr.weights.export import run_onnx
from basicsr_effsr.weights.int8 import ends, quantised
from benchmarks.plain import plain
from benchmarks.side_by_side import Row, Settings, Step, inference_step, measure


def _fused(net: nn.Module) -> nn.Module:
    return net.eval().fuse() if hasattr(net, 'fuse') else net.eval()  # type: ignore[operator]


def _image(call: Computer, lq: torch.Tensor) -> Step:
    return torch.inference_mode()(lambda: call(lq))


@contextmanager
def _cache() -> Iterator[Path]:
    """A cache of exported files of its own, so that an export takes place once and nothing is found."""
    before = os.environ.get('EFFSR_CACHE')
    with tempfile.TemporaryDirectory() as room:
        os.environ['EFFSR_CACHE'] = room
        try:
            yield Path(room)
        finally:
            del os.environ['EFFSR_CACHE']
            if before is not None:
                os.environ['EFFSR_CACHE'] = before


def engines(settings: Settings) -> Iterator[Row]:
    """An image by each runtime that is installed, and in 8 bits by ONNX Runtime; an export takes up to 2 minutes."""
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(4)]
    for name in ('HASN', 'DPARN', 'AGDN', 'ASID', 'EFRDN'):
        if name not in settings.nets:
            continue
        net, lq = settings.build(name).eval(), torch.rand(1, 3, *settings.frame)
        with _cache() as room:
            found = {engine: engine_for(_fused(settings.build(name)), engine) for engine in installed()}
            file = b''.join(path.read_bytes() for path in room.rglob('*.onnx'))
        if 'onnxruntime' in found:
            call = run_onnx(quantised(file, images, keep=ends(file)), torch.get_num_threads())
            found['onnxruntime, int8'] = Computer('onnxruntime', call)
        steps = {'plain': inference_step(plain(net), lq)} | {
            engine: _image(computer, lq) for engine, computer in found.items()
        }
        ms = measure(steps, settings.device, settings.seconds)
        best = min(installed(), key=ms.__getitem__, default='')
        for engine, computer in found.items():
            target = (3.2 if name == 'HASN' else 2.5) if engine == best else None
            note = '' if computer.difference is None else f'largest difference to PyTorch {computer.difference:.1e}'
            yield Row('inference, engines', f'{name}, {engine}', ms['plain'], ms[engine], target=target, note=note)


def compiled(settings: Settings) -> Iterator[Row]:
    """An image by ``torch.compile``, which compiles for a minute and more."""
    for name in settings.nets:
        net, lq = settings.build(name).eval(), torch.rand(1, 3, *settings.frame)
        computer = engine_for(_fused(settings.build(name)), 'compile')
        steps = {'plain': inference_step(plain(net), lq), 'compile': _image(computer, lq)}
        ms = measure(steps, settings.device, settings.seconds)
        yield Row('inference, compiled', name, ms['plain'], ms['compile'])


def folder(settings: Settings) -> Iterator[Row]:
    """Images of 64x64 from files to files: in turn, overlapped, with an engine; overlapped against its slowest part.

    The plain road reads, computes in PyTorch and stores a PNG as Pillow does if told nothing, one after the other. The
    whole command, from its start on and with the export to an engine, takes 1,000 images.
    """
    count, many = (8, 8) if settings.quick else (20, 1000)
    if 'HASN' not in settings.nets:
        return
    with tempfile.TemporaryDirectory() as room, _cache():
        for i in range(many):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            (Path(room) / 'in').mkdir(exist_ok=True)
            Image.fromarray(imresize(pixels, scale=4)).save(Path(room) / 'in' / f'{i}.png')
        jobs = plan([f'{room}/in'], Path(room) / 'out', suffix='')[:count]
        net = settings.build('HASN').eval()
        forms = {'torch': Enlarger(net)} | {
            engine: Enlarger(net, engine=engine_for(net, engine)) for engine in installed()
        }
        pictures = [read(job.source) for job in jobs]
        made = [forms['torch'](picture)[0] for picture in pictures]

        def enlarge(form: str) -> None:
            for picture in pictures:
                forms[form](picture)

        def store() -> None:
            for job, picture in zip(jobs, made, strict=True):
                write_bytes(job.target, encode(picture, job.kind, 95), sync=True)

        def in_turn() -> None:
            for job in jobs:
                picture, _ = forms['torch'](read(job.source))
                file = io.BytesIO()
                Image.fromarray(picture.pixels).save(file, 'png')
                write_bytes(job.target, file.getbuffer(), sync=True)

        def side_by_side(form: str) -> None:
            list(enlarge_files(forms[form], jobs, quality=95, overwrite=True))

        steps: dict[str, Step] = {
            'in turn': in_turn,
            'read': lambda: [read(job.source) for job in jobs],
            'store': store,
        }
        for form in forms:
            steps |= {f'{form} alone': partial(enlarge, form), form: partial(side_by_side, form)}
        ms = measure(steps, seconds=0, least=1 if settings.quick else 2, most=3, by_clock=True)
        rate = {step: 1e3 * count / each for step, each in ms.items()}
        for form in forms:
            yield Row('folder of 64x64', f'HASN, {form}', rate['in turn'], rate[form], 'images/s')
        torch.save({'params': net.state_dict()}, f'{room}/net.pth')
        words = ['infer', f'{room}/in', '--weights', f'{room}/net.pth', '--out', f'{room}/command']
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'basicsr_effsr.cli', *words], capture_output=True, check=True)
        each = many / (time.perf_counter() - start)
        yield Row('folder of 64x64', f'effsr infer, {many} images', rate['in turn'], each, 'images/s', 2.0)
        for form in forms:
            parts = {part: rate[part] for part in ('read', 'store', f'{form} alone')}
            slowest = min(parts, key=parts.__getitem__)
            words = ', '.join(f'{part} {each:.0f}' for part, each in parts.items())
            what, note = f'{form}, against {slowest}', f'images/s alone: {words}'
            yield Row('folder, overlapped', what, parts[slowest], rate[form], 'images/s', 0.91, note)
