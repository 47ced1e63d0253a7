# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation over the whole batch where it is shared out over several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm in ``network`` take its statistics over all processes; parameters keep their names.

    On CUDA these are torch's SyncBatchNorm, which refuses other devices; elsewhere the layers of this file.
    Changes ``network`` in place, and returns it (or its replacement, where it is a batch norm itself).
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if isinstance(network, _BatchNorm):
        return BatchNormAcrossRanks.taking_over(network)
    for name, child in network.named_children():
        setattr(network, name, synchronise_batch_norm(child, device))
    return network


class BatchNormAcrossRanks(_BatchNorm):
    """(B, C, *S) normalised in training with mean and variance over the B and S of all processes, in float32 (or 64).

    Two all-reduces forward, one for the mean and one for the squares about it, and as many backward.
    """

    @classmethod
    def taking_over(cls, layer: _BatchNorm) -> BatchNormAcrossRanks:
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new.weight, new.bias = layer.weight, layer.bias
        new.running_mean, new.running_var = layer.running_mean, layer.running_var
        new.num_batches_tracked = layer.num_batches_tracked
        return new.train(layer.training)

    def _check_input_dim(self, image: Tensor) -> None:
        if image.dim() < 2:
            raise ValueError(f"image must be (B, C, *S), got {tuple(image.shape)}")

    def forward(self, image: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(image)
        self._check_input_dim(image)
        others = [axis for axis in range(image.dim()) if axis != 1]
        per_channel = [-1 if axis == 1 else 1 for axis in range(image.dim())]
        values = image if image.dtype == torch.float64 else image.float()
        voxels = torch.full((1,), image.numel() // image.shape[1], device=image.device)
        sums = _SumOverRanks.apply(torch.cat((values.sum(others), voxels)))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(per_channel)
        variance = _SumOverRanks.apply(centred.square().sum(others)) / count
        if self.training and self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), count)
        out = centred * (variance + self.eps).rsqrt().view(per_channel)
        if self.affine:
            out = out * self.weight.view(per_channel) + self.bias.view(per_channel)
        return out.to(image.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over processes. Each process's loss depends on every process's summand, so gradients are summed too."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return _sum_over_ranks(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _sum_over_ranks(gradient)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total
