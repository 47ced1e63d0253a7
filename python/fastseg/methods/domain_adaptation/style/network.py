# SPDX-License-Identifier: BSD-3-Clause
"""The generator of the style strategy as networks of the package are: windows in their normalised range in and out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.data.intensity import Intensity, measure_intensity
from fastseg.data.volumes import Volume
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig
from fastseg.nets.cut import CutGenerator
from fastseg.train.config import Config

# Where the source's 1st and 99th percentile come to lie in the generator's (-1, 1), which it nears and never reaches.
PERCENTILES_AT = 0.8


class StyleGenerator(nn.Module):
    """Map windows (B, C, z, y, x) of normalised images to windows alike, slice by slice across ``axis``, 0 for z.

    ``cut`` works between -1 and 1; ``middle`` and ``reach`` of each channel say what that is in the normalised range.
    They are measured on the source's volumes and kept with the weights.
    """

    middle: Tensor
    reach: Tensor

    def __init__(self, cut: CutGenerator, axis: int) -> None:
        super().__init__()
        self.cut, self.axis = cut, axis + 2
        channels = cut.feature_channels[0]
        self.register_buffer("middle", torch.zeros(channels, 1, 1))
        self.register_buffer("reach", torch.ones(channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        restyled = self.cut(self.slices(image)) * self.reach + self.middle
        return restyled.unflatten(0, (len(image), -1)).movedim(1, self.axis)

    def slices(self, image: Tensor) -> Tensor:
        """The slices of windows as ``cut`` takes them, (B * slices, C, height, width)."""
        return (image.movedim(self.axis, 1).flatten(0, 1) - self.middle) / self.reach

    def set_range(self, volumes: Sequence[Volume], intensities: Sequence[Intensity]) -> None:
        """Between the lowest and the highest percentile of any of the source's volumes, and a little beyond."""
        ends = torch.tensor(
            [_percentiles(volume, scaling) for volume, scaling in zip(volumes, intensities, strict=True)]
        )
        low, high = ends[:, 0].amin(0), ends[:, 1].amax(0)
        self.middle.copy_(((low + high) / 2).view(-1, 1, 1))
        self.reach.copy_(((high - low) / (2 * PERCENTILES_AT)).view(-1, 1, 1))


def build_generator(config: Config, channels: int) -> StyleGenerator:
    """The generator of a configuration in evaluation mode, with weights and range yet to be loaded."""
    style = config.section(DomainAdaptationConfig).style
    cut = CutGenerator(channels, width=style.width, blocks=style.blocks)
    return StyleGenerator(cut, config.slice_axis).eval()


def _percentiles(volume: Volume, scaling: Intensity) -> tuple[list[float], list[float]]:
    """The 1st and the 99th percentile of each channel, scaled."""
    between = measure_intensity(volume, "percentile")
    low = [(p - s) * f for p, s, f in zip(between.shift, scaling.shift, scaling.scale, strict=True)]
    return low, [
        value + f / factor for value, f, factor in zip(low, scaling.scale, between.scale, strict=True)
    ]
