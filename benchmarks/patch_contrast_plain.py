# SPDX-License-Identifier: BSD-3-Clause
"""The loss of patch contrast in plain PyTorch, written after the formulas of Boserup & Selvan 2023: the reference of
the tests, and what bench_patch_contrast.py compares with."""

import torch
import torch.nn.functional as F


def draw(confidence, patch_size, stride, n, floor=1e-3):
    """corners (B, K, n, 2) and parity (B, K, n) of n windows per image and channel."""
    batch, channels, _, width = confidence.shape
    with torch.no_grad():
        ones, zeros = confidence, 1 - confidence
        bits = -(torch.xlogy(ones, ones) + torch.xlogy(zeros, zeros)) / torch.tensor(2.0).log()
        entropy = F.avg_pool2d(bits, patch_size, stride).flatten(2)
        mean = F.avg_pool2d(confidence, patch_size, stride).flatten(2)
        weight = (1 - entropy).clamp(min=floor).flatten(0, 1)
        index = torch.multinomial(weight, n, replacement=True).view(batch, channels, n)
        parity = torch.bernoulli(mean.clamp(0, 1)).gather(2, index).bool()
        columns = (width - patch_size) // stride + 1
        corners = torch.stack([index // columns, index % columns], -1) * stride
    return corners, parity


def choose(parity, anchors):
    """For each channel the places of its anchors among its positives, in the order of (image, window)."""
    counts = parity.sum((0, 2)).tolist()
    return [torch.randint(count, (anchors,)) if count else None for count in counts]


def loss(confidence, image, corners, parity, chosen, patch_size, similarity=None):
    """L_intra and L_inter of each channel, (K,) each; None where some P_k or N_k is empty, as the step is then left
    out. similarity(anchor, others) is -mean((u - v)^2) by default."""
    similarity = similarity or (lambda anchor, others: -(anchor - others).square().flatten(1).mean(1))
    batch, channels = parity.shape[:2]
    masked = confidence[:, :, None] * image[:, None]  # (B, K, C, *S)
    # Apart, so that the gradient of a window is as large as one masked image and not as all of them: 50 times faster.
    apart = [of_image.unbind(0) for of_image in masked.unbind(0)]
    sides = [patch_size] * (corners.shape[-1]) if isinstance(patch_size, int) else patch_size
    positives, negatives = [[] for _ in range(channels)], [[] for _ in range(channels)]
    places, signs = corners.tolist(), parity.tolist()
    for b in range(batch):
        for k in range(channels):
            for corner, positive in zip(places[b][k], signs[b][k], strict=True):
                box = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
                (positives if positive else negatives)[k].append(apart[b][k][(slice(None), *box)])
    if not all(positives) or not all(negatives):
        return None
    positives, negatives = [torch.stack(p) for p in positives], [torch.stack(q) for q in negatives]

    def contrast(k, others):
        total = 0.0
        for place in chosen[k].tolist():
            anchor = positives[k][place]
            to_others = torch.logsumexp(similarity(anchor, others), 0)
            total = total + (to_others - similarity(anchor, positives[k])).sum()
        return total / (len(chosen[k]) ** 2 * batch)

    intra = [contrast(k, negatives[k]) for k in range(channels)]
    inter = [
        contrast(k, torch.cat([positives[j] for j in range(channels) if j != k]))
        for k in range(channels if channels > 1 else 0)
    ]
    intra = torch.stack(intra)
    return intra, torch.stack(inter) if inter else torch.zeros_like(intra)
