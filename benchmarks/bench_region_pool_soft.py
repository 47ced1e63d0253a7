# SPDX-License-Identifier: BSD-3-Clause
"""soft_region_pool (mass and mean of 16 regions, from logits) beside softmax and einsum.

python benchmarks/bench_region_pool_soft.py --threads 2 --save benchmarks/results/cpu_region_pool_soft.md
"""

import torch
from harness import Case, Op, main

import fastseg

PARTS = 16
SHAPES = {
    "3D, 32 channels": (2, 32, 64, 64, 64),
    "2D, 3 channels": (8, 3, 512, 512),
    "3D": (2, 1, 128, 128, 128),
}
CASES = [
    *(Case(name, shape, torch.float32) for name, shape in SHAPES.items()),
    Case("3D, 32 channels", SHAPES["3D, 32 channels"], torch.bfloat16),
    Case("3D, 2.2e9 values", (33, 32, 128, 128, 128), torch.bfloat16, huge=True),
]
CONTESTANTS = ("fused", "eager", "compile", "reference")


def make_inputs(case, device):
    torch.manual_seed(0)
    batch, _, *spatial = case.shape
    features = torch.randn(case.shape, dtype=case.dtype, device=device)
    logits = torch.randn((batch, PARTS, *spatial), dtype=case.dtype, device=device)
    return features.requires_grad_(), logits.requires_grad_()


def different(mean):
    """A factor for every entry. Alike, gradients would cancel over the regions down to rounding, and those of the
    masses, whose sum is fixed, do so whatever is done."""
    return torch.arange(mean[0].numel(), dtype=mean.dtype, device=mean.device).cos().view(mean.shape[1:])


def make(contestant, case):
    def eager(features, logits):
        weights = logits.float().flatten(2).softmax(1)
        mass = weights.sum(-1)
        mean = torch.einsum("bkn,bcn->bkc", weights, features.float().flatten(2)) / mass.unsqueeze(-1)
        return mass.detach(), mean * different(mean)

    def ours(features, logits):
        mass, mean, *_ = fastseg.soft_region_pool(features, logits, from_logits=True, impl=contestant)
        return mass.detach(), mean * different(mean)

    if contestant in ("fused", "reference"):
        return ours
    return torch.compile(eager, fullgraph=True) if contestant == "compile" else eager


def expected(case, inputs):
    """mass, the weighted mean and the gradients in float64, sample by sample."""
    results, gradients = [], []
    for sample in zip(*(tensor.detach() for tensor in inputs), strict=True):
        exact = [tensor.double()[None].requires_grad_() for tensor in sample]
        found = make("reference", case)(*exact)
        gradients.append(torch.autograd.grad(sum(value.sum() for value in found), exact))
        results.append([value.detach() for value in found])
    return [torch.cat(values) for values in (*zip(*results, strict=True), *zip(*gradients, strict=True))]


def bytes_moved(case, inputs):
    """Read forward; read, and written as gradients, backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, 2 * read


OP = Op("soft_region_pool", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved)

if __name__ == "__main__":
    main([OP])
