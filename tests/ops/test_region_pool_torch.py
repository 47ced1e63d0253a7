# SPDX-License-Identifier: BSD-3-Clause
"""Region pooling inside torch: gradients, compile, autocast, modules, and what it refuses."""

import itertools
import re

import pytest
import torch

import fastseg
from fastseg import region_pool, region_stats, soft_region_pool
from fastseg.ops import dispatch
from fastseg.ops.region_pool_soft import _gradient

from .masked_bce_cases import DEVICES, implementations
from .region_pool_cases import REDUCE, make_case, make_soft_case

OPS = torch.ops.fastseg
devices = pytest.mark.parametrize("device", DEVICES)


def hard_case(device="cpu", dtype=torch.float64, shape=(2, 3, 4, 5), layout="contiguous"):
    return make_case(shape, dtype, 3, "random", torch.int32, layout, device, seed=1)


def soft_case(device="cpu", dtype=torch.float64, shape=(2, 3, 4, 5), layout="contiguous", grey=True):
    return make_soft_case(shape, dtype, 3, dtype, grey, layout, device, seed=1)


@pytest.mark.parametrize("reduce", REDUCE)
@implementations
def test_gradcheck(impl, device, reduce):
    features, regions = hard_case(device)
    features.requires_grad_()

    def pool(features):
        return region_pool(features, regions, 4, reduce=reduce, impl=impl)

    assert torch.autograd.gradcheck(pool, features)
    if reduce in ("sum", "mean"):
        assert torch.autograd.gradgradcheck(pool, features)


@implementations
def test_gradcheck_of_all_statistics(impl, device):
    features, regions = hard_case(device)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: region_stats(f, regions, 4, impl=impl)[1:], features)


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
@implementations
def test_soft_gradcheck(impl, device, from_logits, variance):
    tensors = [tensor.requires_grad_() for tensor in soft_case(device, shape=(1, 2, 2, 3))]

    def pool(features, assignment, grey):
        weights = assignment if from_logits else assignment.exp()
        options = {"from_logits": from_logits, "variance": variance, "impl": impl}
        return tuple(v for v in soft_region_pool(features, weights, grey=grey, **options) if v is not None)

    assert torch.autograd.gradcheck(pool, tensors)
    assert torch.autograd.gradgradcheck(pool, tensors)


@pytest.mark.parametrize("reduce", ["var", "min", "max"])
def test_no_second_gradient(reduce):
    features, regions = hard_case()
    features.requires_grad_()
    pooled = region_pool(features, regions, 4, reduce=reduce, impl="fused")
    (gradient,) = torch.autograd.grad(pooled.square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match='"sum" and "mean" only; use impl="reference"'):
        gradient.sum().backward()


def test_only_the_gradients_that_are_wanted():
    features, logits, grey = soft_case(dtype=torch.float32)
    expected = None
    for wanted in ([0, 1, 2], [0], [1], [2]):
        tensors = [
            t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate((features, logits, grey))
        ]
        found = soft_region_pool(*tensors[:2], from_logits=True, grey=tensors[2], impl="fused")
        (found.mean.sum() + found.grey_variance.sum()).backward()
        grads = [tensor.grad for tensor in tensors]
        expected = expected or grads
        for i in range(3):
            assert torch.equal(grads[i], expected[i]) if i in wanted else grads[i] is None


