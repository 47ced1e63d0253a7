# SPDX-License-Identifier: BSD-3-Clause
"""Two views of every patch of a batch: crops a little apart, each flipped, turned and changed by itself.

All that is drawn depends on the seed, the step and the place in the batch alone. How far apart the crops are is the
same for a whole step, so that what they share is one box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastseg.data import augment_geometry, augment_intensity
from fastseg.data.augment import Augmentation, draw_change, draw_symmetry
from fastseg.data.augment_geometry import Move
from fastseg.data.buffers import Batch
from fastseg.data.intensity import scale_intensity
from fastseg.data.volumes import Box

# Tells these random numbers from others of the same seed, step and place.
_VIEWS = 7


@dataclass(frozen=True)
class View:
    """image (B, C, *patch) float32 as the network sees it; clean, the same before its intensities were changed;
    target (B, K, *patch). overlap: [first, last) per axis of what the views share, once turned back."""

    image: Tensor
    clean: Tensor
    target: Tensor
    moves: Sequence[Move]
    overlap: tuple[tuple[int, int], ...]

    def shared(self, tensor: Tensor) -> Tensor:
        """Of (B, any, *patch) in this view, the part that the other view has too, turned back: the same places in the
        same order for both. Without a copy where nothing was turned."""
        patch = self.image.shape[2:]
        if any(m.order != (0, 1, 2) or any(m.flips) for m in self.moves):
            undone = [move.undone() for move in self.moves]
            tensor = augment_geometry.turn(tensor, undone, (patch[0], patch[1], patch[2]))
        for axis, (first, last) in enumerate(self.overlap, 2):
            tensor = tensor.narrow(axis, first, last - first)
        return tensor


def draw_views(batch: Batch, settings: Augmentation, patch: Box, seed: int) -> tuple[View, View]:
    """Both views of a batch on its device. Its margin is how far the crops may be from the middle, per axis.

    settings: its symmetry and its changes of intensity, unless it is not enabled; its free geometry is not used.
    """
    with torch.autocast(batch.raw.device.type, enabled=False):
        clean = scale_intensity(batch.raw, batch.shift, batch.scale)
        margin = [(whole - part) // 2 for whole, part in zip(clean.shape[2:], patch, strict=True)]
        rng = np.random.default_rng((seed, batch.step, _VIEWS))
        corners = [[int(rng.integers(2 * m + 1)) for m in margin] for _ in range(2)]
        first, second = (
            _view(batch, clean, settings, patch, seed, number, corners[number], corners[1 - number])
            for number in range(2)
        )
    return first, second


def _view(
    batch: Batch,
    clean: Tensor,
    settings: Augmentation,
    patch: Box,
    seed: int,
    number: int,
    corner: list[int],
    other: list[int],
) -> View:
    target = batch.target
    for axis, (at, size) in enumerate(zip(corner, patch, strict=True), 2):
        clean, target = clean.narrow(axis, at, size), target.narrow(axis, at, size)
    moves, changes = [], []
    for place, voxel_size in zip(batch.places, batch.voxel_size, strict=True):
        rng = np.random.default_rng((seed, batch.step, place, _VIEWS, number))
        moves.append(Move(*draw_symmetry(patch, settings.symmetry if settings.enabled else "none", rng)))
        changes.append(draw_change(settings, patch, voxel_size, rng))
    clean, target = (augment_geometry.turn(t, moves, patch) for t in (clean, target))
    overlap = tuple(
        (max(b - a, 0), size - max(a - b, 0)) for a, b, size in zip(corner, other, patch, strict=True)
    )
    image = augment_intensity.change(clean, changes) if settings.enabled else clean
    return View(image, clean, target, moves, overlap)
