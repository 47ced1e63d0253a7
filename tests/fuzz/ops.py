# SPDX-License-Identifier: BSD-3-Clause
"""A random call of each op, compared with its oracle; in float64 with the slope of the oracle, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

import fastseg
from tests.fuzz import oracles
from tests.fuzz.draws import FLOATS, Draws, array, require_close


def require_slope(
    found: Sequence[Tensor], x: Tensor, truth: Callable[[np.ndarray], list[np.ndarray]], draw: Draws
):
    """That the gradient of a random combination of the results is that of the oracle's, along a random direction."""
    if x.dtype != torch.float64 or x.numel() == 0:
        return
    weights = [draw.rng.normal(size=tuple(t.shape)) for t in found]
    total = sum((t.nan_to_num() * torch.from_numpy(w)).sum() for t, w in zip(found, weights, strict=True))
    (gradient,) = torch.autograd.grad(total, x)
    direction, step = draw.rng.normal(size=tuple(x.shape)), 1e-5

    def total_at(x: np.ndarray) -> float:
        return sum((np.nan_to_num(t) * w).sum() for t, w in zip(truth(x), weights, strict=True))

    sides = [total_at(array(x) + way * step * direction) for way in (1, -1)]
    slope, ours = (sides[0] - sides[1]) / (2 * step), float((array(gradient) * direction).sum())
    scale = float(np.abs(array(gradient) * direction).sum()) + 1e-3
    assert abs(slope - ours) <= 1e-4 * scale, f"slope {ours:.8g}, should be {slope:.8g}"


def masked_bce(draw: Draws) -> None:
    shape = (draw.size(2), draw.size(3), *draw.spatial())
    dtype = draw.one_of(*FLOATS)
    logits = draw.floats(shape, dtype, 3).requires_grad_()
    kind = draw.one_of("bool", "uint8", "soft")
    target = torch.from_numpy(draw.rng.random(shape))
    target = target.to(draw.one_of(*FLOATS)) if kind == "soft" else (target < 0.5).to(getattr(torch, kind))
    maps = [(shape[0], draw.one_of(1, shape[1]), *shape[2:]) for _ in range(2)]
    mask = weight = pos_weight = None
    if draw.chance(0.7):
        codes = draw.one_of([0, 1, 2], [0, 1], [2], [0], [0, 1, 2, 7, 255])
        mask = draw.lay(torch.from_numpy(draw.rng.choice(codes, maps[0]).astype("u1")))
    if draw.chance(0.5):
        weight = draw.lay(torch.from_numpy(draw.rng.random(maps[1])).to(draw.one_of(*FLOATS)))
    if draw.chance(0.5):
        pos_weight = torch.from_numpy(draw.rng.random(shape[1]) * 3).to(draw.one_of(*FLOATS))
    pseudo = draw.one_of(0, 0.3, 1.0, np.float32(0.5), np.int64(2))
    normalize, reduction = draw.one_of("voxels", "weight", "terms"), draw.one_of("mean", "sum", "none")
    impl, door = draw.door()
    rest = [array(t) for t in (target, mask, weight, pos_weight)]

    def truth(z):
        return oracles.masked_bce(z, *rest, pseudo, normalize, reduction)

    with door:
        found = fastseg.masked_weighted_bce(
            logits, draw.lay(target), mask, pseudo_weight=pseudo, weight=weight, pos_weight=pos_weight,
            normalize=normalize, reduction=reduction, impl=impl,
        )  # fmt: skip
        expected, terms = truth(array(logits))
        require_close(found, np.asarray(expected), terms, dtype)
        require_slope([found], logits, lambda z: [np.asarray(truth(z)[0])], draw)


def region_pool(draw: Draws) -> None:
    shape = (draw.size(2), draw.size(5), *draw.spatial())
    dtype, count = draw.one_of(*FLOATS), draw.size(7, 0)
    features = draw.floats(shape, dtype).requires_grad_()
    ids = draw.rng.integers(-1, count + 1, (shape[0], *shape[2:]))
    signed = draw.one_of(torch.int64, torch.int32, torch.int16, torch.int8)
    kind = signed if draw.chance(0.7) else torch.uint8
    regions = draw.lay(torch.from_numpy(ids).to(kind))
    reduce = draw.one_of("sum", "mean", "var", "min", "max")
    impl, door = draw.door()
    labels = regions.numpy()

    def truth(values):
        return [oracles.region_pool(values, labels, count, reduce)]

    with door:
        found = fastseg.region_pool(
            features, regions, draw.one_of(int, np.int64)(count), reduce=reduce, impl=impl
        )
        terms = np.abs(array(features)).max(initial=0.0) * (features[0, 0].numel() if features.numel() else 1)
        require_close(found, truth(array(features))[0], terms, dtype)
        require_slope([found], features, truth, draw)


