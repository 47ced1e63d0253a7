# SPDX-License-Identifier: BSD-3-Clause
"""The networks of pretraining: a backbone that later trainings begin with, and the heads of each pretext task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.errors import InputError
from fastseg.methods.networks import SliceNetwork, build_network
from fastseg.methods.region_contrast.config import RegionContrastConfig
from fastseg.nets import ResNetUNet, UNet
from fastseg.ops import gather_rows
from fastseg.train.config import Config

_NOBODY = torch.iinfo(torch.int64).max


class Memory(nn.Module):
    """The last ``size`` unit vectors, kept with the weights so that a run goes on as if it had not been broken.

    ids: -1 where there is none yet, elsewhere one that no region of a batch bears.
    """

    rows: Tensor
    ids: Tensor
    place: Tensor

    def __init__(self, size: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dimensions))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("place", torch.tensor(0))

    @torch.no_grad()
    def add(self, rows: Tensor, used: Tensor, *, across_ranks: bool) -> None:
        """Put (N, D) in the place of the oldest; of every process, so that all remember the same."""
        if across_ranks:
            rows, used = gather_rows(rows.float()), gather_rows(used.byte()).bool()
        rows, used = rows[-len(self.rows) :], used[-len(self.rows) :]
        where = (self.place + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        # In place would change what the loss of this step still refers to.
        self.rows = self.rows.index_copy(0, where, rows.to(self.rows.dtype))
        self.ids = self.ids.index_copy(0, where, torch.where(used, _NOBODY, -1))
        self.place = (self.place + len(rows)) % len(self.rows)


class PretextNetwork(nn.Module):
    """A U-Net without its head, (B, C, z, y, x) to features at full resolution, with what a pretext task adds."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.backbone = build_network(config, channels)
        unet = self.backbone.network if isinstance(self.backbone, SliceNetwork) else self.backbone
        if not isinstance(unet, UNet | ResNetUNet):
            raise InputError(
                f"region_contrast pretrains U-Nets: network.kind must be unet or resnet50, got {config.network.kind}"
            )
        self.width = unet.head.in_channels
        self.deep_width = unet.ups[0].in_channels
        unet.head = nn.Identity()

    def features(self, image: Tensor) -> Tensor:
        return self.backbone(image)


class RegionNetwork(PretextNetwork):
    """Gives (embedding (B, D, z, y, x), logits of the assignment (B, K, z, y, x)), each None where nothing needs it.

    Both heads are one convolution of 1: what they tell apart must be in the features, which is what is kept.
    """

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__(config, channels)
        settings = config.section(RegionContrastConfig)
        self.embedding = self.assignment = self.memory = None
        if settings.semantic_weight:
            self.embedding = nn.Conv3d(self.width, settings.embedding, 1)
        if not settings.given:
            self.assignment = nn.Conv3d(self.width, settings.regions, 1)
        if settings.memory and settings.semantic_weight:
            self.memory = Memory(settings.memory, settings.embedding)

    def forward(self, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features = self.backbone(image)
        return (
            None if self.embedding is None else self.embedding(features),
            None if self.assignment is None else self.assignment(features),
        )


class MaskedNetwork(PretextNetwork):
    """Gives the image (B, C, z, y, x) restored from one with hidden blocks."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__(config, channels)
        self.restoration = nn.Conv3d(self.width, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.restoration(self.backbone(image))


class ImageNetwork(PretextNetwork):
    """Gives (B, D) for whole views, from the deepest features; the way up is not trained."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__(config, channels)
        settings, width = config.section(RegionContrastConfig), self.deep_width
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, settings.embedding)
        )
        self.memory = Memory(settings.memory, settings.embedding) if settings.memory else None
        for name, parameter in self.backbone.named_parameters():
            # network. stands before the names of a 2D network's parts
            if name.removeprefix("network.").startswith(("ups.", "merge.")):
                parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        deepest = self.backbone.encode(image)[-1]
        return self.projection(deepest.float().mean((2, 3, 4)))


NETWORKS: dict[str, type[PretextNetwork]] = {
    "regions": RegionNetwork,
    "masked": MaskedNetwork,
    "images": ImageNetwork,
}
