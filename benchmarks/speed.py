"""Cases of benchmarks.run: training steps and images against the plain form of each network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from basicsr_effsr.utils.memory import keep_freed_memory
from basicsr_effsr.utils.training import checkpoint_activations
from benchmarks.plain import plain
from benchmarks.side_by_side import NETS, Row, Settings, Step, inference_step, measure, peak_memory, profile

EAGER_STEP = {'HASN': 1.5, 'AGDN': 1.5, 'ASID': 1.3, 'EFRDN': 1.3, 'DPARN': 2.5}


def training_step(net: nn.Module, settings: Settings, *, options: bool = False, amp: bool = False) -> Step:
    """Forward pass, L1, backward pass and Adam on a batch of patches; ``options``: channels_last and one fused Adam."""
    layout = torch.channels_last if options else torch.contiguous_format
    net = net.train().to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=options)
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


def has_bf16() -> bool:
    """Whether the CPU multiplies in bf16; without it such a step takes ten times as long as in float32."""
    return 'bf16' in Path('/proc/cpuinfo').read_text()


def training(settings: Settings) -> Iterator[Row]:
    """The step and its peak of memory, eager and with the options of EffSRModel (bf16 where the CPU has it)."""
    for name in settings.nets:
        net = settings.build(name)
        steps = {
            'plain': training_step(plain(net), settings),
            'eager': training_step(settings.build(name), settings),
            'options': training_step(settings.build(name), settings, options=True, amp=has_bf16()),
        }
        ms = measure(steps, settings.device, settings.seconds)
        for form, target in (('eager', EAGER_STEP[name]), ('options', 1.8)):
            yield row('training step', f'{name}, {form}', ms['plain'], ms[form], target, steps[form], settings)
        mib = {form: peak_memory(steps[form], settings.device) for form in ('plain', 'eager')}
        yield Row('peak training memory', name, mib['plain'], mib['eager'], 'MiB', 1.0)


def checkpointing(settings: Settings) -> Iterator[Row]:
    """The step and its peak of memory without and with activation checkpointing."""
    for name in settings.nets:
        net = settings.build(name)
        checkpoint_activations(net)
        steps = {'usual': training_step(settings.build(name), settings), 'twice': training_step(net, settings)}
        mib = [peak_memory(step, settings.device) for step in steps.values()]
        yield Row('activation checkpointing', f'{name}, peak', *mib, 'MiB')
        ms = measure(steps, settings.device, settings.seconds)
        yield Row('activation checkpointing', f'{name}, step', ms['usual'], ms['twice'])


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


def allocator(settings: Settings) -> Iterator[Row]:
    """Our network in a process that keeps freed memory, as ``effsr`` does, and in one that does not."""
    for name in settings.nets:
        words = [sys.executable, '-m', 'benchmarks.speed', name, *map(str, settings.frame), str(settings.quick)]
        found: dict[str, list[float]] = {'keep': [], 'give': []}
        for how, times in found.items():
            done = subprocess.run([*words, how], capture_output=True, text=True, check=True)
            times.append(float(done.stdout.split()[-1]))
        yield Row('freed memory given back, kept', name, min(found['give']), min(found['keep']))


def windows(settings: Settings) -> Iterator[Row]:
    """AGDN at 640x360 LR: memory of the test-time windows."""
    if 'AGDN' in settings.nets:
        net = settings.build('AGDN').eval()
        lq = torch.rand(1, 3, *((36, 64) if settings.quick else (360, 640)), device=settings.device)
        mib = [peak_memory(inference_step(form, lq), settings.device) for form in (plain(net), net)]
        yield Row('peak memory of an image', f'AGDN with TLC, {lq.shape[2]}x{lq.shape[3]}', *mib, 'MiB', 2.0)


def options(settings: Settings, **train: Any) -> dict[str, Any]:
    """Of a model that trains the first network, as the host has parsed them."""
    name = settings.nets[0]
    return {
        'name': 'benchmark',
        'model_type': 'EffSRModel',
        'scale': 4,
        'num_gpu': int(settings.device == 'cuda'),
        'is_train': True,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'network_g': {'type': name, **(NETS[name] if settings.quick else {})},
        'path': {},
        'train': {
            'total_iter': 10_000,
            'optim_g': {'type': 'Adam', 'lr': 1e-4},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [9000]},
            'pixel_opt': {'type': 'L1Loss'},
            **train,
        },
    }


def model(settings: Settings) -> Iterator[Row]:
    """An iteration of EffSRModel, and what moving average, clipping, the guard and the log add, measured alone."""
    from basicsr.models import build_model

    side = settings.patch
    data = {'lq': torch.rand(settings.batch, 3, side, side), 'gt': torch.rand(settings.batch, 3, 4 * side, 4 * side)}
    bare = build_model(options(settings, max_nonfinite=0))
    guarded = build_model(options(settings, ema_decay=0.999, grad_clip=1.0))
    nothing = SimpleNamespace(param_groups=guarded.optimizer_g.param_groups, step=lambda: None)

    def iteration() -> None:
        bare.feed_data(data)
        bare.optimize_parameters(1)

    def guards() -> None:
        guarded.step.finish(nothing, guarded._terms, 1)
        guarded.model_ema(0.999)
        guarded.get_current_log()

    guarded.feed_data(data)
    guarded.optimize_parameters(1)
    ms = measure({'bare': iteration, 'guards': guards}, settings.device, settings.seconds)
    what = f'{settings.nets[0]}: average, clipping, log'
    yield row('iteration of EffSRModel', what, ms['bare'], ms['bare'] + ms['guards'], 0.97, guards, settings)


def distillation(settings: Settings) -> Iterator[Row]:
    """Parts of a distillation step of DPARN: student, teacher's forward pass, four pairs of features."""
    from basicsr.losses import build_loss
    from basicsr.utils.registry import ARCH_REGISTRY

    tiny = {'num_feat': 8, 'num_block': 1, 'num_heads': 2, 'window_size': 4, 'num_grow_ch': 4}
    teacher = ARCH_REGISTRY.get('DPARNTeacher')(**(tiny if settings.quick else {})).to(settings.device)
    size = settings.batch, settings.patch, settings.patch
    lq = torch.rand(size[0], 3, *size[1:], device=settings.device)
    fakd = build_loss({'type': 'FAKDLoss'})
    student, known = (torch.rand(size[0], c, *size[1:], device=settings.device) for c in (52, 96))
    steps = {
        'student, whole step': training_step(settings.build('DPARN'), settings),
        "teacher's forward pass": inference_step(teacher, lq),
        'FAKD of one pair, with gradient': lambda: fakd(student.requires_grad_(), known).backward(),
    }
    for part, ms in measure(steps, settings.device, settings.seconds).items():
        yield Row('parts of a distillation step', part, None, ms)


if __name__ == '__main__':  # one network in a process of its own, for ``allocator``
    name, rows, columns, quick, how = sys.argv[1:]
    if how == 'keep':
        keep_freed_memory()
    settings = Settings(quick=quick == 'True', frame=(int(rows), int(columns)))
    image = torch.rand(1, 3, *settings.frame)
    print(measure({name: inference_step(settings.build(name), image)}, seconds=3)[name])
