# SPDX-License-Identifier: BSD-3-Clause
"""Moving patches: right-angle symmetries exactly, everything else by one resampling.

A voxel at offset o from the centre of the result shows the patch, with its margin, at

    p(o) = centre + A (S o) + u(S o),    A = V^-1 R V / zoom

S: the right-angle symmetry; R: a rotation of space; V: the voxel size on the diagonal, so that rotations are those
of the specimen where voxels are not cubes; u: a displacement known on a coarse grid, linear in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg.data.volumes import Box

# Torch does not flip the wider unsigned integers; moving values about does not ask what they mean.
_MOVED_AS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass(frozen=True)
class Displacement:
    """(3, z, y, x) voxels per axis, on a grid whose corners are those of the patch."""

    field: np.ndarray

    @classmethod
    def draw(
        cls, deviation: float, spacing: int, patch: Box, voxel_size: np.ndarray, rng: np.random.Generator
    ) -> Displacement:
        """White noise of ``deviation`` on control points ``spacing`` apart, both in voxels of the finest axis."""
        ratio = voxel_size / voxel_size.min()
        points = [
            1 if n == 1 else max(2, round(n * r / spacing) + 1) for n, r in zip(patch, ratio, strict=True)
        ]
        field = rng.standard_normal((3, *points)) * (deviation / ratio)[:, None, None, None]
        field[[n == 1 for n in patch]] = 0
        return cls(field.astype(np.float32))


@dataclass(frozen=True)
class Move:
    """Axis ``i`` of the result is axis ``order[i]`` of the patch, reversed where ``flips[i]``; A and u, if any."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    matrix: np.ndarray | None = None
    displacement: Displacement | None = None

    def symmetry(self) -> np.ndarray:
        """S."""
        matrix = np.zeros((3, 3))
        for axis, (source, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[source, axis] = -1 if flip else 1
        return matrix

    def undone(self) -> Move:
        """The symmetry that takes its result back; of a move without A and u."""
        order, flips = [0, 0, 0], [False, False, False]
        for axis, (source, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            order[source], flips[source] = axis, flip
        return Move((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def affine(angles: np.ndarray, zoom: float, voxel_size: np.ndarray) -> np.ndarray:
    """A for angles (radians) in the planes of (y, x), (z, x) and (z, y), applied in this order."""
    turn = np.eye(3)
    for (a, b), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        step = np.eye(3)
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = step @ turn
    return turn * voxel_size[None, :] / voxel_size[:, None] / zoom


def centre(tensor: Tensor, patch: Box) -> Tensor:
    """The patch within its margin, without a copy."""
    for axis, size in enumerate(patch, 2):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - size) // 2, size)
    return tensor


def move(
    raw: Tensor, target: Tensor, codes: Tensor, moves: Sequence[Move], patch: Box
) -> tuple[Tensor, Tensor, Tensor]:
    """Move each sample of (B, C, z, y, x) with margins to (B, C, *patch); raw becomes float32 if any is resampled."""
    free = [i for i, m in enumerate(moves) if m.matrix is not None]
    if not free:
        return turn(raw, moves, patch), turn(target, moves, patch), turn(codes, moves, patch)
    resampled = _resample(raw, target, codes, moves, free, patch)
    if len(free) == len(moves):
        return resampled
    exact = [i for i, m in enumerate(moves) if m.matrix is None]
    kept = [moves[i] for i in exact]
    results = []
    for tensor, part in zip((raw, target, codes), resampled, strict=True):
        whole = part.new_empty((len(moves), *part.shape[1:]))
        for row, i in enumerate(free):
            whole[i] = part[row]
        for row, sample in zip(exact, _turned_samples(tensor, exact, kept, patch), strict=True):
            whole[row] = sample
        results.append(whole)
    return results[0], results[1], results[2]


def turn(tensor: Tensor, moves: Sequence[Move], patch: Box) -> Tensor:
    """The patch of each sample, flipped and turned by right angles; what its move has beside is not looked at."""
    if all(m.order == (0, 1, 2) and not any(m.flips) for m in moves):
        return centre(tensor, patch).contiguous()
    return torch.stack(_turned_samples(tensor, range(len(moves)), moves, patch))


def _turned_samples(tensor: Tensor, rows: Sequence[int], moves: Sequence[Move], patch: Box) -> list[Tensor]:
    samples = centre(tensor, patch)
    moved_as = _MOVED_AS.get(tensor.dtype)
    if moved_as is not None:
        samples = samples.view(moved_as)
    turned = [
        samples[row].permute(0, *(a + 1 for a in m.order)).flip([a + 1 for a in range(3) if m.flips[a]])
        for row, m in zip(rows, moves, strict=True)
    ]
    # A view of another dtype has no gradient: only where one is needed.
    return turned if moved_as is None else [sample.view(tensor.dtype) for sample in turned]


def _resample(
    raw: Tensor, target: Tensor, codes: Tensor, moves: Sequence[Move], rows: Sequence[int], patch: Box
) -> tuple[Tensor, Tensor, Tensor]:
    """The samples ``rows`` alone. Holds three float32 and one int64 per voxel for the positions."""
    device, extent = raw.device, raw.shape[2:]
    chosen = [moves[row] for row in rows]
    matrices = np.stack([m.matrix @ m.symmetry() for m in chosen if m.matrix is not None])
    position = _positions(torch.as_tensor(matrices, dtype=torch.float32).to(device), extent, patch)
    for row, m in enumerate(chosen):
        if m.displacement is not None:
            position[row] += _spread(m, patch, device)
    index = torch.tensor(rows, device=device)
    image = _linear(raw.index_select(0, index).float(), position)
    target, codes = _nearest((target.index_select(0, index), codes.index_select(0, index)), position)
    return image, target, codes


def _positions(matrices: Tensor, extent: Sequence[int], patch: Box) -> Tensor:
    """(n, 3, *patch): for each voxel of the result its place in the patch with its margin, in voxels."""
    position = torch.zeros((len(matrices), 3, *patch), device=matrices.device)
    for axis, size in enumerate(patch):
        offset = torch.arange(size, device=matrices.device, dtype=torch.float32) - (size - 1) / 2
        shape = [1, 1, 1]
        shape[axis] = size
        position += matrices[:, :, axis, None, None, None] * offset.view(shape)
    middle = torch.tensor([(n - 1) / 2 for n in extent], device=matrices.device)
    return position + middle[:, None, None, None]


def _spread(m: Move, patch: Box, device: torch.device) -> Tensor:
    """u(S o) on every voxel."""
    assert m.displacement is not None
    coarse = torch.from_numpy(m.displacement.field).to(device)[None]
    field = F.interpolate(coarse, size=patch, mode="trilinear", align_corners=True)[0]
    return field.permute(0, *(a + 1 for a in m.order)).flip([a + 1 for a in range(3) if m.flips[a]])


def _linear(image: Tensor, position: Tensor) -> Tensor:
    """The image between its voxels, mirrored beyond its ends."""
    scaled = [
        2 * position[:, axis] / (n - 1) - 1 if n > 1 else torch.zeros_like(position[:, axis])
        for axis, n in enumerate(image.shape[2:])
    ]
    grid = torch.stack(scaled[::-1], dim=-1)  # x, y, z
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _nearest(tensors: Sequence[Tensor], position: Tensor) -> list[Tensor]:
    """The nearest voxel of each tensor (n, K, z, y, x) of any dtype, exactly as it is there; 0 beyond its ends."""
    extent = tensors[0].shape[2:]
    index = torch.zeros(position[:, 0].shape, dtype=torch.int64, device=position.device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, n in enumerate(extent):
        nearest = torch.floor(position[:, axis] + 0.5).long()
        inside &= (nearest >= 0) & (nearest < n)
        index = index * n + nearest.clamp_(0, n - 1)
    flat, outside = index.flatten(1)[:, None], ~inside[:, None]
    found = []
    for tensor in tensors:
        values = tensor.flatten(2).gather(2, flat.expand(-1, tensor.shape[1], -1))
        found.append(values.view(*tensor.shape[:2], *position.shape[2:]).masked_fill_(outside, 0))
    return found
