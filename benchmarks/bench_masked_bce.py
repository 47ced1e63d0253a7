# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce beside its definition and what one writes in PyTorch today, each eager and compiled.

    python benchmarks/bench_masked_bce.py --threads 1 2 --save benchmarks/results/cpu_masked_bce.md

Two conventions of input. "codes": uint8 target and uint8 mask codes, as a loader holds them; PyTorch first builds
the weight map from the codes. "maps": float32 target and a ready float32 weight map, PyTorch's best case.
"""

import torch
import torch.nn.functional as F
from harness import Case, Op, main

import fastseg

SHAPES = {
    "3D": (2, 1, 128, 128, 128),
    "2D, 3 channels": (8, 3, 512, 512),
    "3D, 32 channels": (2, 32, 64, 64, 64),
}
CASES = [
    *(Case(name, SHAPES[name], torch.float32, variant) for name in SHAPES for variant in ("codes", "maps")),
    *(Case(name, SHAPES[name], torch.bfloat16, "codes") for name in SHAPES),
    Case("3D, 2.2e9 voxels", (33, 1, 256, 512, 512), torch.bfloat16, "codes", huge=True),
]
PSEUDO_WEIGHT = 0.3
CONTESTANTS = ("fused", "eager", "compile", "reference", "reference compiled")


def make_inputs(case, device):
    """logits, target, and the mask codes or the weight map, which all channels share."""
    torch.manual_seed(0)
    shared = (case.shape[0], 1, *case.shape[2:])
    logits = torch.randn(case.shape, dtype=case.dtype, device=device).mul_(3).requires_grad_()
    target = torch.randint(0, 2, case.shape, dtype=torch.uint8, device=device)
    codes = torch.randint(0, 3, shared, dtype=torch.uint8, device=device)
    if case.variant == "codes":
        return logits, target, codes
    return logits, target.to(case.dtype), weight_map(codes, case.dtype)


def weight_map(codes, dtype):
    return torch.where(codes == 1, 1.0, torch.where(codes == 2, PSEUDO_WEIGHT, 0.0)).to(dtype)


def make(contestant, case):
    third = "mask" if case.variant == "codes" else "weight"

    def ours(impl):
        options = {"pseudo_weight": PSEUDO_WEIGHT, "impl": impl}
        return lambda logits, target, map: fastseg.masked_weighted_bce(
            logits, target, **{third: map}, **options
        )

    def pytorch(logits, target, map):
        weight = weight_map(map, logits.dtype) if third == "mask" else map
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), weight=weight)

    if contestant == "fused":
        return ours("fused")
    function = ours("reference") if contestant.startswith("reference") else pytorch
    return torch.compile(function, fullgraph=True) if "compile" in contestant else function


def expected(case, inputs):
    """The loss and its gradient in float64, sample by sample, as all samples have the same number of voxels."""
    losses, gradient = [], torch.empty_like(inputs[0], dtype=torch.float64)
    for number, (logits, *others) in enumerate(zip(*(tensor.detach() for tensor in inputs), strict=True)):
        exact = logits.double()[None].requires_grad_()
        loss = make("reference", case)(exact, *(other[None] for other in others))
        gradient[number] = torch.autograd.grad(loss, exact)[0][0] / len(inputs[0])
        losses.append(loss.detach())
    return [torch.stack(losses).mean(), gradient]


def bytes_moved(case, inputs):
    """Read forward; read, and written for the gradient, backward."""
    read = sum(tensor.nbytes for tensor in inputs)
    return read, read + inputs[0].nbytes


OP = Op("masked_bce", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved)

if __name__ == "__main__":
    main([OP])
