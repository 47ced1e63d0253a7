# SPDX-License-Identifier: BSD-3-Clause
"""region_pool for instance embeddings: the pull and push loss of De Brabandere et al. (2017, arXiv 1708.02551).

Voxels are pulled to the mean embedding of their object, which is region_pool's "mean"; their spread about it is its
"var"; means are pushed apart. Prints the share of object voxels whose nearest mean is that of their own object.
"""

import torch
from torch import nn

import fastseg
from fastseg.data.phantoms import make_phantom

APART = 3.0  # that means should be apart


def pull_and_push(embedding: torch.Tensor, objects: torch.Tensor, number: int) -> torch.Tensor:
    """embedding (B, D, *S); objects (B, *S) with ids from 0, background below 0, which region_pool leaves out."""
    stats = fastseg.region_stats(embedding, objects, number)
    there = stats.count > 0  # (B, R)
    pull = stats.variance.sum(-1)[there].mean()
    pairs = there.unsqueeze(1) & there.unsqueeze(2) & ~torch.eye(number, dtype=torch.bool)
    distance = (stats.mean.unsqueeze(1) - stats.mean.unsqueeze(2)).square().sum(-1).clamp(min=1e-12).sqrt()
    push = (APART - distance).clamp(min=0).square()[pairs].mean()
    return pull + push


def main(steps: int = 80) -> dict[str, float]:
    torch.manual_seed(0)
    phantom = make_phantom((6, 32, 32), seed=2, somata_per_volume=4e-4)
    objects = torch.from_numpy(phantom.instances.astype("int64"))[None] - 1
    number = int(objects.max()) + 1
    raw = torch.from_numpy(phantom.raw.astype("float32"))
    raw = (raw - raw.mean()) / raw.std()
    # Objects that look alike are told apart by where they are.
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in raw.shape), indexing="ij")
    image = torch.stack([raw, *axes])[None]

    network = nn.Sequential(
        nn.Conv3d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 32, 1), nn.ReLU(), nn.Conv3d(32, 8, 1)
    )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(steps):
        loss = pull_and_push(network(image), objects, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        embedding = network(image)
        means = fastseg.region_pool(embedding, objects, number)[0]
    inside = objects[0] >= 0
    nearest = torch.cdist(embedding[0].permute(1, 2, 3, 0)[inside], means).argmin(1)
    return {"objects": number, "right": (nearest == objects[0][inside]).float().mean().item()}


if __name__ == "__main__":
    print(main())
