# SPDX-License-Identifier: BSD-3-Clause
"""The ops region_contrast and region_contrast_backward on a GPU: shapes in, launches out. No call waits for the device.

Two launches forward; backward one without a bank and one per side with one. Everything that decides about a launch
comes from shapes, dtypes and the model of GPU, never from values: a CUDA graph of a call stays right.
"""

import torch
from torch import Tensor

import triton

from .region_contrast_backward import contrast_gradient
from .region_contrast_forward import PARTIALS, contrast_rows, measure_rows
from .region_contrast_tiles import describe_gpu, tiles

_ALL, _MEAN, _NONE = 0, 0, 2  # of denominator and reduction
_MOST_SHARES = 32  # partial sums per anchor at most: O(M) memory
_MEASURE = {"BLOCK_M": 16, "BLOCK_D": 128}


def _describe(tensor: Tensor) -> tuple[int, int]:
    return (
        describe_gpu(tensor.device.index) if tensor.is_cuda else (132, 232448)
    )  # under Triton's interpreter


def _tf32(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def _lay_out(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _measure(anchors, bank, anchor_ids, bank_ids, similarity, counters) -> Tensor:
    """scale and offset of all rows in one array, the anchors' first; the counters are set to 0 by the same launch."""
    M, D = anchors.shape
    N = 0 if bank is None else bank.shape[0]
    measured = anchors.new_empty(M + N, dtype=torch.float32)
    blocks = [triton.cdiv(rows, _MEASURE["BLOCK_M"]) if similarity != 1 else 0 for rows in (M, N)]
    programs = sum(blocks) + triton.cdiv(counters.numel(), _MEASURE["BLOCK_M"])
    if programs:
        measure_rows[(programs,)](
            anchors,
            anchor_ids,
            anchors if bank is None else bank,
            anchor_ids if bank is None else bank_ids,
            measured,
            measured,
            counters,
            M,
            N,
            D,
            *blocks,
            counters.numel(),
            SIMILARITY=similarity,
            **_MEASURE,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return measured


def region_contrast(
    anchors,
    bank,
    anchor_ids,
    bank_ids,
    anchor_groups,
    bank_groups,
    temperature,
    fixed_temperature,
    self_offset,
    similarity,
    denominator,
    reduction,
    with_tilt,
):
    _check_dtype(anchors)
    labels = _lay_out(anchor_ids, bank_ids, anchor_groups, bank_groups)
    anchors, bank = _lay_out(anchors, bank)
    anchor_ids, bank_ids, anchor_groups, bank_groups = labels
    M, D = anchors.shape
    to, to_ids = (anchors, anchor_ids) if bank is None else (bank, bank_ids)
    N = to.shape[0]
    processors, _ = gpu = _describe(anchors)
    t = tiles(M, D, anchors.dtype, _tf32(anchors.dtype), gpu, backward=False)
    blocks = triton.cdiv(M, t.block_m)
    # Two blocks run on a multiprocessor at a time; a share of fewer than four tiles is not worth adding up.
    shares = max(1, min(2 * processors // max(blocks, 1), triton.cdiv(N, 4 * t.block_n), _MOST_SHARES))
    loss = anchors.new_empty((M,) if reduction == _NONE else (), dtype=torch.float32)
    stats = loss.new_empty((6, M))
    if M == 0:
        return loss.zero_(), stats, loss.new_zeros(()), loss.new_zeros(N)
    rows_counted = loss.new_empty(())
    counters = anchors.new_empty(1 + blocks, dtype=torch.int32)
    scratch = loss.new_empty(2 * blocks + (PARTIALS * shares * M if shares > 1 else 0))
    measured = _measure(anchors, bank, anchor_ids, bank_ids, similarity, counters)
    of_bank = measured if bank is None else measured[M:]
    contrast_rows[(blocks, shares)](
        anchors,
        anchor_ids,
        anchor_groups,
        to,
        to_ids,
        anchor_groups if bank is None else bank_groups,
        measured,
        measured,
        of_bank,
        of_bank,
        temperature,
        scratch[2 * blocks :],
        scratch,
        counters,
        loss,
        stats,
        rows_counted,
        M,
        N,
        D,
        0 if self_offset is None else self_offset,
        fixed_temperature,
        SIMILARITY=similarity,
        ALL=denominator == _ALL,
        MEAN=reduction == _MEAN,
        PER_ROW=reduction == _NONE,
        HAS_GROUPS=anchor_groups is not None,
        HAS_SELF=bank is None or self_offset is not None,
        HAS_TEMPERATURE=temperature is not None,
        WITH_TILT=with_tilt,
        SHARES=shares,
        PRECISION=t.precision,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_D=t.block_d,
        ONE_CHUNK=t.one_chunk,
        EVEN_D=t.even_d,
        num_warps=t.warps,
        num_stages=t.stages,
        enable_fp_fusion=True,
    )
    return loss, stats, rows_counted, measured


def _check_dtype(anchors: Tensor) -> None:
    if anchors.dtype == torch.float64:
        raise TypeError(
            'region_contrast has no float64 kernel for a GPU: use float32, or impl="reference" for float64'
        )


def _gradient(
    rows, ids, groups, others, other_ids, other_groups, measured, other_measured, self_offset, shared
):
    """The gradient of `rows`; `shared` is what both sides' launches have in common."""
    M, D = rows.shape
    gradient = torch.empty_like(rows)
    if M == 0:
        return gradient
    processors, _ = gpu = _describe(rows)
    t = tiles(M, D, rows.dtype, _tf32(rows.dtype), gpu, backward=True)
    blocks, chunks = triton.cdiv(M, t.block_m), triton.cdiv(D, t.block_out)
    parts = max(1, min(2 * processors // blocks, chunks))
    chunks_out = triton.cdiv(chunks, parts)
    sums = (
        gradient
        if chunks_out == 1 or rows.dtype == torch.float32
        else rows.new_empty((M, D), dtype=torch.float32)
    )
    pointers, numbers, options = shared
    contrast_gradient[(blocks, triton.cdiv(chunks, chunks_out))](
        rows,
        ids,
        groups,
        others,
        other_ids,
        other_groups,
        measured,
        measured,
        other_measured,
        other_measured,
        *pointers,
        sums,
        gradient,
        M,
        others.shape[0],
        D,
        self_offset,
        *numbers,
        **options,
        HAS_GROUPS=groups is not None,
        PRECISION=t.precision,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_D=t.block_d,
        BLOCK_OUT=t.block_out,
        ONE_CHUNK=t.one_chunk,
        CHUNKS_OUT=chunks_out,
        EVEN_D=t.even_d,
        num_warps=t.warps,
        num_stages=t.stages,
        enable_fp_fusion=True,
    )
    return gradient


def region_contrast_backward(
    grad,
    anchors,
    bank,
    anchor_ids,
    bank_ids,
    anchor_groups,
    bank_groups,
    temperature,
    stats,
    rows_counted,
    measured,
    fixed_temperature,
    self_offset,
    similarity,
    denominator,
    reduction,
    need_anchors,
    need_bank,
):
    _check_dtype(anchors)
    anchor_ids, bank_ids, anchor_groups, bank_groups = _lay_out(
        anchor_ids, bank_ids, anchor_groups, bank_groups
    )
    anchors, bank, grad = _lay_out(anchors, bank, grad)
    absent = stats.new_empty((0,))
    # The kernel of the anchors, else that of the bank, sums up the gradient of the temperature besides.
    need_anchors = need_anchors or (temperature is not None and not need_bank)
    grad_temperature = stats.new_empty(()) if anchors.shape[0] else stats.new_zeros(())
    options = {
        "SIMILARITY": similarity,
        "ALL": denominator == _ALL,
        "MEAN": reduction == _MEAN,
        "PER_ROW": reduction == _NONE,
        "HAS_SELF": bank is None or self_offset is not None,
        "HAS_TEMPERATURE": temperature is not None,
    }
    pointers = (temperature, stats, rows_counted, grad, grad_temperature)
    numbers = (fixed_temperature, anchors.shape[0])
    offset = 0 if self_offset is None else self_offset
    of_anchors, of_bank = measured[: anchors.shape[0]], measured[anchors.shape[0] :]
    own = (anchors, anchor_ids, anchor_groups)
    grad_anchors = grad_bank = absent
    if bank is None:
        directions = {"OF_ROWS": True, "OF_OTHERS": True, "SUM_TILT": temperature is not None}
        if need_anchors:
            shared = (pointers, numbers, options | directions)
            grad_anchors = _gradient(*own, *own, of_anchors, of_anchors, 0, shared)
    else:
        others = (bank, bank_ids, bank_groups)
        if need_anchors:
            directions = {"OF_ROWS": True, "OF_OTHERS": False, "SUM_TILT": temperature is not None}
            shared = (pointers, numbers, options | directions)
            grad_anchors = _gradient(*own, *others, of_anchors, of_bank, offset, shared)
        if need_bank:
            directions = {
                "OF_ROWS": False,
                "OF_OTHERS": True,
                "SUM_TILT": temperature is not None and not need_anchors,
            }
            shared = (pointers, numbers, options | directions)
            grad_bank = _gradient(*others, *own, of_bank, of_anchors, -offset, shared)
    return grad_anchors, grad_bank, grad_temperature
