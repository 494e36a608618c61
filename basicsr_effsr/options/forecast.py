"""What a run with an option file will do, in plain values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_effsr.options.check import inspected
from basicsr_effsr.options.context import Context, quiet
from basicsr_effsr.options.course import course_of
from basicsr_effsr.options.problem import Problem

if TYPE_CHECKING:
    from torch import nn

Options = Mapping[str, Any]


def forecast(opt: Any, is_train: bool, *, every_image: bool = False) -> tuple[list[Problem], dict[str, Any]]:
    """The problems of an option file, and in plain values what a run with it will do.

    Args:
        opt: as in the file.
        is_train: for training; False for testing.
        every_image: read the header of every image.

    Returns:
        the problems, and name -> value; what the problems make unknowable is left out.
    """
    context = inspected(opt, is_train, every_image=every_image)
    opt = context.opt
    if not opt:
        return context.found, {}
    will: dict[str, Any] = {'option file for': 'training' if is_train else 'testing'}
    for key, net in context.nets.items():
        if net is not None:
            with quiet():
                will |= _network_facts(key, net, opt)
    for phase, images in context.images.items():
        will[f'images, {phase}'] = images.count
    if is_train:
        will |= _training_facts(context, context.nets.get('network_g'))
    name = opt.get('name')
    folder = Path('experiments' if is_train else 'results') / str(name)
    if folder.exists():
        will['output'] = f'{folder} (exists: it will be renamed to {folder}_archived_..., unless the run is resumed)'
    else:
        will['output'] = str(folder)
    return context.found, will


def _network_facts(key: str, net: nn.Module, opt: Options) -> dict[str, Any]:
    from basicsr_effsr.utils.complexity import count_macs, count_params, lr_size_of_720p

    facts: dict[str, Any] = {f'{key}': type(net).__name__, f'{key}, parameters': count_params(net)}
    scale = opt.get('scale')
    if isinstance(scale, int):
        height, width = lr_size_of_720p(scale)
        channels = opt[key].get('num_in_ch', 3)
        try:
            macs = count_macs(net, (height, width), num_in_ch=channels).total
            facts[f'{key}, multiply-adds at {width}x{height}'] = macs
        except Exception:  # a foreign network that cannot be counted
            return facts
    return facts


def _training_facts(context: Context, net: nn.Module | None) -> dict[str, Any]:
    opt, train, data = context.opt, context.section('train'), context.section('datasets', 'train')
    facts: dict[str, Any] = {}
    batch, side = data.get('batch_size_per_gpu'), data.get('gt_size')
    course = course_of(context)
    if course is not None:
        facts |= {'iterations asked for': course.asked, 'iterations that will run': course.runs}
        facts |= {
            'patches per iteration': _by_stage(course.batches),
            'iterations per epoch': _by_stage(course.per_epoch),
            'epochs': course.epochs,
            'patches seen': course.patches,
        }
        for section, key, label in (
            ('val', 'val_freq', 'validations'),
            ('logger', 'save_checkpoint_freq', 'checkpoints'),
        ):
            freq = context.section(section).get(key)
            if isinstance(freq, int | float) and freq > 0:
                facts[label] = int(course.runs // freq)
    scale = opt.get('scale')
    teacher = None
    if 'distill' in getattr(context.model, 'train_keys', ()) and opt.get('network_t') is not None:
        teacher = context.nets.get('network_t')
        if teacher is None:
            return facts  # without the teacher the figure would be far too small
    if net is not None and isinstance(batch, int) and isinstance(side, int) and isinstance(scale, int):
        # a foreign network may make constants in its constructor or compute with values, and says nothing then
        with suppress(Exception), quiet():
            needed = _training_memory(opt, train, net, teacher, batch, side // scale)
            facts['estimated memory per GPU, MiB'] = round(needed / 2**20)
    return facts


def _by_stage(numbers: list[int]) -> int | list[int]:
    """The one number that holds for all stages, or all of them."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _training_memory(
    opt: Options, train: Options, net: nn.Module, teacher: nn.Module | None, batch: int, patch: int
) -> int:
    """Bytes of weights, gradients, Adam's two moments, the moving average, what backward needs, and the teacher."""
    from basicsr_effsr.utils.complexity import count_params, saved_for_backward

    parts = train.get('accumulate') or 1
    copies = 4 + bool(train.get('ema_decay'))
    channels = opt['network_g'].get('num_in_ch', 3)
    stages = [(batch, patch)]
    progressive = train.get('progressive')
    if isinstance(progressive, dict):
        sides = progressive['gt_size']
        batches = progressive.get('batch') or [batch] * len(sides)
        stages = [(b, s // opt['scale']) for b, s in zip(batches, sides, strict=True)]
    amp = train.get('amp') or None
    most = 0
    for samples, side in dict.fromkeys((max(b // parts, 1), side) for b, side in stages):
        needed = saved_for_backward(net, (side, side), batch=samples, num_in_ch=channels, amp=amp)
        if teacher is not None:
            needed += _teacher_memory(opt, train, teacher, samples, side)
        most = max(most, needed)
    return 4 * copies * count_params(net) + most


def _teacher_memory(opt: Options, train: Options, teacher: nn.Module, batch: int, side: int) -> int:
    """Bytes of the teacher's weights, and of its forward pass with the features that are kept."""
    import torch
    from torch import nn

    from basicsr_effsr.utils.complexity import peak_memory

    distill = train.get('distill') or {}
    names = set((distill.get('feature_pairs') or {}).values())

    class Asked(nn.Module):
        """The teacher as it is asked in training; the one image that ``peak_memory`` gives becomes a batch."""

        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(teacher)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            kept: list[Any] = []
            taps = [
                self.net.get_submodule(name).register_forward_hook(lambda _, __, output: kept.append(output))
                for name in names
            ]
            try:
                return self.net(image.repeat(batch, 1, 1, 1))
            finally:
                for tap in taps:
                    tap.remove()

    half = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(distill.get('teacher_dtype') or '')
    asked = Asked() if half is None else Asked().to(half)
    return peak_memory(asked, (side, side), num_in_ch=opt['network_t'].get('num_in_ch', 3))
