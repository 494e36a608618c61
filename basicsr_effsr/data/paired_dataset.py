"""LR/HR pairs from folders, meta-info files, LMDBs or packs, with repeatable random draws."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.data import lmdbs
from basicsr_effsr.data.packs import Pack
from basicsr_effsr.data.pairs import BICUBIC, ROOTS, check_patch, check_sizes, list_pairs, open_packs, pairs_in_packs
from basicsr_effsr.data.sampler import Draw, cut, draw
from basicsr_effsr.imaging.bicubic import imresize
from basicsr_effsr.imaging.metrics import luma
from basicsr_effsr.imaging.picture import decode
from basicsr_effsr.utils.files import read_regular

__all__ = ['EffSRPairedDataset', 'PackedPairedImageDataset']


@register_in(DATASET_REGISTRY)
class EffSRPairedDataset(Dataset):
    """BasicSR's ``PairedImageDataset``, same keys and same values, with repeatable random draws.

    Crop and flips of a sample come from (manual_seed, epoch, position in the epoch): the same for any
    number of workers, different in every epoch, and repeatable after a resume. Only the crop is
    converted to float; nothing is changed in place.

    ``uint8: true`` returns bytes, to be converted on the device by ``EffSRModel``. ``dataroot_lq: bicubic`` makes the
    LR images of the HR images, cropped to multiples of the scale, as ``datasets_prep lr --modulus SCALE`` does.

    Items: ``lq`` (3, h, w) and ``gt`` (3, rh, rw), RGB float32 in [0, 1] (or uint8), ``lq_path``, ``gt_path``.

    Raises:
        FileNotFoundError, ValueError: a folder, an image or a size is wrong; the message names the file.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self.training = opt['phase'] == 'train'
        self.list_pairs(opt)

    def list_pairs(self, opt: dict[str, Any]) -> None:
        """Finds the pairs; called once."""
        backend = opt['io_backend']['type']
        if backend not in ('disk', 'lmdb'):
            raise ValueError(f'EffSRPairedDataset: io_backend.type must be disk or lmdb, got {backend!r}')
        self.is_lmdb = backend == 'lmdb'
        pairs = list_pairs('EffSRPairedDataset', {**opt, 'type': 'EffSRPairedDataset'})
        self.paths = [{'lq_path': pair.lq, 'gt_path': pair.gt} for pair in pairs]

    def __len__(self) -> int:
        return len(self.paths)

    def _read(self, path: str, which: str) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        if not self.is_lmdb:
            return decode(read_regular(path), path)
        root = self.opt[f'dataroot_{which}']
        content = lmdbs.get(root, path)
        if content is None:
            raise ValueError(f'{root} has no entry {path!r}; make the LMDB again')
        return decode(content, f'{path!r} of {root}')

    def draw(self, index: int, lq: str, lq_size: Sequence[int]) -> tuple[Draw, int]:
        """Crop and flips of a training sample, and the side of its LR patch.

        The index may know the ``gt_size`` of its stage; ``lq`` is what messages call the LR image of size (H, W).

        Raises:
            ValueError: the LR image is smaller than the patch.
        """
        gt_size = getattr(index, 'gt_size', None) or self.opt['gt_size']
        check_patch(lq, lq_size, gt_size, self.opt['scale'])
        patch = gt_size // self.opt['scale']
        hflip, rot = self.opt.get('use_hflip', False), self.opt.get('use_rot', False)
        return draw(index, (lq_size[0], lq_size[1]), patch, hflip, rot), patch

    def tensor(self, planes: np.ndarray) -> Tensor:
        """(3, H, W) uint8 RGB -> (3, H, W), or (1, H, W) for y, as the options say."""
        if self.opt.get('uint8'):
            return torch.from_numpy(np.ascontiguousarray(planes))
        scaled = planes.astype(np.float32) / 255.0
        if self.opt.get('color') == 'y':
            scaled = luma(np.ascontiguousarray(scaled[::-1].transpose(1, 2, 0)))[None]
        out = torch.from_numpy(np.ascontiguousarray(scaled))
        if self.opt.get('mean') is not None or self.opt.get('std') is not None:
            normalize(out, self.opt['mean'], self.opt['std'], inplace=True)
        return out

    def __getitem__(self, index: int) -> dict[str, Any]:
        scale, paths = self.opt['scale'], self.paths[index]
        gt, lq, called = self._read(paths['gt_path'], 'gt'), None, f'the LR image of {paths["gt_path"]}'
        height, width = (side // scale for side in gt.shape[:2])
        if self.opt['dataroot_lq'] != BICUBIC:
            lq, called = self._read(paths['lq_path'], 'lq'), paths['lq_path']
            check_sizes(paths['gt_path'], called, gt.shape[:2], lq.shape[:2], scale, training=self.training)
            height, width = lq.shape[:2]
        gt = gt[: height * scale, : width * scale]
        if self.training:
            drawn, patch = self.draw(index, called, (height, width))
            lq = cut_shrunk(gt, drawn, patch, scale) if lq is None else cut(lq, drawn, patch)
            gt = cut(gt, drawn, patch, scale)
        elif lq is None:
            lq = imresize(gt, scale=Fraction(1, scale))
        images = {'lq': lq, 'gt': gt}
        return {key: self.tensor(image[..., ::-1].transpose(2, 0, 1)) for key, image in images.items()} | paths


@register_in(DATASET_REGISTRY)
class PackedPairedImageDataset(EffSRPairedDataset):
    """``EffSRPairedDataset`` for packs made by ``python -m datasets_prep pack``.

    Option keys: dataroot_gt and dataroot_lq (a ``.pack``, or a folder of packs), and those of ``EffSRPairedDataset``;
    ``io_backend`` is not read. Gray images come out with three equal channels. The samples are equal, too.

    Raises:
        FileNotFoundError, ValueError: when a pack is missing, damaged or cut off, an HR image has no LR image; when a
            sample is taken, its pair is not of the given scale or smaller than a patch. The message names it. To
            validate, an HR image may be up to scale - 1 pixels larger; these are cropped off.
    """

    def list_pairs(self, opt: dict[str, Any]) -> None:
        name = 'PackedPairedImageDataset'
        packed = {**opt, 'type': name}
        self.gt, self.lq = (open_packs(name, packed, key) for key in ROOTS)
        self.pairs = [(pair.gt, pair.lq) for pair in pairs_in_packs(name, packed, self.gt, self.lq)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (name, lq_name), scale = self.pairs[index], self.opt['scale']
        (gt_pack, i), (lq_pack, j) = self.gt.find(name), self.lq.find(lq_name)
        _, height, width = lq_pack.shape(j)
        called = self.lq.called(lq_name)
        check_sizes(self.gt.called(name), called, gt_pack.shape(i)[1:], (height, width), scale, training=self.training)
        if self.training:
            drawn, patch = self.draw(index, called, (height, width))
            gt, lq = cut_planes(gt_pack, i, drawn, patch, scale), cut_planes(lq_pack, j, drawn, patch)
        else:
            gt, lq = gt_pack.image(i)[:, : height * scale, : width * scale].copy(), lq_pack.image(j).copy()
        images = {key: planes.repeat(3 // len(planes), axis=0) for key, planes in (('lq', lq), ('gt', gt))}
        return {
            **{key: self.tensor(planes) for key, planes in images.items()},
            'lq_path': f'{lq_pack.path}/{lq_name}.png',
            'gt_path': f'{gt_pack.path}/{name}.png',
        }


def cut_shrunk(gt: np.ndarray, drawn: Draw, patch: int, scale: int) -> np.ndarray:
    """``cut`` of the LR image of ``gt``, whose sides are multiples of ``scale``; only what the patch needs is made."""
    reach = 2  # LR pixels beyond its own on which a pixel depends; at the border both images are mirrored
    top, left = max(drawn.top - reach, 0), max(drawn.left - reach, 0)
    bottom, right = drawn.top + patch + reach, drawn.left + patch + reach
    lq = imresize(gt[top * scale : bottom * scale, left * scale : right * scale], scale=Fraction(1, scale))
    return cut(lq, drawn._replace(top=drawn.top - top, left=drawn.left - left), patch)


def cut_planes(pack: Pack, i: int, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of the i-th image: ``cut`` for planes, (C, side, side) in memory of its own."""
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
