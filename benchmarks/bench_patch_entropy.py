# SPDX-License-Identifier: BSD-3-Clause
"""patch_entropy beside its definition and what one writes in PyTorch today: a map of entropies, then avg_pool.

    python benchmarks/bench_patch_entropy.py --threads 2 --save benchmarks/results/cpu_patch_entropy.md

Names say patch / stride. Without a gradient, as windows are scored to be sampled, and with one.
"""

import torch
import torch.nn.functional as F
from harness import TOLERANCE, Case, Op, main

import fastseg

VOLUME = (1, 1, 128, 128, 128)
PHOTOS = (8, 4, 300, 300)
GEOMETRY = {
    "3D, 16 / 8": (16, 8),
    "3D, 32 / 4": (32, 4),
    "2D, 50 / 20": (50, 20),
    "2D, 64 / 32": (64, 32),
    "3D, 32 channels, 16 / 8": (16, 8),
    "3D batch, 16 / 8": (16, 8),
    "3D, 512^3, 32 / 16": (32, 16),
}
CASES = [
    *(
        Case(name, PHOTOS if name.startswith("2D") else VOLUME, dtype, variant)
        for dtype, variant in (
            (torch.float32, "scores"),
            (torch.float32, "scores of logits"),
            (torch.float32, "gradient"),
            (torch.bfloat16, "scores"),
        )
        for name in ("3D, 16 / 8", "3D, 32 / 4", "2D, 50 / 20")
    ),
    Case("2D, 64 / 32", (8, 3, 512, 512), torch.bfloat16, "scores"),
    Case("3D, 32 channels, 16 / 8", (2, 32, 64, 64, 64), torch.bfloat16, "scores"),
    Case("3D batch, 16 / 8", (2, 1, 128, 128, 128), torch.bfloat16, "scores"),
    Case("3D, 512^3, 32 / 16", (1, 1, 512, 512, 512), torch.float16, "scores"),
    Case("3D, 512^3, 32 / 16", (17, 1, 512, 512, 512), torch.float16, "scores, 2.3e9 voxels", huge=True),
]
CONTESTANTS = ("fused", "eager", "compile", "reference")
MOST_ELEMENTS = 2**24  # beyond, windows laid out as views take the reference minutes on a CPU


def make_inputs(case, device):
    torch.manual_seed(0)
    values = torch.randn(case.shape, dtype=torch.float32, device=device)
    values = values if "logits" in case.variant else values.sigmoid_()
    return (values.to(case.dtype).requires_grad_(case.variant == "gradient"),)


def make(contestant, case):
    patch, stride = GEOMETRY[case.name]
    from_logits = "logits" in case.variant
    if contestant in ("fused", "reference"):
        if contestant == "reference" and torch.Size(case.shape).numel() > MOST_ELEMENTS:
            raise ImportError("too slow at this size")
        options = {"from_logits": from_logits, "impl": contestant}
        return lambda values: tuple(fastseg.patch_entropy(values, patch, stride, **options))

    pool = F.avg_pool3d if len(case.shape) == 5 else F.avg_pool2d

    def pytorch(values):
        p = (values.sigmoid() if from_logits else values).float()
        bits = torch.special.entr(p).add(torch.special.entr(1 - p)).mul(1.4426950408889634)
        return pool(bits, patch, stride), pool(p, patch, stride)

    return torch.compile(pytorch, fullgraph=True) if contestant == "compile" else pytorch


def expected(case, inputs):
    """From prefix sums in float64, which need no window laid out; the gradient by the same way back."""
    patch, stride = GEOMETRY[case.name]
    parts = []
    for sample in inputs[0].detach().split(1):
        values = sample.double().requires_grad_(case.variant == "gradient")
        p = values.sigmoid() if "logits" in case.variant else values
        bits = torch.special.entr(p).add(torch.special.entr(1 - p)) / 0.6931471805599453
        means = [box_means(quantity, patch, stride) for quantity in (bits, p)]
        if case.variant == "gradient":
            means += torch.autograd.grad(sum(mean.sum() for mean in means), values)
        parts.append([part.detach() for part in means])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def box_means(values, patch, stride):
    for axis in range(2, values.dim()):
        sums = values.cumsum(axis)
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
        begin = torch.arange(0, values.shape[axis] - patch + 1, stride, device=values.device)
        values = (sums.index_select(axis, begin + patch) - sums.index_select(axis, begin)) / patch
    return values


def bytes_moved(case, inputs):
    """The map read once; its gradient written once."""
    return inputs[0].nbytes, 2 * inputs[0].nbytes


# avg_pool3d adds 32^3 voxels in float32, one after the other, which leaves an error of 1.5e-5.
OP = Op(
    *("patch_entropy", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved),
    tolerance=TOLERANCE | {torch.float32: 3e-5},
)

if __name__ == "__main__":
    main([OP])
