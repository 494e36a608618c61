"""HR and LR images that belong together: one rule for training, validation, the check and the commands."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr_effsr.data.packs import PackSet, folder_order
from basicsr_effsr.data.templates import check_file_template
from basicsr_effsr.utils.errors import one_line

Options = Mapping[str, Any]
Size = tuple[int, int]  # (H, W)
ROOTS = ('dataroot_gt', 'dataroot_lq')


@dataclass(frozen=True)
class Pair:
    """An HR and an LR image by name, and how to learn their sizes without decoding them."""

    gt: str
    lq: str
    known: tuple[Size, Size] | None = None

    def sizes(self) -> tuple[Size, Size]:
        """(H, W) of both.

        Raises:
            ValueError: one is missing or no image; the message names it.
        """
        return self.known or (image_size(self.gt), image_size(self.lq))


def image_size(path: str) -> Size:
    """(H, W) of what the data sets read, from the header of an image where that is enough.

    Raises:
        ValueError: the file is missing, cut off, no image, or none to train on.
    """
    from basicsr_effsr.imaging.decode import size_to_train_on

    try:
        return size_to_train_on(path)
    except FileNotFoundError as error:
        raise ValueError(f'{path} does not exist; check meta_info_file and filename_tmpl') from error


def undecodable(files: list[str]) -> str:
    """The first of the files that the data sets cannot read, in words; empty if they can. Uses several threads."""
    from concurrent.futures import ThreadPoolExecutor

    from basicsr_effsr.imaging.decode import decode
    from basicsr_effsr.imaging.header import any_size

    def fault(path: str) -> str:
        try:
            decode(Path(path).read_bytes(), path)
        except (OSError, ValueError) as error:
            return one_line(error)
        return ''

    with warnings.catch_warnings(), any_size(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        warnings.simplefilter('ignore')
        return next(filter(None, threads.map(fault, files)), '')


def check_sizes(
    gt: str, lq: str, gt_size: Sequence[int], lq_size: Sequence[int], scale: int, *, training: bool
) -> None:
    """Checks that HR is ``scale`` times LR; outside training up to ``scale - 1`` pixels more, which are cropped off.

    Args:
        gt: what the message calls the HR image.
        lq: what it calls the LR image.
        gt_size: (H, W).
        lq_size: (H, W).
        scale: the factor.
        training: whether HR must fit exactly.

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


@dataclass(frozen=True)
class Matched:
    """Names that belong together, and those that are left over.

    Attributes:
        pairs: (HR, LR) in the order of HR.
        lonely: (HR, its LR that is not there).
        surplus: LR without HR.
    """

    pairs: list[tuple[str, str]]
    lonely: list[tuple[str, str]]
    surplus: list[str]


