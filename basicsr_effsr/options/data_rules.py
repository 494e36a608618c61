"""Rules of the check on data sets: their keys, their images, and what networks ask of the size of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from basicsr_effsr._registration import derives_from_ours
from basicsr_effsr.data.pairs import Pair, check_patch, check_sizes, list_pairs, lmdbs_opened_twice, undecodable
from basicsr_effsr.options import spec
from basicsr_effsr.options.problem import Context, Problem, plain, warning
from basicsr_effsr.options.signatures import find
from basicsr_effsr.options.validate import missing, validate
from basicsr_effsr.utils.errors import near

FEW_PAIRS = 2000  # of folders with more only a sample of headers is read when a run is about to start, without --all
SAMPLED_PAIRS = 24
OF_PAIRS = ('type', 'filename_tmpl', 'io_backend', 'dataroot_gt', 'dataroot_lq', 'meta_info_file')


def is_paired(data: Any) -> bool:
    """True for the data sets whose options are known."""
    return isinstance(data, dict) and str(data.get('type')).removesuffix('_effsr') in spec.PAIRED


def phases(context: Context) -> Iterator[Problem]:
    """Which data sets there are, and that no two of validation or testing share a name."""
    if not context.fine('datasets'):
        return
    data_sets = context.section('datasets')
    wanted = ('train', 'val') if context.is_train else ('test', 'val')
    names: dict[Any, str] = {}
    for phase, data in data_sets.items():
        if str(phase).split('_')[0] not in wanted or (phase != 'train' and str(phase).startswith('train')):
            yield Problem(f'datasets.{phase}', f'must be one of {", ".join(wanted)}, val_2 ...')
        name = data.get('name') if isinstance(data, dict) and phase != 'train' else None
        if names.setdefault(name, str(phase)) != phase and name is not None:
            words = f'is that of datasets.{names[name]} too, got {name!r}; they would share scores and images'
            yield Problem(f'datasets.{phase}.name', words)
    if (context.is_train and 'train' not in data_sets) or not data_sets:
        yield Problem(f'datasets.{wanted[0]}', f'is missing: there is nothing to {wanted[0]}')
    if context.scale is None and context.fine('scale') and any(map(is_paired, data_sets.values())):
        yield Problem('scale', 'is missing: the factor between the sizes of HR and LR images')


def data_sets(context: Context) -> Iterator[Problem]:
    """The keys of every data set."""
    for phase, data in context.section('datasets').items():
        where, training = f'datasets.{phase}', phase == 'train'
        if not isinstance(data, dict):
            yield Problem(where, f'must be a section, got {plain(data)}')
            continue
        kind = data.get('type')
        cls, known = find('DATASET', kind)
        if cls is None:
            yield Problem(f'{where}.type', f'there is no data set {plain(kind)}; {near(kind, known)}')
            data.clear()  # its valid values are unknown
            continue
        if is_paired(data):
            yield from validate(where, data, spec.Dataset, others=spec.AT_RUN_TIME[spec.Dataset], strict=False)
            given = {key for key, value in data.items() if value is not None or key != 'io_backend'}
            for key in spec.needed_by(str(kind), training):
                if key not in given and context.fine(f'{where}.{key}'):
                    yield Problem(f'{where}.{key}', missing(spec.fields(spec.Dataset)[key].description or ''))
            mean = data.get('mean')
            if (mean is None) != (data.get('std') is None) and context.fine(f'{where}.mean', f'{where}.std'):
                yield Problem(f'{where}.mean', 'needs std beside it, and std needs mean; give both or neither')
            if data.get('uint8') and derives_from_ours(cls) and (data.get('color') == 'y' or mean is not None):
                yield Problem(f'{where}.uint8', 'cannot be combined with color, mean or std; drop one of them')
        if isinstance(data.get('io_backend'), dict) and cls.__module__.startswith(('basicsr.', 'basicsr_effsr.')):
            set_by_host = spec.AT_RUN_TIME[spec.IOBackend]
            yield from validate(f'{where}.io_backend', data['io_backend'], spec.IOBackend, others=set_by_host)
        if training and data.get('num_worker_per_gpu') and not data.get('persistent_workers'):
            cost = 'starts them again' if derives_from_ours(cls) else 'starts them again and repeats their draws'
            words = f'is not set with {data["num_worker_per_gpu"]} workers, so every epoch {cost}; set it to true'
            yield warning(f'{where}.persistent_workers', words)


def pairs(context: Context) -> Iterator[Problem]:
    """The images: pairs, sizes, and of validation that they can be decoded."""
    for where, message in lmdbs_opened_twice(context.section('datasets')):
        yield Problem(where, message)
    for phase, data in context.section('datasets').items():
        where = f'datasets.{phase}'
        if is_paired(data) and context.fine(*(f'{where}.{key}' for key in OF_PAIRS)):
            try:
                found = list_pairs(where, data)
                context.images[str(phase)] = len(found)
                _measure(context, str(phase), found)
            except (OSError, ValueError) as error:
                place, separator, rest = str(error).partition(': ')
                placed = separator and place.startswith('datasets.')
                yield Problem(place, rest) if placed else Problem(where, str(error))


def _measure(context: Context, phase: str, found: list[Pair]) -> None:
    """Learns the smallest LR image of a data set."""
    training, scale = phase == 'train', context.scale or 0
    every = context.every_image or not training or len(found) <= FEW_PAIRS or found[0].known is not None
    measured = []
    for pair in found[:: 1 if every else len(found) // SAMPLED_PAIRS] if scale else ():
        gt, lq = pair.sizes(scale)
        check_sizes(pair.gt, pair.lq, gt, lq, scale, training=training)
        measured.append((pair.lq if pair.lq != pair.gt else f'the LR image of {pair.gt}', lq))
    if not training:  # few images, each of which would stop the run in its first validation
        damaged = undecodable([file for pair in found if pair.known is None for file in {pair.gt: 0, pair.lq: 0}])
        if damaged:
            raise ValueError(damaged)
    if measured:
        context.smallest[phase] = min(measured, key=lambda image: min(image[1]))


def sizes(context: Context) -> Iterator[Problem]:
    """Patches against the images they are cut from; patches, images and tiles against the least input of networks."""
    data, scale = context.section('datasets', 'train'), context.scale
    asked = [  # (option, LR pixels a side that it gives)
        (f'datasets.{phase}.dataroot_lq', min(size))
        for phase, (_, size) in context.smallest.items()
        if phase != 'train'
    ]
    tile = context.section('val', 'tile')
    if tile.get('blend') == 'halo':  # the last tile keeps what is left of an image, one pixel or more
        asked.append(('val.tile.overlap', tile.get('overlap', 0) + 1))
    elif 'size' in tile:
        asked.append(('val.tile.size', tile['size']))
    if scale is not None and context.is_train:
        staged = context.section('train', 'progressive').get('gt_size')
        where = 'train.progressive.gt_size' if staged else 'datasets.train.gt_size'
        for side in staged or [data.get('gt_size')]:
            if not isinstance(side, int):  # none, or what a data set of others makes of it
                continue
            asked.append((where, side // scale))
            if side % scale:
                yield Problem(where, f'must be a multiple of scale {scale}, got {side}')
            elif 'train' in context.smallest:
                try:
                    check_patch(*context.smallest['train'], side, scale)
                except ValueError as error:
                    yield Problem(where, str(error))
    for where, pixels in asked:
        for key, net in context.nets.items():
            least = getattr(net, 'min_size', 1)
            if pixels < least and (key == 'network_g' or 'gt_size' in where):
                words = f'gives {type(net).__name__} ({key}) images of {pixels} LR pixels a side'
                yield Problem(where, f'{words}, and it needs {least}')
