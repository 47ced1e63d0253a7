# SPDX-License-Identifier: BSD-3-Clause
"""What only the emulation can say of region pooling's CUDA kernels: ranges that are merged, tables too large for
shared memory, the same bits in every order of threads."""

import itertools

import pytest
import torch

from fastseg import region_pool, region_stats, soft_region_pool

from ..ops.region_pool_cases import REDUCE, make_case, make_soft_case
from .build import missing
from .ops import EmulatedOps

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SEEDS = range(3)


def both(function, libraries, seed=0):
    with EmulatedOps(libraries, seed):
        ours = function("fused")
    return ours, function("reference")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "num_regions", [5, 2400, *(pytest.param(n, marks=pytest.mark.long) for n in (20000, 60000))]
)
def test_ranges_and_tables_of_every_size(libraries, num_regions, layout):
    """5 regions over three ranges of voxels; 2400 in shared memory for sums, not for all statistics; more in parts."""
    shape = (1, 2, 97, 128) if num_regions == 5 else (1, 2, 16, 16)
    case = make_case(shape, torch.float32, num_regions, "random", torch.int32, layout)
    for reduce in ("mean", "stats"):

        def pool(impl, reduce=reduce):
            features = case[0].clone(memory_format=torch.preserve_format).requires_grad_()
            if reduce == "mean":
                results = [region_pool(features, case[1], num_regions, impl=impl)]
            else:
                results = list(region_stats(features, case[1], num_regions, impl=impl))
            sum((value * value).sum() for value in results if value.is_floating_point()).backward()
            return *results, features.grad

        ours, truth = both(pool, libraries)
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", ["random", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "num_regions"), [pytest.param(33, 512, marks=pytest.mark.long), (16, 9), (3, 64), (1, 2)]
)
def test_a_column_for_every_lane(libraries, channels, num_regions, dtype, labels):
    """Whole tiles and a rest, in two ranges: channels that fill a warp and one more, and few that share its lanes."""
    case = make_case((1, channels, 41, 64), dtype, num_regions, labels, torch.int64, "contiguous")
    ours, truth = both(lambda impl: region_pool(*case, num_regions, impl=impl), libraries)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


SIZES = [(9, 100, 600), (3, 101, 5000), (2, 100, 13000)]
QUICK = list(
    zip(SIZES, (torch.float32, torch.bfloat16, torch.float32), ("of seven", "random", "blocks"), strict=True)
)


@pytest.mark.parametrize(
    ("size", "dtype", "labels"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.long)
        for case in itertools.product(
            SIZES, (torch.float32, torch.bfloat16), ("random", "blocks", "of seven")
        )
    ],
)
def test_sorted_voxels(libraries, size, dtype, labels):
    """Two tiles and a rest, of 600 regions in partitions of a tile each; regions of one voxel in a tile, of a few, and
    of as many as several warps have."""
    channels, width, num_regions = size
    shape = (1, channels, 97, width)
    kind = "blocks" if labels == "blocks" else "random"
    features, regions = make_case(shape, dtype, num_regions, kind, torch.int64, "contiguous")
    if labels == "of seven":
        regions = torch.where(regions < 0, regions, regions % 7 + num_regions - 7)
    for reduce in ("mean", "sum"):
        ours, truth = both(
            lambda impl, reduce=reduce: region_pool(features, regions, num_regions, reduce=reduce, impl=impl),
            libraries,
        )
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-4)


def test_ranges_of_regions(libraries):
    """Tables of 25000 regions in three parts: tiles with voxels of all, of two with one region over many warps, of one
    part, of none; inf and NaN stay in their regions."""
    count, tile = 25000, 4096
    features, regions = make_case(
        (1, 1, 4 * tile + 77), torch.float32, count, "random", torch.int32, "contiguous"
    )
    regions[:, 100:3000] = 8300
    regions[:, tile - 50 : 2 * tile] = 16666
    regions[:, 2 * tile : 3 * tile] = regions[:, 2 * tile : 3 * tile] % 50 + count - 49
    regions[:, 3 * tile : 4 * tile] = -1
    for voxel, value in ((5, "inf"), (50, "nan"), (tile - 1, "-inf"), (2 * tile + 3, "inf")):
        features[0, 0, voxel] = float(value)
    ours, truth = both(lambda impl: region_pool(features, regions, count, impl=impl), libraries)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5, equal_nan=True)


def same_bits(function, libraries):
    results = []
    for seed in SEEDS:
        with EmulatedOps(libraries, seed):
            results.append(function())
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduce", REDUCE)
def test_the_same_bits_in_every_order(libraries, reduce, layout):
    features, regions = make_case((1, 9, 45, 100), torch.float32, 6, "random", torch.uint8, layout)
    same_bits(lambda: [region_pool(features, regions, 6, reduce=reduce, impl="fused")], libraries)


@pytest.mark.parametrize("labels", ["random", "blocks", "one"])
def test_the_same_bits_of_sorted_voxels_in_every_order(libraries, labels):
    features, regions = make_case((1, 9, 97, 100), torch.float32, 600, labels, torch.int16, "contiguous")
    same_bits(lambda: [region_pool(features, regions, 600, impl="fused")], libraries)


@pytest.mark.parametrize(("parts", "grey"), [(5, True), (40, False)])
def test_the_same_soft_bits_in_every_order(libraries, parts, grey):
    """Four ranges of 4970 voxels; the softmax within a block, and of parts of several blocks."""
    features, logits, image = make_soft_case(
        (1, 3, 70, 71), torch.float32, parts, torch.float32, grey, "contiguous"
    )
    options = {"from_logits": True, "variance": True, "grey": image}
    same_bits(
        lambda: [t for t in soft_region_pool(features, logits, **options, impl="fused") if t is not None],
        libraries,
    )
    ours, truth = both(lambda impl: soft_region_pool(features, logits, **options, impl=impl), libraries)
    torch.testing.assert_close(tuple(ours), tuple(truth), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_soft_ranges(libraries, dtype):
    """A range whose warps empty their registers on the way, and whose end is no whole step."""
    features, logits, _ = make_soft_case((1, 2, 5 * 1021), dtype, 2, dtype, False, "contiguous")
    features = features.repeat(12, 1, 1)
    logits = logits.repeat(12, 1, 1)
    features = features.permute(1, 0, 2).reshape(1, 2, -1)
    logits = logits.permute(1, 0, 2).reshape(1, 2, -1)
    ours, truth = both(
        lambda impl: soft_region_pool(features, logits, from_logits=True, impl=impl)[:2], libraries
    )
    torch.testing.assert_close(tuple(ours), tuple(truth), rtol=2e-6, atol=2e-6)