def match(gt: Iterable[str], lq: Collection[str], partner: Callable[[str], str]) -> Matched:
    """Pairs names.

    Args:
        gt: of HR.
        lq: of LR.
        partner: name of LR from that of HR.
    """
    wanted = [(name, partner(name)) for name in gt]
    there = set(lq)
    return Matched(
        [pair for pair in wanted if pair[1] in there],
        [pair for pair in wanted if pair[1] not in there],
        sorted(there.difference(name for _, name in wanted)),
    )


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
    as HR, in the order of BasicSR: sorted as files are.

    Args:
        where: the data set's place in the options, for messages.
        data: its options, with ``type``; of BasicSR's own data set what that does not read is refused.

    Raises:
        OSError, ValueError: something is missing; the message begins with the place of the option.
    """
    if is_packed(data):
        return pairs_in_packs(where, data, *(open_packs(where, data, key) for key in ROOTS))
    if is_lmdb(data):
        return _pairs_in_lmdbs(where, data)
    return _pairs_in_folders(where, data)


def _root(data: Options, key: str) -> Path:
    return Path(str(data.get(key))).expanduser()


def _partner_of(where: str, data: Options) -> Callable[[str], str]:
    """Stem of the LR image from that of the HR image."""
    template = data.get('filename_tmpl', '{}')
    if template is None and not _is_hosts(data):
        template = '{}'
    option = f'{where}.filename_tmpl:'
    if not isinstance(template, str):
        raise ValueError(f'{option} must be a string with {{}} for the HR stem, got {template!r}; or leave it out')
    check_file_template(option, template)
    return template.format


def _lines(where: str, file: Path) -> list[str]:
    """Lines of a text file, without a byte-order mark."""
    try:
        return file.read_text(encoding='utf-8-sig').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'{where}: {file} must be a text in UTF-8; save it as such') from error


def _named(where: str, data: Options) -> tuple[Path, dict[str, int]] | None:
    """The meta-info file and the names in it, with the numbers of their lines; None without one."""
    meta = data.get('meta_info_file')
    if meta is None or (not meta and not _is_hosts(data)):
        return None
    where = f'{where}.meta_info_file'
    file = Path(str(meta)) if _is_hosts(data) else Path(str(meta)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'{where}: {file} does not exist; see effsr prepare meta-info')
    names: dict[str, int] = {}
    for number, line in enumerate(_lines(where, file), 1):
        if not line.strip():
            continue
        name = re.split(r'[ \t]', line.strip(), maxsplit=1)[0]
        if name in names:
            raise ValueError(f'{where}: line {number} of {file} names {name} again, as line {names[name]}; remove one')
        names[name] = number
    if not names:
        raise ValueError(f'{where}: {file} names no image')
    if _is_hosts(data):
        read = [line.strip().split(' ')[0] for line in file.read_text(encoding='utf-8').splitlines()]
        if read != list(names):
            raise ValueError(
                f'{where}: BasicSR takes byte-order marks, tabs and empty lines of {file} for names; save it without '
                'them, or use EffSRPairedDataset'
            )
    return file, names


def _chosen(where: str, data: Options, there: Collection[str], what: str) -> list[str]:
    """Those of the names that the meta-info file names by ``name.png``, in its order; all without one."""
    found = _named(where, data)
    if found is None:
        return list(there)
    file, numbers = found
    chosen: dict[str, str] = {}
    for name, number in numbers.items():
        stem = os.path.splitext(os.path.basename(name))[0]
        if stem not in there:
            raise ValueError(
                f'{where}.meta_info_file: line {number} of {file} names {name}, and {what} has no {stem!r}; correct '
                'the line, or make the file from these images'
            )
        if stem in chosen:
            raise ValueError(f'{where}.meta_info_file: {file} names {chosen[stem]} and {name}, which are one in {what}')
        chosen[stem] = name
    return list(chosen)


# ---------------------------------------------------------------------- folders


def _names_in(where: str, data: Options, key: str) -> list[str]:
    folder = _root(data, key)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{where}.{key}: the folder {folder} does not exist; prepare the data or correct the path'
        )
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith('.') and e.is_file())


def _pairs_in_folders(where: str, data: Options) -> list[Pair]:
    stem_of_lq = _partner_of(where, data)
    gt_folder, lq_folder = (_root(data, key) for key in ROOTS)
    gt_names, lq_names = (_names_in(where, data, key) for key in ROOTS)
    meta = _named(where, data)
    names = gt_names if meta is None else list(meta[1])
    if not names:
        raise ValueError(f'{where}.dataroot_gt: {gt_folder} holds no image')

    def partner(name: str) -> str:
        stem, suffix = os.path.splitext(os.path.basename(name))
        return f'{stem_of_lq(stem)}{suffix}'

    found, there = match(names, lq_names, partner), set(gt_names)
    if meta is not None:
        file, numbers = meta
        for name, number in numbers.items():
            if name not in there and not (gt_folder / name).is_file():
                raise FileNotFoundError(
                    f'{where}.meta_info_file: line {number} of {file} names {name}, and {gt_folder / name} does not '
                    'exist; correct the line or dataroot_gt'
                )
    if found.lonely:
        name, lq_name = found.lonely[0]
        option, line = (
            ('dataroot_lq', '') if meta is None else ('meta_info_file', f' of line {meta[1][name]} of {meta[0]}')
        )
        raise FileNotFoundError(
            f'{where}.{option}: {lq_folder / lq_name} does not exist, the partner of {gt_folder / name}{line} '
            f'({len(names)} HR and {len(lq_names)} LR images); check filename_tmpl, or make the LR images again'
        )
    if meta is None and len(lq_names) != len(names):
        surplus = f', {found.surplus[0]} among them without HR' if found.surplus else ''
        raise ValueError(
            f'{where}.dataroot_lq: {gt_folder} holds {len(names)} HR and {lq_folder} {len(lq_names)} LR images'
            f'{surplus}; remove what is surplus'
        )
    return [Pair(str(gt_folder / name), str(lq_folder / lq_name)) for name, lq_name in found.pairs]


# ---------------------------------------------------------------------- LMDBs and packs


def lmdbs_opened_twice(datasets: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(place, message) of every LMDB that one process would open a second time, which LMDB forbids.

    Our own data sets share what is open (``data.lmdbs``); those of others open for themselves, also beside us. Workers
    inherit what is open when they start, so only those that stay from epoch to epoch are apart from validation.

    Args:
        datasets: the section of the options.
    """
    found: list[tuple[str, str]] = []
    first: dict[str, tuple[str, bool]] = {}
    for phase, data in datasets.items():
        if not isinstance(data, Mapping) or not is_lmdb(data):
            continue
        if str(phase).startswith('train') and data.get('num_worker_per_gpu') and data.get('persistent_workers'):
            continue
        shares = 'EffSR' in str(data.get('type'))
        for key in ROOTS:
            if data.get(key) is None:
                continue
            path, place = os.path.realpath(_root(data, key)), f'datasets.{phase}.{key}'
            other, other_shares = first.setdefault(path, (place, shares))
            if other != place and not (shares and other_shares):
                found.append((place, f'{path} is opened for {other}, too, which LMDB forbids; use EffSRPairedDataset'))
    return found


