"""LR/HR pairs from folders, meta-info files or LMDB, with draws that can be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.data_util import paired_paths_from_lmdb
from basicsr.utils import FileClient, scandir
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from basicsr_effsr.data.draws import SampleIndex, cut, draw
from basicsr_effsr.data.packs import folder_order
from basicsr_effsr.imaging.metrics import luma

__all__ = ['EffSRPairedDataset']


def pairs_in_folders(gt_folder: str, lq_folder: str, template: str = '{}') -> list[dict[str, str]]:
    """Pairs by name: HR ``x.png`` belongs to LR ``template.format('x').png``.

    Raises:
        FileNotFoundError: a folder is not there, or an HR image has no LR image.
        ValueError: the folders hold different numbers of images, or none.
    """
    names = {}
    for key, folder in (('dataroot_gt', gt_folder), ('dataroot_lq', lq_folder)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f'{key}: the folder {folder} does not exist; prepare it or correct the path')
        names[key] = sorted(scandir(folder))
    gt_names, lq_names = names['dataroot_gt'], set(names['dataroot_lq'])
    if not gt_names:
        raise ValueError(f'dataroot_gt: the folder {gt_folder} holds no image')
    pairs = []
    for name in gt_names:
        stem, suffix = Path(name).stem, Path(name).suffix
        lq_name = f'{template.format(stem)}{suffix}'
        if lq_name not in lq_names:
            raise FileNotFoundError(
                f'{gt_folder}/{name} has no partner {lq_folder}/{lq_name} ({len(gt_names)} HR and {len(lq_names)} LR '
                'images); check filename_tmpl, or make the LR images again'
            )
        pairs.append({'lq_path': str(Path(lq_folder) / lq_name), 'gt_path': str(Path(gt_folder) / name)})
    if len(lq_names) != len(gt_names):
        raise ValueError(
            f'{gt_folder} and {lq_folder} must hold equally many images, found {len(gt_names)} HR and '
            f'{len(lq_names)} LR; remove or make again what is surplus'
        )
    return pairs


def pairs_in_meta_info(gt_folder: str, lq_folder: str, file: str, template: str = '{}') -> list[dict[str, str]]:
    """Pairs named by the first word of each line of a BasicSR meta-info file."""
    if not Path(file).is_file():
        raise FileNotFoundError(
            f'meta_info_file: {file} does not exist; write it with python -m datasets_prep meta-info'
        )
    pairs = []
    for line in Path(file).read_text(encoding='utf-8').splitlines():
        if line.strip():
            name = line.split(' ')[0]
            stem, suffix = Path(name).stem, Path(name).suffix
            lq_path = Path(lq_folder) / f'{template.format(stem)}{suffix}'
            pairs.append({'lq_path': str(lq_path), 'gt_path': str(Path(gt_folder) / name)})
    return pairs


@DATASET_REGISTRY.register()
class EffSRPairedDataset(Dataset):
    """BasicSR's ``PairedImageDataset``, same keys and same values, whose draws can be repeated.

    Crop and flips of a sample come from (manual_seed, epoch, position in the epoch): the same for any
    number of workers, different in every epoch, and repeatable after a resume. Only the crop is
    converted to float; nothing is changed in place.

    Option keys: dataroot_gt, dataroot_lq, io_backend, meta_info_file, filename_tmpl, scale, phase,
    gt_size, use_hflip, use_rot, color, mean, std; ``uint8: true`` returns bytes, to be converted on the
    device by ``EffSRModel``.

    Items: ``lq`` (3, h, w) and ``gt`` (3, rh, rw), RGB float32 in [0, 1] (or uint8), ``lq_path``, ``gt_path``.

    Raises:
        FileNotFoundError, ValueError: a folder, an image or a size is not as it must be; the message
            names the file.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        if opt.get('uint8') and (opt.get('color') == 'y' or opt.get('mean') is not None or opt.get('std') is not None):
            raise ValueError('EffSRPairedDataset: uint8 cannot be combined with color, mean or std; drop one')
        self.opt = opt
        self.client: FileClient | None = None
        self.backend = dict(opt['io_backend'])
        gt, lq, template = opt['dataroot_gt'], opt['dataroot_lq'], opt.get('filename_tmpl', '{}')
        if self.backend['type'] == 'lmdb':
            self.backend.update(db_paths=[lq, gt], client_keys=['lq', 'gt'])
            try:
                pairs = paired_paths_from_lmdb([lq, gt], ['lq', 'gt'])
                self.paths = sorted(pairs, key=lambda pair: folder_order(pair['gt_path']))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f'{lq} and {gt} must be LMDB folders with the same keys in their meta_info.txt ({error}); make '
                    'them with python -m datasets_prep lmdb'
                ) from error
        elif opt.get('meta_info_file'):
            self.paths = pairs_in_meta_info(gt, lq, opt['meta_info_file'], template)
        else:
            self.paths = pairs_in_folders(gt, lq, template)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'client': None}  # an open LMDB cannot travel to another process

    def __len__(self) -> int:
        return len(self.paths)

    def _read(self, path: str, which: str) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        if self.client is None:
            backend = dict(self.backend)
            self.client = FileClient(backend.pop('type'), **backend)
        content = self.client.get(path, which)
        if content is None:
            raise ValueError(f'{self.opt[f"dataroot_{which}"]} has no entry {path!r}; make the LMDB again')
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(
                f'{path} cannot be decoded as an image; replace it, or find all such files with '
                'python -m datasets_prep verify'
            )
        return image

    def _tensor(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 BGR -> (C, H, W) as the options say."""
        if self.opt.get('uint8'):
            return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        scaled = image.astype(np.float32) / 255.0
        if self.opt.get('color') == 'y':
            scaled = luma(scaled)[..., None]
        else:
            scaled = scaled[..., ::-1]
        out = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        if self.opt.get('mean') is not None or self.opt.get('std') is not None:
            normalize(out, self.opt['mean'], self.opt['std'], inplace=True)
        return out

    def __getitem__(self, index: int) -> dict[str, Any]:
        scale, paths = self.opt['scale'], self.paths[index]
        gt, lq = self._read(paths['gt_path'], 'gt'), self._read(paths['lq_path'], 'lq')
        if self.opt['phase'] == 'train':
            gt_size = index.gt_size if isinstance(index, SampleIndex) and index.gt_size else self.opt['gt_size']
            patch = gt_size // scale
            if gt.shape[:2] != (lq.shape[0] * scale, lq.shape[1] * scale):
                raise ValueError(
                    f'{paths["gt_path"]} ({gt.shape[1]}x{gt.shape[0]}) must be {scale} times the size of '
                    f'{paths["lq_path"]} ({lq.shape[1]}x{lq.shape[0]}); check scale and dataroot_lq'
                )
            if min(lq.shape[:2]) < patch:
                raise ValueError(
                    f'{paths["lq_path"]} ({lq.shape[1]}x{lq.shape[0]}) must be at least {patch} pixels wide and high '
                    f'for gt_size {gt_size}; lower gt_size or leave the image out'
                )
            drawn = draw(index, lq.shape[:2], patch, self.opt.get('use_hflip', False), self.opt.get('use_rot', False))
            gt, lq = cut(gt, drawn, patch, scale), cut(lq, drawn, patch)
        else:
            gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        return {'lq': self._tensor(lq), 'gt': self._tensor(gt), **paths}
