"""HR and LR images that belong together, as folders, meta-info files, LMDBs and packs have them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr_effsr.data.packs import PackSet
from basicsr_effsr.utils.errors import one_line

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """An HR and an LR image by name, and how to learn their sizes without decoding them."""

    gt: str
    lq: str
    known: tuple[tuple[int, int], tuple[int, int]] | None = None

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of both.

        Raises:
            ValueError: one is missing or no image; the message names it.
        """
        return self.known or (image_size(self.gt), image_size(self.lq))


def image_size(path: str) -> tuple[int, int]:
    """(H, W) from the header of an image; of a PNG the end is looked at, too.

    Raises:
        ValueError: the file is missing, cut off or no image.
    """
    from PIL import Image

    from basicsr_effsr.imaging.picture import any_size

    cut_off = False
    try:
        with warnings.catch_warnings(), any_size(), Image.open(path) as image:
            warnings.simplefilter('ignore')
            cut_off = image.format == 'PNG' and b'IEND' not in _last_bytes(path, 64)
            size = image.height, image.width
    except FileNotFoundError as error:
        raise ValueError(f'{path} does not exist; check meta_info_file and filename_tmpl') from error
    except Exception as error:  # decoders raise what they like on damaged headers, SyntaxError among them
        raise ValueError(f'{path} cannot be read as an image; replace it') from error
    if cut_off:
        raise ValueError(f'{path} is cut off: a PNG ends with IEND; replace it')
    return size


