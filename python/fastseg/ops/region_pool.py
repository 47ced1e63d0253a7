# SPDX-License-Identifier: BSD-3-Clause
"""region_pool and region_stats: what the features of every region of a label volume amount to."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.dispatch import use_fused
from fastseg.ops.doors import open_doors
from fastseg.ops.integers import as_int
from fastseg.ops.masked_bce import dtype_names
from fastseg.ops.reference.region_pool import region_counts_reference, region_pool_reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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
    if reduce not in _REDUCE:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCE)}, got {reduce!r}")
    if not use_fused("region_pool", impl, features.device):
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
    if not use_fused("region_pool", impl, features.device):
        _check(features, regions, num_regions)
        pooled = (
            region_pool_reference(features, regions, num_regions, reduce)
            for reduce in ("mean", "var", "min", "max")
        )
        return RegionStats(region_counts_reference(features, regions, num_regions), *pooled)
    *statistics, count, _, _ = _region_pool(features, regions, num_regions, _ALL)
    return RegionStats(count, *statistics)


def check_is_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_features(name: str, features: Tensor) -> None:
    """Whether it is a floating tensor of shape (B, C, *S)."""
    if features.dtype not in FLOATS:
        raise TypeError(f"{name} must be {dtype_names(FLOATS)}, got {_name(features.dtype)}")
    if not 3 <= features.dim() <= 5:
        raise ValueError(f"{name} must be (B, C, *S) with 1 to 3 spatial axes, got {tuple(features.shape)}")


def _check_types(features: Tensor, regions: Tensor, num_regions: int) -> int:
    """num_regions as the kernels take it."""
    check_is_tensor("features", features)
    check_is_tensor("regions", regions)
    num_regions = as_int("num_regions", num_regions)
    if not 1 <= num_regions < 2**31:
        raise ValueError(f"num_regions must be from 1 to 2**31 - 1, got {num_regions}")
    return num_regions


def _check(features: Tensor, regions: Tensor, *_: object) -> None:
    """What C++ checks, for the reference and for tensors that C++ does not see: fake ones of a tracer."""
    check_features("features", features)
    if regions.dtype not in _INTEGERS:
        raise TypeError(f"regions must be of an integer dtype, got {_name(regions.dtype)}")
    if regions.device != features.device:
        raise ValueError(f"regions must be on {features.device}, where features is, got {regions.device}")
    batch, spatial = features.shape[0], features.shape[2:]
    if tuple(regions.shape) != (batch, *spatial):
        expected = ", ".join(map(str, (batch, *spatial)))
        raise ValueError(f"regions must be (B, *S) = ({expected}), got {tuple(regions.shape)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over features, and of what is made of them."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(features: Tensor) -> bool:
    """Whether the kernels read it channels last: as they do, contiguous goes first."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(features.dim())
    return bool(layout and not features.is_contiguous() and features.is_contiguous(memory_format=layout))


def empty_features(shape, dtype: torch.dtype, device, channels_last: bool) -> Tensor:
    """A gradient of features as the kernels allocate it."""
    layout = torch.contiguous_format
    if channels_last:
        layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)


@torch.library.register_fake("fastseg::region_pool")
def _(features, regions, num_regions, reduce):
    table = (features.shape[0], num_regions, features.shape[1])
    real = accumulation_dtype(features.dtype)

    def empty(wanted, dtype=real):
        return torch.empty(table if wanted else (0,), dtype=dtype, device=features.device)

    minimum, maximum, variance = (reduce in (one, _ALL) for one in (_MIN, _MAX, _VAR))
    count = torch.empty(table[:2], dtype=torch.int64, device=features.device)
    values = (empty(reduce in (_SUM, _MEAN) or variance), empty(variance), empty(minimum), empty(maximum))
    return *values, count, empty(minimum, torch.int64), empty(maximum, torch.int64)


@torch.library.register_fake("fastseg::region_gather")
def _(table, regions, kind, channels_last):
    shape = (regions.shape[0], table.shape[2], *regions.shape[1:])
    dtype = next(dtype for dtype, number in _KINDS.items() if number == kind)
    return empty_features(shape, dtype, regions.device, channels_last)


@torch.library.register_fake("fastseg::region_pool_backward")
def _(features, regions, num_regions, *_):
    return empty_features(features.shape, features.dtype, features.device, is_channels_last(features))


def _save(ctx, inputs, output):
    features, regions, ctx.num_regions, ctx.reduce = inputs
    mean, _, _, _, count, argmin, argmax = output
    ctx.kind = _KINDS[features.dtype]
    ctx.channels_last = is_channels_last(features)
    ctx.mark_non_differentiable(*(one for one in (count, argmin, argmax) if one is not None))
    ctx.set_materialize_grads(False)
    if ctx.reduce in (_SUM, _MEAN):  # the gradient of a sum needs no features: they can be freed
        ctx.save_for_backward(regions, count)
    else:
        ctx.save_for_backward(regions, count, features, mean, argmin, argmax)


def _backward(ctx, grad_mean, grad_variance, grad_minimum, grad_maximum, *_):
    regions, count, *others = ctx.saved_tensors
    # What this reduction does not give has shape (0,), and no gradient, whatever a tracer hands over.
    if ctx.reduce != _ALL:
        grad_mean = grad_mean if ctx.reduce in (_SUM, _MEAN, _VAR) else None
        grad_variance = grad_variance if ctx.reduce == _VAR else None
        grad_minimum = grad_minimum if ctx.reduce == _MIN else None
        grad_maximum = grad_maximum if ctx.reduce == _MAX else None
    if all(grad is None for grad in (grad_mean, grad_variance, grad_minimum, grad_maximum)):
        return None, None, None, None
    size = count.clamp(min=1).unsqueeze(-1)
    if ctx.reduce in (_SUM, _MEAN):
        table = grad_mean if ctx.reduce == _SUM else grad_mean / size
        grad = _region_gather(table, regions, ctx.kind, ctx.channels_last)
        return grad, None, None, None
    features, mean, argmin, argmax = others
    base = None if grad_mean is None else grad_mean / size
    slope = None if grad_variance is None else 2 * grad_variance / size
    grad = _region_pool_backward(
        *(features, regions, ctx.num_regions, base, slope, mean if slope is not None else None),
        *(grad_minimum, grad_maximum),
        *(None if grad_minimum is None else argmin, None if grad_maximum is None else argmax),
    )
    return grad, None, None, None


def _save_gather(ctx, inputs, output):
    table, regions, _, _ = inputs
    ctx.num_regions, ctx.dtype = table.shape[1], table.dtype
    ctx.save_for_backward(regions)


def _backward_of_gather(ctx, grad):
    """A table's gradient is the sum over the voxels that took its rows."""
    (regions,) = ctx.saved_tensors
    table = _region_pool(grad, regions, ctx.num_regions, _SUM)[0]
    return table.to(ctx.dtype), None, None, None


def _no_second_gradient(ctx, *grads):
    raise NotImplementedError(
        'region_pool has second gradients for reduce="sum" and "mean" only; use impl="reference"'
    )


_region_pool = open_doors("region_pool", _save, _backward, _check)
_region_gather = open_doors("region_gather", _save_gather, _backward_of_gather)
_region_pool_backward = open_doors("region_pool_backward", None, _no_second_gradient)
