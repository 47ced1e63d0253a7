# SPDX-License-Identifier: BSD-3-Clause
"""The definition of masked_bce. Differentiable in logits, target, weight and pos_weight."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _sources(mask: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which voxels are labelled and which pseudo-labelled."""
    if mask is None:
        return torch.ones_like(logits, dtype=torch.bool), torch.zeros_like(logits, dtype=torch.bool)
    return (mask == 1).expand_as(logits), (mask == 2).expand_as(logits)


def _source_loss(source, logits, target, weight, pos_weight) -> tuple[Tensor, Tensor]:
    """weight * l and weight of every voxel, both 0 outside the source."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if target.dtype in (torch.bool, torch.uint8):
        target = target != 0
    # Cut out before the arithmetic: then NaN elsewhere reaches neither the loss nor the gradient.
    z = torch.where(source, logits.to(dtype), 0)
    y = torch.where(source, target.to(dtype), 0)
    w = torch.where(source, 1 if weight is None else weight.to(dtype), torch.zeros((), dtype=dtype))
    p = 1 if pos_weight is None else pos_weight.to(dtype).view(-1, *[1] * (logits.dim() - 2))
    # softplus(z) = -logsigmoid(-z); F.softplus itself is cut off at z = 20.
    loss = (1 - y) * -F.logsigmoid(-z) + p * y * -F.logsigmoid(z)
    return w * torch.where(source, loss, 0), w


def masked_bce_reference(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    pseudo_weight: float,
    normalize: str,
) -> tuple[Tensor, Any]:
    """The loss ("sum" too is a `normalize`), and the float64 stats (8,) of the fused op: for each source, labelled and
    pseudo, the loss sum, weight sum, voxel count, and factor of the loss sum. For "none" the loss of every voxel, in
    the dtype of logits, and no stats.
    """
    if normalize == "none":
        return _loss_map(logits, target, mask, weight, pos_weight, pseudo_weight), None
    sums, weights, counts = [], [], []
    for source in _sources(mask, logits):
        loss, w = _source_loss(source, logits, target, weight, pos_weight)
        sums.append(loss.sum())
        weights.append(w.sum().double())
        counts.append(source.sum().double())

    if normalize == "voxels":
        divisors = [torch.full_like(counts[0], logits.numel())] * 2
    elif normalize == "weight":
        divisors = [weights[0] + pseudo_weight * weights[1] if pseudo_weight else weights[0]] * 2
    elif normalize == "terms":
        divisors = counts
    else:
        divisors = [torch.ones_like(counts[0])] * 2

    # Factors and what they multiply are float64 whatever the tensors are: a pseudo_weight of 1e39 is no inf.
    factors = (1.0, pseudo_weight)
    scales = [
        torch.where(divisor == 0, 0, factor / torch.where(divisor == 0, 1, divisor))
        for factor, divisor in zip(factors, divisors, strict=True)
    ]
    # A factor of 0 takes the source out, whatever it holds.
    parts = [part if factor else part.detach() for factor, part in zip(factors, sums, strict=True)]
    total = torch.stack(
        [torch.where(scale == 0, 0, scale * part) for scale, part in zip(scales, parts, strict=True)]
    ).sum()
    return total.to(sums[0].dtype), torch.stack(
        [*(part.double() for part in sums), *weights, *counts, *scales]
    ).detach()


def _loss_map(logits, target, mask, weight, pos_weight, pseudo_weight) -> Tensor:
    labelled, pseudo = _sources(mask, logits)
    loss, _ = _source_loss(labelled, logits, target, weight, pos_weight)
    if pseudo_weight:
        part = pseudo_weight * _source_loss(pseudo, logits, target, weight, pos_weight)[0].double()
        loss = torch.where(pseudo, part.to(loss.dtype), loss)
    return loss.to(logits.dtype)
