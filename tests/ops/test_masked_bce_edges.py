# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce at the edges: ignored NaN, empty and huge tensors, layouts, threads, repeatability."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseg import _C, masked_weighted_bce, masked_weighted_bce_terms

from .masked_bce_cases import CHANNELS_LAST, DEVICES, implementations, make_case

MODES = [("voxels", "mean"), ("weight", "mean"), ("terms", "mean"), ("voxels", "sum"), ("voxels", "none")]


def run(case, **options):
    logits = case["logits"].detach().clone().requires_grad_()
    result = masked_weighted_bce(**{**case, "logits": logits}, **options)
    result.sum().backward()
    return result.detach(), logits.grad


@pytest.mark.parametrize(("normalize", "reduction"), MODES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@implementations
def test_nothing_leaks_from_ignored_voxels(impl, device, dtype, poison, normalize, reduction):
    # 2100 voxels: whole blocks, vectors and remainders of every kernel.
    case = make_case((2, 3, 35, 10), dtype, "soft", "shared", "shared", True, "contiguous", device)
    options = {"pseudo_weight": 0.5, "normalize": normalize, "reduction": reduction, "impl": impl}
    clean, clean_gradient = run(case, **options)
    ignored = (case["mask"] == 0) | (case["mask"] == 3)
    for name in ("logits", "target", "weight"):
        case[name] = case[name].masked_fill(ignored, poison)
    result, gradient = run(case, **options)
    assert torch.equal(result, clean)
    assert torch.equal(gradient, clean_gradient)
    assert (gradient[ignored.expand_as(gradient)] == 0).all()
    assert (gradient != 0).sum() > gradient.numel() // 3


@implementations
def test_nan_propagates_from_voxels_that_count(impl, device):
    case = make_case((1, 1, 40), torch.float32, "uint8", None, None, False, "contiguous", device)
    case["logits"][0, 0, 7] = math.nan
    loss, gradient = run(case, impl=impl)
    assert loss.isnan()
    assert gradient.isnan().nonzero().tolist() == [[0, 0, 7]]


@pytest.mark.parametrize(("normalize", "reduction"), MODES)
@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 3, 0), (2, 0, 3, 3, 3)])
@implementations
def test_empty(impl, device, shape, normalize, reduction):
    case = make_case(shape, torch.float32, "uint8", "full", "full", True, "contiguous", device)
    result, gradient = run(case, normalize=normalize, reduction=reduction, impl=impl)
    assert result.shape == (shape if reduction == "none" else ())
    assert (result == 0).all()
    assert gradient.shape == shape


