# SPDX-License-Identifier: BSD-3-Clause
"""The definition of patch_entropy. Differentiable."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 1e30  # stands for an infinite logit: its exponential is 0, and 0 * FAR is 0


def _x_log2_x(p: Tensor) -> Tensor:
    """p log2 p for p >= 0, linear below the smallest normal number, so that the slope is finite."""
    tiny = torch.finfo(p.dtype).tiny
    safe = p.clamp(min=tiny)
    return torch.where(p < tiny, (math.log2(tiny) + 1 / math.log(2)) * p, safe * safe.log2())


def _binary(values: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Entropy in bits and confidence of every voxel and channel."""
    if from_logits:
        magnitude = values.abs().clamp(max=FAR)
        nats = torch.sigmoid(-magnitude) * magnitude - F.logsigmoid(magnitude)
        return nats / math.log(2), torch.sigmoid(values)
    p = values.clamp(0, 1)
    tiny = torch.finfo(p.dtype).tiny
    smaller = torch.where(p < 0.5, p, 1 - p)
    safe = smaller.clamp(min=tiny)
    bits = -safe * safe.log2() - (1 - safe) * torch.log1p(-safe) / math.log(2)
    return torch.where(smaller < tiny, -math.log2(tiny) * smaller, bits), p


def _categorical(values: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Entropy in bits over the channels, and confidence of each."""
    if not from_logits:
        p = values.clamp(0, 1)
        return -_x_log2_x(p).sum(1, keepdim=True), p
    log_p = F.log_softmax(values, dim=1)
    p = log_p.exp()
    return -(p * log_p.clamp(min=-FAR)).sum(1, keepdim=True) / math.log(2), p


def _window_sums(values: Tensor, patch_size: list[int], stride: list[int]) -> Tensor:
    """(B, C, *S) to (B, C, *W)."""
    for axis, (patch, step) in enumerate(zip(patch_size, stride, strict=True)):
        values = values.unfold(2 + axis, patch, step)
    return values.sum(dim=tuple(range(-len(patch_size), 0)))


def _in_windows(values: Tensor, patch_size: list[int], stride: list[int]) -> Tensor:
    """Which voxels are in any window, as (*S)."""
    inside = torch.ones(values.shape[2:], dtype=torch.bool, device=values.device)
    for axis, (size, patch, step) in enumerate(zip(values.shape[2:], patch_size, stride, strict=True)):
        position = torch.arange(size, device=values.device)
        window = (position // step).clamp(max=(size - patch) // step)
        along = position - window * step < patch
        inside = inside & along.view(-1, *[1] * (values.dim() - axis - 3))
    return inside


def patch_entropy_reference(
    confidence: Tensor,
    mask: Tensor | None,
    patch_size: list[int],
    stride: list[int],
    categorical: bool,
    from_logits: bool,
    min_count: int,
) -> tuple[Tensor, Tensor]:
    """Mean entropy and mean confidence of the windows."""
    values = confidence.to(torch.float64 if confidence.dtype == torch.float64 else torch.float32)
    valid = torch.ones_like(values[:, :1], dtype=torch.bool) if mask is None else mask != 0
    # Before the arithmetic: then NaN elsewhere, also between windows, reaches no result and no gradient.
    values = torch.where(valid & _in_windows(values, patch_size, stride), values, 0)
    of_voxels = _categorical(values, from_logits) if categorical else _binary(values, from_logits)
    count = _window_sums(valid.to(values.dtype), patch_size, stride)
    means = [
        _window_sums(torch.where(valid, quantity, 0), patch_size, stride) / count.clamp(min=1)
        for quantity in of_voxels
    ]
    entropy, confidence = (torch.where(count < min_count, torch.nan, mean) for mean in means)
    return entropy, confidence
