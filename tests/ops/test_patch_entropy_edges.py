# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy at the edges: every digit, slopes at 0 and 1, NaN, empty, large and repeated."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import patch_entropy

from .patch_entropy_cases import devices, implementations, make_mask, make_values, with_gradient


@pytest.mark.parametrize("from_logits", [False, True])
@devices
def test_every_digit_of_one_voxel(device, from_logits):
    """Entropy and slope within a few units of rounding of themselves, however small they are."""
    if from_logits:
        values = torch.linspace(-80, 80, 100_001)
    else:
        small = torch.logspace(-37, -0.31, 50_001)
        values = torch.cat([small, 1 - small, torch.linspace(0.49, 0.51, 5001)])
        values = values[(values > 0) & (values < 1)]
    values = values.view(1, 1, -1).to(device)
    ours = with_gradient(lambda v, **o: patch_entropy(v, 1, 1, **o)[:1], values, from_logits=from_logits)
    options = {"from_logits": from_logits, "impl": "reference"}
    truth = with_gradient(lambda v, **o: patch_entropy(v, 1, 1, **o)[:1], values.double(), **options)
    for number, (value, true) in enumerate(zip(ours, truth, strict=True)):
        error = ((value.double() - true) / true.where(true != 0, 1)).abs()
        assert error.max() < (4 + 2 * number) * torch.finfo(torch.float32).eps


