# SPDX-License-Identifier: BSD-3-Clause
"""From a configuration to the network that it names, as volumes are given to it: (B, C, z, y, x) in and out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.nets.fcnn import FCNN
from fastseg.nets.resnet import ResNetUNet
from fastseg.nets.sliding_cnn import SlidingCNN
from fastseg.nets.unet import UNet
from fastseg.nets.ynet import AttentionUNet
from fastseg.train.config import Config


class SliceNetwork(nn.Module):
    """Let a 2D network see volumes that are one slice thick along ``axis``, 0 for z."""

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        self.network, self.axis = network, axis + 2

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.squeeze(self.axis)).unsqueeze(self.axis)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [level.unsqueeze(self.axis) for level in self.network.encode(image.squeeze(self.axis))]


def build_network(config: Config, channels: int, outputs: int | None = None) -> nn.Module:
    """The network of a configuration, from (B, channels, z, y, x) to logits (B, outputs, z, y, x), by default one for
    each class."""
    dims, classes = len(config.data.patch), outputs or len(config.data.classes or [1])
    settings = config.network
    network: nn.Module
    if settings.kind == "sliding_cnn":
        network = SlidingCNN(channels, classes)
    elif settings.kind == "fcnn":
        network = FCNN(dims, channels, classes, width=settings.width, dilations=settings.dilations)
    elif settings.kind == "attention_unet":
        options = {"width": settings.width, "gate": settings.gate, "dropouts": settings.dropout}
        network = AttentionUNet(channels, classes, **options)
    else:
        kind = ResNetUNet if settings.kind == "resnet50" else UNet
        network = kind(
            dims, channels, classes, width=settings.width, pooling=settings.pooling, norm=settings.norm
        )
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=layout)
    return SliceNetwork(network, config.slice_axis) if dims == 2 else network
