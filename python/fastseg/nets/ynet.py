# SPDX-License-Identifier: BSD-3-Clause
"""Attention U-Net and Attention Y-Net for images, as Franco-Barranco et al. (CMPB 2022;222:106949) use them.

A level is conv 3 x 3, ELU, dropout, conv 3 x 3, ELU, without a norm. Attention gates weight each position of the way
up before it meets the skip. The Y-Net adds a second decoder on the same encoder, without skips, that restores the
image: what it learns from unlabelled images reaches the segmentation through the encoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Gate = Literal["up", "skip"]

# Of the encoder's levels, the deepest last; the decoders use the same ones on their way up.
DROPOUTS = (0.1, 0.1, 0.2, 0.2, 0.3)

# What the four poolings divide both axes by.
DIVISOR = 2 ** (len(DROPOUTS) - 1)


class AttentionGate(nn.Module):
    """psi = sigmoid(1x1(ReLU(1x1(skip) + 1x1(up)))) in (0, 1) per position, and (skip, up) with one of them
    multiplied by it: ``up``, as the published code does, or ``skip``, as Oktay et al. 2018 (arXiv 1804.03999)."""

    def __init__(self, channels: int, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.skip = nn.Conv2d(channels, channels, 1)
        self.up = nn.Conv2d(channels, channels, 1)
        self.psi = nn.Conv2d(channels, 1, 1)

    def forward(self, skip: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        psi = self.psi(torch.relu(self.skip(skip) + self.up(up))).sigmoid()
        return (skip, up * psi) if self.gate == "up" else (skip * psi, up)


class Encoder(nn.Module):
    """(B, in_channels, H, W) to the features of every level, the finest first."""

    def __init__(self, in_channels: int, widths: Sequence[int], dropouts: Sequence[float]) -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        self.levels = nn.ModuleList(_level(*sizes) for sizes in zip(inputs, widths, dropouts, strict=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.levels[0](image)]
        for level in self.levels[1:]:
            features.append(level(nn.functional.max_pool2d(features[-1], 2)))
        return features


class Decoder(nn.Module):
    """Features of the encoder to (B, out_channels, H, W); with a gate they meet the skips, without one they do
    not."""

    def __init__(
        self, widths: Sequence[int], dropouts: Sequence[float], out_channels: int, gate: Gate | None
    ) -> None:
        super().__init__()
        self.ups, self.levels, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for deep, width, dropout in zip(widths[:0:-1], widths[-2::-1], dropouts[-2::-1], strict=True):
            self.ups.append(nn.ConvTranspose2d(deep, width, 2, 2))
            self.levels.append(_level(width if gate is None else 2 * width, width, dropout))
            if gate is not None:
                self.gates.append(AttentionGate(width, gate))
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        here = features[-1]
        for number, (up, level) in enumerate(zip(self.ups, self.levels, strict=True)):
            here = up(here)
            if self.gates:
                skip = features[-2 - number]
                here = torch.cat(self.gates[number](skip, here), dim=1)
            here = level(here)
        return self.head(here)


class AttentionUNet(nn.Module):
    """Map (B, in_channels, H, W) to logits (B, out_channels, H, W); H and W multiples of 16.

    width: channels of the first level; each of the four poolings doubles them. 16 gives 1,985,061 parameters with one
    channel in and one out. dropouts: the share dropped in each level, the deepest last.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 16,
        gate: Gate = "up",
        dropouts: Sequence[float] = DROPOUTS,
    ) -> None:
        super().__init__()
        widths = _widths(width)
        self.encoder = Encoder(in_channels, widths, dropouts)
        self.segmentation = Decoder(widths, dropouts, out_channels, gate)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        _check(image)
        return self.segmentation(self.encoder(image))


class AttentionYNet(nn.Module):
    """Map (B, in_channels, H, W) to segmentation logits (B, out_channels, H, W) and the restored image.

    width, dropouts: as in AttentionUNet; 32 gives 10,199,558 parameters, 7,935,045 of them in encoder and segmentation.
    ``encoder``, ``segmentation`` and ``reconstruction`` are its parts, to freeze or to load one by one.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 32,
        gate: Gate = "up",
        dropouts: Sequence[float] = DROPOUTS,
    ) -> None:
        super().__init__()
        widths = _widths(width)
        self.encoder = Encoder(in_channels, widths, dropouts)
        self.segmentation = Decoder(widths, dropouts, out_channels, gate)
        self.reconstruction = Decoder(widths, dropouts, in_channels, None)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        _check(image)
        features = self.encoder(image)
        return self.segmentation(features), self.reconstruction(features)


def _widths(width: int) -> list[int]:
    return [width * 2**level for level in range(len(DROPOUTS))]


def _level(channels: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ELU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ELU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.kernel_size == (3, 3):  # Keras: he_normal in the levels, its default elsewhere
            nn.init.kaiming_normal_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _check(image: Tensor) -> None:
    if image.ndim != 4 or any(size % DIVISOR for size in image.shape[2:]):
        raise ValueError(
            f"image must be (B, C, H, W) with H and W multiples of {DIVISOR}, got {tuple(image.shape)}"
        )