def test_the_gradient_of_a_mean_keeps_no_features():
    features, regions = hard_case()
    pooled = region_pool(features.requires_grad_(), regions, 4)
    shapes = {tuple(tensor.shape) for tensor in pooled.grad_fn.saved_tensors if tensor is not None}
    assert tuple(features.shape) not in shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", ["contiguous", *(pytest.param(o, marks=pytest.mark.long) for o in ("channels_last", "strided"))]
)
@devices
def test_opcheck(device, layout, dtype):
    features, regions = hard_case(device, dtype, layout=layout)
    for values in (features, features.detach().clone().requires_grad_()):
        for reduce in range(6):
            torch.library.opcheck(OPS.region_pool.default, (values, regions, 4, reduce))
    mean, _, low, high, count, argmin, argmax = OPS.region_pool(features, regions, 4, 5)
    kind = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3}[dtype]
    kept, grads = (features, mean, count, argmin, argmax), (mean, mean, low, high)
    torch.library.opcheck(OPS.region_pool_backward.default, (regions, kind, False, *kept, *grads))
    for channels_last, sizes in itertools.product((False, True), (None, count)):
        of_sum = (None, None, sizes, None, None, mean.clone().requires_grad_(), None, None, None)
        torch.library.opcheck(OPS.region_pool_backward.default, (regions, 1, channels_last, *of_sum))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", ["contiguous", *(pytest.param(o, marks=pytest.mark.long) for o in ("channels_last", "strided"))]
)
@devices
def test_soft_opcheck(device, layout, dtype):
    features, logits, grey = soft_case(device, dtype, layout=layout)
    for variance in (False, True):
        for image in (grey, None):
            arguments = (features.detach().clone().requires_grad_(), image, logits, True, variance)
            torch.library.opcheck(OPS.soft_region_pool.default, arguments)
            results = OPS.soft_region_pool(features, image, logits, True, variance)
            wanted = (True, image is not None, True)
            backward = (features, image, logits, True, variance, *results, *results, *wanted)
            torch.library.opcheck(OPS.soft_region_pool_backward.default, backward)