@devices
def test_every_digit_of_a_class(device):
    """Two logits of which one is sure: the categorical entropy is the binary one, and does not cancel."""
    z = torch.linspace(-80, 80, 10_001, dtype=torch.float64, device=device)
    logits = torch.stack([z, torch.zeros_like(z)])[None]
    truth = patch_entropy(z.view(1, 1, -1), 1, 1, from_logits=True, impl="reference").entropy
    ours = patch_entropy(logits.float(), 1, 1, mode="categorical", from_logits=True).entropy
    sure = patch_entropy(logits.float()[:, :1].double(), 1, 1, from_logits=True, impl="reference").entropy
    assert ((ours - sure) / truth).abs().max() < 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("dtype", "slope"), [(torch.float32, 126.0), (torch.float64, 1022.0), (torch.float16, 126.0)]
)
@implementations
def test_slopes_at_the_ends(impl, device, dtype, slope):
    values = torch.tensor([[[0.0, 1.0, -0.25, 1.25, 0.5]]], dtype=dtype, device=device).requires_grad_()
    entropy, confidence = patch_entropy(values, 1, 1, impl=impl)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), values, retain_graph=True)
    (of_confidence,) = torch.autograd.grad(confidence.sum(), values)
    assert of_entropy.tolist() == [[[slope, -slope, 0, 0, 0]]]
    assert of_confidence.tolist() == [[[1, 1, 0, 0, 1]]]
    entropy, confidence = patch_entropy(values, 1, 1, mode="categorical", impl=impl)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), values)
    expected = [slope - 1 / math.log(2), -1 / math.log(2), 0, 0, 1 - 1 / math.log(2)]
    torch.testing.assert_close(
        of_entropy.flatten().double().cpu(), torch.tensor(expected).double(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("mode", ["binary", "categorical"])
@pytest.mark.parametrize("from_logits", [False, True])
@implementations
def test_nothing_leaks_from_masked_voxels_and_gaps(impl, device, from_logits, mode):
    shape, patch, stride = (2, 3, 9, 40), (2, 8), (4, 12)
    options = {"mode": mode, "from_logits": from_logits, "impl": impl}
    options["mask"] = make_mask(shape, "shared", mode, device)
    values = make_values(shape, torch.float32, mode, from_logits, device)
    clean = with_gradient(patch_entropy, values, patch, stride, **options)
    ignored = (options["mask"] == 0).expand(shape).clone()
    ignored[:, :, [2, 3, 6, 7]] = True  # between windows, as are the columns below
    ignored[..., 8:12] = ignored[..., 20:24] = ignored[..., 32:36] = True
    for poison in (math.nan, math.inf):
        found = with_gradient(patch_entropy, values.masked_fill(ignored, poison), patch, stride, **options)
        for value, expected in zip(found, clean, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        assert (found[2][ignored] == 0).all()


@devices
def test_a_window_of_zeros_after_others_is_zero(device):
    values = torch.rand(1, 1, 40, 50, device=device)
    values[..., 20:] = 0
    entropy, confidence = patch_entropy(values, (5, 7), 1)
    assert (entropy[..., 20:] == 0).all()
    assert (confidence[..., 20:] == 0).all()
    assert (entropy[..., :20] > 0).all()


@pytest.mark.parametrize("shape", [(0, 2, 6, 6), (2, 0, 6, 6)])
@pytest.mark.parametrize("masked", [None, "shared"])
@implementations
def test_empty(impl, device, masked, shape):
    values = make_values(shape, torch.float32, "binary", False, device)
    mask = make_mask(shape, masked, "binary", device)
    entropy, confidence, gradient = with_gradient(patch_entropy, values, 3, 1, mask=mask, impl=impl)
    assert entropy.shape == confidence.shape == (*shape[:2], 4, 4)
    assert gradient.shape == shape


@pytest.mark.parametrize("mode", ["binary", "categorical"])
def test_threads_do_not_change_a_bit(mode):
    values = make_values((2, 3, 30, 50, 51), torch.float32, mode, True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                with_gradient(patch_entropy, values, (8, 9, 10), (4, 5, 3), mode=mode, from_logits=True)
            )
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@given(st.data())
def test_fused_is_the_reference(data):
    axes = data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["binary", "categorical"]))
    shape = (data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3)))
    shape += tuple(data.draw(st.lists(st.integers(1, 40), min_size=axes, max_size=axes)))
    patch = [data.draw(st.integers(1, size)) for size in shape[2:]]
    stride = [data.draw(st.integers(1, 45)) for _ in patch]
    from_logits, masked = (
        data.draw(st.booleans()),
        data.draw(st.sampled_from([None, "shared", "full", "bool"])),
    )
    seed = data.draw(st.integers(0, 99))
    values = make_values(shape, torch.float64, mode, from_logits, seed=seed)
    options = {"mode": mode, "from_logits": from_logits, "mask": make_mask(shape, masked, mode, seed=seed)}
    options["min_valid"] = data.draw(st.sampled_from([0, 0.3, 0.5, 1]))
    fused, reference = (
        with_gradient(patch_entropy, values, patch, stride, impl=impl, **options)
        for impl in ("fused", "reference")
    )
    for value, expected in zip(fused, reference, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


@devices
def test_sums_are_exact_enough(device):
    """A window of 16.8 million voxels, and small windows at the far end of a long row."""
    torch.manual_seed(0)
    values = torch.rand(1, 1, 64, 512, 512).to(device)
    whole = patch_entropy(values, (64, 512, 512), 1)
    assert abs(whole.confidence.item() - values.double().mean().item()) < 1e-7
    small = patch_entropy(values[:, :, :1], (1, 4, 4), (1, 4, 4)).confidence[0, 0, 0, -1, -1]
    assert abs(small.item() - values[0, 0, 0, -4:, -4:].double().mean().item()) < 1e-7


@pytest.mark.slow
@devices
def test_more_than_2_31_elements(device):
    values = torch.zeros(1, 2, 1025, 1024, 1024, dtype=torch.float16, device=device)
    values[0, 1, -32:, -32:, -32:] = 0.5
    entropy, confidence = patch_entropy(values, 32, (31 * 32 + 1, 31 * 32, 31 * 32), impl="fused")
    expected = torch.zeros(1, 2, 2, 2, 2, device=device)
    expected[0, 1, 1, 1, 1] = 1
    assert torch.equal(entropy, expected)
    assert torch.equal(confidence, expected / 2)
