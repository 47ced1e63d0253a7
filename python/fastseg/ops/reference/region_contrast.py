# SPDX-License-Identifier: BSD-3-Clause
"""The definition of region_contrast. Differentiable in anchors, bank and temperature, any number of times.

Anchor i and candidate j take part if their ids are not negative, and j is not i itself. Of those

    positives  P(i) = {j: the same id}, in whatever group
    negatives  N(i) = {j: another id, and the same group where there are groups}
    candidates D(i) = P(i) and N(i) for denominator "all", N(i) for "negatives"
    loss_i = 1/|P(i)| sum_{p in P(i)} -(s_ip / T - log sum_{q in D(i)} exp(s_iq / T))

A row has a loss if it takes part and neither P(i) nor D(i) is empty; else its loss is 0.
"""

import torch
from torch import Tensor

SHORTEST_SQUARE = 1e-24  # "cosine" takes a row for the zero vector below: similarity and gradient 0


def _similarities(anchors: Tensor, bank: Tensor, similarity: str) -> Tensor:
    if similarity == "neg_mse":
        return -(anchors[:, None] - bank[None]).square().mean(-1)
    if similarity == "cosine":
        anchors, bank = _normalized(anchors), _normalized(bank)
    return anchors @ bank.T


def _normalized(rows: Tensor) -> Tensor:
    square = rows.square().sum(1, keepdim=True)
    short = square < SHORTEST_SQUARE
    return torch.where(short, 0, rows / torch.where(short, 1, square).sqrt())


def region_contrast_reference(
    anchors: Tensor,
    bank: Tensor | None,
    anchor_ids: Tensor,
    bank_ids: Tensor | None,
    anchor_groups: Tensor | None,
    bank_groups: Tensor | None,
    temperature: Tensor | float,
    self_offset: int | None,
    similarity: str,
    denominator: str,
) -> tuple[Tensor, Tensor]:
    """The loss of every row (M,), and (4, M): positives, their mean s / T, log of the denominator, whether the
    row has a loss."""
    if bank is None:
        bank, bank_ids, bank_groups, self_offset = anchors, anchor_ids, anchor_groups, 0
    assert bank_ids is not None  # check_arguments: a bank comes with its ids
    dtype = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    # Cut out before the arithmetic: then NaN in rows that take no part reaches nothing.
    anchors = torch.where(anchor_ids[:, None] >= 0, anchors.to(dtype), 0)
    bank = torch.where(bank_ids[:, None] >= 0, bank.to(dtype), 0)

    pairs = (anchor_ids[:, None] >= 0) & (bank_ids[None] >= 0)
    if self_offset is not None:
        rows = torch.arange(len(anchor_ids), device=anchors.device)
        candidates = torch.arange(len(bank_ids), device=anchors.device)
        pairs = pairs & (rows[:, None] + self_offset != candidates[None])
    same = anchor_ids[:, None] == bank_ids[None]
    positives, negatives = pairs & same, pairs & ~same
    if anchor_groups is not None and bank_groups is not None:
        negatives = negatives & (anchor_groups[:, None] == bank_groups[None])
    candidates = negatives if denominator == "negatives" else negatives | positives

    z = _similarities(anchors, bank, similarity) / temperature
    count = positives.sum(1)
    has_loss = (count > 0) & candidates.any(1)
    mean = torch.where(positives, z, 0).sum(1) / count.clamp(min=1)
    # Less the mean, so that a small loss is not a difference of large numbers. A row without a loss gets one
    # candidate at 0: the gradient of an empty sum of exponentials would be NaN.
    relative = torch.where(candidates, z - mean[:, None], -torch.inf)
    relative = torch.where(has_loss[:, None], relative, 0)
    loss = mean if relative.shape[1] == 0 else torch.where(has_loss, torch.logsumexp(relative, 1), 0)
    counts = count.to(dtype)
    log_sum = torch.where(has_loss, loss + mean, -torch.inf)
    return loss, torch.stack([counts, mean, log_sum, has_loss.to(dtype)])
