# SPDX-License-Identifier: BSD-3-Clause
"""Networks of CUT, contrastive unpaired translation (Park et al. 2020, arXiv 2007.15651), for images.

A ResNet generator that blurs before it halves and interpolates where it doubles, a PatchGAN discriminator, and the
heads that make comparable vectors of the generator's features. Layers are numbered as in the published code
(github.com/taesungp/contrastive-unpaired-translation), whose weights generator and discriminator have under the same
names, fixed filters aside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Layers of the generator whose outputs are features: the padded image, the convolutions of both halvings, the first
# and the fifth residual block.
FEATURE_LAYERS = (0, 4, 8, 12, 16)
_FIRST_BLOCK = 12
_DIVISOR = 4

# The least sides: reflected borders must fit into the smallest maps, and norms need two values there.
SMALLEST_IMAGE = 8
SMALLEST_JUDGED = 32

_GAIN, _SLOPE = 0.02, 0.2


class CutGenerator(nn.Module):
    """Map an image (B, channels, H, W), about in [-1, 1], to one of the same shape in (-1, 1).

    Arguments:
      channels: of the image, in and out.
      width: channels of the first convolution, a quarter of those of the residual blocks.
      blocks: residual blocks, at least 2. 64 and 9 is the network of the paper, "resnet_9blocks" with instance norm:
        11,378,179 parameters for three channels, 11,365,633 for one.

    H and W are at least 8, else ValueError. Where they are no multiples of 4 the image is continued to one by
    reflection and the result cut to H and W. Instance norms make each image a matter of its own, and of all of it.

    ``translate`` gives the result with the features of FEATURE_LAYERS in one pass, ``encode`` the features alone; with
    fewer than five blocks the last feature is that of the last block. They have ``feature_channels`` and belong to the
    continued image, the first one with a border of 3.
    """

    def __init__(self, channels: int = 1, *, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        if blocks < 2:
            raise ValueError(f"blocks must be at least 2, got {blocks}")
        deep = 4 * width
        self.feature_channels = (channels, 2 * width, deep, deep, deep)
        self.feature_layers = (*FEATURE_LAYERS[:-1], min(FEATURE_LAYERS[-1], _FIRST_BLOCK + blocks - 1))
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(nn.Conv2d(channels, width, 7)),
            *_normed(nn.Conv2d(width, 2 * width, 3, padding=1)),
            BlurredHalving(2 * width),
            *_normed(nn.Conv2d(2 * width, deep, 3, padding=1)),
            BlurredHalving(deep),
            *(ResidualBlock(deep) for _ in range(blocks)),
            _doubling(),
            *_normed(nn.Conv2d(deep, 2 * width, 3, padding=1)),
            _doubling(),
            *_normed(nn.Conv2d(2 * width, width, 3, padding=1)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        return self.translate(image)[0]

    def translate(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The translated image, and the features of ``image``."""
        features, deepest = self._encode(image)
        height, width = image.shape[2:]
        return self.model[self.feature_layers[-1] + 1 :](deepest)[..., :height, :width], features

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features of ``image``, without going on to the translated one."""
        return self._encode(image)[0]

    def _encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        _check(image, self.feature_channels[0], SMALLEST_IMAGE)
        height, width = image.shape[2:]
        here = F.pad(image, (0, -width % _DIVISOR, 0, -height % _DIVISOR), mode="reflect")
        features = []
        for number, layer in enumerate(self.model[: self.feature_layers[-1] + 1]):
            here = layer(here)
            if number in self.feature_layers:
                features.append(here)
        return features, here

    def places(self, height: int, width: int) -> list[int]:
        """How many positions the features of an image of this size have, layer by layer."""
        height, width = (-(-size // _DIVISOR) * _DIVISOR for size in (height, width))
        quarter = height * width // 16
        return [(height + 6) * (width + 6), height * width, height * width // 4, quarter, quarter]


class ResidualBlock(nn.Module):
    """x + two convolutions of 3 with instance norms, borders reflected; (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        return image + self.conv_block(image)


class BlurredHalving(nn.Module):
    """Every second position of the image blurred by [1, 2, 1] / 4 along both axes, borders reflected: halving without
    aliasing (Zhang 2019, arXiv 1904.11486)."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", torch.outer(line, line).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.filt.to(image.dtype), stride=2, groups=image.shape[1])


class PatchDiscriminator(nn.Module):
    """Map images (B, channels, H, W) to scores (B, 1, h, w), each of what is seen around one place.

    Arguments:
      channels: of the image.
      width: channels of the first convolution.
      layers: halvings, at least 1. 64 and 3 is the discriminator of the paper, the PatchGAN of 70 x 70: with the blurs
        before its halvings a score sees 84 x 84. 2,764,737 parameters for three channels, 2,762,689 for one.

    H and W are at least 32 with up to three layers, twice that for each further one, else ValueError.
    """

    def __init__(self, channels: int = 1, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        self.channels, self.smallest = channels, SMALLEST_JUDGED * 2 ** max(layers - 3, 0)
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        parts = [nn.Conv2d(channels, width, 4, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
        for level in range(1, layers + 1):
            convolution = nn.Conv2d(widths[level - 1], widths[level], 4, padding=1)
            parts += [BlurredHalving(widths[level - 1]), *_normed(convolution, _SLOPE)]
        self.model = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        _check(image, self.channels, self.smallest)
        return self.model(image)


class ProjectionHeads(nn.Module):
    """A head of two linear layers for each layer of features, to vectors that PatchNCE compares.

    Called with features (B, C_l, H_l, W_l) and places (B, P_l), int64, positions in the flattened map; gives
    (B, P_l, dimensions) for each layer, not normalised, of the heads' dtype. Each image has places of its own.
    """

    def __init__(self, channels: Sequence[int], *, dimensions: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(count, dimensions), nn.ReLU(inplace=True), nn.Linear(dimensions, dimensions)
            )
            for count in channels
        )
        self.apply(initialise)

    def forward(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        return [
            head(taken_at(layer, where).to(head[0].weight.dtype))
            for head, layer, where in zip(self.heads, features, places, strict=True)
        ]


def taken_at(features: Tensor, places: Tensor) -> Tensor:
    """(B, P, C): the vectors of features (B, C, H, W) at places (B, P) of the flattened map."""
    index = places.unsqueeze(1).expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index).transpose(1, 2)


def initialise(module: nn.Module) -> None:
    """Xavier's normal weights with the published code's gain of 0.02, and no biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight, gain=_GAIN)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _normed(convolution: nn.Conv2d, slope: float = 0.0) -> list[nn.Module]:
    activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), activation]


def _doubling() -> nn.Module:
    # The published code's fixed filter [1, 3, 3, 1] with repeated borders is this interpolation.
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def _check(image: Tensor, channels: int, smallest: int) -> None:
    if image.ndim != 4 or image.shape[1] != channels or min(image.shape[2:]) < smallest:
        raise ValueError(
            f"image must be (B, {channels}, H, W) with H and W at least {smallest}, got {tuple(image.shape)}"
        )
