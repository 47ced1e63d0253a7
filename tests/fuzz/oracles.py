# SPDX-License-Identifier: BSD-3-Clause
"""What every op gives, in float64 loops of numpy's, written from the docstrings and not from fastseg.ops.reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z)


def masked_bce(z, y, mask, weight, pos_weight, pseudo_weight, normalize, reduction):
    """The loss, and the largest term of its sum."""
    spatial, channels = z.shape[2:], z.shape[1]
    y = (y != 0).astype(float) if y.dtype.kind in "bu" else y
    codes = np.ones(z.shape, int) if mask is None else np.broadcast_to(mask.astype(int), z.shape)
    factor = np.ones(z.shape) if weight is None else np.broadcast_to(weight, z.shape)
    p = np.ones(channels) if pos_weight is None else pos_weight
    p = p.reshape(-1, *[1] * len(spatial))
    share = np.select([codes == 1, codes == 2], [1.0, float(pseudo_weight)], 0.0)
    taken = share != 0
    loss = np.zeros(z.shape)
    every = (1 - y) * softplus(z) + p * y * softplus(-z)
    loss[taken] = (factor * every)[taken]
    weighted = share * loss
    terms = np.abs(weighted).max(initial=0.0)
    if reduction == "none":
        return weighted, terms
    total = weighted.sum()
    if reduction == "sum":
        return total, terms * z.size
    if normalize == "voxels":
        return total / z.size if z.size else 0.0, terms
    if normalize == "weight":
        weights = np.where(taken, share * factor, 0).sum()
        return total / weights if weights else 0.0, terms * z.size / max(weights, 1e-9)
    result = 0.0
    for code, of_code in ((1, 1.0), (2, float(pseudo_weight))):
        chosen = codes == code
        if chosen.any() and of_code:
            result += of_code * loss[chosen].mean()
    return result, terms


def region_pool(features, regions, num_regions, reduce):
    batch, channels = features.shape[:2]
    rows = features.reshape(batch, channels, int(np.prod(features.shape[2:])))
    result = np.zeros((batch, num_regions, channels))
    of = {"sum": np.sum, "mean": np.mean, "var": np.var, "min": np.min, "max": np.max}[reduce]
    for b, r in itertools.product(range(batch), range(num_regions)):
        inside = rows[b][:, regions[b].ravel() == r]
        if inside.shape[1]:
            result[b, r] = of(inside, axis=1)
    return result


def soft_region_pool(features, assignment, from_logits):
    """mass, mean, variance."""
    batch, channels = features.shape[:2]
    parts, voxels = assignment.shape[1], int(np.prod(features.shape[2:]))
    values = features.reshape(batch, channels, voxels)
    weights = assignment.reshape(batch, parts, voxels)
    if from_logits and voxels:
        weights = np.exp(weights - weights.max(1, keepdims=True))
        weights = weights / weights.sum(1, keepdims=True)
    mass = weights.sum(2)
    mean, variance = np.zeros((batch, parts, channels)), np.zeros((batch, parts, channels))
    for b, k in itertools.product(range(batch), range(parts)):
        if mass[b, k] != 0:
            mean[b, k] = (weights[b, k] * values[b]).sum(1) / mass[b, k]
            variance[b, k] = (weights[b, k] * (values[b] - mean[b, k][:, None]) ** 2).sum(1) / mass[b, k]
    return mass, mean, variance


def _windows(spatial: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> Iterator[tuple]:
    counts = [(n - p) // s + 1 for n, p, s in zip(spatial, patch, stride, strict=True)]
    for place in itertools.product(*map(range, counts)):
        yield place, tuple(slice(i * s, i * s + p) for i, s, p in zip(place, stride, patch, strict=True))


def _bits(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, -p * np.log2(p), 0.0)


def patch_entropy(values, mask, patch, stride, mode, from_logits, min_valid):
    batch, _, *spatial = values.shape
    if mode == "binary":
        p = 1 / (1 + np.exp(-values)) if from_logits else np.clip(values, 0, 1)
        entropy = _bits(p) + _bits(1 - p)
    else:
        if from_logits and values.size:
            p = np.exp(values - values.max(1, keepdims=True))
            p = p / p.sum(1, keepdims=True)
        else:
            p = np.clip(values, 0, 1)
        entropy = _bits(p).sum(1, keepdims=True)
    valid = np.ones((batch, 1, *spatial), bool) if mask is None else mask != 0
    counts = [(n - q) // s + 1 for n, q, s in zip(spatial, patch, stride, strict=True)]
    results = []
    for quantity in (entropy, p):
        result = np.full((batch, quantity.shape[1], *counts), np.nan)
        for (b, k), (place, window) in itertools.product(
            np.ndindex(batch, quantity.shape[1]), list(_windows(spatial, patch, stride))
        ):
            chosen = valid[b, k if valid.shape[1] > 1 else 0][window]
            if chosen.any() and chosen.mean() >= min_valid - 1e-12:
                result[(b, k, *place)] = quantity[b, k][window][chosen].mean()
        results.append(result)
    return results


def extract_patches(volume, corners, patch):
    batch, number, _ = corners.shape
    result = np.zeros((batch, number, volume.shape[1], *patch), volume.dtype)
    for b, n in np.ndindex(batch, number):
        corner = corners[b, n]
        if all(0 <= c <= s - q for c, s, q in zip(corner, volume.shape[2:], patch, strict=True)):
            box = tuple(slice(c, c + q) for c, q in zip(corner, patch, strict=True))
            result[b, n] = volume[(b, slice(None), *box)]
    return result


def region_contrast(
    anchors, bank, ids, bank_ids, groups, bank_groups, temperature, similarity, denominator, offset
):
    """The loss of every row, and which have one."""
    if bank is None:
        bank, bank_ids, bank_groups, offset = anchors, ids, groups, 0
    losses, has = np.zeros(len(anchors)), np.zeros(len(anchors), bool)

    def alike(a, b):
        if similarity == "neg_mse":
            return -np.mean((a - b) ** 2)
        if similarity == "dot":
            return a @ b
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths > 0 else 0.0

    for i, a in enumerate(anchors):
        others = [j for j in range(len(bank)) if bank_ids[j] >= 0 and (offset is None or j != i + offset)]
        positives = [j for j in others if ids[i] >= 0 and bank_ids[j] == ids[i]]
        negatives = [j for j in others if bank_ids[j] != ids[i]]
        if groups is not None:
            negatives = [j for j in negatives if bank_groups[j] == groups[i]]
        among = negatives if denominator == "negatives" else positives + negatives
        if ids[i] < 0 or not positives or not among:
            continue
        has[i] = True
        s = {j: alike(a, bank[j]) / temperature for j in {*positives, *among}}
        total = np.logaddexp.reduce([s[j] for j in among])
        losses[i] = total - np.mean([s[j] for j in positives])
    return losses, has
