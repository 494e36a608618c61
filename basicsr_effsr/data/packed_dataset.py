"""LR/HR pairs out of packs: random crops without decoding anything."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from basicsr_effsr.archs.effsr_blocks import register_in
from basicsr_effsr.data.draws import Draw
from basicsr_effsr.data.packs import Pack
from basicsr_effsr.data.paired_dataset import EffSRPairedDataset
from basicsr_effsr.data.pairs import ROOTS, check_sizes, open_packs, pairs_in_packs

__all__ = ['PackedPairedImageDataset']


@register_in(DATASET_REGISTRY)
class PackedPairedImageDataset(EffSRPairedDataset):
    """What ``EffSRPairedDataset`` gives, out of packs that ``python -m datasets_prep pack`` has made.

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


def cut_planes(pack: Pack, i: int, drawn: Draw, patch: int, scale: int = 1) -> np.ndarray:
    """The drawn patch of the i-th image: ``draws.cut`` for planes, (C, side, side) in memory of its own."""
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