def soft_region_pool(draw: Draws) -> None:
    batch, spatial = draw.size(2), draw.spatial()
    features = draw.floats((batch, draw.size(4), *spatial), draw.one_of(*FLOATS)).requires_grad_()
    logits = draw.chance(0.5)
    assignment = draw.floats((batch, draw.size(5, 0), *spatial), draw.one_of(*FLOATS))
    assignment = assignment if logits else assignment.abs() + 0.01
    impl, door = draw.door()

    def truth(values):
        return list(oracles.soft_region_pool(values, array(assignment), logits))

    with door:
        found = fastseg.soft_region_pool(features, assignment, from_logits=logits, variance=True, impl=impl)[
            :3
        ]
        wide = torch.float64 in (features.dtype, assignment.dtype)
        terms = (1 + np.abs(array(features)).max(initial=0.0)) ** 2 * (1 + int(np.prod(spatial)))
        for one, expected in zip(found, truth(array(features)), strict=True):
            require_close(one, expected, terms, torch.float64 if wide else torch.float32)
        require_slope(list(found), features, truth, draw)


def patch_entropy(draw: Draws) -> None:
    spatial = tuple(draw.size(9, 0) for _ in range(draw.one_of(1, 2, 3)))
    mode, logits = draw.one_of("binary", "categorical"), draw.chance(0.5)
    shape = (draw.size(2), draw.size(4, 0.05 if mode == "binary" else 0), *spatial)
    dtype = draw.one_of(*FLOATS)
    values = draw.floats(shape, dtype, 2)
    values = (values if logits else values.sigmoid()).detach().requires_grad_()
    whole = draw.one_of(int, np.int32)
    patch = [whole(draw.rng.integers(1, n + 1)) for n in spatial]
    stride = [whole(draw.rng.integers(1, n + 2)) for n in spatial]
    mask = None
    if draw.chance(0.5):
        channels = 1 if mode == "categorical" else draw.one_of(1, shape[1])
        mask = draw.lay(torch.from_numpy(draw.rng.random((shape[0], channels, *spatial)) < 0.6))
    least = draw.one_of(0.0, 0.3, 0.5, 1.0)
    impl, door = draw.door()

    def truth(z):
        return oracles.patch_entropy(z, array(mask), patch, stride, mode, logits, least)

    with door:
        found = fastseg.patch_entropy(
            values, patch, stride, mode=mode, from_logits=logits, mask=mask, min_valid=least, impl=impl
        )
        for one, expected in zip(found, truth(array(values)), strict=True):
            require_close(one, expected, 2.0, dtype)
        require_slope(list(found), values, truth, draw)


def extract_patches(draw: Draws) -> None:
    spatial = tuple(draw.size(7, 0) for _ in range(draw.one_of(1, 2, 3)))
    shape = (draw.size(2), draw.size(3), *spatial)
    dtype = draw.one_of(*FLOATS, torch.uint8, torch.int64, torch.bool)
    volume = draw.lay(
        torch.from_numpy(draw.rng.integers(0, 2 if dtype == torch.bool else 100, shape)).to(dtype)
    )
    volume = volume.requires_grad_(dtype.is_floating_point)
    patch = [draw.one_of(int, np.int64)(draw.rng.integers(1, n + 1)) for n in spatial]
    corners = draw.rng.integers(-1, max(spatial) + 1, (shape[0], draw.size(5), len(spatial)))
    kind = draw.one_of(torch.int64, torch.int32)
    impl, door = draw.door()

    def truth(values):
        return [oracles.extract_patches(values, corners, patch)]

    with door:
        found = fastseg.extract_patches(
            volume, draw.lay(torch.from_numpy(corners).to(kind)), patch, impl=impl
        )
        expected = truth(array(volume))[0]
        assert tuple(found.shape) == expected.shape
        assert (array(found) == expected).all()
        require_slope([found], volume, truth, draw)


