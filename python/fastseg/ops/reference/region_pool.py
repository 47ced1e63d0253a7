# SPDX-License-Identifier: BSD-3-Clause
"""The definitions of hard and soft region pooling. Differentiable, any number of times, in features and assignment."""

import torch
from torch import Tensor


def _accumulation_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _rows_and_ids(features: Tensor, regions: Tensor, num_regions: int) -> tuple[Tensor, Tensor]:
    """Features as (B, N, C) and ids as (B, N, 1); what takes no part has id num_regions and features of 0."""
    rows = features.flatten(2).transpose(1, 2).to(_accumulation_dtype(features))
    labels = regions.flatten(1)
    # uint64 beyond int64 would wrap round to a negative id, which is skipped as well.
    ids = labels.to(torch.int64)
    counts = (ids >= 0) & (ids < num_regions)
    ids = torch.where(counts, ids, num_regions).unsqueeze(-1)
    return torch.where(counts.unsqueeze(-1), rows, 0), ids


def _scatter_sum(rows: Tensor, ids: Tensor, num_regions: int) -> Tensor:
    sums = rows.new_zeros(rows.shape[0], num_regions + 1, rows.shape[2])
    return sums.scatter_add(1, ids.expand_as(rows), rows)[:, :num_regions]


def region_counts_reference(features: Tensor, regions: Tensor, num_regions: int) -> Tensor:
    """(B, R) int64: voxels of every region."""
    _, ids = _rows_and_ids(features, regions, num_regions)
    counts = ids.new_zeros(ids.shape[0], num_regions + 1)
    return counts.scatter_add(1, ids[..., 0], torch.ones_like(ids[..., 0]))[:, :num_regions]


def _extremes(rows: Tensor, ids: Tensor, counts: Tensor, maximum: bool) -> Tensor:
    """The value at the lowest voxel that holds the extreme, where NaN counts as the most extreme of all."""
    batch, voxels, channels = rows.shape
    regions = counts.shape[1]
    if voxels == 0:
        return rows.sum() + rows.new_zeros(batch, regions, channels)
    key = rows.detach() if maximum else -rows.detach()
    best = torch.full((batch, regions + 1, channels), -torch.inf, dtype=rows.dtype, device=rows.device)
    wide = ids.expand_as(rows)
    best = best.scatter_reduce(1, wide, key, "amax")
    mine = best.gather(1, wide)
    holds = (key == mine) | (key.isnan() & mine.isnan())
    where = torch.arange(voxels, device=rows.device).view(1, -1, 1)
    first = torch.full((batch, regions + 1, channels), voxels, dtype=torch.int64, device=rows.device)
    first = first.scatter_reduce(1, wide, torch.where(holds, where, voxels), "amin")[:, :regions]
    present = counts.unsqueeze(-1) > 0
    return torch.where(present, rows.gather(1, torch.where(present, first, 0)), 0)


def region_pool_reference(features: Tensor, regions: Tensor, num_regions: int, reduce: str) -> Tensor:
    """(B, R, C), of any reduction of `fastseg.region_pool`."""
    counts = region_counts_reference(features, regions, num_regions)
    rows, ids = _rows_and_ids(features, regions, num_regions)
    if reduce in ("min", "max"):
        return _extremes(rows, ids, counts, reduce == "max")
    sums = _scatter_sum(rows, ids, num_regions)
    if reduce == "sum":
        return sums
    divisor = counts.clamp(min=1).unsqueeze(-1).to(sums.dtype)
    mean = sums / divisor
    if reduce == "mean":
        return mean
    padded = torch.cat([mean, mean.new_zeros(mean.shape[0], 1, mean.shape[2])], 1)
    distance = rows - padded.gather(1, ids.expand_as(rows))
    return _scatter_sum(distance * distance, ids, num_regions) / divisor


def soft_region_pool_reference(
    features: Tensor, assignment: Tensor, from_logits: bool, variance: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """mass (B, K), mean (B, K, C) and variance (B, K, C) or None."""
    dtype = _accumulation_dtype(features)
    values, weights = features.to(dtype).flatten(2), assignment.to(dtype).flatten(2)
    if from_logits:
        weights = weights.softmax(1)
    mass = weights.sum(-1)
    divisor = torch.where(mass == 0, torch.inf, mass).unsqueeze(-1)  # what is divided by inf has no gradient
    mean = torch.einsum("bkn,bcn->bkc", weights, values) / divisor
    if not variance:
        return mass, mean, None
    square = (values.unsqueeze(1) - mean.unsqueeze(-1)).square()  # (B, K, C, N)
    return mass, mean, torch.einsum("bkn,bkcn->bkc", weights, square) / divisor
