# SPDX-License-Identifier: BSD-3-Clause
"""The network of patch contrast: K confidence maps of an image, of which one, chosen, is the segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastseg.errors import InputError
from fastseg.methods.networks import build_network as build_confidence_network
from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.nets.fcnn import PatchFeaturiser
from fastseg.train.config import Config


class PatchContrastNetwork(nn.Module):
    """Map intensities (B, C, z, y, x), [0, 1] from black to white, to the logits (B, 1, z, y, x) of the chosen channel.

    ``maps`` gives the logits (B, K, z, y, x) of all channels. Kept with the weights: which channel is the segmentation
    (-1: none is chosen yet) and whether it is inverted, and the sums that the stopping criterion compares.
    """

    def __init__(
        self, confidence: nn.Module, featuriser: nn.Module | None, *, offset: float, batch_statistics: bool
    ) -> None:
        super().__init__()
        self.confidence, self.offset = confidence, offset
        if featuriser is not None:
            self.featuriser = featuriser
        if batch_statistics:
            for layer in batch_norms(confidence):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        self.register_buffer("channel", torch.tensor(-1))
        self.register_buffer("inverted", torch.tensor(False))
        # Sums of D_pp and D_pn and the number of steps in the window at hand, and the gap of the window before.
        self.register_buffer("window_sums", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("last_gap", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("converged", torch.tensor(False))

    def prepare(self, image: Tensor) -> Tensor:
        """Intensities as network and loss see them: cut to [0, 1], then lifted off 0, which would mask itself."""
        return image.clamp(0, 1) * (1 - self.offset) + self.offset

    def maps(self, image: Tensor) -> Tensor:
        return self.confidence(self.prepare(image))

    def forward(self, image: Tensor) -> Tensor:
        # Indexed on the device: looking which channel it is would wait for the device in every window.
        logits = self.maps(image).index_select(1, self.channel.clamp(min=0).view(1))
        return torch.where(self.inverted, -logits, logits)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def build_network(config: Config, channels: int) -> PatchContrastNetwork:
    """The network of a configuration, for images of so many channels."""
    settings = config.section(PatchContrastConfig)
    featuriser = None
    if settings.similarity == "features":
        size = settings.patch_size
        if len(config.data.patch) != 2 or (size if isinstance(size, int) else max(size)) != 50:
            raise InputError(
                "patch_contrast.similarity: features needs 2D patches and patch_contrast.patch_size 50, what the "
                f"featuriser of the paper takes, got data.patch {config.data.patch} and patch_size {size}"
            )
        featuriser = PatchFeaturiser()
    return PatchContrastNetwork(
        build_confidence_network(config, channels, settings.channels),
        featuriser,
        offset=settings.offset,
        batch_statistics=settings.batch_norm == "batch",
    )
