"""An ONNX file in 8 bits: static quantisation after training, per channel, as QDQ, on images of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from basicsr_effsr.utils.errors import needs
from basicsr_effsr.utils.files import scratch_folder
from basicsr_effsr.weights.export import or_refuse

LARGEST = 128  # side of what is cut out of the middle of a calibration image, in LR pixels


def ends(file: bytes) -> list[str]:
    """Names of the first and the last convolution."""
    convs = [node.name for node in needs('onnx').load_from_string(file).graph.node if node.op_type == 'Conv']
    return [convs[0], convs[-1]]


def quantised(file: bytes, images: Sequence[np.ndarray], *, keep: Sequence[str] = ()) -> bytes:
    """The convolutions of a float32 file in int8, those named ``keep`` and all other operators in float32.

    Ranges of maps are the extremes over the images, weights have 7 bits.

    Args:
        file: as ``write_onnx`` gives it.
        images: (H, W, C) uint8 each.
        keep: names of nodes.

    Raises:
        ExportError: ONNX Runtime refuses.
    """
    tool, onnx = needs('onnxruntime.quantization'), needs('onnx')

    class Reader(tool.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            if image is None:
                return None
            top, left = (max(side - LARGEST, 0) // 2 for side in image.shape[:2])
            part = image[top : top + LARGEST, left : left + LARGEST]
            return {'lq': part.transpose(2, 0, 1)[None].astype(np.float32) / 255}

    with scratch_folder() as folder, or_refuse('ONNX Runtime cannot quantise the exported network'):
        out = folder / 'int8.onnx'
        tool.quantize_static(
            onnx.load_from_string(file),
            out,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            op_types_to_quantize=['Conv'],
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            nodes_to_exclude=list(keep),
            reduce_range=True,  # weights of 7 bits: without VNNI, sums of two products of 8 bits overflow their 16
        )
        return out.read_bytes()
