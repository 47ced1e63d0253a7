# SPDX-License-Identifier: BSD-3-Clause
"""soft_region_pool computes what it says: by hand, against float64, its identities and its edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import region_stats, soft_region_pool

from .masked_bce_cases import DEVICES, implementations
from .pairs import all_pairs
from .region_pool_cases import make_soft_case, soft_eager
from .tolerances import assert_close_to_truth

FACTORS = {
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "assignment_dtype": [torch.float32, torch.bfloat16, torch.float64],
    "parts": [1, 2, 5, 16, 23, 70],
    "shape": [(2, 3, 5, 7, 11), (1, 8, 4, 8, 16), (2, 35, 9, 25), (2, 1, 300), (1, 70, 3, 3), (1, 4, 1, 2)],
    "layout": ["contiguous", "channels_last", "strided"],
    "grey": [False, True],
    "from_logits": [True, False],
    "variance": [False, True],
}
CASES = all_pairs(FACTORS)


def with_gradients(function, tensors):
    """The results that there are, and the gradients of a sum that weighs their entries differently."""
    tensors = [
        None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for t in tensors
    ]
    results = [value for value in function(*tensors) if value is not None]
    total = sum(
        (value * torch.linspace(0.5, 1, value.numel(), device=value.device).view(value.shape).to(value)).sum()
        for value in results
    )
    return results + list(torch.autograd.grad(total, [t for t in tensors if t is not None]))


@pytest.mark.parametrize("number", range(len(CASES)))
@implementations
def test_against_float64(number, impl, device):
    options = dict(CASES[number])
    from_logits, variance = options.pop("from_logits"), options.pop("variance")
    tensors = make_soft_case(**options, device=device, seed=number)
    if not from_logits:
        tensors[1] = tensors[1].abs()

    def ours(features, assignment, grey, impl=impl):
        settings = {"from_logits": from_logits, "variance": variance, "impl": impl}
        return soft_region_pool(features, assignment, grey=grey, **settings)

    def of_torch(*tensors):
        return soft_eager(*tensors, from_logits, variance)

    exact = [None if t is None else t.double() for t in tensors]
    found, torchs = with_gradients(ours, tensors), with_gradients(of_torch, tensors)
    truth = with_gradients(lambda *tensors: ours(*tensors, "reference"), exact)
    for value, other, true in zip(found, torchs, truth, strict=True):
        assert_close_to_truth("soft_region_pool", value, other, true)
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    assert [value.dtype for value in found[-len(dtypes) :]] == dtypes
    assert found[0].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)


@implementations
def test_by_hand(impl, device):
    features = torch.tensor([[[1.0, 2.0, 6.0]]], device=device, requires_grad=True)
    weights = torch.tensor(
        [[[1.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]], device=device, requires_grad=True
    )
    found = soft_region_pool(features, weights, variance=True, impl=impl)
    assert found.mass.tolist() == [[2.0, 1.0, 0.0]]
    assert found.mean[0, :, 0].tolist() == [1.5, 4.0, 0.0]
    assert found.variance[0, :, 0].tolist() == [0.25, 4.0, 0.0]
    assert found.grey_mean is None
    assert found.grey_variance is None
    (10 * found.mean[0, 0, 0] + found.mean[0, 1, 0] + found.mean[0, 2, 0]).backward()
    assert features.grad.tolist() == [[[5.0, 5.5, 0.5]]]
    # <f - mean, grad> / mass; none for the part of mass 0
    expected = torch.tensor([[[-2.5, 2.5, 22.5], [-3.0, -2.0, 2.0], [0.0, 0.0, 0.0]]], device=device)
    torch.testing.assert_close(weights.grad, expected, rtol=1e-6, atol=1e-6)


@implementations
def test_logits_by_hand(impl, device):
    logits = torch.tensor([[[math.log(3), 200.0], [0.0, -200.0]]], dtype=torch.float64, device=device)
    features = torch.tensor([[[4.0, 1.0]]], dtype=torch.float64, device=device)
    found = soft_region_pool(features, logits, from_logits=True, grey=2 * features, impl=impl)
    assert found.variance is None
    torch.testing.assert_close(found.mass, torch.tensor([[1.75, 0.25]], dtype=torch.float64, device=device))
    assert found.mean.flatten().tolist() == pytest.approx([4 / 1.75, 4.0])
    assert found.grey_mean.flatten().tolist() == pytest.approx([8 / 1.75, 8.0])
    mean = 8 / 1.75
    variance = (0.75 * (8 - mean) ** 2 + (2 - mean) ** 2) / 1.75
    assert found.grey_variance.flatten().tolist() == pytest.approx([variance, 0.0], abs=1e-12)


@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 9),
    parts=st.integers(1, 40),
    spatial=st.lists(st.integers(1, 23), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_identities(batch, channels, parts, spatial, seed):
    """Masses sum to the number of voxels; total variance = within + between."""
    tensors = make_soft_case(
        (batch, channels, *spatial), torch.float64, parts, torch.float64, False, "contiguous", seed=seed
    )
    features, logits, _ = tensors
    found = soft_region_pool(features, logits, from_logits=True, variance=True, impl="fused")
    voxels = math.prod(spatial)
    torch.testing.assert_close(
        found.mass.sum(1), torch.full((batch,), voxels, dtype=torch.float64), rtol=1e-12, atol=0
    )
    share = (found.mass / voxels).unsqueeze(-1)
    mean = features.flatten(2).mean(-1)
    within = (share * found.variance).sum(1)
    between = (share * (found.mean - mean.unsqueeze(1)).square()).sum(1)
    total = features.flatten(2).var(-1, correction=0)
    torch.testing.assert_close(within + between, total, rtol=1e-12, atol=1e-15)


@implementations
def test_one_hot_is_the_hard_pool(impl, device):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 31, generator=draw).to(device)
    regions = torch.randint(0, 4, (2, 9, 31), generator=draw).to(device)
    one_hot = torch.nn.functional.one_hot(regions, 5).permute(0, 3, 1, 2).float()
    soft = soft_region_pool(features, one_hot, variance=True, impl=impl)
    hard = region_stats(features, regions, 5, impl="reference")
    assert torch.equal(soft.mass, hard.count.float())
    torch.testing.assert_close(soft.mean, hard.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(soft.variance, hard.variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [1e4, -3e4])
@implementations
def test_a_common_offset_keeps_the_variance(impl, device, offset):
    features, logits, _ = make_soft_case(
        (1, 2, 40, 70), torch.float32, 4, torch.float32, False, "contiguous", device
    )
    found = soft_region_pool(features + offset, logits, from_logits=True, variance=True, impl=impl)
    exact = ((features + offset).double(), logits.double())
    truth = soft_region_pool(*exact, from_logits=True, variance=True, impl="reference")
    torch.testing.assert_close(found.variance.double(), truth.variance, rtol=1e-4, atol=0)


@implementations
def test_empty(impl, device):
    for shape in [(0, 2, 4), (2, 0, 4), (2, 3, 0, 5)]:
        features, logits, _ = make_soft_case(
            shape, torch.float32, 3, torch.float32, False, "contiguous", device
        )
        features.requires_grad_()
        found = soft_region_pool(features, logits.abs(), variance=True, impl=impl)
        (found.mean.sum() + found.variance.sum() + found.mass.sum()).backward()
        assert found.mean.shape == (shape[0], 3, shape[1])
        assert (found.mean == 0).all()
        assert features.grad.shape == features.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_threads_and_runs_do_not_change_a_bit(device, dtype):
    tensors = make_soft_case((2, 5, 300, 101), dtype, 7, dtype, True, "contiguous", device)
    before, results = torch.get_num_threads(), []

    def ours(features, assignment, grey):
        return soft_region_pool(
            features, assignment, grey=grey, from_logits=True, variance=True, impl="fused"
        )

    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(with_gradients(ours, tensors))
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


@implementations
def test_nan_reaches_every_part(impl, device):
    features, logits, _ = make_soft_case(
        (2, 2, 40), torch.float32, 3, torch.float32, False, "contiguous", device
    )
    features[1, 0, 7] = math.nan
    found = soft_region_pool(features, logits, from_logits=True, variance=True, impl=impl)
    assert found.mean.isnan().nonzero().tolist() == [[1, k, 0] for k in range(3)]
    assert found.variance.isnan().nonzero().tolist() == [[1, k, 0] for k in range(3)]
    assert not found.mass.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@implementations
def test_inf_stays_inf(impl, device, dtype):
    """Only in its own channel and sample, and with its sign."""
    features, logits, _ = make_soft_case((2, 9, 300), dtype, 3, torch.float32, False, "contiguous", device)
    expected = soft_region_pool(features, logits, from_logits=True, impl="reference").mean
    features[1, 0, 7], features[1, 8, 290] = math.inf, -math.inf
    expected[1, :, 0], expected[1, :, 8] = math.inf, -math.inf
    found = soft_region_pool(features, logits, from_logits=True, impl=impl)
    torch.testing.assert_close(found.mean, expected, rtol=1e-4, atol=1e-6)
