# SPDX-License-Identifier: BSD-3-Clause
"""The definition of extract_patches. Differentiable in the volume."""

import math

import torch
from torch import Tensor


def extract_patches_reference(volume: Tensor, corners: Tensor, patch_size: list[int]) -> Tensor:
    """(B, n, C, *patch) from corners (B, n, d)."""
    batch, channels, *spatial = volume.shape
    number = corners.shape[1]
    size = torch.tensor(spatial, device=volume.device)
    inside = ((corners >= 0) & (corners <= size - torch.tensor(patch_size, device=volume.device))).all(-1)
    position = torch.zeros((batch, number, *patch_size), dtype=torch.long, device=volume.device)
    for axis, (length, patch) in enumerate(zip(spatial, patch_size, strict=True)):
        along = torch.arange(patch, device=volume.device).view(-1, *[1] * (len(spatial) - axis - 1))
        begin = torch.where(inside, corners[..., axis], 0).view(batch, number, *[1] * len(spatial))
        position = position * length + begin + along
    position = position.view(batch, 1, number * math.prod(patch_size)).expand(-1, channels, -1)
    patches = volume.flatten(2).gather(2, position).view(batch, channels, number, *patch_size)
    inside = inside.view(batch, 1, number, *[1] * len(spatial))
    return torch.where(inside, patches, torch.zeros((), dtype=volume.dtype)).movedim(1, 2).contiguous()
