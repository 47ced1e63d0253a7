# SPDX-License-Identifier: BSD-3-Clause
"""From probabilities to what is segmented."""

from __future__ import annotations

import torch
from torch import Tensor


def segmented(probability: Tensor, threshold: float, exclusive: bool = False) -> Tensor:
    """Bool (classes, z, y, x) of probabilities of that shape: whether each reaches the threshold.

    exclusive: at most one class of a voxel, the most probable one, where the sum of all reaches the threshold: at 0.5
    where the background is the less probable half.
    """
    if not exclusive:
        return probability >= threshold
    best = probability.argmax(0, keepdim=True)
    foreground = probability.sum(0, keepdim=True) >= threshold
    return torch.zeros_like(probability, dtype=torch.bool).scatter_(0, best, foreground)
