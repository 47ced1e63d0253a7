# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation of whole batches on their device, each sample with parameters of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Symmetry = Literal["none", "plane", "volume"]


@dataclass(frozen=True)
class Augmentation:
    """symmetry: "plane" flips every axis and turns by right angles in y and x; "volume" turns in all three,
    for isotropic voxels; axes of unequal length are never exchanged. contrast, brightness: standard deviations
    of a factor around 1 and of an offset, noise: largest deviation of added white noise, all in units of the
    scaled intensity.
    """

    symmetry: Symmetry = "plane"
    contrast: float = 0.1
    brightness: float = 0.1
    noise: float = 0.0


def augment(
    image: Tensor, target: Tensor, codes: Tensor, settings: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Transform (B, C, z, y, x) image, target and codes alike; intensities of the image alone."""
    if settings.symmetry != "none":
        moves = [_draw_symmetry(image.shape[2:], settings.symmetry, rng) for _ in range(len(image))]
        image, target, codes = (_apply(tensor, moves) for tensor in (image, target, codes))
    per_sample = (len(image), 1, 1, 1, 1)
    factor = 1 + settings.contrast * rng.standard_normal(per_sample)
    offset = settings.brightness * rng.standard_normal(per_sample)
    deviation = settings.noise * rng.random(per_sample)
    image = image * _on(factor, image) + _on(offset, image)
    if settings.noise > 0:
        generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**63)))
        white = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        image = image + white * _on(deviation, image)
    return image, target, codes


def _draw_symmetry(
    shape: torch.Size, symmetry: Symmetry, rng: np.random.Generator
) -> tuple[tuple[int, ...], list[int]]:
    """An order of the axes 1.. of one sample, and the axes to flip: with both, every right-angle symmetry."""
    turning = (1, 2) if symmetry == "plane" else (0, 1, 2)
    order = [0, 1, 2]
    shuffled = rng.permutation(turning)
    if all(shape[a] == shape[b] for a, b in zip(turning, shuffled, strict=True)):
        for a, b in zip(turning, shuffled, strict=True):
            order[a] = int(b)
    flips = [axis + 1 for axis in range(3) if rng.random() < 0.5]
    return (0, *(a + 1 for a in order)), flips


def _apply(tensor: Tensor, moves: list[tuple[tuple[int, ...], list[int]]]) -> Tensor:
    samples = zip(tensor, moves, strict=True)
    return torch.stack([sample.permute(order).flip(flips) for sample, (order, flips) in samples])


def _on(values: np.ndarray, image: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=image.dtype).to(image.device, non_blocking=True)