@pytest.mark.parametrize("given", list(itertools.product((True, False), repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_soft_gradient_is_its_formula(dtype, given):
    """The backward op against the steps in PyTorch by which second gradients go."""
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 3), (3, 3, 5), (3, 3, 1)  # mass, mean, variance
    results = [torch.rand(shape, generator=generator, dtype=dtype) + 0.5 for shape in shapes]
    for table in results:
        table[0], table[1, 2] = 0, 0  # a sample without mass, a part without
    grads = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    grads = [grad if wanted else None for grad, wanted in zip(grads, given, strict=True)]
    tensors = [torch.randn((3, channels, 7), generator=generator, dtype=dtype) for channels in (4, 1, 3)]
    found = OPS.soft_region_pool_backward(*tensors, True, False, *results, *grads, True, True, True)
    exact = [None if one is None else one.double() for one in (*tensors, *results, *grads)]
    few = 64 * torch.finfo(dtype).eps
    for one, truth in zip(found, _gradient(True, *exact), strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=few, atol=few)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@devices
def test_compile_in_one_graph(device, backend):
    features, regions = hard_case(device, torch.float32)
    _, logits, grey = soft_case(device, torch.float32)

    def step(features, logits):
        stats = region_stats(features * 2, regions, 4)
        soft = soft_region_pool(features, logits * 2, from_logits=True, variance=True, grey=grey)
        pooled = region_pool(features, regions, 4).square().sum() + stats.variance.sum() + stats.maximum.sum()
        return pooled + sum(value.square().sum() for value in soft)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        leaves = [t.detach().clone().requires_grad_() for t in (features, logits)]
        loss = function(*leaves)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)  # gradients are up to 3.5


@devices
def test_autocast_takes_features_as_they_are(device):
    convolution = torch.nn.Conv2d(1, 4, 3, padding=1, device=device)
    image, regions = (
        torch.randn(2, 1, 16, 16, device=device),
        torch.zeros(2, 16, 16, dtype=torch.uint8, device=device),
    )
    with torch.autocast(device, dtype=torch.bfloat16):
        features = convolution(image)
        assert features.dtype == torch.bfloat16
        pooled = region_pool(features, regions, 2)
        soft = soft_region_pool(features, features, from_logits=True, grey=image)
    assert pooled.dtype == soft.mean.dtype == soft.grey_mean.dtype == torch.float32
    (pooled.square().sum() + soft.mean.square().sum()).backward()
    assert convolution.weight.grad.dtype == torch.float32


def test_modules():
    features, regions = hard_case(dtype=torch.float32)
    pool = fastseg.nn.RegionPool(4, reduce="max")
    assert torch.equal(pool(features, regions), region_pool(features, regions, 4, reduce="max"))
    assert repr(pool) == "RegionPool(num_regions=4, reduce='max', impl='auto')"
    features, logits, grey = soft_case(dtype=torch.float32)
    soft = fastseg.nn.SoftRegionPool(variance=True)
    expected = soft_region_pool(features, logits, from_logits=True, variance=True, grey=grey)
    assert all(torch.equal(a, b) for a, b in zip(soft(features, logits, grey), expected, strict=True))
    assert repr(soft) == "SoftRegionPool(from_logits=True, variance=True, impl='auto')"


def test_auto_falls_back_and_warns_once():
    features, regions = (
        torch.zeros(1, 1, 4, device="meta"),
        torch.zeros(1, 4, dtype=torch.int64, device="meta"),
    )
    dispatch._warned.clear()
    with pytest.warns(UserWarning, match="no fused kernel for device 'meta'"):
        region_pool(features, regions, 2)
    with pytest.raises(ValueError, match="has no kernel for device 'meta'"):
        region_pool(features, regions, 2, impl="fused")


F, R = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
REFUSED = {  # changed arguments, exception, message
    "list": ({"features": [0.0]}, TypeError, "features must be a torch.Tensor, got list"),
    "integers": ({"features": F.long()}, TypeError, "features must be float32, .*, got int64"),
    "(B, C)": ({"features": F[..., 0, 0]}, ValueError, "1 to 3 spatial axes, got (2, 3)"),
    "no regions": ({"regions": None}, TypeError, "regions must be a torch.Tensor, got NoneType"),
    "float labels": ({"regions": R.float()}, TypeError, "regions must be of an integer dtype, got float32"),
    "bool labels": ({"regions": R.bool()}, TypeError, "regions must be of an integer dtype, got bool"),
    "shape": ({"regions": R[:, :2]}, ValueError, "regions must be (B, *S) = (2, 4, 4), got (2, 2, 4)"),
    "device": ({"regions": R.to("meta")}, ValueError, "regions must be on cpu, where features is, got meta"),
    "none": ({"num_regions": 0}, ValueError, "num_regions must be from 1 to 2**31 - 1, got 0"),
    "too many": ({"num_regions": 2**31}, ValueError, "from 1 to 2**31 - 1, got 2147483648"),
    "float": ({"num_regions": 4.0}, TypeError, "num_regions must be an int, got float"),
    "reduce": ({"reduce": "avg"}, ValueError, "one of sum, mean, var, min, max, got 'avg'"),
    "impl": ({"impl": "cuda"}, ValueError, "one of auto, fused, reference, got 'cuda'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    changed, exception, message = REFUSED[name]
    with pytest.raises(exception, match=re.escape(message).replace(r"\.\*", ".*")):
        region_pool(**{"features": F, "regions": R, "num_regions": 4, **changed})


SOFT_REFUSED = {
    "logits dtype": ({"assignment": F.long()}, TypeError, "assignment must be float32, .*, got int64"),
    "shape": (
        {"assignment": F[:1]},
        ValueError,
        "assignment must be (B, any, *S) = (2, any, 4, 4), got (1, 3, 4, 4)",
    ),
    "parts": ({"assignment": torch.zeros(2, 257, 4, 4)}, ValueError, "1 to 256 regions, got 257"),
    "no part": ({"assignment": F[:, :0]}, ValueError, "1 to 256 regions, got 0"),
    "grey": (
        {"grey": F[..., :2]},
        ValueError,
        "grey must be (B, any, *S) = (2, any, 4, 4), got (2, 3, 4, 2)",
    ),
    "device": (
        {"assignment": F.to("meta")},
        ValueError,
        "assignment must be on cpu, where features is, got meta",
    ),
}


@pytest.mark.parametrize("name", SOFT_REFUSED)
def test_soft_refuses(name):
    changed, exception, message = SOFT_REFUSED[name]
    with pytest.raises(exception, match=re.escape(message).replace(r"\.\*", ".*")):
        soft_region_pool(**{"features": F, "assignment": F, **changed})


def test_ops_refuse():
    for arguments, message in (
        ((F.long(), R, 4, 1), "features must be float32, float64, bfloat16 or float16, got int64"),
        ((F, R[:1], 4, 1), "regions must be (B, *S) = (2, 4, 4), got (1, 4, 4)"),
        ((F, R.float(), 4, 1), "regions must be of an integer dtype, got float32"),
        ((F, R, 0, 1), "num_regions must be from 1 to 2**31 - 1, got 0"),
        ((F, R, 4, 6), "reduce must be from 0 to 5, got 6"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
            OPS.region_pool(*arguments)
    with pytest.raises(ValueError, match=re.escape("assignment must be (B, any, *S) = (2, any, 4, 4)")):
        OPS.soft_region_pool(F, None, F[..., :2], False, False)
