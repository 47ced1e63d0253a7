# SPDX-License-Identifier: BSD-3-Clause
"""U-Net for images and volumes, after Cicek et al. 2016 (arXiv 1606.06650), with same-padded convolutions.

Level l of the way down has convolutions of width * 2**l and width * 2**(l + 1) channels; the last is doubled
before the pooling, so that no layer squeezes information. Going up, the upsampled features keep their
channels, meet the skip and are brought to the skip's channels by two convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "batch", "instance"]


class _Conv3d(nn.Conv3d):
    def forward(self, image: Tensor) -> Tensor:
        # oneDNN's bfloat16 weight gradient reads unset memory when a kernel of 3 meets exactly two slices
        # (torch 2.13 on an AVX-512 BF16 CPU: NaN in half of the calls; one or three slices are right).
        if image.shape[2] == 2 and image.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(image.float())
        return super().forward(image)


CONV = {2: nn.Conv2d, 3: _Conv3d}
UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORM = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}


class UNet(nn.Module):
    """Map (B, in_channels, *S) to logits (B, out_channels, *S), S two or three axes.

    Arguments:
      dims: 2 or 3, the number of spatial axes.
      in_channels, out_channels: channels of the image and of the logits.
      width: channels of the very first convolution; every level doubles it.
      pooling: one stride per level on the way down, each an int or one int per axis. ``(1, 2, 2)`` leaves
        z alone, which suits volumes whose slices are thicker than their pixels. Its length is the depth.
      norm: "instance", "batch" or "none"; without a norm the convolutions have biases.

    Every axis must be a multiple of the product of its strides (``self.divisor``); ValueError otherwise.
    width=32, three levels of 2 and norm="none" is the network of the paper: 19,069,955 parameters for
    three channels in and three out.
    """

    def __init__(
        self,
        dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 16,
        pooling: Sequence[int | Sequence[int]] = (2, 2, 2),
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        strides = [(p,) * dims if isinstance(p, int) else tuple(p) for p in pooling]
        for stride in strides:
            if len(stride) != dims or min(stride) < 1:
                raise ValueError(f"pooling must hold {dims} positive strides per level, got {stride}")
        self.dims = dims
        self.divisor = tuple(math.prod(stride[axis] for stride in strides) for axis in range(dims))

        self.down = nn.ModuleList()
        self.pools = nn.ModuleList()
        channels = in_channels
        skips = []
        for level in range(len(strides) + 1):
            inner = width * 2**level
            self.down.append(two_convolutions(dims, channels, inner, 2 * inner, norm))
            channels = 2 * inner
            if level < len(strides):
                self.pools.append(POOL[dims](strides[level]))
                skips.append(channels)

        self.ups = nn.ModuleList()
        self.merge = nn.ModuleList()
        for stride, skip in zip(reversed(strides), reversed(skips), strict=True):
            self.ups.append(UP[dims](channels, channels, stride, stride, bias=False))
            self.merge.append(two_convolutions(dims, channels + skip, skip, skip, norm))
            channels = skip
        self.head = CONV[dims](channels, out_channels, 1)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(image)))

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features of every level of the way down, the finest first."""
        check_image(image, self.dims, self.divisor)
        levels = [self.down[0](image)]
        for pool, block in zip(self.pools, self.down[1:], strict=True):
            levels.append(block(pool(levels[-1])))
        return levels

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """The features that the head sees, (B, 2 * width, *S), of what ``encode`` found."""
        return go_up(levels, self.ups, self.merge)


def go_up(levels: Sequence[Tensor], ups: nn.ModuleList, merge: nn.ModuleList) -> Tensor:
    """From the deepest of ``levels`` to full resolution, each but that one met on the way; without a skip where there
    are more ways up than levels."""
    *skips, features = levels
    for up, block in zip(ups, merge, strict=True):
        features = up(features)
        features = block(torch.cat((skips.pop(), features), dim=1) if skips else features)
    return features


def check_image(image: Tensor, dims: int, divisor: Sequence[int]) -> None:
    """ValueError unless the image is (B, C, *S) with axes that are multiples of ``divisor``."""
    if image.ndim != dims + 2:
        raise ValueError(f"image must be (B, C, *S) with {dims} spatial axes, got {tuple(image.shape)}")
    if any(size % d for size, d in zip(image.shape[2:], divisor, strict=True)):
        raise ValueError(
            f"image axes must be multiples of {tuple(divisor)}, the network's pooling, got {tuple(image.shape[2:])}"
        )


def two_convolutions(dims: int, channels: int, first: int, second: int, norm: Norm) -> nn.Sequential:
    """Two convolutions of 3, each with its norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (first, second):
        layers.append(CONV[dims](channels, width, 3, padding=1, bias=norm == "none"))
        if norm != "none":
            layers.append(NORM[norm][dims](width, affine=True))
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """He's weights for ReLU, and no biases."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
