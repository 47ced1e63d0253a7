# SPDX-License-Identifier: BSD-3-Clause
"""Backward kernel of region_contrast: the gradient of one side's rows, without atomics and in one order.

A program owns BLOCK_M rows, goes through all rows of the other side, computes each tile of products anew, turns it into
coefficients and multiplies those with the rows of the other side. Of a symmetric matrix it takes both losses a pair
appears in, so that one kernel gives the whole gradient. Wide rows are shared out over programs by columns; one that
owns more columns than its registers hold adds them up in memory that only it touches.
"""

import triton
import triton.language as tl

from .region_contrast_forward import (
    COSINE,
    LOG2_E,
    NEG_MSE,
    inverse_temperature,
    load_ids,
    load_rows,
    load_scale,
    products,
    relate,
    scaled,
)


@triton.jit
def one_minus_exp(x):
    """1 - exp(-x) for x >= 0, all digits where x is small."""
    series = 1.0 - x / 6.0 * (1.0 - x / 7.0)
    series = 1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0 * series))
    return tl.where(x < 0.25, x * (1.0 - x / 2.0 * series), 1.0 - tl.exp2(-x * LOG2_E))


@triton.jit
def load_upstream(
    stats, grad, rows_counted, rows, M, ALL: tl.constexpr, MEAN: tl.constexpr, PER_ROW: tl.constexpr
):
    """Of anchors: log2 of the sum, and dL/dz of a positive as scale * e + offset, of a negative as scale * e."""
    inside = rows < M
    count = tl.load(stats + rows, mask=inside, other=0.0)
    excess = tl.load(stats + 2 * M + rows, mask=inside, other=-float("inf"))
    has_loss = excess != -float("inf")
    if PER_ROW:
        g = tl.load(grad + rows, mask=inside, other=0.0).to(tl.float32)
    else:
        g = tl.load(grad).to(tl.float32) + tl.zeros(rows.shape, tl.float32)
    if MEAN:
        g /= tl.maximum(tl.load(rows_counted), 1.0)
    g = tl.where(has_loss, g, 0.0)
    log_sum = tl.load(stats + 4 * M + rows, mask=inside, other=0.0)
    neg_scale = g * tl.exp2(-tl.load(stats + 5 * M + rows, mask=inside, other=0.0))
    if ALL:
        single = count == 1.0
        pos_scale = tl.where(single, 0.0, neg_scale)
        pos_offset = tl.where(
            single, -g * one_minus_exp(tl.where(single, excess, 0.0)), -g / tl.maximum(count, 1.0)
        )
    else:
        pos_scale = tl.zeros(rows.shape, tl.float32)
        pos_offset = -g / tl.maximum(count, 1.0)
    return log_sum, pos_scale, tl.where(has_loss, pos_offset, 0.0), neg_scale


@triton.jit
def sum_tilt(stats, grad, rows_counted, grad_temperature, M, MEAN: tl.constexpr, PER_ROW: tl.constexpr):
    """d loss / d temperature, in one order."""
    total = 0.0
    for begin in range(0, M, 1024):
        rows = begin + tl.arange(0, 1024)
        tilt = tl.load(stats + 3 * M + rows, mask=rows < M, other=0.0)
        if PER_ROW:
            tilt *= tl.load(grad + rows, mask=rows < M, other=0.0).to(tl.float32)
        total += tl.sum(tilt)
    if not PER_ROW:
        total *= tl.load(grad).to(tl.float32)
    if MEAN:
        total /= tl.maximum(tl.load(rows_counted), 1.0)
    tl.store(grad_temperature, total)


@triton.jit
def exp_below(z, log_sum):
    """exp(z - log_sum), at most 1: a positive far above a denominator of negatives is multiplied by 0."""
    below = z - log_sum
    return tl.exp2(tl.where(below > 0.0, 0.0, below))


