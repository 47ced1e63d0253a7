# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy, sample_patches and extract_patches inside torch: gradients, compile, autocast, modules, refusals."""

import re

import pytest
import torch

import fastseg
from fastseg import extract_patches, patch_entropy, sample_patches

from .patch_entropy_cases import devices, implementations, make_mask, make_values

OPS = torch.ops.fastseg


@pytest.mark.parametrize("mode", ["binary", "categorical"])
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("masked", [None, "full"])
@implementations
def test_gradcheck(impl, device, masked, from_logits, mode):
    shape = (1, 2, 3, 7)
    values = make_values(shape, torch.float64, mode, from_logits, device, seed=1)
    values = values if from_logits else values.clamp(0.05, 0.95)
    options = {"mode": mode, "from_logits": from_logits, "impl": impl, "min_valid": 0}
    options["mask"] = make_mask(shape, masked, mode, device)

    def means(values):
        return [mean.nan_to_num(0) for mean in patch_entropy(values, (2, 5), (1, 2), **options)]

    assert torch.autograd.gradcheck(means, (values.requires_grad_(),))


@implementations
def test_gradcheck_of_patches(impl, device):
    volume = torch.randn(1, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    corners = torch.tensor([[[0, 0], [1, 2], [4, 4]]], device=device)
    assert torch.autograd.gradcheck(lambda v: extract_patches(v, corners, (3, 4), impl=impl), (volume,))
    assert torch.autograd.gradgradcheck(lambda v: extract_patches(v, corners, (3, 4), impl=impl), (volume,))


def test_no_second_gradient():
    values = torch.rand(1, 1, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(patch_entropy(values, 2, 1).entropy.sum(), values, create_graph=True)
    with pytest.raises(NotImplementedError, match='impl="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [None, "full"])
@pytest.mark.parametrize("mode", ["binary", "categorical"])
@devices
def test_opcheck(device, mode, masked, dtype):
    shape = (2, 3, 9, 8)
    values = make_values(shape, dtype, mode, True, device)
    mask = make_mask(shape, masked, mode, device)
    options = ([3, 4], [2, 2], mode == "categorical", True, 1)  # no window is NaN: opcheck compares
    for leaf in (values, values.detach().clone().requires_grad_()):
        torch.library.opcheck(OPS.patch_entropy.default, (leaf, mask, *options))
    *maps, counts = OPS.patch_entropy(values, mask, *options)
    grads = [torch.ones_like(one) for one in maps]
    counts = None if mask is None else counts
    for given in (grads, (None, grads[1])):
        torch.library.opcheck(OPS.patch_entropy_backward.default, (*given, values, mask, counts, *options))


@devices
def test_opcheck_of_samples_and_patches(device):
    entropy = torch.rand(2, 3, 4, 5, device=device)
    seed = torch.tensor(1, device=device)
    for strategy, replacement in ((0, True), (0, False), (2, True)):
        arguments = (entropy, entropy, seed, 6, [2, 2], strategy, replacement, 1e-3, 0.0)
        torch.library.opcheck(OPS.patch_entropy_sample.default, arguments)
    corners = torch.randint(-1, 3, (2, 4, 2), device=device)
    for volume in (
        torch.rand(2, 3, 6, 6, device=device),
        torch.ones(2, 3, 6, 6, dtype=torch.bool, device=device),
    ):
        torch.library.opcheck(OPS.patch_entropy_crops.default, (volume, corners, [3, 3]))
    leaf = torch.rand(2, 3, 6, 6, device=device, requires_grad=True)
    torch.library.opcheck(OPS.patch_entropy_crops.default, (leaf, corners, [3, 3]))
    grad = torch.rand(2, 4, 3, 3, 3, device=device)
    torch.library.opcheck(OPS.patch_entropy_crops_backward.default, (grad, corners, [6, 6]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@devices
def test_compile_in_one_graph(device, backend):
    def step(logits, image, seed):
        scores = patch_entropy(logits * 2, 4, 2, from_logits=True)
        samples = sample_patches(*scores, 5, seed=seed, stride=2)
        patches = extract_patches(image * logits.sigmoid(), samples.corners, 4)
        return scores.entropy.sum() + patches.square().mean(), samples.index, samples.parity

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    image = torch.rand(2, 1, 12, 14, device=device)
    for seed in (3, 4, torch.tensor(5, device=device)):
        results = []
        for function in (step, compiled):
            logits = torch.linspace(-2, 2, 2 * 3 * 12 * 14, device=device).view(2, 3, 12, 14).requires_grad_()
            loss, index, parity = function(logits, image, seed)
            loss.backward()
            results.append((loss.detach(), index, parity, logits.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@devices
def test_autocast(device):
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1, device=device)
    image = torch.randn(2, 1, 16, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = convolution(image)
        assert logits.dtype == torch.bfloat16
        scores = patch_entropy(logits, 4, 4, from_logits=True)
        samples = sample_patches(*scores, 3, seed=0, stride=4)
        patches = extract_patches(logits, samples.corners, 4)
    assert scores.entropy.dtype == scores.confidence.dtype == torch.float32
    assert patches.dtype == torch.bfloat16
    (scores.entropy.sum() + patches.float().sum()).backward()
    assert convolution.weight.grad.dtype == torch.float32


def test_nothing_flows_through_a_draw():
    values = torch.rand(1, 2, 9, 9, requires_grad=True)
    samples = sample_patches(*patch_entropy(values, 3, 1), 4, seed=0)
    assert not any(result.requires_grad for result in samples)


def test_module():
    sampler = fastseg.nn.PatchSampler((4, 5), 2, 6, mode="categorical", min_valid=0.9, strategy="lowest")
    values = make_values((2, 3, 16, 17), torch.float32, "categorical", False)
    mask = make_mask((2, 3, 16, 17), "shared", "categorical") | 1
    scores = patch_entropy(values, (4, 5), 2, mode="categorical", mask=mask, min_valid=0.9)
    assert all(torch.equal(a, b) for a, b in zip(sampler.scores(values, mask), scores, strict=True))
    expected = sample_patches(*scores, 6, seed=9, stride=2, strategy="lowest")
    assert all(torch.equal(a, b) for a, b in zip(sampler(values, 9, mask), expected, strict=True))
    assert "patch_size=(4, 5), stride=2, n=6, mode='categorical'" in repr(sampler)
    options = {
        "strategy": "threshold",
        "threshold": 0.9,
        "replacement": False,
        "floor": 0.5,
        "from_logits": True,
    }
    other = fastseg.nn.PatchSampler(4, 3, 7, impl="reference", **options)
    scores = patch_entropy(values, 4, 3, from_logits=True)
    del options["from_logits"]
    expected = sample_patches(*scores, 7, seed=2, stride=3, **options)
    assert all(torch.equal(a, b) for a, b in zip(other(values, 2), expected, strict=True))


V, M = torch.zeros(2, 3, 8, 9), torch.ones(2, 3, 8, 9, dtype=torch.uint8)
REFUSED = {  # changed arguments of patch_entropy, exception, message
    "list": ({"confidence": [0.0]}, TypeError, "confidence must be a torch.Tensor, got list"),
    "integers": ({"confidence": V.long()}, TypeError, "confidence must be float32, .*, got int64"),
    "(B, K)": ({"confidence": torch.zeros(2, 3)}, ValueError, "1 to 3 spatial axes, got (2, 3)"),
    "patch": ({"patch_size": (8, 10)}, ValueError, "patch_size must fit in (8, 9), got (8, 10)"),
    "no patch": ({"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
    "axes": ({"patch_size": (2, 2, 2)}, ValueError, "patch_size must have 2 entries, one per spatial axis"),
    "float": ({"patch_size": 2.5}, TypeError, "patch_size must be an int or a sequence of ints, got float"),
    "stride": ({"stride": (1, 0)}, ValueError, "stride must be at least 1, got (1, 0)"),
    "mode": ({"mode": "multi"}, ValueError, "mode must be one of binary, categorical, got 'multi'"),
    "mask dtype": ({"mask": M.float()}, TypeError, "mask must be uint8 or bool, got float32"),
    "mask shape": ({"mask": M[:, :2]}, ValueError, "mask must be (B, 1 or K, *S) = (2, 1 or 3, 8, 9), got"),
    "mask of classes": (
        {"mask": M, "mode": "categorical"},
        ValueError,
        "mask must be (B, 1, *S) = (2, 1, 8, 9), got (2, 3, 8, 9)",
    ),
    "mask device": ({"mask": M.to("meta")}, ValueError, "mask must be on cpu, where confidence is, got meta"),
    "min_valid": ({"min_valid": 1.5}, ValueError, "min_valid must be in [0, 1], got 1.5"),
    "min_valid type": ({"min_valid": "all"}, TypeError, "min_valid must be a number, got str"),
    "impl": ({"impl": "cuda"}, ValueError, "one of auto, fused, reference, got 'cuda'"),
}


def check_refusal(function, arguments, exception, message):
    with pytest.raises(exception, match=re.escape(message).replace(r"\.\*", ".*")):
        function(**arguments)


@pytest.mark.parametrize("name", REFUSED)
def test_patch_entropy_refuses(name):
    changed, *expected = REFUSED[name]
    check_refusal(patch_entropy, {"confidence": V, "patch_size": 2, "stride": 1, **changed}, *expected)


SAMPLING_REFUSED = {
    "entropy": (
        {"entropy": V[:, :2]},
        ValueError,
        "entropy must be (B, 1 or K, *W) = (2, 1 or 3, 8, 9), got",
    ),
    "dtype": ({"entropy": V.long()}, TypeError, "entropy must be float32, .*, got int64"),
    "n": ({"n": 0}, ValueError, "n must be at least 1, got 0"),
    "n type": ({"n": 2.0}, TypeError, "n must be an int, got float"),
    "seed": ({"seed": 2**63}, ValueError, "seed must fit in 64 bits with sign"),
    "seed type": ({"seed": None}, TypeError, "seed must be an int or an int64 tensor, got NoneType"),
    "seed dtype": ({"seed": torch.ones(1)}, TypeError, "seed must be int64, got float32"),
    "seeds": ({"seed": torch.arange(2)}, ValueError, "seed must be one number, got a tensor (2,)"),
    "strategy": (
        {"strategy": "best"},
        ValueError,
        "one of probabilistic, threshold, lowest, highest, got 'best'",
    ),
    "floor": ({"floor": -0.1}, ValueError, "floor must be in [0, 1], got -0.1"),
    "no threshold": (
        {"strategy": "threshold"},
        ValueError,
        'threshold must be given for strategy="threshold"',
    ),
    "threshold": ({"threshold": 0.1}, ValueError, "and no other, got 0.1 for 'probabilistic'"),
    "stride": ({"stride": (1, 2, 3)}, ValueError, "stride must have 2 entries"),
}


@pytest.mark.parametrize("name", SAMPLING_REFUSED)
def test_sample_patches_refuses(name):
    changed, *expected = SAMPLING_REFUSED[name]
    check_refusal(sample_patches, {"entropy": V, "confidence": V, "n": 2, "seed": 0, **changed}, *expected)


CORNERS = torch.zeros(2, 4, 2, dtype=torch.long)
CROPS_REFUSED = {
    "volume": (
        {"volume": torch.zeros(2, 3)},
        ValueError,
        "volume must be (B, C, *S) with 1 to 3 spatial axes",
    ),
    "corners dtype": ({"corners": CORNERS.float()}, TypeError, "corners must be int64 or int32, got float32"),
    "corners axes": (
        {"corners": CORNERS[..., :1]},
        ValueError,
        "corners must be (B, *N, d) = (2, *N, 2), got (2, 4, 1)",
    ),
    "corners batch": (
        {"corners": CORNERS[:1]},
        ValueError,
        "corners must be (B, *N, d) = (2, *N, 2), got (1, 4, 2)",
    ),
    "patch": ({"patch_size": (9, 9)}, ValueError, "patch_size must fit in (8, 9), got (9, 9)"),
}


@pytest.mark.parametrize("name", CROPS_REFUSED)
def test_extract_patches_refuses(name):
    changed, *expected = CROPS_REFUSED[name]
    check_refusal(extract_patches, {"volume": V, "corners": CORNERS, "patch_size": 2, **changed}, *expected)


REFUSED_BY_OPS = {  # call, message
    "patch": (
        lambda: OPS.patch_entropy(V, None, [9, 9], [1, 1], False, False, 1),
        "patch_size must fit in (8, 9)",
    ),
    "axes": (
        lambda: OPS.patch_entropy(V, None, [2], [1, 1], False, False, 1),
        "patch_size must have 2 entries, got (2,)",
    ),
    "mask": (
        lambda: OPS.patch_entropy(V, M, [2, 2], [1, 1], True, False, 1),
        "mask must be (B, 1, *S) = (2, 1, 8, 9)",
    ),
    "grad": (
        lambda: OPS.patch_entropy_backward(V, None, V, None, None, [2, 2], [1, 1], False, False, 1),
        "grad_entropy must be the shape of its result = (2, 3, 7, 8), got (2, 3, 8, 9)",
    ),
    "entropy": (
        lambda: OPS.patch_entropy_sample(V[:1], V, CORNERS[0, 0, :1], 1, [1, 1], 0, True, 0.1, 0.0),
        "entropy must be (B, 1 or K, *W) = (2, 1 or 3, 8, 9), got (1, 3, 8, 9)",
    ),
    "strategy": (
        lambda: OPS.patch_entropy_sample(V, V, CORNERS[0, 0, :1], 1, [1, 1], 4, True, 0.1, 0.0),
        "strategy must be from 0 to 3, got 4",
    ),
    "corners": (
        lambda: OPS.patch_entropy_crops(V, CORNERS[0], [2, 2]),
        "corners must be (B, n, 2), got (4, 2)",
    ),
}


@pytest.mark.parametrize("name", REFUSED_BY_OPS)
def test_op_refuses(name):
    call, message = REFUSED_BY_OPS[name]
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        call()
