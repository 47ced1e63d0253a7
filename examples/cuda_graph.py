# SPDX-License-Identifier: BSD-3-Clause
"""The ops in a captured CUDA graph: a training step that the host launches as one.

Nothing in the ops waits for the device or looks at values, so that a step can be captured; a seed that lives on the
device makes every replay draw other windows. Prints losses of replays beside those of eager steps. Needs a GPU.
"""

import torch
from torch import nn

import fastseg


def main(replays: int = 3) -> dict[str, list[float]]:
    torch.manual_seed(0)
    device = torch.device("cuda")
    network = nn.Conv2d(1, 8, 3, padding=1).to(device)
    image = torch.rand(4, 1, 64, 64, device=device)
    target = (image > 0.5).to(torch.uint8)
    mask = torch.randint(0, 3, image.shape, device=device, dtype=torch.uint8)
    regions = torch.randint(0, 16, (4, 64, 64), device=device)
    ids = torch.arange(16, device=device).repeat(4)
    seed = torch.zeros((), dtype=torch.int64, device=device)

    def step() -> torch.Tensor:
        seed.add_(1)
        features = network(image)
        means = fastseg.region_pool(features, regions, 16)
        scores = fastseg.patch_entropy(features[:, :1], 16, 8, from_logits=True)
        windows = fastseg.sample_patches(*(part.detach() for part in scores), 4, seed=seed, stride=8)
        patches = fastseg.extract_patches(features, windows.corners, 16)
        loss = fastseg.masked_weighted_bce(features[:, :1], target, mask, pseudo_weight=0.5)
        loss = loss + fastseg.region_contrast(means.flatten(0, 1), anchor_ids=ids) + patches.square().mean()
        network.weight.grad = torch.autograd.grad(loss, network.weight)[0]
        return loss.detach()

    side = torch.cuda.Stream()  # kernels are compiled and memory is taken before the capture
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    found: dict[str, list[float]] = {"replayed": [], "eager": []}
    for replay in range(replays):
        seed.fill_(100 + replay)
        graph.replay()
        found["replayed"].append(captured.item())
        seed.fill_(100 + replay)
        found["eager"].append(step().item())
    return found


if __name__ == "__main__":
    print(main())
