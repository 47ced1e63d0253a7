# SPDX-License-Identifier: BSD-3-Clause
"""region_pool and region_stats compute what they say: by hand, by a loop, and against float64."""

import math

import pytest
import torch

from fastseg import region_pool, region_stats

from .masked_bce_cases import implementations
from .pairs import all_pairs
from .region_pool_cases import REDUCE, eager, make_case
from .tolerances import EXACT, assert_close_to_truth

NAN, INF = math.nan, math.inf
# name: features (1, 1, n), regions, {reduce: (result of regions 0, 1, 2, gradient for result.sum())}
TABLE = {
    "two regions": (
        [1.0, 2.0, 4.0, 8.0],
        [0, 2, 0, 2],
        {
            "sum": ([5.0, 0.0, 10.0], [1.0, 1.0, 1.0, 1.0]),
            "mean": ([2.5, 0.0, 5.0], [0.5, 0.5, 0.5, 0.5]),
            "var": ([2.25, 0.0, 9.0], [-1.5, -3.0, 1.5, 3.0]),
            "min": ([1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0]),
            "max": ([4.0, 0.0, 8.0], [0.0, 0.0, 1.0, 1.0]),
        },
    ),
    "out of range": (
        [NAN, 3.0, INF, 5.0],
        [-1, 1, 3, 1],
        {
            "sum": ([0.0, 8.0, 0.0], [0.0, 1.0, 0.0, 1.0]),
            "mean": ([0.0, 4.0, 0.0], [0.0, 0.5, 0.0, 0.5]),
            "var": ([0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]),
            "min": ([0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
            "max": ([0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]),
        },
    ),
    "ties": (
        [7.0, -7.0, 7.0, -7.0],
        [1, 1, 1, 1],
        {
            "min": ([0.0, -7.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
            "max": ([0.0, 7.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        },
    ),
    "nan that counts": (
        [2.0, NAN, 1.0, NAN],
        [0, 0, 0, 0],
        {
            "sum": ([NAN, 0.0, 0.0], [1.0] * 4),
            "mean": ([NAN, 0.0, 0.0], [0.25] * 4),
            "var": ([NAN, 0.0, 0.0], [NAN] * 4),
            "min": ([NAN, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
            "max": ([NAN, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
        },
    ),
    "one voxel": (
        [INF, -3.0],
        [2, 1],
        {
            "sum": ([0.0, -3.0, INF], [1.0, 1.0]),
            "mean": ([0.0, -3.0, INF], [1.0, 1.0]),
            "min": ([0.0, -3.0, INF], [1.0, 1.0]),
            "max": ([0.0, -3.0, INF], [1.0, 1.0]),
        },
    ),
    "all skipped": ([1.0, NAN], [9, -5], {reduce: ([0.0] * 3, [0.0] * 2) for reduce in REDUCE}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "reduce"), [(n, r) for n, (_, _, wanted) in TABLE.items() for r in wanted])
@implementations
def test_by_hand(name, reduce, dtype, impl, device):
    values, labels, wanted = TABLE[name]
    result, gradient = wanted[reduce]
    features = torch.tensor([[values]], dtype=dtype, device=device, requires_grad=True)
    regions = torch.tensor([labels], device=device)
    pooled = region_pool(features, regions, 3, reduce=reduce, impl=impl)
    pooled.sum().backward()
    options = dict(zip(("rtol", "atol"), EXACT[dtype], strict=True)) | {"equal_nan": True}
    torch.testing.assert_close(pooled[0, :, 0], torch.tensor(result, dtype=dtype, device=device), **options)
    expected = torch.tensor([[gradient]], dtype=dtype, device=device)
    torch.testing.assert_close(features.grad, expected, **options)


FACTORS = {
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "num_regions": [1, 5, 70],
    "labels": ["random", "blocks", "one"],
    "label_dtype": [
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    ],
    "shape": [
        (2, 3, 5, 7, 11),
        (1, 8, 4, 8, 64),
        (2, 13, 33, 25),
        (3, 1, 300),
        (1, 17, 1, 1),
        (2, 1, 20, 41, 7),
    ],
    "layout": ["contiguous", "channels_last", "strided"],
    "reduce": [*REDUCE, "stats"],
}
CASES = all_pairs(FACTORS)


def stats(features, regions, num_regions, impl):
    return torch.cat(region_stats(features, regions, num_regions, impl=impl)[1:], -1)


def with_gradient(function, features):
    """The result, and the gradient of a sum that weighs its entries differently."""
    features = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    result = function(features)
    weights = torch.linspace(0.5, 1, result.numel(), device=result.device).view(result.shape)
    (gradient,) = torch.autograd.grad((result * weights.to(result)).sum(), features)
    return result.detach(), gradient


@pytest.mark.parametrize("number", range(len(CASES)))
@implementations
def test_against_float64(number, impl, device):
    options = dict(CASES[number])
    reduce = options.pop("reduce")
    count = options["num_regions"]
    features, regions = make_case(**options, device=device, seed=number)

    def ours(features, impl=impl):
        if reduce == "stats":
            return stats(features, regions, count, impl)
        return region_pool(features, regions, count, reduce=reduce, impl=impl)

    def of_torch(features):
        names = REDUCE[1:] if reduce == "stats" else [reduce]
        return torch.cat([eager(features, regions, count, name) for name in names], -1)

    truth = with_gradient(lambda values: ours(values, "reference"), features.double())
    found = with_gradient(ours, features)
    with_ties = features.dtype in (torch.bfloat16, torch.float16) and reduce in ("min", "max", "stats")
    # Torch shares the gradient among equal values; then ours alone must agree.
    torchs = (
        with_gradient(of_torch, features)
        if not with_ties
        else [t.to(f) for t, f in zip(truth, found, strict=True)]
    )
    for value, other, true in zip(found, torchs, truth, strict=True):
        assert_close_to_truth("region_pool", value, other, true)
    assert found[1].dtype == features.dtype


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@implementations
def test_definition_as_a_loop(impl, device, layout):
    features, regions = make_case(
        (2, 3, 4, 9), torch.float64, 4, "random", torch.int16, layout, device, seed=5
    )
    found = region_stats(features, regions, 4, impl=impl)
    sums = region_pool(features, regions, 4, reduce="sum", impl=impl)
    for b in range(2):
        for r in range(4):
            where = [(y, x) for y in range(4) for x in range(9) if regions[b, y, x].item() == r]
            assert found.count[b, r].item() == len(where) > 0
            for c in range(3):
                values = [features[b, c, y, x].item() for y, x in where]
                mean = math.fsum(values) / len(values)
                variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
                expected = [mean, variance, min(values), max(values)]
                assert [table[b, r, c].item() for table in found[1:]] == pytest.approx(expected, rel=1e-12)
                assert sums[b, r, c].item() == pytest.approx(math.fsum(values), rel=1e-12)
