# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation of whole batches on their device, each sample with parameters of its own.

Parameters depend on the seed, the step and the place in the batch alone, as patches do, and what one kind of
augmentation draws does not depend on which others are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastseg.data import augment_geometry, augment_intensity
from fastseg.data.augment_geometry import Displacement, Move
from fastseg.data.augment_intensity import Change
from fastseg.data.buffers import Batch
from fastseg.data.intensity import scale_intensity
from fastseg.data.volumes import Box

Symmetry = Literal["none", "plane", "volume"]

# Tells the random numbers of augmentation apart from those of the patch of the same seed, step and place.
_AUGMENT = 3


@dataclass(frozen=True)
class Probability:
    """The share of samples that each kind of augmentation changes, where it is on."""

    rotate: float = 0.5
    scale: float = 0.5
    elastic: float = 0.3
    gamma: float = 0.3
    contrast: float = 1.0
    brightness: float = 1.0
    noise: float = 1.0
    blur: float = 0.2
    missing: float = 0.2


@dataclass(frozen=True)
class Augmentation:
    """How far each kind of augmentation goes; 0 is off, and ``enabled`` False is off for all.

    symmetry: "plane" flips every axis and turns by right angles in y and x; "volume" turns in all three, for
    isotropic voxels; axes of unequal length are never exchanged. rotate: degrees to either side in the plane of
    y and x; tilt: degrees about y and about x, drawn with it. scale: 0.2 zooms by 1/1.2 to 1.2. elastic: standard
    deviation of the displacement of control points ``elastic_grid`` apart, both in voxels of the finest axis.
    gamma: 0.3 draws the exponent from 1/1.3 to 1.3. contrast, brightness: standard deviations of a factor around
    1 and of an offset, noise: largest deviation of added white noise, all three in units of the scaled intensity.
    blur: largest standard deviation of a Gaussian, in voxels of the finest axis. missing: most consecutive
    sections (along z) that are dark or faint.
    """

    enabled: bool = True
    symmetry: Symmetry = "plane"
    rotate: float = 0.0
    tilt: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 32
    gamma: float = 0.0
    contrast: float = 0.1
    brightness: float = 0.1
    noise: float = 0.0
    blur: float = 0.0
    missing: int = 0
    probability: Probability = Probability()

    @property
    def resamples(self) -> bool:
        """Whether any sample is more than flipped and turned by right angles."""
        return self.enabled and any((self.rotate, self.tilt, self.scale, self.elastic))

    def margin(self, patch: Box, voxel_sizes: Sequence[Sequence[float]]) -> Box:
        """What to read beyond a patch on either side, in voxels, so that free geometry finds data everywhere.

        0 without free geometry. Displacements count up to two standard deviations, and an axis of one voxel
        has no margin.
        """
        if not self.resamples:
            return (0, 0, 0)
        half = np.subtract(patch, 1) / 2
        reach = np.zeros(3)
        turns = _all_turns(self.rotate, self.tilt if patch[0] > 1 else 0.0)
        for voxel in map(np.asarray, {tuple(size) for size in voxel_sizes}):
            for angles in turns:
                matrix = augment_geometry.affine(angles, 1 / (1 + self.scale), voxel)
                reach = np.maximum(reach, np.abs(matrix) @ half + 2 * self.elastic * voxel.min() / voxel)
        z, y, x = (
            int(np.ceil(r - h - 1e-9)) if n > 1 else 0 for r, h, n in zip(reach, half, patch, strict=True)
        )
        return (z, y, x)


