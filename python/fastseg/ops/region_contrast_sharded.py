# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast over the rows of all processes: anchors stay where they are, the bank is gathered."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.ops.region_contrast import region_contrast, run


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, process_group):
        ctx.process_group, ctx.rows = process_group, rows.shape[0]
        gathered = rows.new_empty((dist.get_world_size(process_group) * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=process_group)
        return gathered

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.process_group)
        begin = dist.get_rank(ctx.process_group) * ctx.rows
        return grad[begin : begin + ctx.rows], None


def gather_rows(rows: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of all processes one after the other, by rank; the gradient goes back to where each row is.

    Args:
        rows: (M, ...), with the same shape in every process. Fill up with rows of id -1 where there are fewer.
        process_group: None: all processes.

    Returns:
        (processes * M, ...). Its gradient is summed over the processes, so that the gradient of the sum of
        their losses comes out. Without torch.distributed: `rows`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    return _GatherRows.apply(rows, process_group)


def sharded_region_contrast(
    anchors: Tensor,
    *,
    anchor_ids: Tensor,
    anchor_groups: Tensor | None = None,
    memory: Tensor | None = None,
    memory_ids: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """`region_contrast` without a bank over the rows of all processes; each computes the losses of its own rows.

    Args:
        anchors: (M, D), with the same shape in every process. Fill up with rows of id -1 where there are fewer.
        anchor_ids, anchor_groups: (M,); numbers that mean the same in every process.
        memory, memory_ids: (Q, D) and (Q,), candidates beside the rows, such as those of earlier steps; the same in
            every process, without anchor_groups. Rows of id -1 take no part. No gradient goes to them.
        process_group: None: all processes.
        reduction: "mean" or "sum".
        options: temperature, similarity, denominator and impl of `region_contrast`.

    Returns:
        This process's share of the loss, times the number of processes for "mean". Its average over the
        processes is the mean loss over all rows, and so is what DistributedDataParallel's averaged gradients
        belong to. With "sum", the shares add up to the sum over all rows. Without torch.distributed: the loss.

    Cost:
        One all_gather of rows, ids and groups, an all_reduce of one number for "mean", and backward an
        all_reduce of the gradient of all rows. Each process does 1 / processes of the pairs.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be one of mean, sum, got {reduction!r}")
    if not (dist.is_available() and dist.is_initialized()):
        return remembering_region_contrast(
            anchors,
            anchor_ids=anchor_ids,
            anchor_groups=anchor_groups,
            memory=memory,
            memory_ids=memory_ids,
            reduction=reduction,
            **options,
        )
    _check_memory(memory, memory_ids, anchor_groups)
    bank, bank_ids = gather_rows(anchors, process_group), gather_rows(anchor_ids, process_group)
    groups = None if anchor_groups is None else gather_rows(anchor_groups, process_group)
    tensors = (
        anchors,
        _joined(bank, memory),
        anchor_ids,
        _joined(bank_ids, memory_ids),
        anchor_groups,
        groups,
    )
    loss, _, count = run(tensors, dist.get_rank(process_group) * anchors.shape[0], "sum", **options)
    if reduction == "sum":
        return loss
    dist.all_reduce(count, group=process_group)
    return loss * (dist.get_world_size(process_group) / count.clamp(min=1))


def remembering_region_contrast(
    anchors: Tensor,
    *,
    anchor_ids: Tensor,
    anchor_groups: Tensor | None = None,
    memory: Tensor | None = None,
    memory_ids: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`region_contrast` of rows among themselves and, if given, with a memory, as `sharded_region_contrast` has it;
    of this process alone."""
    _check_memory(memory, memory_ids, anchor_groups)
    if memory is None:
        return region_contrast(anchors, anchor_ids=anchor_ids, anchor_groups=anchor_groups, **options)
    bank, bank_ids = _joined(anchors, memory), _joined(anchor_ids, memory_ids)
    return region_contrast(anchors, bank, anchor_ids=anchor_ids, bank_ids=bank_ids, self_offset=0, **options)


def _check_memory(memory: Tensor | None, memory_ids: Tensor | None, groups: Tensor | None) -> None:
    if (memory is None) != (memory_ids is None):
        raise ValueError("memory and memory_ids go together")
    if memory is not None and groups is not None:
        raise ValueError("memory has no groups: give it without anchor_groups")


def _joined(rows: Tensor, memory: Tensor | None) -> Tensor:
    return rows if memory is None else torch.cat([rows, memory.detach()])
