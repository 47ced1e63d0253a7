# SPDX-License-Identifier: BSD-3-Clause
"""The ops region_contrast and region_contrast_backward on a GPU: shapes in, launches out. No call waits for it.

Everything that decides about a launch comes from shapes, dtypes and the model of GPU, never from values: a CUDA graph
of a call stays right. To change what is done with a pair, read region_contrast_pairs.py and `sum_tiles` of either pass.
"""

import torch
from torch import Tensor

import triton

from .launch import launch
from .region_contrast_backward import contrast_gradient
from .region_contrast_forward import PARTIALS, UPSTREAM, contrast_rows
from .region_contrast_pairs import COLDEST
from .region_contrast_prepare import Side, floats_of_side, measure_rows, sort_side, sorted_side
from .region_contrast_tiles import describe_gpu, tiles

_COSINE, _DOT = 0, 1  # of similarity
_ALL, _MEAN, _NONE = 0, 0, 2  # of denominator and reduction
_MOST_SHARES = 32  # partial sums per anchor at most: O(M) memory
_MEASURE = {"BLOCK_M": 16, "BLOCK_D": 128}
_FEW_PAIRS = 4096 * 4096  # up to here rows stay as they are


def _describe(tensor: Tensor) -> tuple[int, int, int]:
    return (
        describe_gpu(tensor.get_device()) if tensor.is_cuda else (132, 232448, 90)
    )  # where Triton is interpreted


