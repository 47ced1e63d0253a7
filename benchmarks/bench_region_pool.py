# SPDX-License-Identifier: BSD-3-Clause
"""region_pool (mean) beside its definition and what one writes in PyTorch today.

    python benchmarks/bench_region_pool.py --threads 2 --save benchmarks/results/cpu_region_pool.md

Labels are int64, as scatter wants them: "random", every voxel another region, and "blocks", cubes or squares of one
region each, as supervoxels are. eager: features permuted to (B, N, C), scatter_add, divided by the counts.
pool_masked: the way of Lightly's function of that name, the index expanded to the size of the features.
"""

import torch
from harness import Case, Op, main

import fastseg

SHAPES = {
    "3D, 32 channels": (2, 32, 64, 64, 64),
    "2D, 3 channels": (8, 3, 512, 512),
    "3D": (2, 1, 128, 128, 128),
}
CASES = [
    *(
        Case("3D, 32 channels", SHAPES["3D, 32 channels"], torch.float32, f"{labels} {regions}")
        for labels in ("random", "blocks")
        for regions in (64, 4096)
    ),
    *(
        Case("3D, 32 channels", SHAPES["3D, 32 channels"], torch.float32, variant)
        for variant in ("random 16384", "blocks 32768", "random 100000")
    ),
    *(Case(name, SHAPES[name], torch.float32, "blocks 64") for name in ("2D, 3 channels", "3D")),
    Case("3D, 32 channels", SHAPES["3D, 32 channels"], torch.bfloat16, "blocks 64"),
    Case("3D, 2.2e9 values", (33, 1, 256, 512, 512), torch.bfloat16, "blocks 64", huge=True),
]
CONTESTANTS = (
    *(
        "fused",
        "eager",
        "compile",
        "scatter_reduce",
        "index_add",
        "pool_masked",
        "torch_scatter",
        "reference",
    ),
)


def regions_of(case):
    return int(case.variant.split()[1])


def make_inputs(case, device):
    torch.manual_seed(0)
    batch, _, *spatial = case.shape
    features = torch.randn(case.shape, dtype=case.dtype, device=device).requires_grad_()
    if case.variant.startswith("random"):
        return features, torch.randint(0, regions_of(case), (batch, *spatial), device=device)
    side = round(regions_of(case) ** (1 / len(spatial)))
    ids = torch.arange(side ** len(spatial), device=device).view([side] * len(spatial))
    for axis, size in enumerate(spatial):
        ids = ids.repeat_interleave(size // side, axis)
    return features, ids.expand(batch, *spatial).contiguous()


def rows_of(features, regions):
    return features.flatten(2).transpose(1, 2), regions.flatten(1)


def make(contestant, case):
    num_regions = regions_of(case)

    def eager(features, regions):
        rows, ids = rows_of(features.float(), regions)
        sums = rows.new_zeros(len(rows), num_regions, rows.shape[2])
        sums = sums.scatter_add(1, ids.unsqueeze(-1).expand_as(rows), rows)
        counts = rows.new_zeros(len(rows), num_regions).scatter_add(1, ids, rows.new_ones(ids.shape))
        return sums / counts.clamp(min=1).unsqueeze(-1)

    def scatter_reduce(features, regions):
        rows, ids = rows_of(features.float(), regions)
        empty = rows.new_zeros(len(rows), num_regions, rows.shape[2])
        return empty.scatter_reduce(1, ids.unsqueeze(-1).expand_as(rows), rows, "mean", include_self=False)

    def index_add(features, regions):
        rows, ids = rows_of(features.float(), regions)
        ids = (ids + num_regions * torch.arange(len(rows), device=ids.device).unsqueeze(1)).flatten()
        sums = rows.new_zeros(len(rows) * num_regions, rows.shape[2]).index_add(0, ids, rows.flatten(0, 1))
        counts = torch.bincount(ids, minlength=len(sums)).clamp(min=1).unsqueeze(1)
        return (sums / counts).view(len(rows), num_regions, -1)

    def pool_masked(features, regions):
        values = features.float().flatten(2)
        index = regions.flatten(1).unsqueeze(1).expand_as(values).contiguous()
        empty = values.new_zeros(*values.shape[:2], num_regions)
        return empty.scatter_reduce(2, index, values, "mean", include_self=False).transpose(1, 2)

    if contestant == "torch_scatter":
        from torch_scatter import scatter

        return lambda features, regions: scatter(
            *rows_of(features.float(), regions), dim=1, dim_size=num_regions, reduce="mean"
        )
    if contestant in ("fused", "reference"):
        return lambda features, regions: fastseg.region_pool(features, regions, num_regions, impl=contestant)
    if contestant == "compile":
        return torch.compile(eager, fullgraph=True)
    return {
        "eager": eager,
        "scatter_reduce": scatter_reduce,
        "index_add": index_add,
        "pool_masked": pool_masked,
    }[contestant]


def expected(case, inputs):
    """The mean and its gradient in float64, sample by sample."""
    results, gradient = [], torch.empty_like(inputs[0], dtype=torch.float64)
    for number, (features, regions) in enumerate(zip(*(tensor.detach() for tensor in inputs), strict=True)):
        exact = features.double()[None].requires_grad_()
        pooled = make("reference", case)(exact, regions[None])
        gradient[number] = torch.autograd.grad(pooled.sum(), exact)[0][0]
        results.append(pooled.detach())
    return [torch.cat(results), gradient]


def bytes_moved(case, inputs):
    """Read forward; labels read, and the gradient written, backward."""
    features, regions = inputs
    return features.nbytes + regions.nbytes, regions.nbytes + features.nbytes


OP = Op("region_pool", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved)

if __name__ == "__main__":
    main([OP])
