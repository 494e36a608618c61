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
from basicsr_effsr.data.pairs import ROOTS, check_patch, check_sizes, open_packs, pairs_in_packs

__all__ = ['PackedPairedImageDataset']


@register_in(DATASET_REGISTRY)
class PackedPairedImageDataset(EffSRPairedDataset):
    """What ``EffSRPairedDataset`` gives, out of packs that ``python -m datasets_prep pack`` has made.

    Option keys: dataroot_gt and dataroot_lq (a ``.pack``, or a folder of packs), and those of ``EffSRPairedDataset``;
    ``io_backend`` is not read. Gray images come out with three equal channels. The samples are equal, too.

    Raises:
        FileNotFoundError, ValueError: when a pack is missing, damaged or cut off, an HR image has no LR image,
            a pair is not of the given scale or smaller than a patch, or an option is impossible; the message
            names it. To validate, an HR image may be up to scale - 1 pixels larger; these are cropped off.
    """

    def list_pairs(self, opt: dict[str, Any]) -> None:
        name = 'PackedPairedImageDataset'
        packed = {**opt, 'type': name}
        self.gt, self.lq = (open_packs(name, packed, key) for key in ROOTS)
        self.pairs = [(pair.gt, pair.lq) for pair in pairs_in_packs(name, packed, self.gt, self.lq)]
        for gt, lq in self.pairs:
            sizes = self.gt.size(gt), self.lq.size(lq)
            check_sizes(self.gt.called(gt), self.lq.called(lq), *sizes, opt['scale'], training=self.training)
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
            check_patch(self.lq.called(name), self.lq.size(name), gt_size, self.opt['scale'])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (name, lq_name), scale = self.pairs[index], self.opt['scale']
        (gt_pack, i), (lq_pack, j) = self.gt.find(name), self.lq.find(lq_name)
        _, height, width = lq_pack.shape(j)
        if self.training:
            drawn, patch = self.draw(index, self.lq.called(lq_name), (height, width))
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
