"""LR/HR pairs from folders, meta-info files or LMDB, with draws that can be repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from basicsr.utils import FileClient
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.draws import SampleIndex, cut, draw
from basicsr_effsr.data.pairs import check_patch, check_sizes, list_pairs
from basicsr_effsr.imaging.decode import decode
from basicsr_effsr.imaging.metrics import luma

__all__ = ['EffSRPairedDataset']


@register_in(DATASET_REGISTRY)
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
        self.is_lmdb = self.backend['type'] == 'lmdb'
        pairs = list_pairs('EffSRPairedDataset', {**opt, 'type': 'EffSRPairedDataset'})
        self.paths = [{'lq_path': pair.lq, 'gt_path': pair.gt} for pair in pairs]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'client': None}

    def __len__(self) -> int:
        return len(self.paths)

    def _read(self, path: str, which: str) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        if self.is_lmdb:
            root = self.opt[f'dataroot_{which}']
            content = lmdbs.get(root, path)
            if content is None:
                raise ValueError(f'{root} has no entry {path!r}; make the LMDB again')
            return decode(content, f'{path!r} of {root}')
        if self.client is None:
            backend = dict(self.backend)
            self.client = FileClient(backend.pop('type'), **backend)
        return decode(bytes(self.client.get(path, which)), path)

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
        training = self.opt['phase'] == 'train'
        check_sizes(paths['gt_path'], paths['lq_path'], gt.shape[:2], lq.shape[:2], scale, training=training)
        if training:
            gt_size = index.gt_size if isinstance(index, SampleIndex) and index.gt_size else self.opt['gt_size']
            patch = gt_size // scale
            check_patch(paths['lq_path'], lq.shape[:2], gt_size, scale)
            drawn = draw(index, lq.shape[:2], patch, self.opt.get('use_hflip', False), self.opt.get('use_rot', False))
            gt, lq = cut(gt, drawn, patch, scale), cut(lq, drawn, patch)
        else:
            gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
        return {'lq': self._tensor(lq), 'gt': self._tensor(gt), **paths}
