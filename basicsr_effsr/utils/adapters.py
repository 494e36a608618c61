"""Trainable bridges between the features of a student and those of its teacher."""

from __future__ import annotations

from torch import nn

__all__ = ['semi_orthogonal_conv1x1']


def semi_orthogonal_conv1x1(c_in: int, c_out: int) -> nn.Conv2d:
    """A 1 x 1 convolution without bias whose matrix starts with orthonormal columns (rows if ``c_out < c_in``).

    With ``c_out >= c_in`` it keeps every length and angle, so affinities after it are those before it, and training
    starts at plain FAKD (DPARN, Eq. 7: the convolution that widens the student's features).

    Args:
        c_in: channels of the student's features.
        c_out: channels of the teacher's features.

    Returns:
        The convolution, (N, c_in, H, W) -> (N, c_out, H, W), in float32 on the CPU.
    """
    conv = nn.Conv2d(c_in, c_out, 1, bias=False)
    nn.init.orthogonal_(conv.weight)
    return conv