def undecodable(files: list[str]) -> str:
    """The first of the files whose pixels cannot be read, in words; empty if all can. Decodes on several threads."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    from basicsr_effsr.imaging.picture import any_size

    def fault(path: str) -> str:
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # decoders raise what they like
            return f'{path} cannot be decoded ({one_line(error)}); replace it'
        return ''

    with warnings.catch_warnings(), any_size(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        warnings.simplefilter('ignore')
        return next(filter(None, threads.map(fault, files)), '')


def _last_bytes(path: str, count: int) -> bytes:
    with open(path, 'rb') as file:
        file.seek(max(os.path.getsize(path) - count, 0))
        return file.read()


def _names_in(where: str, data: Options, key: str) -> list[str]:
    folder = Path(str(data.get(key))).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{where}.{key}: the folder {folder} does not exist; prepare the data or correct the path'
        )
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith('.') and e.is_file())


def _template(where: str, data: Options) -> str:
    template = data.get('filename_tmpl', '{}')
    try:
        if template.format('a') != template.format('b'):
            return template
    except (AttributeError, IndexError, KeyError, ValueError):
        pass
    raise ValueError(
        f'{where}.filename_tmpl: must be a text with {{}} in place of the name of the HR image, got {template!r}; '
        'leave it out where both have the same name'
    )


def list_pairs(where: str, data: Options) -> list[Pair]:
    """The pairs of a data set, from folders, a meta-info file, LMDBs or packs.

    Args:
        where: the data set's place in the options, for messages.
        data: its options.

    Raises:
        OSError, ValueError: something is missing; the message says what and where.
    """
    stored = data.get('io_backend')
    backend = stored.get('type') if isinstance(stored, Mapping) else None
    if 'Packed' in str(data.get('type')):
        return _pairs_in_packs(where, data)
    if backend == 'lmdb':
        return _pairs_in_lmdb(where, data)
    template = _template(where, data)
    gt_folder, lq_folder = (Path(str(data.get(k))).expanduser() for k in ('dataroot_gt', 'dataroot_lq'))
    lq_names = set(_names_in(where, data, 'dataroot_lq'))
    gt_names = _names_in(where, data, 'dataroot_gt')
    meta = data.get('meta_info_file')
    if meta:
        if not Path(meta).is_file():
            raise FileNotFoundError(f'{where}.meta_info_file: {meta} does not exist; see effsr prepare meta-info')
        lines = _lines(f'{where}.meta_info_file', Path(meta))
        gt_names = [line.split(' ')[0] for line in lines if line.strip()]
    if not gt_names:
        raise ValueError(f'{where}.dataroot_gt: {meta or gt_folder} names no image')
    pairs = []
    for name in gt_names:
        stem, suffix = os.path.splitext(os.path.basename(name))
        lq_name = f'{template.format(stem)}{suffix}'
        if lq_name not in lq_names:
            raise FileNotFoundError(
                f'{where}.dataroot_lq: {lq_folder / lq_name} does not exist, the partner of {gt_folder / name} '
                f'({len(gt_names)} HR and {len(lq_names)} LR images); check filename_tmpl, or make the LR images again'
            )
        pairs.append(Pair(str(gt_folder / name), str(lq_folder / lq_name)))
    if not meta and len(lq_names) != len(gt_names):
        raise ValueError(
            f'{where}.dataroot_lq: {gt_folder} holds {len(gt_names)} HR and {lq_folder} {len(lq_names)} LR images; '
            'remove what is surplus'
        )
    return pairs


def _lines(where: str, file: Path) -> list[str]:
    try:
        return file.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{where}: {file} must be a text in UTF-8; save it as such') from error


def _pairs_in_lmdb(where: str, data: Options) -> list[Pair]:
    listed: dict[str, dict[str, tuple[int, int]]] = {}
    for key in ('dataroot_gt', 'dataroot_lq'):
        folder = Path(str(data.get(key))).expanduser()
        if folder.suffix != '.lmdb':
            raise ValueError(f'{where}.{key}: the name of an LMDB must end in .lmdb, got {folder}')
        file = folder / 'meta_info.txt'
        if not file.is_file() or not (folder / 'data.mdb').is_file():
            raise FileNotFoundError(
                f'{where}.{key}: {folder} must hold data.mdb and meta_info.txt; see effsr prepare lmdb'
            )
        listed[key] = {}
        for number, line in enumerate(_lines(f'{where}.{key}', file), 1):
            told = re.fullmatch(r'([^.]+)\S* \((\d+), ?(\d+)(?:, ?\d+)?\).*', line)
            if told is None or not int(told[2]) * int(told[3]):
                raise ValueError(
                    f'{where}.{key}: line {number} of {file} must be like 0001.png (480,480,3) 1, got {line!r}; '
                    'make the LMDB again'
                )
            listed[key][told[1]] = (int(told[2]), int(told[3]))
    gt, lq = listed['dataroot_gt'], listed['dataroot_lq']
    odd = sorted(gt.keys() ^ lq.keys())
    if odd or not gt:
        raise ValueError(
            f'{where}.dataroot_lq: both LMDBs must have the same keys, they hold {len(gt)} and {len(lq)}'
            + (f', {odd[0]!r} is in one only' if odd else '')
        )
    return [Pair(name, name, (gt[name], lq[name])) for name in gt]


def _pairs_in_packs(where: str, data: Options) -> list[Pair]:
    template, sets = _template(where, data), []
    for key in ('dataroot_gt', 'dataroot_lq'):
        try:
            sets.append(PackSet(str(Path(str(data.get(key))).expanduser())))
        except (OSError, ValueError) as error:
            raise ValueError(f'{where}.{key}: {error}') from error
    gt, lq = sets
    pairs = []
    for name in sorted(gt.where):
        lq_name = template.format(name)
        if lq_name not in lq.where:
            raise ValueError(f'{where}.dataroot_lq: no LR image for {name!r}; check filename_tmpl')
        (gt_pack, i), (lq_pack, j) = gt.find(name), lq.find(lq_name)
        gt_shape, lq_shape = gt_pack.shape(i), lq_pack.shape(j)
        known = ((gt_shape[1], gt_shape[2]), (lq_shape[1], lq_shape[2]))
        pairs.append(Pair(name, lq_name, known))
    return pairs
