# SPDX-License-Identifier: BSD-3-Clause
"""region_pool at the edges: skipped NaN, huge ids, empty tensors, offsets, threads, memory, repeatability."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import region_pool, region_stats

from .masked_bce_cases import CHANNELS_LAST, DEVICES, implementations
from .region_pool_cases import REDUCE, lay_out, make_case


def run(features, regions, num_regions, **options):
    features = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    result = region_pool(features, regions, num_regions, **options)
    (result * torch.linspace(1, 2, result.numel(), device=result.device).view(result.shape)).sum().backward()
    return result.detach(), features.grad


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@implementations
def test_nothing_leaks_from_skipped_voxels(impl, device, layout, poison, reduce):
    features, regions = make_case((2, 3, 35, 10), torch.float32, 7, "blocks", torch.int64, layout, device)
    clean = run(features, regions, 7, reduce=reduce, impl=impl)
    skipped = ((regions < 0) | (regions >= 7)).unsqueeze(1).expand_as(features)
    assert skipped.any()
    poisoned = lay_out(features.masked_fill(skipped, poison), layout)
    found = run(poisoned, regions, 7, reduce=reduce, impl=impl)
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1], clean[1])
    assert (found[1][skipped] == 0).all()


@implementations
def test_ids_beyond_float_precision_stay_apart(impl, device):
    """2**24 and 2**24 + 1 are one in float32; -2**32 + 1, 2**32 and 2**63 are small in 32 bits."""
    big = 2**24
    ids = torch.tensor(
        [[big, big + 1, -(2**32) + 1, 2**32, -(2**63), 2**63 - 1, 0, 2**31 - 1]], device=device
    )
    features = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]]], device=device)
    sums = region_pool(features, ids - (big - 1), 4, reduce="sum", impl=impl)
    assert sums[0, :, 0].tolist() == [0.0, 1.0, 2.0, 0.0]
    sums = region_pool(features, ids, 2, reduce="sum", impl=impl)
    assert sums[0, :, 0].tolist() == [64.0, 0.0]
    for dtype, value in ((torch.uint64, 2**63 + 1), (torch.uint32, 2**32 - 1), (torch.uint16, 65535)):
        labels = torch.tensor([[value, 1]], dtype=dtype, device=device)
        assert region_pool(features[..., :2], labels, 3, reduce="sum", impl=impl)[0, :, 0].tolist() == [
            0,
            2,
            0,
        ]


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 3, 0), (2, 0, 3, 3, 3)])
@implementations
def test_empty(impl, device, shape, reduce):
    features, regions = make_case(shape, torch.float32, 4, "random", torch.int64, "contiguous", device)
    result, gradient = run(features, regions, 4, reduce=reduce, impl=impl)
    assert result.shape == (shape[0], 4, shape[1])
    assert (result == 0).all()
    assert gradient.shape == shape
    counts = region_stats(features, regions, 4, impl=impl).count
    assert counts.tolist() == [[(r == k).sum().item() for k in range(4)] for r in regions]


@pytest.mark.parametrize("offset", [1e4, -3e4])
@pytest.mark.parametrize("labels", ["random", "blocks", "one"])
@implementations
def test_a_common_offset_keeps_the_variance(impl, device, labels, offset):
    features, regions = make_case((1, 9, 30, 40), torch.float32, 5, labels, torch.int32, "contiguous", device)
    features = features + offset
    found = region_pool(features, regions, 5, reduce="var", impl=impl)
    truth = region_pool(features.double(), regions, 5, reduce="var", impl="reference")
    close = 2e-5 if impl == "fused" else 1e-2  # the reference sums float32
    torch.testing.assert_close(found.double(), truth, rtol=close, atol=0)
    stats = region_stats(features, regions, 5, impl=impl)
    torch.testing.assert_close(stats.variance.double(), truth, rtol=close, atol=0)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 16, 4, 5, 6)])
@pytest.mark.parametrize("device", DEVICES)
def test_layout_is_kept(shape, device):
    plain, regions = make_case(shape, torch.float32, 4, "random", torch.uint8, "contiguous", device)
    last = plain.to(memory_format=CHANNELS_LAST[len(shape)])
    for reduce in REDUCE:
        expected, found = (run(f, regions, 4, reduce=reduce, impl="fused") for f in (plain, last))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert found[1].is_contiguous(memory_format=CHANNELS_LAST[len(shape)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("device", DEVICES)
def test_threads_and_runs_do_not_change_a_bit(device, reduce, layout):
    features, regions = make_case(
        (2, 11, 30, 51, 33), torch.float32, 40, "random", torch.int32, layout, device
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(features, regions, 40, reduce=reduce, impl="fused"))
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))
    # And they are right: so many voxels are several ranges, which are merged.
    truth = run(features, regions, 40, reduce=reduce, impl="reference")
    torch.testing.assert_close(results[0], truth, rtol=1e-3, atol=1e-5)


@given(st.data())
def test_fused_is_the_reference(data):
    spatial = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=3))
    shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 19)), *spatial)
    num_regions = data.draw(st.integers(1, 50))
    labels, layout = (
        data.draw(st.sampled_from(["random", "blocks"])),
        data.draw(st.sampled_from(["contiguous", "channels_last"])),
    )
    features, regions = make_case(
        shape, torch.float64, num_regions, labels, torch.int16, layout, seed=data.draw(st.integers(0, 99))
    )
    reduce = data.draw(st.sampled_from(REDUCE))
    fused, reference = (
        run(features, regions, num_regions, reduce=reduce, impl=i) for i in ("fused", "reference")
    )
    torch.testing.assert_close(fused, reference, rtol=1e-11, atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 2000), st.integers(0, 99))
def test_identities(num_regions, channels, voxels, seed):
    """Counts add up; total variance = within + between; labels renamed, results renamed."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(1, channels, voxels, dtype=torch.float64, generator=draw) + 3
    regions = torch.randint(0, num_regions, (1, voxels), generator=draw)
    found = region_stats(features, regions, num_regions, impl="fused")
    assert found.count.sum().item() == voxels
    share = found.count.unsqueeze(-1).double() / voxels
    between = (share * (found.mean - features.mean(-1).unsqueeze(1)).square()).sum(1)
    total = features.var(-1, correction=0)
    torch.testing.assert_close((share * found.variance).sum(1) + between, total, rtol=1e-12, atol=1e-15)
    assert (found.minimum <= found.maximum).all()
    renamed = region_stats(features, num_regions - 1 - regions, num_regions, impl="fused")
    assert all(torch.equal(a.flip(1), b) for a, b in zip(found, renamed, strict=True))


