# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast as the loss of SupCon and of SimCLR, without the matrix of pairs.

Both are the op with other ids: the class of an image (SupCon, Khosla et al. 2020), or its number (SimCLR, Chen et al.
2020). Prints both losses beside the formula in plain PyTorch, and the share of samples whose nearest other one is of
their class after an encoder has learnt by each.
"""

import torch
from torch import nn

import fastseg

T = 0.2


def plain(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    rows = nn.functional.normalize(rows, dim=1)
    logits = (rows @ rows.T / T).fill_diagonal_(-torch.inf)
    positive = (ids[:, None] == ids).fill_diagonal_(False)
    log_chance = logits.log_softmax(1).masked_fill(~positive, 0.0)
    return -(log_chance.sum(1) / positive.sum(1)).mean()


def two_views(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Both one after the other: noise, and half of the values hidden."""
    twice = images.repeat(2, 1)
    return (twice + 0.3 * torch.randn(twice.shape, generator=draw)) * (
        torch.rand(twice.shape, generator=draw) > 0.5
    )


def learn(images: torch.Tensor, ids: torch.Tensor, steps: int) -> nn.Module:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(encoder.parameters(), 3e-3)
    for _ in range(steps):
        rows = encoder(two_views(images, draw))
        loss = fastseg.region_contrast(rows, anchor_ids=ids.repeat(2), temperature=T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def main(steps: int = 100) -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    classes = torch.arange(128) % 8
    images = torch.randn(8, 64, generator=draw)[classes] + 2.0 * torch.randn(128, 64, generator=draw)
    found = {}
    for name, ids in (("supcon", classes), ("simclr", torch.arange(128))):
        rows = learn(images, ids, 0)(two_views(images, draw)).detach()
        found[name] = fastseg.region_contrast(rows, anchor_ids=ids.repeat(2), temperature=T).item()
        found[f"{name} plain"] = plain(rows, ids.repeat(2)).item()
        vectors = nn.functional.normalize(learn(images, ids, steps)(images), dim=1).detach()
        nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1)
        found[f"{name} nearest"] = (classes[nearest] == classes).float().mean().item()
    return found


if __name__ == "__main__":
    print(main())