def augment(batch: Batch, settings: Augmentation, patch: Box, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image float32 (B, C, *patch), scaled, target (B, K, *patch) and codes (B, 1, *patch) of a batch on its device.

    Flips and right angles are exact. All other geometry of a sample is one resampling from the patch and its
    margin: linear for the image, mirrored beyond the margin, nearest for target and codes, which are 0 there.
    Intensities change the image alone. Repeatable on one kind of device; white noise differs between CPU and GPU.
    """
    # Under the autocast of a training step a convolution would round the image.
    with torch.autocast(batch.raw.device.type, enabled=False):
        return _augment(batch, settings, patch, seed)


def _augment(batch: Batch, settings: Augmentation, patch: Box, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    if not settings.enabled:
        raw, target, codes = (
            augment_geometry.centre(t, patch) for t in (batch.raw, batch.target, batch.codes)
        )
        return scale_intensity(raw, batch.shift, batch.scale), target, codes
    moves, changes = [], []
    for place, voxel_size in zip(batch.places, batch.voxel_size, strict=True):
        rng = np.random.default_rng((seed, batch.step, place, _AUGMENT))
        moves.append(_draw_move(settings, patch, voxel_size, rng))
        changes.append(draw_change(settings, patch, voxel_size, rng))
    raw, target, codes = augment_geometry.move(batch.raw, batch.target, batch.codes, moves, patch)
    image = scale_intensity(raw, batch.shift, batch.scale)
    return augment_intensity.change(image, changes), target, codes


def _draw_move(settings: Augmentation, patch: Box, voxel_size: np.ndarray, rng: np.random.Generator) -> Move:
    order, flips = draw_symmetry(patch, settings.symmetry, rng)
    chance = settings.probability
    turned, zoomed, bent = rng.random(3) < (chance.rotate, chance.scale, chance.elastic)
    angles = np.radians(rng.uniform(-1, 1, 3) * (settings.rotate, settings.tilt, settings.tilt))
    exponent = rng.uniform(-1, 1)
    field_rng = np.random.default_rng(rng.integers(2**63))  # its numbers depend on the patch: kept apart
    turned &= bool(settings.rotate or settings.tilt)
    zoomed &= bool(settings.scale)
    bent &= bool(settings.elastic)
    if patch[0] == 1:
        angles[1:] = 0  # a single slice cannot be tilted
    if not (turned or zoomed or bent):
        return Move(order, flips)
    matrix = augment_geometry.affine(
        angles if turned else np.zeros(3), (1 + settings.scale) ** exponent if zoomed else 1.0, voxel_size
    )
    field = None
    if bent:
        field = Displacement.draw(settings.elastic, settings.elastic_grid, patch, voxel_size, field_rng)
    return Move(order, flips, matrix, field)


def draw_symmetry(
    shape: Box, symmetry: Symmetry, rng: np.random.Generator
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """An order of the axes and which to flip: with both, every right-angle symmetry."""
    flips, keys = rng.random(3) < 0.5, rng.random(3)
    if symmetry == "none":
        return (0, 1, 2), (False, False, False)
    turning = [1, 2] if symmetry == "plane" else [0, 1, 2]
    order = [0, 1, 2]
    shuffled = sorted(turning, key=lambda axis: keys[axis])
    if all(shape[a] == shape[b] for a, b in zip(turning, shuffled, strict=True)):
        for a, b in zip(turning, shuffled, strict=True):
            order[a] = b
    return (order[0], order[1], order[2]), (bool(flips[0]), bool(flips[1]), bool(flips[2]))


def draw_change(
    settings: Augmentation, patch: Box, voxel_size: np.ndarray, rng: np.random.Generator
) -> Change:
    """What happens to the intensities of a sample."""
    chance = settings.probability
    shares = (chance.gamma, chance.contrast, chance.brightness, chance.noise, chance.blur, chance.missing)
    gamma, contrast, brightness, noise, blur, missing = rng.random(6) < shares
    exponent, factor, offset = rng.uniform(-1, 1), rng.standard_normal(), rng.standard_normal()
    deviation, width, dark = rng.random(), rng.random(), rng.random() < 0.5
    length, where, seed = rng.random(), rng.random(), int(rng.integers(2**63))
    widest = settings.blur if blur else 0.0
    sections = (0, 0)
    if missing and settings.missing and patch[0] > 1:
        count = min(1 + int(length * settings.missing), patch[0] - 1)
        first = int(where * (patch[0] - count + 1))
        sections = (first, first + count)
    return Change(
        gamma=float((1 + settings.gamma) ** exponent) if gamma else 1.0,
        factor=float(1 + settings.contrast * factor) if contrast else 1.0,
        offset=float(settings.brightness * offset) if brightness else 0.0,
        noise=float(settings.noise * deviation) if noise else 0.0,
        blur=tuple(map(float, widest * width * voxel_size.min() / voxel_size)),
        sections=sections,
        dark=bool(dark),
        seed=seed,
    )


def _all_turns(rotate: float, tilt: float) -> list[np.ndarray]:
    """Angles close enough to all that may be drawn for the furthest corner to be found within a hundredth."""
    plane, out = np.linspace(-rotate, rotate, 65), np.linspace(-tilt, tilt, 9 if tilt else 1)
    grid = np.stack(np.meshgrid(plane, out, out, indexing="ij"), axis=-1)
    return list(np.radians(grid.reshape(-1, 3)))
