# SPDX-License-Identifier: BSD-3-Clause
"""region_pool and region_stats: what the features of every region of a label volume amount to."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.checks import (
    FLOATS,
    as_int,
    check_device,
    check_dtype,
    check_option,
    check_shape,
    check_types,
    check_volume,
    empty_map,
    is_channels_last,
    name_of,
    real_dtype,
)
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.reference.region_pool import region_counts_reference, region_pool_reference

_INTEGERS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)
_REDUCE = {name: int(value) for name, value in _C.RegionReduce.__members__.items()}
_ALL = _REDUCE.pop("stats")
_SUM, _MEAN, _VAR, _MIN, _MAX = (_REDUCE[name] for name in ("sum", "mean", "var", "min", "max"))
_KINDS = {getattr(torch, name): int(value) for name, value in _C.ScalarKind.__members__.items()}


class RegionStats(NamedTuple):
    """Of every region: its number of voxels (B, R), int64, and (B, R, C) statistics of its features."""

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls here
    mean: Tensor
    variance: Tensor
    minimum: Tensor
    maximum: Tensor


def region_pool(
    features: Tensor, regions: Tensor, num_regions: int, *, reduce: str = "mean", impl: str = "auto"
) -> Tensor:
    """Pool the features of the voxels of every region, in one pass over channels-first features as they lie.

    With N_r the voxels p of sample b whose label is r::

        sum[b, r, c]  = sum over p in N_r of features[b, c, p]
        mean[b, r, c] = sum[b, r, c] / |N_r|
        var[b, r, c]  = sum over p in N_r of (features[b, c, p] - mean[b, r, c]) ** 2 / |N_r|

    Args:
        features: (B, C, *S) with 1 to 3 spatial axes, float32, float64, bfloat16 or float16.
        regions: (B, *S), any integer dtype: the label of every voxel. A label below 0 or not below
            num_regions takes no part; values are never read back to be checked.
        num_regions: R, from 1 to 2**31 - 1.
        reduce: "sum", "mean", "var" (of the population: divided by |N_r|), "min" or "max".
        impl: "auto" (the fused kernel where there is one, else the reference), "fused" or "reference".

    Returns:
        (B, R, C), float64 for float64 features, else float32.

    Edge rules:
        An empty region gives 0, with gradient 0. Voxels that take no part are cut out: NaN or inf there
        changes nothing, and their gradient is 0. Elsewhere NaN propagates, to the minimum and maximum too.
        The gradient of min and max goes to the lowest voxel that holds it (of those that are NaN, if any is).

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or option.
        NotImplementedError: a second gradient of var, min or max, except with impl="reference".

    Numerics:
        Labels are compared as integers of their own width. Bit-repeatable; on the CPU sums are float64 and
        the same for any number of threads. On CUDA sums are float32 (float64 for float64 features) within a
        block, float64 across blocks. The variance is merged from parts (Chan et al. 1983), never taken as
        E[x^2] - E[x]^2. Sum and mean are differentiable any number of times.

    Cost:
        Features and labels are read once (labels once for every 8 channels, mostly from a cache); backward
        writes the gradient and reads the labels, for var the features too. No copy of contiguous or
        channels_last(_3d) features, one of any other layout. Extra memory O(R C), at most 64 tables.

    Source:
        Region pooling as in region contrast pretraining; variance after Chan, Golub, LeVeque, The American
        Statistician 37 (1983) 242-247.
    """
    num_regions = _check_types(features, regions, num_regions)
    check_option("reduce", reduce, _REDUCE)
    if not use_fused("region_pool", impl, features):
        _check(features, regions, num_regions)
        return region_pool_reference(features, regions, num_regions, reduce)
    results = _region_pool(features, regions, num_regions, _REDUCE[reduce])
    return results[{"var": 1, "min": 2, "max": 3}.get(reduce, 0)]


def region_stats(features: Tensor, regions: Tensor, num_regions: int, *, impl: str = "auto") -> RegionStats:
    """Count, mean, variance, minimum and maximum of every region, in one pass over the features.

    Arguments are those of `region_pool`.

    Returns:
        RegionStats(count, mean, variance, minimum, maximum), as `region_pool` gives each; all but the count
        are differentiable, once. Gradients of all of them are taken back in one pass too.
    """
    num_regions = _check_types(features, regions, num_regions)
    if not use_fused("region_pool", impl, features):
        _check(features, regions, num_regions)
        pooled = (
            region_pool_reference(features, regions, num_regions, reduce)
            for reduce in ("mean", "var", "min", "max")
        )
        return RegionStats(region_counts_reference(features, regions, num_regions), *pooled)
    *statistics, count, _, _ = _region_pool.whole(features, regions, num_regions, _ALL)
    return RegionStats(count, *statistics)


def _check_types(features: Tensor, regions: Tensor, num_regions: int) -> int:
    """num_regions as the kernels take it."""
    check_types({"features": features, "regions": regions})
    num_regions = as_int("num_regions", num_regions)
    if not 1 <= num_regions < 2**31:
        raise ValueError(f"num_regions must be from 1 to 2**31 - 1, got {num_regions}")
    return num_regions


def _check(features: Tensor, regions: Tensor, *_: object) -> None:
    check_dtype("features", features, FLOATS)
    check_volume("features", features)
    if regions.dtype not in _INTEGERS:
        raise TypeError(f"regions must be of an integer dtype, got {name_of(regions.dtype)}")
    check_device("regions", regions, "features", features)
    check_shape("regions", regions, "(B, *S)", (features.shape[0], *features.shape[2:]))


@torch.library.register_fake("fastseg::region_pool")
def _(features, regions, num_regions, reduce):
    table = (features.shape[0], num_regions, features.shape[1])

    def empty(wanted, dtype=None):
        return features.new_empty(table if wanted else (0,), dtype=dtype or real_dtype(features))

    minimum, maximum, variance = (reduce in (one, _ALL) for one in (_MIN, _MAX, _VAR))
    count = features.new_empty(table[:2], dtype=torch.int64)
    values = (empty(reduce in (_SUM, _MEAN) or variance), empty(variance), empty(minimum), empty(maximum))
    return *values, count, empty(minimum, torch.int64), empty(maximum, torch.int64)


@torch.library.register_fake("fastseg::region_pool_backward")
def _(regions, kind, channels_last, features, mean, count, argmin, argmax, *grads):
    channels = next(grad for grad in grads if grad is not None).shape[2]
    dtype = next(dtype for dtype, number in _KINDS.items() if number == kind)
    shape = (regions.shape[0], channels, *regions.shape[1:])
    return empty_map(shape, dtype, regions.device, channels_last)


def _if(reduce: int, value: Tensor | None, *reduces: int) -> Tensor | None:
    return value if reduce in (*reduces, _ALL) else None


def _save(ctx, inputs, output):
    features, regions, ctx.num_regions, ctx.reduce = inputs
    mean, _, _, _, count, argmin, argmax = output
    ctx.set_materialize_grads(False)
    ctx.kind = _KINDS[features.dtype]
    ctx.channels_last = is_channels_last(features)
    ctx.save_for_backward(
        regions,
        _if(ctx.reduce, features, _VAR),  # else they can be freed
        _if(ctx.reduce, mean, _VAR),
        _if(ctx.reduce, count, _MEAN, _VAR),
        _if(ctx.reduce, argmin, _MIN),
        _if(ctx.reduce, argmax, _MAX),
    )


def _backward(ctx, grad_mean, grad_variance, grad_minimum, grad_maximum, *_):
    # What this reduction does not give has shape (0,), and no gradient, whatever a tracer hands over.
    grads = (
        _if(ctx.reduce, grad_mean, _SUM, _MEAN, _VAR),
        _if(ctx.reduce, grad_variance, _VAR),
        _if(ctx.reduce, grad_minimum, _MIN),
        _if(ctx.reduce, grad_maximum, _MAX),
    )
    if all(grad is None for grad in grads):
        return None, None, None, None
    regions, *others = ctx.saved_tensors
    grad = _region_pool_backward(regions, ctx.kind, ctx.channels_last, *others, *grads)
    return grad, None, None, None


def _save_backward(ctx, inputs, output):
    regions, _, _, _, _, count, _, _, ctx.table, *ctx.others = inputs
    ctx.reduce = _SUM if count is None else _MEAN
    ctx.table = None if ctx.table is None else (ctx.table.shape[1], ctx.table.dtype)
    ctx.save_for_backward(regions)


def _second_backward(ctx, grad):
    """The gradient of a sum hands a region's number to its voxels: the gradient of that is the sum over them, and so
    with the mean."""
    if any(other is not None for other in ctx.others):
        raise NotImplementedError(
            'region_pool has second gradients for reduce="sum" and "mean" only; use impl="reference"'
        )
    if grad is None:
        return (None,) * 12
    (regions,), (num_regions, dtype) = ctx.saved_tensors, ctx.table
    table = _region_pool(grad, regions, num_regions, ctx.reduce)[0]
    return *(None,) * 8, table.to(dtype), None, None, None


_region_pool = open_doors("region_pool", _save, _backward, check=_check, differentiable=4, results=4)
_region_pool_backward = open_doors("region_pool_backward", _save_backward, _second_backward)
