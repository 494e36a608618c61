"""Rules of the check on validation and testing: keys, metrics, tiles, images large enough."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from basicsr_effsr._registration import lookup
from basicsr_effsr.options import spec
from basicsr_effsr.options.context import Context, built_from
from basicsr_effsr.options.problem import Problem, warning
from basicsr_effsr.options.validate import validate


def section(context: Context) -> Iterator[Problem]:
    """The keys of ``val``."""
    val = context.opt.get('val')
    if not isinstance(val, dict):
        return
    own = hasattr(context.model, 'val_keys')
    read = getattr(context.model, 'val_keys', spec.HOST_VAL if context.model else spec.fields(spec.Val))
    unread = [key for key in spec.fields(spec.Val) if key not in read]
    host = context.opt.get('model_type') == 'SRModel'
    yield from validate('val', val, spec.Val, unread=unread, others=read, strict=own or host)
    if not context.is_train and val.get('save_img') and 'suffix' not in val and not own and context.fine('val.suffix'):
        yield Problem('val.suffix', 'is missing: BasicSR reads it when it saves images; null is a value')


def tile(context: Context) -> Iterator[Problem]:
    """Tiles against their overlap and the network's least input."""
    tile, net = context.section('val', 'tile'), context.nets.get('network_g')
    if 'size' not in tile or not context.fine('val.tile'):
        return
    side, overlap, halo = tile['size'], tile.get('overlap', 0), tile.get('blend') == 'halo'
    if overlap >= side and not halo:
        yield Problem('val.tile.overlap', f'must be less than size {side}, got {overlap}')
    # with halo the last tile keeps what is left of an image, one pixel or more
    least = getattr(net, 'min_size', 1)
    key, got, least_key = ('overlap', overlap, least - 1) if halo else ('size', side, least)
    if got < least_key:
        words = f'must be at least {least_key}, because {type(net).__name__} needs images of at least {least} x {least}'
        yield Problem(f'val.tile.{key}', f'{words} pixels, got {got}')


def presence(context: Context) -> Iterator[Problem]:
    """That what is validated or tested says how."""
    phases = _phases(context)
    if not isinstance(context.opt.get('val'), dict):
        if not context.is_train and context.fine('val'):
            yield Problem('val', 'is missing: it says what to measure and whether to save images')
        elif phases and context.fine('val'):
            yield warning('val', f'is missing, so {phases[0]} is never used')
    elif context.is_train and context.opt['val'].get('val_freq') is None and context.fine('val.val_freq'):
        yield Problem('val.val_freq', 'is missing: iterations between validations')


def metrics(context: Context) -> Iterator[Problem]:
    """Every metric by its signature, and what it needs of the images."""
    without = [
        phase
        for phase in _phases(context)
        if str(context.section('datasets', phase).get('type')).removesuffix('_basicsr') in spec.WITHOUT_HR
    ]
    for name, option in context.section('val', 'metrics').items():
        where = f'val.metrics.{name}'
        function = lookup('METRIC', option.get('type'))[0] if isinstance(option, dict) else None
        parameters = inspect.signature(function).parameters if function is not None else {}
        beside = spec.CroppedMetric if 'crop_border' in parameters else spec.Metric
        _, found = built_from(where, 'METRIC', option, beside=beside, skip=('img', 'img2'))
        yield from found
        if 'img2' in parameters and without:
            words = f'compares with HR images, which datasets.{without[0]} does not have; leave one of them out'
            yield Problem(where, words)
        if isinstance(option, dict) and isinstance(option.get('crop_border'), int):
            yield from _border(context, f'{where}.crop_border', option['crop_border'])


def _border(context: Context, where: str, border: int) -> Iterator[Problem]:
    scale = context.opt.get('scale')
    if not isinstance(scale, int):
        return
    for phase in _phases(context):
        images = context.images.get(phase)
        smallest = images.smallest_lq if images else None
        if smallest and 2 * border >= min(smallest) * scale:
            yield Problem(
                where,
                f'leaves nothing of an HR image of {smallest[1] * scale}x{smallest[0] * scale} in {phase}, got '
                f'{border}; papers crop {scale} pixels, the scale',
            )
            return
    if border != scale:
        yield warning(where, f'is {border}; papers crop {scale} pixels, the scale')


def least_input(context: Context) -> Iterator[Problem]:
    """Images against the network's least input."""
    net = context.nets.get('network_g')
    least = getattr(net, 'min_size', 1)
    for phase in _phases(context):
        images = context.images.get(phase)
        if images and images.smallest_lq and min(images.smallest_lq) < least:
            words = f'{type(net).__name__} needs LR images of at least {least} pixels a side, the smallest side is'
            yield Problem(f'datasets.{phase}.dataroot_lq', f'{words} {min(images.smallest_lq)}; leave the image out')


def _phases(context: Context) -> list[str]:
    return [str(phase) for phase in context.section('datasets') if not str(phase).startswith('train')]
