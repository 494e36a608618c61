"""HR and LR images that belong together: one rule for training, validation, the check and the commands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import PackSet, folder_order
from basicsr_effsr.imaging.header import any_size
from basicsr_effsr.imaging.picture import decode, size_to_train_on
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.files import read_regular, read_text

Options = Mapping[str, Any]
Size = tuple[int, int]  # (H, W)
ROOTS = ('dataroot_gt', 'dataroot_lq')
BICUBIC = 'bicubic'  # as dataroot_lq: the LR images are made of the HR images


@dataclass(frozen=True)
class Pair:
    """An HR and an LR image by name, and how to learn their sizes without decoding them."""

    gt: str
    lq: str
    known: tuple[Size, Size] | None = None

    def sizes(self, scale: int) -> tuple[Size, Size]:
        """(H, W) of both; of an HR image of which the LR image is made, that of its part that counts.

        Raises:
            ValueError: one is missing or no image; the message names it.
        """
        if self.known:
            return self.known
        gt = image_size(self.gt)
        if self.gt != self.lq:
            return gt, image_size(self.lq)
        height, width = (side // scale for side in gt)
        if not height or not width:
            raise ValueError(
                f'{self.gt} ({gt[1]}x{gt[0]}) must be at least {scale} pixels wide and high to be downscaled'
            )
        return (height * scale, width * scale), (height, width)


def image_size(path: str) -> Size:
    """(H, W) of what the data sets read, from the header of an image where that is enough.

    Raises:
        ValueError: the file is missing, cut off, no image, or none to train on.
    """
    try:
        return size_to_train_on(path)
    except FileNotFoundError as error:
        raise ValueError(f'{path} does not exist; check meta_info_file and filename_tmpl') from error


def undecodable(files: list[str]) -> str:
    """The first of the files that the data sets cannot read, in words; empty if they can. Uses several threads."""

    def fault(path: str) -> str:
        try:
            decode(read_regular(path), path)
        except (OSError, ValueError) as error:
            return one_line(error)
        return ''

    with any_size(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        return next(filter(None, threads.map(fault, files)), '')


def check_sizes(
    gt: str, lq: str, gt_size: Sequence[int], lq_size: Sequence[int], scale: int, *, training: bool
) -> None:
    """Checks that HR is ``scale`` times LR; outside training up to ``scale - 1`` pixels more, which are cropped off.

    ``gt`` and ``lq`` are what the message calls the images; sizes are (H, W).

    Raises:
        ValueError: it does not fit.
    """
    most = 0 if training else scale - 1
    if all(0 <= large - scale * small <= most for large, small in zip(gt_size, lq_size, strict=True)):
        return
    tolerated = f', or up to {most} pixels more' if most else ''
    raise ValueError(
        f'{gt} ({gt_size[1]}x{gt_size[0]}) must be {scale} times the size of {lq} ({lq_size[1]}x{lq_size[0]})'
        f'{tolerated}; it is {gt_size[1] / lq_size[1]:.3g} times as wide and {gt_size[0] / lq_size[0]:.3g} times as '
        'high; check scale and the folder'
    )


def check_patch(lq: str, lq_size: Sequence[int], gt_size: int, scale: int) -> None:
    """Checks that an LR image, called ``lq``, is as large as the LR patch.

    Raises:
        ValueError: it is smaller.
    """
    patch = gt_size // scale
    if min(lq_size) < patch:
        raise ValueError(
            f'{lq} ({lq_size[1]}x{lq_size[0]}) must be at least {patch} pixels wide and high for gt_size {gt_size}; '
            'lower gt_size or leave the image out'
        )


class Matched(NamedTuple):
    """Names that belong together, and those that are left over."""

    pairs: list[tuple[str, str]]  # (HR, LR) in the order of HR
    lonely: list[tuple[str, str]]  # (HR, its LR that is not there)
    surplus: list[str]  # LR without HR


def match(gt: Iterable[str], lq: Collection[str], partner: Callable[[str], str]) -> Matched:
    """Pairs the names of HR with those of LR, which ``partner`` gives for a name of HR."""
    wanted, there = [(name, partner(name)) for name in gt], set(lq)
    pairs, lonely = ([pair for pair in wanted if (pair[1] in there) is found] for found in (True, False))
    return Matched(pairs, lonely, sorted(there.difference(name for _, name in wanted)))


def is_packed(data: Options) -> bool:
    """Whether a data set reads packs."""
    return 'Packed' in str(data.get('type'))


def is_lmdb(data: Options) -> bool:
    """Whether a data set reads LMDBs."""
    stored = data.get('io_backend')
    return not is_packed(data) and isinstance(stored, Mapping) and stored.get('type') == 'lmdb'


def _is_hosts(data: Options) -> bool:
    return str(data.get('type')).removesuffix('_effsr') == 'PairedImageDataset'


def list_pairs(where: str, data: Options) -> list[Pair]:
    """The pairs of a data set, in its order, from folders, LMDBs or packs.

    HR ``x.png`` belongs to LR ``filename_tmpl.format('x').png``; LMDBs and packs have the same names without suffix.
    A ``meta_info_file`` chooses images and their order; without one all are taken, of which there must be as many LR
    as HR, in the order of BasicSR: sorted as files are. Where LR images are made of HR images both have one name.

    Args:
        where: the data set's place in the options, for messages.
        data: its options, with ``type``; of BasicSR's own data set what that does not read is refused.

    Raises:
        OSError, ValueError: something is missing; the message begins with the place of the option.
    """
    if data.get('dataroot_lq') == BICUBIC:
        if is_packed(data) or is_lmdb(data) or _is_hosts(data):
            raise ValueError(
                f'{where}.dataroot_lq: bicubic needs EffSRPairedDataset, HR images in a folder and '
                'io_backend.type: disk; use that, or name LR images'
            )
        gt = _root(data, 'dataroot_gt')
        names = _pairs_of_names(where, data, _names_in(where, gt, 'dataroot_gt'), None)
        return [Pair(str(gt / name), str(gt / name)) for name, _ in names]
    if is_packed(data):
        return pairs_in_packs(where, data, *(open_packs(where, data, key) for key in ROOTS))
    if is_lmdb(data):
        return _pairs_in_lmdbs(where, data)
    roots = {key: _root(data, key) for key in ROOTS}
    there = [_names_in(where, folder, key) for key, folder in roots.items()]
    gt, lq = roots.values()
    return [Pair(str(gt / name), str(lq / lq_name)) for name, lq_name in _pairs_of_names(where, data, *there)]


def _root(data: Options, key: str) -> Path:
    return Path(str(data.get(key))).expanduser()


def _pairs_of_names(
    where: str, data: Options, gt: Collection[str], lq: Collection[str] | None
) -> list[tuple[str, str]]:
    """Those of all names that belong together, of files with suffix or of entries without, in the order of ``gt``.

    Without names of LR images each of ``gt`` belongs to itself.
    """
    in_folder = not (is_packed(data) or is_lmdb(data))
    template = data.get('filename_tmpl', '{}')
    if template is None and not _is_hosts(data):
        template = '{}'
    if not isinstance(template, str):
        raise ValueError(f'{where}.filename_tmpl: must be a string with {{}} for the HR stem, got {template!r}')
    check_file_template(f'{where}.filename_tmpl:', template)

    def partner(name: str) -> str:
        stem, suffix = os.path.splitext(os.path.basename(name)) if in_folder else (name, '')
        return f'{template.format(stem)}{suffix}'

    gt_root, lq_root = (_root(data, key) for key in ROOTS)
    meta = _named(where, data)
    if meta is not None:
        gt = _chosen(f'{where}.meta_info_file', meta, gt, gt_root, in_folder)
    if not gt:
        raise ValueError(f'{where}.dataroot_gt: {gt_root} holds no image')
    if lq is None:
        return [(name, name) for name in gt]
    found = match(gt, lq, partner)
    if found.lonely:
        name, lq_name = found.lonely[0]
        option = 'dataroot_lq' if meta is None else 'meta_info_file'
        line = '' if meta is None else f' of line {meta[1].get(name) or meta[1].get(f"{name}.png")} of {meta[0]}'
        raise FileNotFoundError(
            f'{where}.{option}: {lq_root / lq_name} does not exist, the partner of {gt_root / name}{line} '
            f'({len(gt)} HR and {len(lq)} LR images); check filename_tmpl, or make the LR images again'
        )
    if found.surplus and meta is None:
        raise ValueError(
            f'{where}.dataroot_lq: {gt_root} holds {len(gt)} HR and {lq_root} {len(lq)} LR images, '
            f'{found.surplus[0]} among them without HR; remove the surplus images'
        )
    return found.pairs


def _filled(template: str, *stems: str, **scale: str) -> str:
    """The template with its fields filled; empty when it has others."""
    try:
        return template.format(*stems, **scale)
    except (ValueError, LookupError, AttributeError):
        return ''


def check_file_template(option: str, template: str, *, scale: bool = False) -> None:
    """Checks that ``template.format(stem)`` is a file name of its own for every stem of an HR file.

    Raises:
        ValueError: it is something else; ``option`` is what the message calls it.
    """
    if '\1stem\2' not in _filled(template, '\1stem\2', **({'scale': '4'} if scale else {})):
        more = ' and may hold {scale}' if scale else ''
        raise ValueError(f'{option} must hold {{}} for the HR stem{more}, got {template!r}')
    if any(sign in template for sign in '/\\\0'):
        raise ValueError(f'{option} must give a plain file name, without a folder, got {template!r}')


def check_folder_template(option: str, template: str, *, several: bool) -> None:
    """Checks that ``template.format(scale=...)`` is a folder of its own for every scale; for one a plain name will do.

    Raises:
        ValueError: it is something else, or leads out of the folder it is used in.
    """
    filled = _filled(template, scale='\1')
    if not filled or ('\1' not in filled and several):
        raise ValueError(f'{option} must hold {{scale}}, got {template!r}')
    path = PurePath(template)
    if path.is_absolute() or '..' in path.parts or '\0' in template:
        raise ValueError(f'{option} must stay below the folder of the output, got {template!r}')


def _named(where: str, data: Options) -> tuple[Path, dict[str, int]] | None:
    """The meta-info file and the names in it, with the numbers of their lines; None without one."""
    meta, hosts = data.get('meta_info_file'), _is_hosts(data)
    if meta is None or (not meta and not hosts):
        return None
    where = f'{where}.meta_info_file'
    file = Path(str(meta)) if hosts else Path(str(meta)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'{where}: {file} does not exist; see effsr prepare meta-info')
    text = _at(where, read_text, file)
    names: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix('\ufeff').split('\n'), 1):
        name = re.split(r'[ \t]', line.strip(), maxsplit=1)[0]
        if name in names:
            raise ValueError(f'{where}: line {number} of {file} names {name} again, as line {names[name]}; remove one')
        if name:
            names[name] = number
    if not names:
        raise ValueError(f'{where}: {file} names no image')
    if hosts and [line.strip().split(' ')[0] for line in text.removesuffix('\n').split('\n')] != list(names):
        raise ValueError(
            f'{where}: BasicSR takes byte-order marks, tabs and empty lines of {file} for names; save it without them, '
            'or use EffSRPairedDataset'
        )
    return file, names


def _chosen(
    where: str, meta: tuple[Path, dict[str, int]], there: Collection[str], root: Path, in_folder: bool
) -> list[str]:
    """Those of the names that the meta-info file names, in its order; LMDBs and packs have them without suffix."""
    file, numbers = meta
    chosen: dict[str, str] = {}
    for line, number in numbers.items():
        name = line if in_folder else os.path.splitext(os.path.basename(line))[0]
        if name not in there and not (in_folder and (root / name).is_file()):  # which may lie in a folder below
            raise FileNotFoundError(
                f'{where}: line {number} of {file} names {line}, and {root} has no {name!r}; correct the line, or '
                'dataroot_gt'
            )
        if name in chosen:
            raise ValueError(f'{where}: {file} names {chosen[name]} and {line}, which are the same image in {root}')
        chosen[name] = line
    return list(chosen)


def _names_in(where: str, folder: Path, key: str) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{where}.{key}: the folder {folder} does not exist; prepare the data or correct the path'
        )
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_file()) for e in entries if not e.name.startswith('.') and not e.is_dir())
    for name, regular in found:
        if not regular:
            raise ValueError(f'{where}.{key}: {folder / name} is a pipe, a device or a broken link; remove it')
    return [name for name, _ in found]


def lmdbs_opened_twice(datasets: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(place, message) of every LMDB that one process would open a second time, which LMDB forbids.

    Our own data sets share what is open (``data.lmdbs``); those of others open for themselves, also beside us. Workers
    inherit what is open when they start, so only those that stay from epoch to epoch are apart from validation.
    """
    found: list[tuple[str, str]] = []
    first: dict[str, tuple[str, bool]] = {}
    for phase, data in datasets.items():
        if not isinstance(data, Mapping) or not is_lmdb(data):
            continue
        if str(phase).startswith('train') and data.get('num_worker_per_gpu') and data.get('persistent_workers'):
            continue
        shares = 'EffSR' in str(data.get('type'))
        for key in (key for key in ROOTS if data.get(key) is not None):
            path, place = os.path.realpath(_root(data, key)), f'datasets.{phase}.{key}'
            other, other_shares = first.setdefault(path, (place, shares))
            if other != place and not (shares and other_shares):
                found.append(
                    (place, f'{path} is also opened by {other}, which LMDB does not allow; use EffSRPairedDataset')
                )
    return found


