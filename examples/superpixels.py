# SPDX-License-Identifier: BSD-3-Clause
"""region_pool for superpixel features: a network that is told the class of a few superpixels alone.

The features of every voxel are averaged over SLIC superpixels, a linear layer classifies the means, and gradients go
back through the pooling. Prints the share of right superpixels among those whose class was not told.
"""

import torch
from skimage.segmentation import slic
from torch import nn

import fastseg
from fastseg.data.phantoms import make_phantom


def main(steps: int = 40) -> dict[str, float]:
    torch.manual_seed(0)
    phantom = make_phantom((6, 56, 56), seed=3, somata_per_volume=3e-4)
    image = torch.from_numpy(phantom.raw.astype("float32"))
    image = ((image - image.mean()) / image.std())[None, None]
    superpixels = slic(image[0, 0].numpy(), 300, compactness=0.2, channel_axis=None, start_label=0)
    regions = torch.from_numpy(superpixels)[None]  # (B, z, y, x), ids from 0
    number = int(regions.max()) + 1

    # The class of a superpixel is that of most of its voxels; one in five is told.
    truth = torch.from_numpy((phantom.instances > 0).astype("float32"))[None, None]
    share = fastseg.region_pool(truth, regions, number)[0, :, 0]
    target = (share > 0.5).float()
    told = torch.rand(number) < 0.2

    features = nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU()
    )
    classify = nn.Linear(2 * 16, 1)
    optimizer = torch.optim.AdamW([*features.parameters(), *classify.parameters()], 1e-2)
    for _ in range(steps):
        stats = fastseg.region_stats(features(image), regions, number)  # all in one pass over the features
        logits = classify(torch.cat([stats.mean, stats.maximum], 2))[0, :, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits[told], target[told], pos_weight=(1 - target[told]).sum() / target[told].sum()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = ((logits > 0) == (target > 0))[~told]
    objects = target[~told] > 0
    return {
        "superpixels": number,
        "right of background": right[~objects].float().mean().item(),
        "right of objects": right[objects].float().mean().item(),
    }


if __name__ == "__main__":
    print(main())
