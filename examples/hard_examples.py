# SPDX-License-Identifier: BSD-3-Clause
"""Patch sampling for hard examples: train where the network is least certain.

patch_entropy scores every window of a prediction, sample_patches takes the least certain one beside one from anywhere,
extract_patches cuts image and labels there; nothing is read back from the device in between. Prints, with and without
the choice, the share of object pixels among those learnt, and the Dice of whole images afterwards.
"""

import torch

import fastseg
from fastseg.nets import UNet

SIZE, STRIDE = 16, 4


def scenes(images: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mostly empty images with one small ring each."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre = 12 + 40 * torch.rand(images, 2, 1, 1, generator=draw)
    radius = ((y - centre[:, :1]) ** 2 + (x - centre[:, 1:]) ** 2).sqrt()
    truth = (radius - 6).abs() < 2
    return truth + 0.7 * torch.randn(truth.shape, generator=draw), truth


def corners(logits: torch.Tensor, hard: bool, seed: int) -> torch.Tensor:
    """(B, 1, 2, 2): the first pixels of two windows of each image, the first anywhere, the second where it is hard."""
    scores = fastseg.patch_entropy(logits, SIZE, STRIDE, from_logits=True)

    def draw(seed: int, **options) -> torch.Tensor:
        return fastseg.sample_patches(*scores, 1, seed=seed, stride=STRIDE, **options).corners

    anywhere = {"strategy": "threshold", "threshold": 1.0}  # all windows have at most 1 bit: equal chances
    other = draw(seed, strategy="highest") if hard else draw(seed + 1_000_000, **anywhere)
    return torch.cat([draw(seed, **anywhere), other], 2)


def learn(hard: bool, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    network = UNet(2, width=4, pooling=[2, 2])
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    share = 0.0
    for step in range(steps):
        image, truth = scenes(4, draw)
        with torch.no_grad():
            chosen = corners(network(image), hard, step)
        patches = fastseg.extract_patches(image, chosen, SIZE).flatten(0, 2)
        labels = fastseg.extract_patches(truth, chosen, SIZE).flatten(0, 2)
        loss = fastseg.masked_weighted_bce(network(patches), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share += labels.float().mean().item() / steps
    image, truth = scenes(16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network.eval()(image) > 0
    return {"objects": share, "dice": (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()}


def main(steps: int = 80) -> dict[str, float]:
    ways = {"uniform": learn(False, steps), "hard": learn(True, steps)}
    return {f"{way} {key}": value for way, found in ways.items() for key, value in found.items()}


if __name__ == "__main__":
    print(main())
