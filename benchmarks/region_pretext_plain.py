# SPDX-License-Identifier: BSD-3-Clause
"""The losses of region contrast pretraining in plain PyTorch, as one would write them from the formulas.

Pooling by einsum and a dense matrix of pairs. The tests hold RegionPretext against it, and bench_region_pretext.py
compares with it.
"""

import torch


def pool(assignment, values):
    """(B, K) mass and (B, K, C) mean of values (B, C, *S) over the softmax of (B, K, *S)."""
    weights = assignment.flatten(2).softmax(1)
    mass = weights.sum(2)
    sums = torch.einsum("bkn,bcn->bkc", weights, values.flatten(2))
    return weights, mass, sums / mass.unsqueeze(-1)


def grey(weights, mass, mean, image, margin):
    """L_in, from every voxel's distance to every region's grey, and L_out."""
    x = image.flatten(2)  # (B, 1, N)
    within = (weights * (x - mean).square()).sum((1, 2)) / x.shape[2]
    regions = mass.shape[1]
    gaps = (mean - mean.transpose(1, 2)).abs()
    short = (margin - gaps).clamp(min=0).square()
    off = ~torch.eye(regions, dtype=torch.bool)
    return within.mean(), (short[:, off].sum(1) / (regions * (regions - 1))).mean()


def semantic(first, second, temperature, same_image=False):
    """InfoNCE of (B, K, D) with (B, K, D), symmetric, all pairs at once."""
    images, regions = first.shape[:2]
    rows = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])
    rows = rows / rows.norm(dim=1, keepdim=True)
    scores = rows @ rows.T / temperature
    scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    positive = torch.arange(len(rows)).roll(images * regions)
    if same_image:
        image = torch.arange(images).repeat_interleave(regions).repeat(2)
        scores = scores.masked_fill(image[:, None] != image[None, :], -torch.inf)
    return torch.nn.functional.cross_entropy(scores, positive)


def loss(views, *, temperature=0.2, beta=1.0, margin=0.2, grey_weight=1.0, same_image=False):
    """views: two of (assignment logits, embedding, grey image)."""
    means, greys = [], []
    for assignment, embedding, image in views:
        weights, mass, mean = pool(assignment, embedding)
        grey_mean = torch.einsum("bkn,bcn->bkc", weights, image.flatten(2)) / mass.unsqueeze(-1)
        means.append(mean)
        within, between = grey(weights, mass, grey_mean, image, margin)
        greys.append(within + beta * between)
    return semantic(*means, temperature, same_image) + grey_weight * sum(greys) / 2
