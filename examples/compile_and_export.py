# SPDX-License-Identifier: BSD-3-Clause
"""The ops inside torch.compile(fullgraph=True, dynamic=True) and torch.export.

One graph for all sizes, with its backward pass; and a program with the ops in it that another process can load (it must
import fastseg, which brings the kernels). Prints how often further sizes were compiled anew, and the largest
differences from eager.
"""

import io

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastseg


class Regions(nn.Module):
    """Features of regions of an image, and how certain the network is of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 1))

    def features(self, image: torch.Tensor) -> torch.Tensor:
        # No convolution: the CPU backend of torch 2.13 compiles one anew for every size, whatever stands around it.
        return torch.tanh(image * self.weight)

    def forward(self, image: torch.Tensor, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(image)
        entropy = fastseg.patch_entropy(features[:, :1], 8, 4, from_logits=True).entropy
        return fastseg.region_pool(features, regions, 16), entropy


def step(network: nn.Module, image, regions, target, mask) -> torch.Tensor:
    means, entropy = network(image, regions)
    contrast = fastseg.region_contrast(means.flatten(0, 1), anchor_ids=torch.arange(16).repeat(len(image)))
    return (
        contrast + entropy.mean() + fastseg.masked_weighted_bce(network.features(image)[:, :1], target, mask)
    )


def batch(size: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(size)
    image = torch.rand(2, 1, size, size, generator=draw)
    mask = torch.randint(0, 3, image.shape, generator=draw, dtype=torch.uint8)
    return [image, torch.randint(0, 16, (2, size, size), generator=draw), image > 0.5, mask]


def main(backend: str = "inductor") -> dict[str, float]:
    torch.manual_seed(0)
    network, difference, first = Regions(), 0.0, 0
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for size in (24, 32, 40):
        losses = [function(network, *batch(size)) for function in (step, compiled)]
        gradients = [torch.autograd.grad(loss, network.weight)[0] for loss in losses]
        first = first or counter.frame_count
        difference = max(difference, (gradients[0] - gradients[1]).abs().max().item())

    any_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = (any_size, {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC})
    exported = torch.export.export(network, tuple(batch(24)[:2]), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    means, entropy = (
        found - kept for found, kept in zip(loaded(*batch(40)[:2]), network(*batch(40)[:2]), strict=True)
    )
    return {
        "recompiled": counter.frame_count - first,
        "difference compiled": difference,
        "difference exported": max(means.abs().max().item(), entropy.abs().max().item()),
    }


if __name__ == "__main__":
    print(main())
