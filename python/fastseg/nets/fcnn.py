# SPDX-License-Identifier: BSD-3-Clause
"""The 10,000-parameter networks of patch contrast (Boserup & Selvan, arXiv 2208.10779), in 2D and, ours, in 3D."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

DILATIONS = (1, 2, 3, 5, 10, 20)


class FCNN(nn.Module):
    """Map (B, in_channels, *S) to logits (B, out_channels, *S), without pooling, at full resolution throughout.

    A convolution to ``width`` channels, one residual block per dilation, y = x + f(f(x)) with f a dilated
    convolution, batch norm and ELU, and a 1 x 1 convolution. The confidence of the paper is the logits' sigmoid.

    Arguments:
      dims: 2 or 3.
      dilations: one per block, each an int or one int per axis: (1, 10, 10) sees less far along z, as suits
        volumes whose slices are thicker than their pixels.

    With the defaults of the paper, three channels in and four out, it has 7,372 parameters and sees 167 pixels.
    """

    def __init__(
        self,
        dims: int = 2,
        in_channels: int = 3,
        out_channels: int = 4,
        *,
        width: int = 8,
        dilations: Sequence[int | Sequence[int]] = DILATIONS,
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        steps = [(d,) * dims if isinstance(d, int) else tuple(d) for d in dilations]
        for step in steps:
            if len(step) != dims or min(step) < 1:
                raise ValueError(
                    f"dilations must hold one positive int or {dims} of them per block, got {step}"
                )
        self.dims = dims
        # Each block has two convolutions that look a dilation to either side.
        self.receptive_field = tuple(3 + 4 * sum(step[axis] for step in steps) for axis in range(dims))
        self.stem = _convolution(dims, in_channels, width, (1,) * dims)
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(dims, width, width, step), _convolution(dims, width, width, step))
            for step in steps
        )
        self.head = _CONV[dims](width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != self.dims + 2:
            raise ValueError(
                f"image must be (B, C, *S) with {self.dims} spatial axes, got {tuple(image.shape)}"
            )
        features = self.stem(image)
        for block in self.blocks:
            features = features + block(features)
        return self.head(features)


class PatchFeaturiser(nn.Module):
    """Map (N, 1, 50, 50) patches to unit vectors (N, 32), for the paper's similarity by features: 3,386
    parameters."""

    def __init__(self, width: int = 8, features: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ELU(),
            nn.Conv2d(width, width, 3, stride=2, dilation=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ELU(),
            nn.Conv2d(width, 1, 3, stride=2, dilation=2, bias=False),
            nn.BatchNorm2d(1),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(81, features),
        )

    def forward(self, patches: Tensor) -> Tensor:
        if patches.shape[1:] != (1, 50, 50):
            raise ValueError(f"patches must be (N, 1, 50, 50), got {tuple(patches.shape)}")
        return F.normalize(self.layers(patches), dim=1)


def _convolution(dims: int, channels: int, width: int, dilation: Sequence[int]) -> nn.Sequential:
    conv = _CONV[dims](channels, width, 3, padding=tuple(dilation), dilation=tuple(dilation), bias=False)
    return nn.Sequential(conv, _NORM[dims](width), nn.ELU())