@triton.jit
def contrast_gradient(rows_a, ids_a, groups_a, rows_b, ids_b, groups_b, scale_a, offset_a, scale_b, offset_b,
                      temperature, stats, rows_counted, grad, grad_temperature, sums, gradient,
                      M, N, D, self_offset, fixed_temperature, anchors,
                      SIMILARITY: tl.constexpr, ALL: tl.constexpr, MEAN: tl.constexpr, PER_ROW: tl.constexpr,
                      HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
                      OF_ROWS: tl.constexpr, OF_OTHERS: tl.constexpr, SUM_TILT: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
                      ONE_CHUNK: tl.constexpr, CHUNKS_OUT: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """Rows a get the gradient: as anchors (OF_ROWS), as candidates of the anchors b (OF_OTHERS), or both. With
    SUM_TILT the first program also sums up the gradient of the temperature.

    `anchors` is how many rows stats and grad have. CHUNKS_OUT columns of BLOCK_OUT belong to a program; where that is
    more than one, `sums` (M, D) float32 holds what it has summed up so far.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    id_rows = load_ids(ids_a, rows, M, -2)
    takes_part = id_rows >= 0
    inverse_t = inverse_temperature(temperature, fixed_temperature, HAS_TEMPERATURE)
    scale_rows, offset_rows = load_scale(scale_a, offset_a, rows, M, inverse_t, SIMILARITY)
    slope = inverse_t * (2.0 / D if SIMILARITY == NEG_MSE else 1.0)
    factor = inverse_t * LOG2_E * (2.0 / D if SIMILARITY == NEG_MSE else 1.0)
    if OF_ROWS:
        log_sum, pos_scale, pos_offset, neg_scale = load_upstream(
            stats, grad, rows_counted, rows, anchors, ALL, MEAN, PER_ROW
        )
    hoisted = tl.zeros([BLOCK_M, BLOCK_D], rows_a.dtype.element_ty)
    if ONE_CHUNK:
        hoisted = load_rows(rows_a, rows, takes_part, tl.arange(0, BLOCK_D), D, EVEN_D)
    if SUM_TILT:  # noqa: SIM102  (decided by the compiler, the inner one by the program)
        if block + part == 0:
            sum_tilt(stats, grad, rows_counted, grad_temperature, anchors, MEAN, PER_ROW)
    first = part * CHUNKS_OUT * BLOCK_OUT
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    along = tl.zeros([BLOCK_M], tl.float32)  # of cosine and neg_mse: how much of the row itself to take off

    for begin in range(0, N, BLOCK_N):
        others = begin + tl.arange(0, BLOCK_N)
        id_others = load_ids(ids_b, others, N, -1)
        dot, to = products(rows_a, rows, takes_part, rows_b, others, id_others >= 0, D, hoisted, PRECISION,
                           BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
        scale_to, offset_to = load_scale(scale_b, offset_b, others, N, inverse_t, SIMILARITY)
        # Rounded as in the forward pass, as an error of z common to all would be one of e.
        z = scaled(dot, factor, scale_rows, scale_to, offset_rows, offset_to, SIMILARITY)
        positive, negative = relate(id_rows, id_others, groups_a, rows, M, groups_b, others, N, self_offset,
                                    HAS_GROUPS, HAS_SELF)  # fmt: skip
        if OF_ROWS:
            e = exp_below(z, log_sum[:, None])
            of_positive = pos_scale[:, None] * e + pos_offset[:, None]
            of_negative = neg_scale[:, None] * e
        else:
            of_positive = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            of_negative = of_positive
        if OF_OTHERS:
            log_sum_to, pos_scale_to, pos_offset_to, neg_scale_to = load_upstream(
                stats, grad, rows_counted, others, anchors, ALL, MEAN, PER_ROW
            )
            e = exp_below(z, log_sum_to[None, :])
            of_positive += pos_scale_to[None, :] * e + pos_offset_to[None, :]
            of_negative += neg_scale_to[None, :] * e
        coefficients = tl.where(positive, of_positive, tl.where(negative, of_negative, 0.0))
        coefficients *= (slope * scale_rows)[:, None] * scale_to[None, :]
        # float16 holds too small a range for coefficients, but all of float16 fits into TF32.
        if rows_b.dtype.element_ty == tl.bfloat16:
            narrow = coefficients.to(tl.bfloat16)
            coefficients = narrow.to(tl.float32)
        else:
            narrow = coefficients
        if SIMILARITY == COSINE:
            along += tl.sum(coefficients * dot, 1)
        elif SIMILARITY == NEG_MSE:
            along += tl.sum(coefficients, 1)

        if CHUNKS_OUT == 1:
            if ONE_CHUNK:
                columns = to
            else:
                columns = load_rows(
                    rows_b, others, id_others >= 0, first + tl.arange(0, BLOCK_OUT), D, EVEN_D
                )
            if rows_b.dtype.element_ty == tl.float16:
                total = tl.dot(narrow, columns.to(tl.float32), total, input_precision="tf32")
            else:
                total = tl.dot(narrow, columns, total, input_precision=PRECISION)
        else:
            for chunk in range(CHUNKS_OUT):
                d = first + chunk * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
                some = load_rows(rows_b, others, id_others >= 0, d, D, False)
                at = sums + rows.to(tl.int64)[:, None] * D + d[None, :]
                inside = (rows < M)[:, None] & (d < D)[None, :]
                started = (tl.zeros([BLOCK_M], tl.int32) + begin > 0)[:, None]
                so_far = tl.load(at, mask=inside & started, other=0.0)
                if rows_b.dtype.element_ty == tl.float16:
                    so_far = tl.dot(narrow, some.to(tl.float32), so_far, input_precision="tf32")
                else:
                    so_far = tl.dot(narrow, some, so_far, input_precision=PRECISION)
                tl.store(at, so_far, mask=inside)

    if SIMILARITY == COSINE:
        along *= scale_rows * scale_rows
    for chunk in range(CHUNKS_OUT):
        d = first + chunk * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        inside = (rows < M)[:, None] & (d < D)[None, :]
        offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
        if CHUNKS_OUT > 1:
            started = (tl.zeros([BLOCK_M], tl.int32) + N > 0)[:, None]
            total = tl.load(sums + offsets, mask=inside & started, other=0.0)
        if (SIMILARITY == COSINE) | (SIMILARITY == NEG_MSE):
            total -= along[:, None] * load_rows(rows_a, rows, takes_part, d, D, False).to(tl.float32)
        total = tl.where(takes_part[:, None], total, 0.0)
        tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=inside)
