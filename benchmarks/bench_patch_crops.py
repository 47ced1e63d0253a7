# SPDX-License-Identifier: BSD-3-Clause
"""extract_patches, 64 patches of every sample, beside its definition and slices put together.

python benchmarks/bench_patch_crops.py --threads 2
"""

import torch
from harness import Case, Op, main

import fastseg

PATCHES = 64
SIDE = {2: 64, 3: 32}  # voxels of a patch, by axes
SHAPES = {
    "3D, 32 channels": (2, 32, 64, 64, 64),
    "2D, 3 channels": (8, 3, 512, 512),
    "3D": (2, 1, 128, 128, 128),
}
CASES = [
    *(Case(name, shape, torch.float32) for name, shape in SHAPES.items()),
    Case("3D, 2.2e9 voxels", (33, 1, 256, 512, 512), torch.bfloat16, huge=True),
]
CONTESTANTS = ("fused", "eager", "reference")


def patch_of(case):
    return [SIDE[len(case.shape) - 2]] * (len(case.shape) - 2)


def make_inputs(case, device):
    torch.manual_seed(0)
    volume = torch.randn(case.shape, dtype=case.dtype, device=device).requires_grad_()
    room = torch.tensor(case.shape[2:], device=device) - torch.tensor(patch_of(case), device=device)
    corners = (torch.rand(case.shape[0], PATCHES, len(room), device=device) * (room + 1)).long()
    return volume, corners


def make(contestant, case):
    patch = patch_of(case)

    def eager(volume, corners):
        crops = [
            sample[(slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))]
            for sample, places in zip(volume, corners.tolist(), strict=True)
            for corner in places
        ]
        return torch.stack(crops).view(len(volume), PATCHES, -1, *patch)

    if contestant == "eager":
        return eager
    return lambda volume, corners: fastseg.extract_patches(volume, corners, patch, impl=contestant)


def expected(case, inputs):
    """The patches, and how many of them hold each voxel."""
    volume, corners = inputs
    patches, counts = [], torch.zeros(case.shape, dtype=torch.float64, device=volume.device)
    for number, (sample, places) in enumerate(zip(volume.detach(), corners.tolist(), strict=True)):
        for corner in places:
            at = tuple(slice(c, c + p) for c, p in zip(corner, patch_of(case), strict=True))
            patches.append(sample[(slice(None), *at)].double())
            counts[(number, slice(None), *at)] += 1
    return [torch.stack(patches).view(case.shape[0], PATCHES, -1, *patch_of(case)), counts]


def bytes_moved(case, inputs):
    """Patches read and written forward; read, and the whole gradient written, backward."""
    volume, corners = inputs
    patches = corners.shape[0] * PATCHES * case.shape[1] * patch_of(case)[0] ** corners.shape[2]
    return 2 * patches * volume.element_size(), patches * volume.element_size() + volume.nbytes


OP = Op("patch_crops", CASES, CONTESTANTS, make, make_inputs, expected, bytes_moved)

if __name__ == "__main__":
    main([OP])
