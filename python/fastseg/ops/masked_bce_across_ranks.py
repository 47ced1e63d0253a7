# SPDX-License-Identifier: BSD-3-Clause
"""masked_weighted_bce of a batch that is shared out over the processes of torch.distributed."""

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.ops.checks import real_dtype
from fastseg.ops.dispatch import use_fused
from fastseg.ops.masked_bce import (
    MODES,
    check_arguments,
    check_no_grad,
    check_tensors,
    masked_bce,
    masked_bce_backward,
)
from fastseg.ops.reference.masked_bce import masked_bce_reference


def masked_weighted_bce_across_ranks(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pseudo_weight: float = 1.0,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    normalize: str = "voxels",
    impl: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`masked_weighted_bce` of the batch that the processes hold together, whoever holds how many labels.

    With sums over the voxels of all processes, s the two sources and c the number of processes::

        loss = sum_s f_s * sum(weight * l over s)          f_s = {1, pseudo_weight}[s] / N_s
        gradient here = c * f_s * weight * dl/dlogits

    N_s is what `normalize` says, counted over all processes. The gradient is c times that of the loss in this
    process's logits, so that the mean over processes which DistributedDataParallel takes is that of the loss.
    The mean of losses that each process divided by its own N would be another: it weighs a voxel by how few
    labels its process happens to hold.

    Args:
        As for `masked_weighted_bce`. group: the processes, all by default. Without an initialised
            torch.distributed this process is the only one.

    Returns:
        The loss of the whole batch, the same on every process; float64 for float64 logits, else float32.

    Edge rules, errors:
        As for `masked_weighted_bce`. A process without any labelled voxel, or with an empty batch, takes part
        like any other.

    Numerics:
        Sums are added in float64. Twice differentiable with no impl.

    Cost:
        That of `masked_weighted_bce`, and one all-reduce of seven numbers, which does not wait for the device.
    """
    tensors = (logits, target, mask, weight, pos_weight)
    check_arguments(*tensors, pseudo_weight, normalize, "mean")
    if use_fused("masked_bce", impl, logits):
        check_no_grad(impl, target=target, weight=weight, pos_weight=pos_weight)
        return _AcrossRanks.apply(*tensors, pseudo_weight, normalize, group)
    check_tensors(*tensors)
    return _reference(*tensors, pseudo_weight, normalize, group)


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, mask, weight, pos_weight, pseudo_weight, normalize, group):
        tensors = (logits, target, mask, weight, pos_weight)
        _, stats = masked_bce.whole(*tensors, pseudo_weight, MODES["sum"])
        loss, scales, count = over_all_ranks(stats, logits.numel(), pseudo_weight, normalize, group)
        ctx.pseudo_weight = pseudo_weight
        ctx.save_for_backward(*tensors, scales * count)
        return loss.to(real_dtype(logits))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        *tensors, scales = ctx.saved_tensors
        grad_logits = masked_bce_backward(grad, *tensors, scales, ctx.pseudo_weight)
        return grad_logits, *(None,) * 7


def _reference(logits, target, mask, weight, pos_weight, pseudo_weight, normalize, group):
    def part(source: Tensor | None) -> Tensor:
        return masked_bce_reference(logits, target, source, weight, pos_weight, 0.0, "sum")[0]

    _, stats = masked_bce_reference(logits, target, mask, weight, pos_weight, pseudo_weight, "sum")
    loss, scales, count = over_all_ranks(stats, logits.numel(), pseudo_weight, normalize, group)
    own = scales[0] * part(None if mask is None else mask == 1)
    if mask is not None and pseudo_weight:
        own = own + scales[1] * part(mask == 2)
    own = own * count
    return (own + (loss - own).detach()).to(real_dtype(logits))


def over_all_ranks(stats: Tensor, voxels: int, pseudo_weight: float, normalize: str, group=None):
    """The loss of all processes, the factor of each source's loss sum, and the number of processes."""
    totals = torch.cat((stats[:6], torch.full_like(stats[:1], voxels)))
    count = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals, group=group)
        count = dist.get_world_size(group)
    sums, weights, counts, voxels_of_all = totals[0:2], totals[2:4], totals[4:6], totals[6:7]
    if normalize == "voxels":
        divisors = voxels_of_all.expand(2)
    elif normalize == "weight":
        of_both = weights[0:1] + pseudo_weight * weights[1:2] if pseudo_weight else weights[0:1]
        divisors = of_both.expand(2)
    else:
        divisors = counts
    nothing = divisors == 0
    labelled, pseudo = torch.where(nothing, 0, 1 / torch.where(nothing, 1, divisors))
    scales = torch.stack((labelled, pseudo_weight * pseudo))
    # A source with factor 0 is cut out, whatever it holds.
    return torch.where(scales == 0, 0, scales * sums).sum(), scales, count
