# SPDX-License-Identifier: BSD-3-Clause
"""Changing the intensities of patches: gamma, contrast, brightness, blur, noise and missing sections, in this order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# What is left of the contrast of a faint section.
_FAINT = 0.1
# Gaussians are cut off at so many deviations; below the least deviation they are the identity within a few per cent.
_CUT, _LEAST = 3.0, 0.2


@dataclass(frozen=True)
class Change:
    """Of one sample. blur: deviations in voxels (z, y, x); sections: [first, last) along z, empty for none."""

    gamma: float
    factor: float
    offset: float
    noise: float
    blur: tuple[float, ...]
    sections: tuple[int, int]
    dark: bool
    seed: int


def change(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """(B, C, z, y, x) float32, each sample by its own ``Change``."""
    if any(c.gamma != 1 for c in changes):
        image = _gamma(image, _per_sample(changes, lambda c: c.gamma, image))
    if any(c.factor != 1 or c.offset != 0 for c in changes):
        factor, offset = (
            _per_sample(changes, value, image) for value in (lambda c: c.factor, lambda c: c.offset)
        )
        image = torch.addcmul(offset, image, factor)
    blurred = [i for i, c in enumerate(changes) if max(c.blur) >= _LEAST]
    if blurred:
        index = torch.tensor(blurred, device=image.device)
        part = _blur(image.index_select(0, index), [changes[i].blur for i in blurred])
        image = image.index_copy(0, index, part)
    if any(c.noise > 0 for c in changes):
        image = image + torch.stack([_white_noise(image[0], c) for c in changes])
    if any(c.sections[1] > c.sections[0] for c in changes):
        image = _lose_sections(image, changes)
    return image


def _gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """x -> x^gamma on the range of each sample, which stays what it is."""
    low, high = image.amin((1, 2, 3, 4), keepdim=True), image.amax((1, 2, 3, 4), keepdim=True)
    extent = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    # A sample whose exponent is 1 is left bit for bit.
    return torch.where(exponent == 1, image, ((image - low) / extent).clamp(0, 1) ** exponent * extent + low)


def _blur(image: Tensor, deviations: Sequence[tuple[float, ...]]) -> Tensor:
    """A Gaussian per sample and axis; samples and channels are the groups of one convolution per axis."""
    count, channels = image.shape[:2]
    image = image.reshape(1, count * channels, *image.shape[2:])
    for axis in range(3):
        along = [d[axis] for d in deviations]
        radius = math.ceil(_CUT * max(along))
        if max(along) < _LEAST or image.shape[axis + 2] == 1:
            continue
        offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
        # Each is cut off at its own width, so that a sample does not depend on those beside it.
        deviation = torch.tensor([[d if d >= _LEAST else 1e-3] for d in along], dtype=torch.float32)
        beyond = offset.abs() > torch.ceil(_CUT * deviation)
        kernel = torch.softmax((-0.5 * (offset / deviation) ** 2).masked_fill(beyond, -torch.inf), dim=1)
        shape, pad = [count * channels, 1, 1, 1, 1], [0] * 6
        shape[axis + 2] = 2 * radius + 1
        pad[4 - 2 * axis : 6 - 2 * axis] = radius, radius
        weight = kernel.repeat_interleave(channels, 0).reshape(shape).to(image.device)
        image = F.conv3d(F.pad(image, pad, mode="replicate"), weight, groups=count * channels)
    return image.reshape(count, channels, *image.shape[2:])


def _white_noise(like: Tensor, c: Change) -> Tensor:
    if c.noise == 0:
        return torch.zeros_like(like)
    generator = torch.Generator(like.device).manual_seed(c.seed)
    return c.noise * torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _lose_sections(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """Dark sections have the lowest value of their sample; faint ones keep a tenth of their contrast."""
    image = image.clone()
    for sample, c in zip(image, changes, strict=True):
        first, last = c.sections
        if last > first:
            lost = sample[:, first:last]
            if c.dark:
                lost.copy_(sample.amin().expand_as(lost))
            else:
                mean = lost.mean(dim=(2, 3), keepdim=True)
                lost.copy_(mean + _FAINT * (lost - mean))
    return image


def _per_sample(changes: Sequence[Change], value: Callable[[Change], float], image: Tensor) -> Tensor:
    values = torch.tensor([value(c) for c in changes], dtype=image.dtype)
    return values.view(-1, 1, 1, 1, 1).to(image.device, non_blocking=True)