@pytest.mark.parametrize(("normalize", "reduction"), MODES)
@implementations
def test_nothing_labelled(impl, device, normalize, reduction):
    case = make_case((1, 2, 9, 9), torch.float32, "uint8", None, None, False, "contiguous", device)
    case["mask"] = torch.zeros_like(case["target"])
    result, gradient = run(case, normalize=normalize, reduction=reduction, impl=impl)
    assert (result == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("device", DEVICES)
def test_layout_is_kept_and_read_in_place(shape, device):
    plain = make_case(shape, torch.float32, "uint8", "shared", "full", True, "contiguous", device)
    case = make_case(shape, torch.float32, "uint8", "shared", "full", True, "channels_last", device)
    for reduction in ("mean", "none"):
        expected, expected_gradient = run(plain, reduction=reduction, impl="fused")
        result, gradient = run(case, reduction=reduction, impl="fused")
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)
        assert gradient.is_contiguous(memory_format=CHANNELS_LAST[len(shape)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", ["voxels", "weight", "terms"])
def test_threads_do_not_change_a_bit(dtype, normalize):
    case = make_case((2, 3, 50, 51, 23), dtype, "uint8", "shared", "shared", True, "contiguous")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(case, normalize=normalize, pseudo_weight=0.3, impl="fused"))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_loops_run_on_every_thread():
    assert _C.build_info()["openmp"] is not None
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert _C.count_threads() == 2
        torch.set_num_threads(1)
        assert _C.count_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", DEVICES)
def test_repeatable(device):
    case = make_case((1, 2, 300, 301), torch.float32, "soft", "shared", None, False, "contiguous", device)
    first = run(case, impl="fused")
    for _ in range(5):
        again = run(case, impl="fused")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@given(st.data())
def test_fused_is_the_reference(data):
    axes = data.draw(st.integers(1, 3))
    shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4)))
    shape += tuple(data.draw(st.lists(st.integers(1, 17), min_size=axes, max_size=axes)))
    case = make_case(
        shape,
        torch.float64,
        data.draw(st.sampled_from(["bool", "uint8", "soft", torch.bfloat16])),
        data.draw(st.sampled_from([None, "shared", "full", "bool"])),
        data.draw(st.sampled_from([None, "shared", "full"])),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(["contiguous", "channels_last", "strided", "target differs"])),
        seed=data.draw(st.integers(0, 99)),
    )
    normalize, reduction = data.draw(st.sampled_from(MODES))
    options = {
        "normalize": normalize,
        "reduction": reduction,
        "pseudo_weight": data.draw(st.floats(0, 4, allow_subnormal=False)),
    }
    fused, reference = (run(case, impl=impl, **options) for impl in ("fused", "reference"))
    torch.testing.assert_close(fused[0], reference[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(fused[1], reference[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("device", DEVICES)
def test_every_digit_of_one_voxel(device, target):
    """Loss and gradient within 3 units of rounding of themselves over the whole range, however small they are."""
    logits = torch.cat([torch.linspace(-86, 86, 100_001), torch.linspace(-2, 2, 100_001)])
    case = {
        "logits": logits.view(1, 1, -1).to(device),
        "target": torch.full((1, 1, len(logits)), target, device=device),
    }
    exact = {name: value.double() for name, value in case.items()}
    results = (run(case, reduction="none", impl="fused"), run(exact, reduction="none", impl="reference"))
    for value, truth in zip(*results, strict=True):
        assert ((value - truth) / truth).abs().max() < 3 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_16_bits_are_float32_rounded_once(device, dtype):
    case = make_case((2, 3, 41, 43), dtype, "soft", "shared", "shared", True, "contiguous", device)
    case["logits"] = case["logits"] * 4  # float16 gradients down to its subnormals
    wide = case | {"logits": case["logits"].float()}
    for reduction in ("mean", "none"):
        result, gradient = run(case, reduction=reduction, impl="fused")
        expected, expected_gradient = run(wide, reduction=reduction, impl="fused")
        assert torch.equal(result, expected.to(result.dtype))
        assert torch.equal(gradient, expected_gradient.to(dtype))


@implementations
def test_any_byte_but_0_is_foreground(impl, device):
    target = torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8, device=device)
    case = {"logits": torch.randn(1, 1, 4, device=device), "target": target}
    for value, expected in zip(
        run(case, impl=impl), run(case | {"target": target != 0}, impl=impl), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("sign", [1, -1])
@implementations
def test_far_out(impl, device, sign):
    """Where exp(-|z|) underflows: loss 0 or |z|, gradient 0 or 1."""
    logits = sign * torch.tensor(
        [[[88.0, 95.0, 104.0, 130.0, 177.0, 178.0, 300.0, 1e4, 1e20, 3e38]]], device=device
    )
    sure = torch.full_like(logits, float(sign > 0))
    loss, gradient = run({"logits": logits, "target": sure}, reduction="none", impl=impl)
    assert (loss.abs() < 1e-37).all()
    assert (gradient.abs() < 1e-37).all()
    loss, gradient = run({"logits": logits, "target": 1 - sure}, reduction="none", impl=impl)
    assert torch.equal(loss, logits.abs())
    assert (gradient == sign).all()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_2_31_elements(device, channels):
    voxels = 2**31 // channels + 5
    logits = torch.zeros(1, channels, voxels, dtype=torch.bfloat16, device=device)
    target = torch.zeros(1, channels, voxels, dtype=torch.uint8, device=device)
    mask = torch.ones(1, 1, voxels, dtype=torch.uint8, device=device)
    logits[0, -1, -3:] = torch.tensor([1.0, 2.0, 3.0])
    target[0, -1, -2] = 1
    mask[0, 0, -1] = 0
    logits.requires_grad_()
    terms = masked_weighted_bce_terms(logits, target, mask, normalize="terms", reduction="sum", impl="fused")
    assert terms.labelled_count.item() == channels * (voxels - 1)
    extra = math.log1p(math.exp(1)) + math.log1p(math.exp(-2)) - 2 * math.log(2)
    assert terms.loss.item() == pytest.approx(channels * (voxels - 1) * math.log(2) + extra, rel=1e-6)
    terms.loss.backward()
    expected = torch.tensor([0.5, 1 / (1 + math.exp(-1)), -1 / (1 + math.exp(2)), 0.0])
    torch.testing.assert_close(logits.grad[0, -1, -4:].float().cpu(), expected, rtol=1e-2, atol=0)
    assert logits.grad[0, 0, :3].tolist() == [0.5, 0.5, 0.5]