def _keys_in_lmdb(where: str, data: Options, key: str) -> dict[str, Size]:
    folder = _root(data, key)
    if folder.suffix != '.lmdb':
        raise ValueError(f'{where}.{key}: the name of an LMDB must end in .lmdb, got {folder}')
    file = folder / 'meta_info.txt'
    if not file.is_file() or not (folder / 'data.mdb').is_file():
        raise FileNotFoundError(f'{where}.{key}: {folder} must hold data.mdb and meta_info.txt; see effsr prepare lmdb')
    sizes: dict[str, Size] = {}
    lines = _lines(f'{where}.{key}', file)
    for number, line in enumerate(lines[:-1] if lines[-1] == '' else lines, 1):
        told = re.fullmatch(r'([^.]+)\S* \((\d+), ?(\d+)(?:, ?\d+)?\).*', line.rstrip('\r'))
        if told is None or not int(told[2]) * int(told[3]):
            raise ValueError(
                f'{where}.{key}: line {number} of {file} must be like 0001.png (480,480,3) 1, got {line!r}; '
                'make the LMDB again'
            )
        sizes[told[1]] = (int(told[2]), int(told[3]))
    return sizes


def _pairs_in_lmdbs(where: str, data: Options) -> list[Pair]:
    gt, lq = (_keys_in_lmdb(where, data, key) for key in ROOTS)
    if _is_hosts(data):
        for option, neutral in (('meta_info_file', None), ('filename_tmpl', '{}')):
            if data.get(option) not in (None, neutral):
                raise ValueError(
                    f'{where}.{option}: PairedImageDataset does not read it of an LMDB; take it out, or use '
                    'EffSRPairedDataset'
                )
    partner, what = _partner_of(where, data), f'the LMDB {_root(data, "dataroot_gt")}'
    everything = match(gt, lq, partner)
    odd = everything.lonely[0][1] if everything.lonely else next(iter(everything.surplus), None)
    if odd is not None or not gt:
        raise ValueError(
            f'{where}.dataroot_lq: both LMDBs must have the same keys, they hold {len(gt)} and {len(lq)}'
            + (f', {odd!r} is in one only' if odd is not None else '')
            + ('; LR keys are made with filename_tmpl, check it' if partner('a') != 'a' else '')
        )
    chosen = _chosen(where, data, dict.fromkeys(sorted(gt, key=folder_order)), what)
    return [Pair(name, partner(name), (gt[name], lq[partner(name)])) for name in chosen]


def open_packs(where: str, data: Options, key: str) -> PackSet:
    """The packs of ``data[key]``.

    Raises:
        OSError, ValueError: there is none, or it is damaged; the message begins with the place of the option.
    """
    try:
        return PackSet(str(_root(data, key)))
    except (OSError, ValueError) as error:
        raise type(error)(f'{where}.{key}: {error}') from error


def pairs_in_packs(where: str, data: Options, gt: PackSet, lq: PackSet) -> list[Pair]:
    """:func:`list_pairs` of packs that are open."""
    partner = _partner_of(where, data)
    found = match(sorted(gt.where, key=folder_order), lq.where, partner)
    if not gt.where:
        raise ValueError(f'{where}.dataroot_gt: {_root(data, "dataroot_gt")} holds no image; make the pack again')
    if found.lonely or found.surplus:
        roots = ' and '.join(str(_root(data, key)) for key in ROOTS)
        missing = f', and no LR image for {found.lonely[0][0]!r}' if found.lonely else ''
        raise ValueError(
            f'{where}.dataroot_lq: {roots} must hold pairs, found {len(gt.where)} HR and {len(lq.where)} LR images'
            f'{missing}; check filename_tmpl, or make the packs again'
        )
    chosen = _chosen(where, data, dict(found.pairs), f'the pack {_root(data, "dataroot_gt")}')
    return [Pair(name, partner(name), (gt.size(name), lq.size(partner(name)))) for name in chosen]
