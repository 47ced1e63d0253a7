# SPDX-License-Identifier: BSD-3-Clause
"""Backward kernel of region_contrast: the gradient of one side's rows, without atomics and in one order.

A program owns BLOCK_M rows, goes through the rows of the other side, computes each tile of products anew, turns it into
coefficients and multiplies those with the rows of the other side. Of a symmetric matrix it takes both losses a pair
appears in, so that one kernel gives the whole gradient. Wide rows are shared out over programs by columns; one that
owns more columns than its registers hold adds them up in memory that only it touches.
"""

import triton
import triton.language as tl

from .region_contrast_pairs import (
    CHUNK,
    COLDEST,
    COSINE,
    LOG2_E,
    NEG_MSE,
    STRETCH,
    classify,
    inverse_temperature,
    lean_products,
    lean_stretches,
    load_ids,
    load_rows,
    load_scale,
    next_stretch,
    products,
    relate,
    related_tiles,
    z_of,
)


@triton.jit
def load_upstream(upstream, grad, rows, names, anchors, PER_ROW: tl.constexpr, SORTED: tl.constexpr):
    """Of anchors: log2 of the sum, and dL/dz of a positive as scale * e + offset, of a negative as scale * e or as
    weight * exp2(z); without the upstream gradient where that is the same for all."""
    inside = rows < anchors
    log_sum = tl.load(upstream + rows, mask=inside, other=0.0)
    pos_scale = tl.load(upstream + anchors + rows, mask=inside, other=0.0)
    pos_offset = tl.load(upstream + 2 * anchors + rows, mask=inside, other=0.0)
    neg_scale = tl.load(upstream + 3 * anchors + rows, mask=inside, other=0.0)
    weight = tl.load(upstream + 4 * anchors + rows, mask=inside, other=0.0)
    if PER_ROW:
        at = tl.load(names + rows, mask=inside, other=0) if SORTED else rows
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        pos_scale, pos_offset = times(pos_scale, g), times(pos_offset, g)
        neg_scale, weight = times(neg_scale, g), times(weight, g)
    return log_sum, pos_scale, pos_offset, neg_scale, weight


