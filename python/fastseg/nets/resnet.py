# SPDX-License-Identifier: BSD-3-Clause
"""A U-Net whose way down is ResNet-50 (He et al. 2016, arXiv 1512.03385), for images and, ours, for volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.nets.unet import CONV, NORM, POOL, UP, Norm, check_image, go_up, initialise, two_convolutions

# Blocks and strides of ResNet-50: stem, its pooling, and the four stages, of which the first keeps its size.
_BLOCKS = (3, 4, 6, 3)
STRIDES = (2, 2, 2, 2, 2)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1 to ``width`` channels, 3 x 3 with the stride, 1 x 1 to four times the width, added to the input."""

    def __init__(
        self, dims: int, channels: int, width: int, stride: Sequence[int], norm: Norm, project: bool
    ) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.first = _convolution(dims, channels, width, 1, 1, norm)
        self.second = _convolution(dims, width, width, 3, stride, norm)
        self.third = _convolution(dims, width, outputs, 1, 1, norm)
        self.shortcut = _convolution(dims, channels, outputs, 1, stride, norm) if project else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        inner = torch.relu(self.second(torch.relu(self.first(features))))
        return torch.relu(self.third(inner) + self.shortcut(features))


class ResNetUNet(nn.Module):
    """Map (B, in_channels, *S) to logits (B, out_channels, *S), S two or three axes.

    The way down has a stem of 7 wide, a max pooling and stages of 3, 4, 6 and 3 bottlenecks; the way up a transposed
    convolution, the skip and two convolutions for each of its strides, the last without a skip.

    Arguments:
      dims: 2 or 3, the number of spatial axes.
      width: channels of the stem; 64 is ResNet-50, whose 23,508,032 parameters (three channels in, norm="batch", two
        axes) the way down then has.
      pooling: five strides, each an int or one per axis: of the stem, the pooling, and stages 2 to 4.
      norm: "instance", "batch" or "none".

    Every axis must be a multiple of the product of its strides (``self.divisor``); ValueError otherwise.
    """

    def __init__(
        self,
        dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 64,
        pooling: Sequence[int | Sequence[int]] = STRIDES,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        strides = [(p,) * dims if isinstance(p, int) else tuple(p) for p in pooling]
        if len(strides) != len(STRIDES) or any(len(s) != dims or min(s) < 1 for s in strides):
            raise ValueError(f"pooling must hold 5 strides of one or {dims} positive ints, got {[*pooling]}")
        self.dims = dims
        self.divisor = tuple(math.prod(s[axis] for s in strides) for axis in range(dims))
        self.stem = _convolution(dims, in_channels, width, 7, strides[0], norm)
        self.pool = POOL[dims](
            tuple(s + 1 if s > 1 else 1 for s in strides[1]), strides[1], _half(strides[1])
        )
        self.stages = nn.ModuleList()
        channels, skips = width, [width]
        for number, count in enumerate(_BLOCKS):
            stride = strides[number + 1] if number else (1,) * dims
            inner = width * 2**number
            blocks = [Bottleneck(dims, channels, inner, stride, norm, project=True)]
            channels = _EXPANSION * inner
            for _ in range(count - 1):
                blocks.append(Bottleneck(dims, channels, inner, (1,) * dims, norm, project=False))
            self.stages.append(nn.Sequential(*blocks))
            skips.append(channels)
        self.ups, self.merge = nn.ModuleList(), nn.ModuleList()
        skips = [0, *skips[:-1]]
        for stride, skip, width_up in zip(
            reversed(strides), reversed(skips), (8 * width, 4 * width, 2 * width, width, width), strict=True
        ):
            self.ups.append(UP[dims](channels, width_up, stride, stride, bias=False))
            self.merge.append(two_convolutions(dims, width_up + skip, width_up, width_up, norm))
            channels = width_up
        self.head = CONV[dims](channels, out_channels, 1)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(image)))

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features of stem and stages, the finest first."""
        check_image(image, self.dims, self.divisor)
        levels = [torch.relu(self.stem(image))]
        features = self.pool(levels[0])
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        return levels

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """The features that the head sees, (B, width, *S), of what ``encode`` found."""
        return go_up(levels, self.ups, self.merge)


def _convolution(
    dims: int, channels: int, outputs: int, kernel: int, stride: int | Sequence[int], norm: Norm
) -> nn.Module:
    layer = CONV[dims](channels, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    return layer if norm == "none" else nn.Sequential(layer, NORM[norm][dims](outputs, affine=True))


def _half(stride: Sequence[int]) -> tuple[int, ...]:
    """The padding that goes with a pooling of stride + 1."""
    return tuple(s // 2 if s > 1 else 0 for s in stride)
