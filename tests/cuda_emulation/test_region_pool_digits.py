# SPDX-License-Identifier: BSD-3-Clause
"""The digits of region pooling for each dtype, on the CPU and by the CUDA kernels: docs/ops/region_pool.md has them."""

import contextlib

import pytest
import torch

from fastseg import region_pool, soft_region_pool

from ..ops.region_pool_cases import make_case, make_labels, make_soft_case
from .build import missing
from .ops import EmulatedOps

# Of the largest value: mean, variance, soft mean and variance, gradients.
ALLOWED = {
    torch.float64: (1e-15, 1e-14, 1e-14, 1e-14),
    torch.float32: (2e-7, 1e-6, 1e-6, 2e-6),
    torch.bfloat16: (2e-7, 1e-6, 1e-6, 2**-8),
    torch.float16: (2e-7, 1e-6, 1e-6, 2**-11),
}


def step(pool, *inputs):
    """Results, and the gradients of all of them."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = [result for result in pool(*leaves) if result.requires_grad]
    slopes = [torch.linspace(1, 2, r.numel(), dtype=r.dtype).view(r.shape) for r in results]
    torch.autograd.backward(results, slopes)
    return [result.detach() for result in results], [leaf.grad for leaf in leaves]


def errors(values, truths):
    return [
        ((v.double() - t).abs().max() / t.abs().max()).item() for v, t in zip(values, truths, strict=True)
    ]


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize(
    "where",
    ["cpu", pytest.param("emulated", marks=pytest.mark.skipif(missing() is not None, reason=str(missing())))],
)
def test_digits(request, where, dtype):
    of_mean, of_variance, of_soft, of_gradient = ALLOWED[dtype]
    features, regions = make_case((1, 8, 20, 512), dtype, 9, "random", torch.int64, "contiguous")
    many = make_labels(regions.shape, 600, "random", torch.int64)
    maps = make_soft_case((1, 8, 20, 512), dtype, 5, dtype, False, "contiguous")[:2]

    def hard(reduce, regions=regions, count=9):
        return lambda features: [region_pool(features, regions, count, reduce=reduce, impl=impl)]

    def soft(features, logits):
        return soft_region_pool(features, logits, from_logits=True, variance=True, impl=impl)[1:3]

    for pool, inputs, of_result in (
        (hard("mean"), [features], of_mean),
        (hard("mean", many, 600), [features[:, :2]], of_mean),
        (hard("var"), [features], of_variance),
        (soft, maps, of_soft),
    ):
        impl = "fused"
        libraries = request.getfixturevalue("libraries") if where == "emulated" else None
        with EmulatedOps(libraries, 0) if libraries else contextlib.nullcontext():
            ours = step(pool, *inputs)
        impl = "reference"
        truth = step(pool, *(tensor.double() for tensor in inputs))
        assert max(errors(ours[0], truth[0])) < of_result
        assert max(errors(ours[1], truth[1])) <= of_gradient