def test_many_voxels_of_one_value_keep_their_digits():
    """Ten million: a float32 sum that grows would be off in the third digit."""
    features = torch.full((1, 1, 10_000_000), 0.1)
    regions = torch.zeros(1, 10_000_000, dtype=torch.uint8)
    found = region_stats(features, regions, 1)
    assert found.mean.item() == features[0, 0, 0].item()
    assert found.variance.item() < 1e-30
    assert found.count.item() == 10_000_000


MEMORY = """
import torch
from pathlib import Path
from fastseg import region_pool, soft_region_pool

def high_water():
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

torch.set_num_threads(2)
features = torch.randn(1, 32, 64, 128, 128)  # 128 MiB
regions = torch.randint(0, 64, (1, 64, 128, 128), dtype=torch.uint8)
logits = torch.zeros(1, 4, 64, 128, 128)
small = features[..., :8, :8].contiguous()
region_pool(small, regions[..., :8, :8], 64)
soft_region_pool(small, logits[..., :8, :8], from_logits=True, variance=True)
before = high_water()
for reduce in ("mean", "var", "max"):
    region_pool(features, regions, 64, reduce=reduce)
soft_region_pool(features, logits, from_logits=True, variance=True)
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_memory_is_that_of_the_tables():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 16  # MiB, of features of 128


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_2_31_elements(device):
    voxels = 2**30 + 5
    features = torch.zeros(1, 2, voxels, dtype=torch.bfloat16, device=device)
    regions = torch.zeros(1, voxels, dtype=torch.uint8, device=device)
    features[0, 1, -3:] = torch.tensor([1.0, 2.0, -3.0])
    regions[0, -2:] = 1
    features.requires_grad_()
    found = region_stats(features, regions, 2, impl="fused")
    assert found.count.tolist() == [[voxels - 2, 2]]
    assert found.minimum[0, :, 1].tolist() == [0.0, -3.0]
    assert found.maximum[0, :, 1].tolist() == [1.0, 2.0]
    found.maximum[0, :, 1].sum().backward()
    assert features.grad[0, 1, -4:].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert features.grad.count_nonzero().item() == 2
