"""Cases of benchmarks.run: training steps and images against the plain form of each network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.plain import plain
from benchmarks.side_by_side import Row, Settings, Step, inference_step, measure, peak_memory, profile

EAGER_STEP = {'HASN': 1.5, 'AGDN': 1.5, 'ASID': 1.3, 'EFRDN': 1.3, 'DPARN': 2.5}


def training_step(net: nn.Module, settings: Settings, *, channels_last: bool = False, amp: bool = False) -> Step:
    """Forward pass, L1, backward pass and Adam on a batch of patches."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.train().to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    side, scale = settings.patch, net.upscale
    lq = torch.rand(settings.batch, 3, side, side, device=settings.device).contiguous(memory_format=layout)
    gt = torch.rand(settings.batch, 3, scale * side, scale * side, device=settings.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(settings.device, torch.bfloat16, enabled=amp):
            out = net(lq)
        F.l1_loss(out.float(), gt).backward()
        optimizer.step()

    return step


def row(case: str, what: str, plain: float, ours: float, target: float, step: Step, settings: Settings) -> Row:
    """With the profile where the target is missed."""
    found = Row(case, what, plain, ours, target=target)
    return found if found.verdict == 'reached' else replace(found, note=profile(step, settings.device))


def training(settings: Settings) -> Iterator[Row]:
    """The step and its peak of memory, eager and with the options of EffSRModel."""
    for name in settings.nets:
        net = settings.build(name)
        steps = {
            'plain': training_step(plain(net), settings),
            'eager': training_step(settings.build(name), settings),
            'options': training_step(settings.build(name), settings, channels_last=True, amp=True),
        }
        ms = measure(steps, settings.device, settings.seconds)
        for form, target in (('eager', EAGER_STEP[name]), ('options', 1.8)):
            yield row('training step', f'{name}, {form}', ms['plain'], ms[form], target, steps[form], settings)
        mib = {form: peak_memory(steps[form], settings.device) for form in ('plain', 'eager')}
        yield Row('peak training memory', name, mib['plain'], mib['eager'], 'MiB', 1.0)


def inference(settings: Settings) -> Iterator[Row]:
    """An image in eval mode, fused where the network fuses."""
    for name in settings.nets:
        net = settings.build(name).eval()
        ours: Any = net.fuse() if hasattr(net, 'fuse') else net
        lq = torch.rand(1, 3, *settings.frame, device=settings.device)
        steps = {'plain': inference_step(plain(net), lq), 'ours': inference_step(ours, lq)}
        ms = measure(steps, settings.device, settings.seconds)
        what = f'{name}, {settings.frame[0]}x{settings.frame[1]}'
        yield row('inference, eager', what, ms['plain'], ms['ours'], 1.5, steps['ours'], settings)


def windows(settings: Settings) -> Iterator[Row]:
    """AGDN at 640x360 LR: memory of the test-time windows."""
    if 'AGDN' in settings.nets:
        net = settings.build('AGDN').eval()
        lq = torch.rand(1, 3, *((36, 64) if settings.quick else (360, 640)), device=settings.device)
        mib = [peak_memory(inference_step(form, lq), settings.device) for form in (plain(net), net)]
        yield Row('peak memory of an image', f'AGDN with TLC, {lq.shape[2]}x{lq.shape[3]}', *mib, 'MiB', 2.0)