def _tf32(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def _lay_out(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _is_sorted(M: int, N: int) -> bool:
    """Whether rows are sorted first: a sort and a copy, some ten launches, that save nearly all work on ids. Fewer
    pairs than these take less time than the launches."""
    return M * N > _FEW_PAIRS


def kept_floats(M: int, N: int | None, D: int, dtype: torch.dtype) -> int:
    """How many numbers the forward pass leaves for the backward pass, N being None without a bank."""
    if M == 0:
        return 0
    upstream = triton.cdiv(UPSTREAM * M, 32) * 32
    if not _is_sorted(M, M if N is None else N):
        return upstream + M + (N or 0)
    sides = [rows for rows in (M, N) if rows is not None]
    return upstream + sum(floats_of_side(rows, D, dtype)[1] for rows in sides)


def _fixed(
    similarity: int, is_sorted: bool, temperature: Tensor | None, fixed_temperature: float
) -> bool | None:
    """Whether c = 1 / T bounds z and is not too large; None: that is for the device to say."""
    if similarity != _COSINE or not is_sorted:
        return False
    return fixed_temperature >= COLDEST.value if temperature is None else None


def _measured_sides(upstream_and_measured, anchors, bank) -> list[Side]:
    rows, ids, groups = anchors
    measured = upstream_and_measured[triton.cdiv(UPSTREAM * rows.shape[0], 32) * 32 :]
    sides = [Side(rows, ids, groups, measured)]
    sides.append(sides[0] if bank is None else Side(*bank, measured[rows.shape[0] :]))
    return sides


def _sides(kept, anchors, bank, is_sorted) -> list[Side]:
    """Anchors and candidates as `_prepare` left them."""
    if not is_sorted:
        return _measured_sides(kept, anchors, bank)
    at = triton.cdiv(UPSTREAM * anchors[0].shape[0], 32) * 32
    sides = [sorted_side(kept[at:], anchors[0], anchors[2] is not None)]
    at += floats_of_side(*anchors[0].shape, anchors[0].dtype)[1]
    sides.append(sides[0] if bank is None else sorted_side(kept[at:], bank[0], bank[2] is not None))
    return sides


def _prepare(kept, anchors, bank, self_offset, similarity, is_sorted, counters) -> list[Side]:
    """The same, made from the arguments. The counters are set to 0 by the same launches."""
    if is_sorted:
        at = triton.cdiv(UPSTREAM * anchors[0].shape[0], 32) * 32
        compared = bank is not None and self_offset is not None
        others = bank[1] if compared else None
        sides = [sort_side(kept[at:], *anchors, others, self_offset or 0, counters, similarity)]
        at += floats_of_side(*anchors[0].shape, anchors[0].dtype)[1]
        others = anchors[1] if compared else None
        sides.append(
            sides[0]
            if bank is None
            else sort_side(kept[at:], *bank, others, -(self_offset or 0), counters[:0], similarity)
        )
        return sides
    sides = _measured_sides(kept, anchors, bank)
    M, D = anchors[0].shape
    N = 0 if bank is None else bank[0].shape[0]
    blocks = [triton.cdiv(rows, _MEASURE["BLOCK_M"]) if similarity != _DOT else 0 for rows in (M, N)]
    programs = sum(blocks) + triton.cdiv(counters.numel(), _MEASURE["BLOCK_M"])
    launch(
        measure_rows,
        (programs,),
        *anchors[:2],
        *(anchors if bank is None else bank)[:2],
        sides[0].measured,
        counters,
        M,
        N,
        D,
        *blocks,
        counters.numel(),
        SIMILARITY=similarity,
        **_MEASURE,
        num_warps=4,
    )
    return sides


def _arguments(side: Side) -> tuple:
    return (side.rows, side.ids, side.groups, side.measured, side.names, side.stretches, side.stretch_count)


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
    anchors = _lay_out(anchors, anchor_ids, anchor_groups)
    bank = None if bank is None else _lay_out(bank, bank_ids, bank_groups)
    M, D = anchors[0].shape
    N = M if bank is None else bank[0].shape[0]
    dtype, is_sorted = anchors[0].dtype, _is_sorted(M, N)
    processors, *_ = gpu = _describe(anchors[0])
    loss = anchors[0].new_empty((M,) if reduction == _NONE else (), dtype=torch.float32)
    stats = loss.new_empty((6, M))
    if M == 0:
        return loss.zero_(), stats, loss.new_zeros(()), loss.new_empty(0)
    t = tiles(128 * processors <= M, D, dtype, _tf32(dtype), gpu, is_sorted, backward=False)
    blocks = triton.cdiv(M, t.block_m)
    # Two blocks run on a multiprocessor at a time; a share of fewer than four tiles is not worth adding up.
    shares = max(1, min(2 * processors // max(blocks, 1), triton.cdiv(N, 4 * t.block_n), _MOST_SHARES))
    rows_counted = loss.new_empty(())
    counters = loss.new_empty(1 + blocks, dtype=torch.int32)
    scratch = loss.new_empty(2 * blocks + (PARTIALS * shares * M if shares > 1 else 0))
    kept = loss.new_empty(kept_floats(M, None if bank is None else N, D, dtype))
    side, to = _prepare(kept, anchors, bank, self_offset, similarity, is_sorted, counters)
    launch(
        contrast_rows,
        (blocks, shares),
        *_arguments(side),
        *_arguments(to),
        temperature,
        scratch[2 * blocks :],
        scratch,
        counters,
        loss,
        stats,
        rows_counted,
        kept,
        M,
        N,
        D,
        side.stride,
        self_offset or 0,
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
        SORTED=is_sorted,
        FIXED=_fixed(similarity, is_sorted, temperature, fixed_temperature),
        PRECISION=t.precision,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_D=t.block_d,
        ONE_CHUNK=t.one_chunk,
        EVEN_D=side.stride % t.block_d == 0,
        num_warps=t.warps,
        num_stages=t.stages,
        enable_fp_fusion=True,
    )
    return loss, stats, rows_counted, kept


def _check_dtype(anchors: Tensor) -> None:
    if anchors.dtype == torch.float64:
        raise TypeError(
            'region_contrast has no float64 kernel for a GPU: use float32, or impl="reference" for float64'
        )


def _gradient(
    gradient, side: Side, others: Side, M, N, self_offset, is_sorted, pointers, numbers, options
) -> None:
    """Fills the gradient of `side`."""
    D = gradient.shape[1]
    if M == 0:
        return
    processors, *_ = gpu = _describe(gradient)
    t = tiles(128 * processors <= M, D, gradient.dtype, _tf32(gradient.dtype), gpu, is_sorted, backward=True)
    blocks, chunks = triton.cdiv(M, t.block_m), triton.cdiv(D, t.block_out)
    parts = max(1, min(2 * processors // blocks, chunks))
    chunks_out = triton.cdiv(chunks, parts)
    apart = chunks_out > 1 and gradient.dtype != torch.float32
    sums = gradient.new_empty((M, D), dtype=torch.float32) if apart else gradient
    launch(
        contrast_gradient,
        (blocks, triton.cdiv(chunks, chunks_out)),
        *_arguments(side),
        *_arguments(others),
        *pointers,
        sums,
        gradient,
        M,
        N,
        D,
        side.stride,
        self_offset,
        *numbers,
        **options,
        SORTED=is_sorted,
        PRECISION=t.precision,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_D=t.block_d,
        BLOCK_OUT=t.block_out,
        ONE_CHUNK=t.one_chunk,
        CHUNKS_OUT=chunks_out,
        EVEN_D=side.stride % t.block_d == 0 and side.stride % t.block_out == 0,
        num_warps=t.warps,
        num_stages=t.stages,
        enable_fp_fusion=True,
    )


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
    kept,
    fixed_temperature,
    self_offset,
    similarity,
    denominator,
    reduction,
    need_anchors,
    need_bank,
):
    _check_dtype(anchors)
    anchors = _lay_out(anchors, anchor_ids, anchor_groups)
    bank = None if bank is None else _lay_out(bank, bank_ids, bank_groups)
    (grad,) = _lay_out(grad)
    M = anchors[0].shape[0]
    N = M if bank is None else bank[0].shape[0]
    is_sorted = _is_sorted(M, N)
    absent = stats.new_empty((0,))
    # The kernel of the anchors, else that of the bank, sums up the gradient of the temperature besides.
    need_anchors = need_anchors or (temperature is not None and not need_bank)
    grad_temperature = stats.new_empty(()) if M else stats.new_zeros(())
    grad_anchors = torch.empty_like(anchors[0]) if need_anchors else absent
    grad_bank = (torch.empty_like if M else torch.zeros_like)(bank[0]) if need_bank else absent
    if M == 0:
        return grad_anchors, grad_bank, grad_temperature
    side, to = _sides(kept, anchors, bank, is_sorted)
    options = {
        "SIMILARITY": similarity,
        "MEAN": reduction == _MEAN,
        "PER_ROW": reduction == _NONE,
        "HAS_GROUPS": anchor_groups is not None,
        "HAS_SELF": bank is None or self_offset is not None,
        "HAS_TEMPERATURE": temperature is not None,
        "FIXED": _fixed(similarity, is_sorted, temperature, fixed_temperature),
    }
    common = (
        is_sorted,
        (temperature, stats, rows_counted, grad, grad_temperature, kept),
        (fixed_temperature, M),
    )
    offset = self_offset or 0
    tilt = temperature is not None
    if need_anchors:
        roles = {"OF_ROWS": True, "OF_OTHERS": bank is None, "SUM_TILT": tilt}
        _gradient(grad_anchors, side, to, M, N, offset, *common, options | roles)
    if need_bank:
        roles = {"OF_ROWS": False, "OF_OTHERS": True, "SUM_TILT": tilt and not need_anchors}
        _gradient(grad_bank, to, side, N, M, -offset, *common, options | roles)
    return grad_anchors, grad_bank, grad_temperature