def sample_patches(draw: Draws) -> None:
    windows = tuple(draw.size(5, 0) for _ in range(draw.one_of(1, 2, 3)))
    batch, channels = draw.size(2), draw.size(3)
    of_entropy = draw.one_of(1, channels)
    entropy = torch.from_numpy(draw.rng.random((batch, of_entropy, *windows)) * 1.2).to(draw.one_of(*FLOATS))
    entropy[torch.from_numpy(draw.rng.random(entropy.shape) < 0.1)] = torch.nan
    confidence = torch.from_numpy(draw.rng.random((batch, channels, *windows))).to(draw.one_of(*FLOATS))
    strategy, number = draw.one_of("probabilistic", "threshold", "lowest", "highest"), draw.size(12, 0)
    again, floor = draw.chance(0.5), draw.one_of(0.0, 1e-3, 0.2)
    limit = 0.6 if strategy == "threshold" else None
    stride = [int(draw.rng.integers(1, 4)) for _ in windows]
    impl, door = draw.door()
    arguments = {
        "seed": draw.one_of(int, np.int64)(draw.rng.integers(2**62)),
        "stride": stride,
        "floor": floor,
    }
    arguments |= {"strategy": strategy, "replacement": again, "threshold": limit}
    with door:
        found = fastseg.sample_patches(
            draw.lay(entropy),
            draw.lay(confidence),
            draw.one_of(int, np.int16)(number),
            impl=impl,
            **arguments,
        )
    same = fastseg.sample_patches(entropy, confidence, number, impl="reference", **arguments)
    for one, other in zip(found, same, strict=True):
        assert torch.equal(one, other)
    for b, k in np.ndindex(batch, channels):
        row = array(entropy)[b, k if of_entropy > 1 else 0].ravel()
        can = {
            "threshold": row <= (0.6 if limit is None else limit),
            "probabilistic": np.maximum(1 - row, floor) > 0,
        }.get(strategy, np.ones(row.shape, bool)) & ~np.isnan(row)
        count, index = int(found.count[b, k]), found.index[b, k].numpy()
        drawn = index[:count]
        assert (index[count:] == -1).all()
        assert not found.parity[b, k, count:].any()
        assert can[drawn].all(), "a window was drawn that cannot be"
        most = number if again and strategy in ("probabilistic", "threshold") else min(number, can.sum())
        assert count == (most if can.any() else 0)
        if strategy in ("lowest", "highest"):
            order = np.argsort(row if strategy == "lowest" else -row, kind="stable")
            assert drawn.tolist() == [i for i in order if can[i]][:count]
        elif not again:
            assert len(set(drawn.tolist())) == count
        places = np.stack(np.unravel_index(drawn, windows), -1) * stride
        assert (found.corners[b, k, :count].numpy() == places).all()


def region_contrast(draw: Draws) -> None:
    rows, width = draw.size(9), draw.size(6, 0)
    dtype = draw.one_of(*FLOATS)
    anchors = draw.floats((rows, width), dtype).requires_grad_()
    ids = torch.from_numpy(draw.rng.integers(-1, 4, rows)).to(
        draw.one_of(torch.int64, torch.int32, torch.int8)
    )
    groups = torch.from_numpy(draw.rng.integers(0, 3, rows)) if draw.chance(0.4) else None
    bank = bank_ids = bank_groups = offset = None
    if draw.chance(0.5):
        count = draw.size(11)
        bank = draw.floats((count, width), draw.one_of(*FLOATS))
        bank_ids = torch.from_numpy(draw.rng.integers(-1, 4, count))
        bank_groups = torch.from_numpy(draw.rng.integers(0, 3, count)) if groups is not None else None
        offset = draw.one_of(None, np.int64(0), 2)
    options = {"temperature": draw.one_of(0.1, 1.0, np.float64(0.5))}
    options |= {
        "similarity": draw.one_of("cosine", "dot", "neg_mse"),
        "denominator": draw.one_of("all", "negatives"),
    }
    reduction = draw.one_of("mean", "sum", "none")
    impl, door = draw.door()
    rest = [array(t) for t in (bank, ids, bank_ids, groups, bank_groups)]

    def truth(a):
        losses, has = oracles.region_contrast(a, *rest, **options, offset=offset)
        if reduction == "none":
            return [losses]
        return [np.asarray(losses.sum() / (max(has.sum(), 1) if reduction == "mean" else 1))]

    with door:
        found = fastseg.region_contrast(
            anchors, bank, anchor_ids=ids, bank_ids=bank_ids, anchor_groups=groups, bank_groups=bank_groups,
            reduction=reduction, self_offset=offset, impl=impl, **options,
        )  # fmt: skip
        wide = torch.float64 in (dtype, None if bank is None else bank.dtype)
        largest = [
            np.abs(t).max(initial=0.0) for t in (array(anchors), np.zeros(1) if bank is None else array(bank))
        ]
        terms = (1 + max(largest)) ** 2 * width / options["temperature"] * (rows if reduction == "sum" else 1)
        require_close(found, truth(array(anchors))[0], terms, torch.float64 if wide else torch.float32)
        if dtype == torch.float64:
            require_slope([found], anchors, truth, draw)


OPS = (
    masked_bce,
    region_pool,
    soft_region_pool,
    patch_entropy,
    extract_patches,
    sample_patches,
    region_contrast,
)