@triton.jit
def times(scale, g):
    """A row without a loss has no gradient, whatever comes from above."""
    return tl.where(scale == 0.0, 0.0, scale * g)


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
def add_product(total, coefficients, to, rows_b, others, part_b, sums, names, D, stride, first, inside, done,
                PRECISION: tl.constexpr, BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr,
                CHUNKS_OUT: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """total += coefficients times this program's columns of the candidates; in `sums`, which hold something once a
    tile is done, where those are more than a block."""
    # float16 holds too small a range for coefficients, but all of float16 fits into TF32.
    if rows_b.dtype.element_ty == tl.bfloat16:
        coefficients = coefficients.to(tl.bfloat16)
    if CHUNKS_OUT == 1:
        if not ONE_CHUNK:
            to = load_rows(rows_b, others, part_b, first + tl.arange(0, BLOCK_OUT), stride, stride, EVEN_D)
        if rows_b.dtype.element_ty == tl.float16:
            total = tl.dot(coefficients, to.to(tl.float32), total, input_precision="tf32")
        else:
            total = tl.dot(coefficients, to, total, input_precision=PRECISION)
    else:
        for chunk in range(CHUNKS_OUT):
            d = first + chunk * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            some = load_rows(rows_b, others, part_b, d, stride, stride, False)
            at = sums + names.to(tl.int64)[:, None] * D + d[None, :]
            there = inside[:, None] & (d < D)[None, :]
            started = (tl.zeros(names.shape, tl.int32) + done > 0)[:, None]
            so_far = tl.load(at, mask=there & started, other=0.0)
            if rows_b.dtype.element_ty == tl.float16:
                so_far = tl.dot(coefficients, some.to(tl.float32), so_far, input_precision="tf32")
            else:
                so_far = tl.dot(coefficients, some, so_far, input_precision=PRECISION)
            tl.store(at, so_far, mask=there)
    return total


@triton.jit
def sum_along(along, coefficients, dot, SIMILARITY: tl.constexpr, ONE_CHUNK: tl.constexpr):
    """Of cosine and neg_mse: how much of the row itself is to be taken off. Of cosine that is <total, row>, at the end,
    where a program has all columns."""
    if SIMILARITY == COSINE:
        if not ONE_CHUNK:
            along += tl.sum(coefficients * dot, 1)
    elif SIMILARITY == NEG_MSE:
        along += tl.sum(coefficients, 1)
    return along


@triton.jit
def add_masked(total, along, done, tile, id_rows, takes_part, hoisted, rows, names, factor, inverse_t, scale_rows,
               offset_rows, log_sum, pos_scale, pos_offset, neg_scale, first,
               rows_a, groups_a, names_a, rows_b, ids_b, groups_b, measured_b, names_b,
               grad, upstream, sums, M, N, D, stride, self_offset, anchors,
               SIMILARITY: tl.constexpr, PER_ROW: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr,
               OF_ROWS: tl.constexpr, OF_OTHERS: tl.constexpr, SORTED: tl.constexpr, FIXED: tl.constexpr,
               PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr, CHUNKS_OUT: tl.constexpr,
               EVEN_D: tl.constexpr):  # fmt: skip
    """Adds a tile in which pairs may be positives, negatives, or neither."""
    others = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    id_others = load_ids(ids_b, others, N, -1)
    dot, to = products(rows_a, rows, takes_part, rows_b, others, id_others >= 0, stride, stride, hoisted,
                       PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
    scale_to, offset_to = load_scale(measured_b, others, N, inverse_t, SIMILARITY)
    z = z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to, SIMILARITY, FIXED)
    positive, negative = relate(id_rows, id_others, groups_a, rows, M, groups_b, others, N, names_a, names_b,
                                self_offset, HAS_GROUPS, HAS_SELF, SORTED)  # fmt: skip
    of_positive = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    of_negative = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if OF_ROWS:
        e = exp_below(z, log_sum[:, None])
        of_positive += pos_scale[:, None] * e + pos_offset[:, None]
        of_negative += neg_scale[:, None] * e
    if OF_OTHERS:
        log_sum_to, pos_scale_to, pos_offset_to, neg_scale_to, _ = load_upstream(
            upstream, grad, others, names_b, anchors, PER_ROW, SORTED
        )
        e = exp_below(z, log_sum_to[None, :])
        of_positive += pos_scale_to[None, :] * e + pos_offset_to[None, :]
        of_negative += neg_scale_to[None, :] * e
    coefficients = tl.where(positive, of_positive, tl.where(negative, of_negative, 0.0)) * scale_to[None, :]
    along = sum_along(along, coefficients, dot, SIMILARITY, ONE_CHUNK)
    total = add_product(total, coefficients, to, rows_b, others, id_others >= 0, sums, names, D, stride, first,
                        rows < M, done, PRECISION, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip
    return total, along


@triton.jit
def sum_tiles(rows, names, id_rows, takes_part, hoisted, inverse_t, of_stretch, first,
              rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
              rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
              grad, upstream, sums, M, N, D, stride, self_offset, anchors,
              SIMILARITY: tl.constexpr, PER_ROW: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr,
              OF_ROWS: tl.constexpr, OF_OTHERS: tl.constexpr, SORTED: tl.constexpr, FIXED: tl.constexpr,
              PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
              BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr, CHUNKS_OUT: tl.constexpr,
              EVEN_D: tl.constexpr):  # fmt: skip
    """Sums over candidates of coefficient * scale * row, and of what `sum_along` says."""
    factor = inverse_t * LOG2_E * (2.0 / D if SIMILARITY == NEG_MSE else 1.0)
    scale_rows, offset_rows = load_scale(measured_a, rows, M, inverse_t, SIMILARITY)
    if OF_ROWS:
        log_sum, pos_scale, pos_offset, neg_scale, weight = load_upstream(
            upstream, grad, rows, names_a, anchors, PER_ROW, SORTED
        )
    else:
        log_sum, pos_scale, pos_offset, neg_scale = rows, rows, rows, rows  # not looked at
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    along = tl.zeros([BLOCK_M], tl.float32)
    inside = rows < M
    done = 0  # tiles so far
    if SORTED:
        TILES: tl.constexpr = STRETCH // BLOCK_N
        first_before, number_before, first_after, number_after = lean_stretches(
            stretches_a, of_stretch, COUNT_A, stretches_b, COUNT_B, 0, COUNT_B, HAS_GROUPS
        )
        # The main loop: all pairs are negatives, and all rows of the tile are there.
        all_there = tl.arange(0, BLOCK_N) >= 0
        split = number_before * TILES
        start_before, start_after = first_before * STRETCH, (first_after - number_before) * STRETCH
        for k in range(0, split + number_after * TILES):
            first_other = k * BLOCK_N + tl.where(k < split, start_before, start_after)
            dot, to, scale_to, offset_to = lean_products(
                rows_a, rows, takes_part, rows_b, measured_b, first_other, stride, hoisted,
                inverse_t, SIMILARITY, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
            others = first_other + tl.arange(0, BLOCK_N)
            z = z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to, SIMILARITY, FIXED)
            if OF_OTHERS:  # noqa: SIM102
                if PER_ROW:
                    g = tl.load(grad + tl.load(names_b + others)).to(tl.float32)
            if FIXED:  # one exp2 for both roles of a pair
                if OF_OTHERS:
                    scaled_weight = tl.load(upstream + 5 * anchors + others)
                    if PER_ROW:
                        scaled_weight = times(scaled_weight, g)
                if OF_ROWS:
                    both = weight[:, None] * scale_to[None, :]
                    if OF_OTHERS:
                        both += scaled_weight[None, :]
                else:
                    both = scaled_weight[None, :]
                coefficients = tl.exp2(z) * both
            else:
                coefficients = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                if OF_ROWS:
                    coefficients += neg_scale[:, None] * tl.exp2(z - log_sum[:, None])
                if OF_OTHERS:
                    log_sum_to = tl.load(upstream + others)
                    neg_scale_to = tl.load(upstream + 3 * anchors + others)
                    if PER_ROW:
                        neg_scale_to = times(neg_scale_to, g)
                    coefficients += neg_scale_to[None, :] * tl.exp2(z - log_sum_to[None, :])
                coefficients *= scale_to[None, :]
            along = sum_along(along, coefficients, dot, SIMILARITY, ONE_CHUNK)
            total = add_product(total, coefficients, to, rows_b, others, all_there, sums, names, D, stride, first,
                                inside, k, PRECISION, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT,
                                EVEN_D)  # fmt: skip
        done = split + number_after * TILES
        NARROW: tl.constexpr = min(BLOCK_N, 64 if BLOCK_OUT <= 128 else 32)  # fewer registers
        for chunk in range(0, COUNT_B, CHUNK):
            t = chunk + tl.arange(0, CHUNK)
            _before, _after, masked = classify(
                stretches_a, of_stretch, COUNT_A, stretches_b, COUNT_B, t, 0, COUNT_B, HAS_GROUPS
            )
            at = next_stretch(masked, t, -1, COUNT_B)
            while at < COUNT_B:
                for tile in range(at * (STRETCH // NARROW), (at + 1) * (STRETCH // NARROW)):
                    total, along = add_masked(total, along, done, tile, id_rows, takes_part, hoisted, rows, names,
                                      factor, inverse_t, scale_rows, offset_rows,
                                      log_sum, pos_scale, pos_offset, neg_scale, first,
                                      rows_a, groups_a, names_a, rows_b, ids_b, groups_b, measured_b, names_b,
                                      grad, upstream, sums, M, N, D, stride, self_offset, anchors, SIMILARITY, PER_ROW,
                                      HAS_GROUPS, HAS_SELF, OF_ROWS, OF_OTHERS, SORTED, FIXED, PRECISION, BLOCK_M,
                                      NARROW, BLOCK_D, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip
                    done += 1
                at = next_stretch(masked, t, at, COUNT_B)
    else:
        first_tile, last_tile = related_tiles(
            id_rows, groups_a, rows, M, ids_b, groups_b, N, HAS_GROUPS, BLOCK_N
        )
        for tile in range(first_tile, last_tile):
            total, along = add_masked(total, along, done, tile, id_rows, takes_part, hoisted, rows, names,
                                      factor, inverse_t, scale_rows, offset_rows,
                                      log_sum, pos_scale, pos_offset, neg_scale, first,
                                      rows_a, groups_a, names_a, rows_b, ids_b, groups_b, measured_b, names_b,
                                      grad, upstream, sums, M, N, D, stride, self_offset, anchors, SIMILARITY, PER_ROW,
                                      HAS_GROUPS, HAS_SELF, OF_ROWS, OF_OTHERS, SORTED, FIXED, PRECISION, BLOCK_M,
                                      BLOCK_N, BLOCK_D, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip
            done += 1
    return total, along, done


@triton.jit
def contrast_gradient(rows_a, ids_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                      rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
                      temperature, stats, rows_counted, grad, grad_temperature, upstream, sums, gradient,
                      M, N, D, stride, self_offset, fixed_temperature, anchors,
                      SIMILARITY: tl.constexpr, MEAN: tl.constexpr, PER_ROW: tl.constexpr,
                      HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
                      OF_ROWS: tl.constexpr, OF_OTHERS: tl.constexpr, SUM_TILT: tl.constexpr, SORTED: tl.constexpr,
                      FIXED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                      BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr,
                      CHUNKS_OUT: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """Rows a get the gradient: as anchors (OF_ROWS), as candidates of the anchors b (OF_OTHERS), or both. With
    SUM_TILT the first program also sums up the gradient of the temperature.

    `anchors` is how many rows stats, upstream and grad have. CHUNKS_OUT columns of BLOCK_OUT belong to a program; where
    that is more than one, `sums` (M, D) float32 holds what it has summed up so far.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    id_rows = load_ids(ids_a, rows, M, -2)
    takes_part = id_rows >= 0
    inverse_t = inverse_temperature(temperature, fixed_temperature, HAS_TEMPERATURE)
    hoisted = tl.zeros([BLOCK_M, BLOCK_D], rows_a.dtype.element_ty)
    if ONE_CHUNK:
        hoisted = load_rows(rows_a, rows, takes_part, tl.arange(0, BLOCK_D), stride, stride, EVEN_D)
    if SUM_TILT:  # noqa: SIM102  (decided by the compiler, the inner one by the program)
        if block + part == 0:
            sum_tilt(stats, grad, rows_counted, grad_temperature, anchors, MEAN, PER_ROW)
    names = rows
    if SORTED:
        names = tl.load(names_a + rows).to(tl.int32)
    of_stretch = block * BLOCK_M // STRETCH
    first = part * CHUNKS_OUT * BLOCK_OUT
    if FIXED is None:
        if inverse_t <= 1.0 / COLDEST:
            total, along, done = sum_tiles(
                rows, names, id_rows, takes_part, hoisted, inverse_t, of_stretch, first,
                rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
                grad, upstream, sums, M, N, D, stride, self_offset, anchors,
                SIMILARITY, PER_ROW, HAS_GROUPS, HAS_SELF, OF_ROWS, OF_OTHERS, SORTED, True,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip
        else:
            total, along, done = sum_tiles(
                rows, names, id_rows, takes_part, hoisted, inverse_t, of_stretch, first,
                rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
                grad, upstream, sums, M, N, D, stride, self_offset, anchors,
                SIMILARITY, PER_ROW, HAS_GROUPS, HAS_SELF, OF_ROWS, OF_OTHERS, SORTED, False,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip
    else:
        total, along, done = sum_tiles(
            rows, names, id_rows, takes_part, hoisted, inverse_t, of_stretch, first,
            rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
            rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
            grad, upstream, sums, M, N, D, stride, self_offset, anchors,
            SIMILARITY, PER_ROW, HAS_GROUPS, HAS_SELF, OF_ROWS, OF_OTHERS, SORTED, FIXED,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_OUT, ONE_CHUNK, CHUNKS_OUT, EVEN_D)  # fmt: skip

    # What is common to the coefficients of a row.
    scale_rows, _ = load_scale(measured_a, rows, M, inverse_t, SIMILARITY)
    slope = inverse_t * (2.0 / D if SIMILARITY == NEG_MSE else 1.0) * scale_rows
    if not PER_ROW:
        slope *= tl.load(grad).to(tl.float32)
    if MEAN:
        slope /= tl.maximum(tl.load(rows_counted), 1.0)
    if SIMILARITY == COSINE:
        if ONE_CHUNK:
            along = tl.sum(total * hoisted.to(tl.float32), 1)
        along *= scale_rows * scale_rows
    for chunk in range(CHUNKS_OUT):
        d = first + chunk * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        there = (rows < M)[:, None] & (d < D)[None, :]
        offsets = names.to(tl.int64)[:, None] * D + d[None, :]
        if CHUNKS_OUT > 1:
            started = (tl.zeros([BLOCK_M], tl.int32) + done > 0)[:, None]
            total = tl.load(sums + offsets, mask=there & started, other=0.0)
        if (SIMILARITY == COSINE) | (SIMILARITY == NEG_MSE):
            total -= along[:, None] * load_rows(rows_a, rows, takes_part, d, D, stride, False).to(tl.float32)
        total = tl.where(takes_part[:, None], total * slope[:, None], 0.0)
        tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=there)