def _pairs_in_lmdbs(where: str, data: Options) -> list[Pair]:
    if _is_hosts(data):
        for option, neutral in (('meta_info_file', None), ('filename_tmpl', '{}')):
            if data.get(option) not in (None, neutral):
                raise ValueError(
                    f'{where}.{option}: PairedImageDataset ignores it for an LMDB; remove it, or use EffSRPairedDataset'
                )
    sizes = []
    for key in ROOTS:
        if _root(data, key).suffix != '.lmdb':
            raise ValueError(f'{where}.{key}: the name of an LMDB must end in .lmdb, got {_root(data, key)}')
        sizes.append(_at(f'{where}.{key}', lmdbs.shapes, _root(data, key)))
    gt, lq = sizes
    pairs = _pairs_of_names(where, data, sorted(gt, key=folder_order), lq)
    return [Pair(name, lq_name, (gt[name][:2], lq[lq_name][:2])) for name, lq_name in pairs]


def _at(where: str, read: Callable[[Path], Any], path: Path) -> Any:
    """``read(path)``, whose errors begin with the place of the option."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise type(error)(f'{where}: {error}') from error


def open_packs(where: str, data: Options, key: str) -> PackSet:
    """The packs of ``data[key]``.

    Raises:
        OSError, ValueError: there is none, or it is damaged; the message begins with the place of the option.
    """
    return _at(f'{where}.{key}', PackSet, _root(data, key))


def pairs_in_packs(where: str, data: Options, gt: PackSet, lq: PackSet) -> list[Pair]:
    """:func:`list_pairs` of packs that are open."""
    pairs = _pairs_of_names(where, data, sorted(gt.where, key=folder_order), lq.where)
    return [Pair(name, lq_name, (gt.size(name), lq.size(lq_name))) for name, lq_name in pairs]
