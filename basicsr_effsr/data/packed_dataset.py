"""LR/HR pairs out of packs: random crops without decoding anything."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.data.draws import Draw, SampleIndex, draw
from basicsr_effsr.data.packs import Pack
from basicsr_effsr.data.pairs import ROOTS, check_patch, check_sizes, open_packs, pairs_in_packs
from basicsr_effsr.imaging.metrics import luma

__all__ = ['PackedPairedImageDataset']


@register_in(DATASET_REGISTRY)
class PackedPairedImageDataset(Dataset):
    """What ``PairedImageDataset`` gives, out of packs that ``python -m datasets_prep pack`` has made.

    Crop and flips of a sample are drawn as in ``EffSRPairedDataset`` (``data.draws``): from (manual_seed,
    epoch, position) when the sampler says them, and the two data sets then give equal samples.

    Option keys: dataroot_gt and dataroot_lq (a ``.pack``, or a folder of packs), filename_tmpl, scale, phase,
    gt_size, use_hflip, use_rot, color, mean, std; ``uint8: true`` returns bytes, to be converted on the device
    by ``EffSRModel``. Gray images come out with three equal channels.

    Items: ``lq`` (3, h, w) and ``gt`` (3, rh, rw), RGB float32 in [0, 1] (or uint8), ``lq_path``, ``gt_path``.

    Raises:
        FileNotFoundError, ValueError: when a pack is missing, damaged or cut off, an HR image has no LR image,
            a pair is not of the given scale or smaller than a patch, or an option is impossible; the message
            names it. To validate, an HR image may be up to scale - 1 pixels larger; these are cropped off.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self.scale: int = opt['scale']
        self.training = opt['phase'] == 'train'
        if opt.get('uint8') and (opt.get('color') == 'y' or opt.get('mean') is not None or opt.get('std') is not None):
            raise ValueError('PackedPairedImageDataset: uint8 cannot be combined with color, mean or std; drop one')
        if (opt.get('mean') is None) != (opt.get('std') is None):
            raise ValueError('PackedPairedImageDataset: mean and std must be given together, only one is; give both')
        name = 'PackedPairedImageDataset'
        packed = {**opt, 'type': name}
        self.gt, self.lq = (open_packs(name, packed, key) for key in ROOTS)
        self.pairs = [(pair.gt, pair.lq) for pair in pairs_in_packs(name, packed, self.gt, self.lq)]
        for gt, lq in self.pairs:
            sizes = self.gt.size(gt), self.lq.size(lq)
            check_sizes(self.gt.called(gt), self.lq.called(lq), *sizes, self.scale, training=self.training)
        if self.training:
            self.check_gt_size(opt['gt_size'])

    def check_gt_size(self, gt_size: int) -> None:
        """Refuses a patch that does not fit into every image; a run with stages asks for its largest.

        Args:
            gt_size: side of the HR patch.

        Raises:
            ValueError: an LR image is smaller than the LR patch.
        """
        for _, name in self.pairs:
            check_patch(self.lq.called(name), self.lq.size(name), gt_size, self.scale)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, lq_name = self.pairs[index]
        (gt_pack, i), (lq_pack, j) = self.gt.find(name), self.lq.find(lq_name)
        _, height, width = lq_pack.shape(j)
        if self.training:
            staged = index.gt_size if isinstance(index, SampleIndex) else None
            patch = (staged or self.opt['gt_size']) // self.scale
            if staged:
                check_patch(self.lq.called(lq_name), (height, width), staged, self.scale)
            drawn = draw(
                index, (height, width), patch, self.opt.get('use_hflip', False), self.opt.get('use_rot', False)
            )
            gt, lq = cut_planes(gt_pack, i, drawn, patch, self.scale), cut_planes(lq_pack, j, drawn, patch)
        else:
            gt = gt_pack.image(i)[:, : height * self.scale, : width * self.scale].copy()
            lq = lq_pack.image(j).copy()
        return {
            'lq': self._tensor(lq),
            'gt': self._tensor(gt),
            'lq_path': f'{lq_pack.path}/{lq_name}.png',
            'gt_path': f'{gt_pack.path}/{name}.png',
        }

    def _tensor(self, planes: np.ndarray) -> Tensor:
        """(C, H, W) uint8, RGB or gray, owned -> (3, H, W) (1 for y) as the options say."""
        if len(planes) == 1:
            planes = np.repeat(planes, 3, axis=0)
        if self.opt.get('uint8'):
            return torch.from_numpy(planes)
        scaled = planes.astype(np.float32)
        scaled /= 255.0
        if self.opt.get('color') == 'y':
            scaled = luma(np.ascontiguousarray(scaled[::-1].transpose(1, 2, 0)))[None]
        out = torch.from_numpy(scaled)
        if self.opt.get('mean') is not None or self.opt.get('std') is not None:
            normalize(out, self.opt['mean'], self.opt['std'], inplace=True)
        return out


def cut_planes(pack: Pack, i: int, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of an image, turned as drawn: ``draws.cut`` for planes, (C, side, side) in memory of its own.

    Args:
        pack: the open pack.
        i: number of the image.
        drawn: corner in LR pixels and symmetry.
        patch: side of the LR patch.
        scale: 1 for LR, the scale factor for HR.
    """
    side = patch * scale
    view = pack.crop(i, drawn.top * scale, drawn.left * scale, side, side)
    out = view[:, ::-1].copy() if drawn.vflip else view.copy()  # by rows, so as fast as a plain copy
    if drawn.hflip:
        rows = out.reshape(-1, side)
        cv2.flip(rows, 1, rows)
    if drawn.transpose:
        for plane in out:  # in place for squares; numpy's own transposition takes ten times as long
            cv2.transpose(plane, plane)
    return out
