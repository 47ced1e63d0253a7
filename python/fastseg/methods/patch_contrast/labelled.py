# SPDX-License-Identifier: BSD-3-Clause
"""All confidence maps of patch contrast over labelled volumes, as Boserup & Selvan choose the channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.data.annotations import LABELLED, AnnotatedVolume
from fastseg.data.intensity import measure_intensity
from fastseg.data.volumes import Volume
from fastseg.methods.inference import tiling_of
from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.methods.patch_contrast.network import PatchContrastNetwork
from fastseg.metrics import Confusion, count_confusion
from fastseg.predict import Network, predict_blocks, probability_of
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks


class _Maps(torch.nn.Module):
    def __init__(self, network: PatchContrastNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.maps(image)


def maps_predictor(
    network: PatchContrastNetwork, volume: Volume, config: Config, device: torch.device
) -> Network:
    """Raw windows to the probabilities of all channels, (B, K, z, y, x), with the scaling of ``volume``."""
    intensity = measure_intensity(volume, config.data.normalize)
    return probability_of(_Maps(network), intensity, device=device, flips=config.predict.flips)


def dice_of_channels(
    network: PatchContrastNetwork, volumes: Sequence[AnnotatedVolume], config: Config, ranks: Ranks
) -> list[float]:
    """Dice of every channel, then of every channel inverted, over all labelled voxels; before openings and closings.
    The first process alone looks."""
    if not ranks.first:
        return ranks.from_first(None)
    k, device = config.section(PatchContrastConfig).channels, ranks.device
    counts = [Confusion()] * (2 * k)
    for volume in volumes:
        maps = maps_predictor(network, volume.raw, config, device)
        tiling = tiling_of(config, maps, volume.raw, device)
        for start, stop, predicted in predict_blocks(volume.raw, maps, tiling, classes=k, device=device):
            target, codes = volume.read_target(start, stop)
            above = (predicted >= config.predict.threshold).cpu().numpy()
            for i, mask in enumerate([*above, *~above]):
                counts[i] = counts[i] + count_confusion(mask, target[0], codes[0] == LABELLED)
    return ranks.from_first([count.dice for count in counts])
