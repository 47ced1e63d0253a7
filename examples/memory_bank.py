# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast with a memory bank, as in MoCo (He et al. 2020).

Queries are compared with the keys of a slowly moving encoder and with the keys of earlier batches in a queue. A bank of
65,536 keys would cost no more memory than the keys themselves. Prints how often a query's own key is nearest of all.
"""

import copy

import torch
from torch import nn

import fastseg

BATCH, FEATURES, QUEUE, T, MOMENTUM = 32, 16, 512, 0.1, 0.99


def view(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return (images + 0.5 * torch.randn(images.shape, generator=draw)) * (
        torch.rand(images.shape, generator=draw) > 0.3
    )


def main(steps: int = 150) -> dict[str, float]:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(1024, 64, generator=draw)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, FEATURES))
    slow = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(encoder.parameters(), 3e-3)
    queue = torch.zeros(QUEUE, FEATURES)
    queue_ids = torch.full((QUEUE,), -1)  # an empty place takes no part

    for step in range(steps):
        chosen = torch.randperm(len(data), generator=draw)[:BATCH]
        queries = encoder(view(data[chosen], draw))
        keys = slow(view(data[chosen], draw))
        # An image that is still in the queue from an earlier step is a further positive, never a false negative.
        loss = fastseg.region_contrast(
            queries,
            torch.cat([keys, queue]),
            anchor_ids=chosen,
            bank_ids=torch.cat([chosen, queue_ids]),
            temperature=T,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        place = torch.arange(step * BATCH, (step + 1) * BATCH) % QUEUE
        queue[place], queue_ids[place] = keys, chosen
        for fast, kept in zip(encoder.parameters(), slow.parameters(), strict=True):
            kept.lerp_(fast.detach(), 1 - MOMENTUM)

    with torch.no_grad():
        queries, keys = encoder(view(data[:256], draw)), encoder(view(data[:256], draw))
    own = torch.cosine_similarity(queries[:, None], keys[None], dim=2).argmax(1) == torch.arange(256)
    return {"loss": loss.item(), "own key is nearest": own.float().mean().item(), "by chance": 1 / 256}


if __name__ == "__main__":
    print(main())
