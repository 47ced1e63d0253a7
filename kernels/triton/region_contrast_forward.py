# SPDX-License-Identifier: BSD-3-Clause
"""Forward kernel of region_contrast: a log-sum-exp over tiles of products.

A program owns BLOCK_M anchors and goes through its share of the candidates, BLOCK_N at a time. Programs of one block
of anchors leave their sums in `partials`; the one that comes last adds them up, in the order of the shares, and the
last of all adds up the losses, in the order of the blocks: who is last does not change a bit.
"""

import triton
import triton.language as tl

from .region_contrast_pairs import (
    CHUNK,
    COLDEST,
    LN_2,
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

PARTIALS = 6  # shift, sums over negatives and positives, sum and number of positive z, tilt
UPSTREAM = 6  # arrays kept for backward, as `keep_upstream` writes them


@triton.jit
def add_masked(z, positive, negative, shift, negatives, positives, positive_z, count, tilt,
               ALL: tl.constexpr, WITH_TILT: tl.constexpr, FIXED: tl.constexpr):  # fmt: skip
    """Adds a tile in which pairs may be positives, negatives, or neither."""
    counted = positive | negative if ALL else negative
    if FIXED:
        raised = shift
        finite = shift
        keep = shift + 1.0
    else:
        raised = tl.maximum(shift, tl.max(tl.where(counted, z, -float("inf")), 1))
        finite = tl.where(raised == -float("inf"), 0.0, raised)  # no candidate yet: nothing is added
        keep = tl.exp2(shift - finite)
    e = tl.where(counted, tl.exp2(z - finite[:, None]), 0.0)
    if WITH_TILT:
        change = tl.where(shift == -float("inf"), 0.0, shift - finite)
        weight = negatives + positives if ALL else negatives
        tilt = keep * (tilt + weight * change)
        tilt += tl.sum(tl.where(counted, e * (z - finite[:, None]), 0.0), 1)
    if ALL:
        positives = positives * keep + tl.sum(tl.where(positive, e, 0.0), 1)
        e = tl.where(positive, 0.0, e)
    negatives = negatives * keep + tl.sum(e, 1)
    positive_z += tl.sum(tl.where(positive, z, 0.0), 1)
    count += tl.sum(positive.to(tl.float32), 1)
    return raised, negatives, positives, positive_z, count, tilt


@triton.jit
def add_lean(z, shift, negatives, positives, tilt, ALL: tl.constexpr, WITH_TILT: tl.constexpr):
    """Adds a tile of negatives alone, under a running maximum."""
    raised = tl.maximum(shift, tl.max(z, 1))
    keep = tl.exp2(shift - raised)
    below = z - raised[:, None]
    e = tl.exp2(below)
    if WITH_TILT:
        change = tl.where(shift == -float("inf"), 0.0, shift - raised)
        tilt = keep * (tilt + (negatives + positives if ALL else negatives) * change)
        tilt += tl.sum(e * below, 1)
    return raised, negatives * keep + tl.sum(e, 1), positives * keep, tilt


@triton.jit
def sum_tiles(rows, id_rows, takes_part, hoisted, inverse_t, share, of_stretch,
              rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
              rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
              M, N, D, stride, self_offset,
              SIMILARITY: tl.constexpr, ALL: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr,
              WITH_TILT: tl.constexpr, SHARES: tl.constexpr, SORTED: tl.constexpr, FIXED: tl.constexpr,
              PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
              ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """The sums of this share of the candidates."""
    factor = inverse_t * LOG2_E * (2.0 / D if SIMILARITY == NEG_MSE else 1.0)
    scale_rows, offset_rows = load_scale(measured_a, rows, M, inverse_t, SIMILARITY)
    negatives = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.float32)
    positive_z = tl.zeros([BLOCK_M], tl.float32)
    count = tl.zeros([BLOCK_M], tl.float32)
    tilt = tl.zeros([BLOCK_M], tl.float32)
    shift = tl.zeros([BLOCK_M], tl.float32)
    if not FIXED:
        shift -= float("inf")

    if SORTED:
        each = tl.cdiv(COUNT_B, SHARES)
        begin, end = share * each, tl.minimum(COUNT_B, (share + 1) * each)
        TILES: tl.constexpr = STRETCH // BLOCK_N
        first_before, number_before, first_after, number_after = lean_stretches(
            stretches_a, of_stretch, COUNT_A, stretches_b, COUNT_B, begin, end, HAS_GROUPS
        )
        every = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # no sum across threads in the loop
        # The main loop: all pairs are negatives, and all rows of the tile are there.
        split = number_before * TILES
        start_before, start_after = first_before * STRETCH, (first_after - number_before) * STRETCH
        for k in range(0, split + number_after * TILES):
            first_other = k * BLOCK_N + tl.where(k < split, start_before, start_after)
            dot, _to, scale_to, offset_to = lean_products(
                rows_a, rows, takes_part, rows_b, measured_b, first_other, stride, hoisted,
                inverse_t, SIMILARITY, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
            z = z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to, SIMILARITY, FIXED)
            if FIXED:  # exp2 and one addition a pair, beside what z takes
                e = tl.exp2(z)
                every += e
                if WITH_TILT:
                    tilt += tl.sum(e * z, 1)
            else:
                shift, negatives, positives, tilt = add_lean(
                    z, shift, negatives, positives, tilt, ALL, WITH_TILT
                )
        if FIXED:
            negatives += tl.sum(every, 1)
        NARROW: tl.constexpr = min(BLOCK_N, 32)  # fewer registers
        for chunk in range(begin, end, CHUNK):
            t = chunk + tl.arange(0, CHUNK)
            _before, _after, masked = classify(
                stretches_a, of_stretch, COUNT_A, stretches_b, COUNT_B, t, begin, end, HAS_GROUPS
            )
            at = next_stretch(masked, t, -1, COUNT_B)
            while at < COUNT_B:
                for tile in range(at * (STRETCH // NARROW), (at + 1) * (STRETCH // NARROW)):
                    candidates = tile * NARROW + tl.arange(0, NARROW)
                    id_candidates = load_ids(ids_b, candidates, N, -1)
                    dot, _to = products(rows_a, rows, takes_part, rows_b, candidates, id_candidates >= 0, stride,
                                      stride, hoisted, PRECISION, BLOCK_M, NARROW, BLOCK_D, ONE_CHUNK,
                                      EVEN_D)  # fmt: skip
                    scale_to, offset_to = load_scale(measured_b, candidates, N, inverse_t, SIMILARITY)
                    z = z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to, SIMILARITY, FIXED)
                    positive, negative = relate(id_rows, id_candidates, groups_a, rows, M, groups_b, candidates, N,
                                                names_a, names_b, self_offset, HAS_GROUPS, HAS_SELF, True)  # fmt: skip
                    shift, negatives, positives, positive_z, count, tilt = add_masked(
                        z, positive, negative, shift, negatives, positives, positive_z, count, tilt,
                        ALL, WITH_TILT, FIXED)  # fmt: skip
                at = next_stretch(masked, t, at, COUNT_B)
    else:
        first, last = related_tiles(id_rows, groups_a, rows, M, ids_b, groups_b, N, HAS_GROUPS, BLOCK_N)
        each = tl.cdiv(last - first, SHARES)
        for tile in range(first + share * each, tl.minimum(last, first + (share + 1) * each)):
            candidates = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            id_candidates = load_ids(ids_b, candidates, N, -1)
            dot, _to = products(rows_a, rows, takes_part, rows_b, candidates, id_candidates >= 0, stride, stride,
                              hoisted, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
            scale_to, offset_to = load_scale(measured_b, candidates, N, inverse_t, SIMILARITY)
            z = z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to, SIMILARITY, FIXED)
            positive, negative = relate(id_rows, id_candidates, groups_a, rows, M, groups_b, candidates, N,
                                        names_a, names_b, self_offset, HAS_GROUPS, HAS_SELF, False)  # fmt: skip
            shift, negatives, positives, positive_z, count, tilt = add_masked(
                z, positive, negative, shift, negatives, positives, positive_z, count, tilt,
                ALL, WITH_TILT, FIXED)  # fmt: skip
    return shift, negatives, positives, positive_z, count, tilt


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1], all digits: 2 artanh(s) with s = u / (2 + u) at most 1/3."""
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))
    series = 1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * series)))
    return 2.0 * s * (1.0 + q * series)


@triton.jit
def one_minus_exp(x):
    """1 - exp(-x) for x >= 0, all digits where x is small."""
    series = 1.0 - x / 6.0 * (1.0 - x / 7.0)
    series = 1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0 * series))
    return tl.where(x < 0.25, x * (1.0 - x / 2.0 * series), 1.0 - tl.exp2(-x * LOG2_E))


@triton.jit
def keep_upstream(upstream, rows, M, has_loss, count, excess, log_sum, rest, scale, ALL: tl.constexpr):
    """What the gradient needs of a row, for an upstream gradient of 1: the log of the denominator, relative as z is;
    dL/dz of a positive as scale * e + offset, of a negative as scale * e, with e = exp(z - log); and of a negative as
    weight * exp(z), as such and times the scale of the row."""
    neg_scale = tl.where(has_loss, tl.exp2(-rest), 0.0)
    pos_scale = tl.zeros(rows.shape, tl.float32)
    pos_offset = -1.0 / tl.maximum(count, 1.0)
    if ALL:
        single = count == 1.0
        pos_scale = tl.where(single, 0.0, neg_scale)
        pos_offset = tl.where(single, -one_minus_exp(tl.where(single & has_loss, excess, 0.0)), pos_offset)
    inside = rows < M
    tl.store(upstream + rows, log_sum, mask=inside)
    tl.store(upstream + M + rows, pos_scale, mask=inside)
    tl.store(upstream + 2 * M + rows, tl.where(has_loss, pos_offset, 0.0), mask=inside)
    tl.store(upstream + 3 * M + rows, neg_scale, mask=inside)
    weight = neg_scale * tl.exp2(-log_sum)
    tl.store(upstream + 4 * M + rows, weight, mask=inside)
    tl.store(upstream + 5 * M + rows, weight * scale, mask=inside)


@triton.jit
def losses_of_rows(rows, names, takes_part, base, shift, negatives, positives, positive_z, count, tilt, inverse_t,
                   scale, loss, stats, upstream, M, ALL: tl.constexpr, PER_ROW: tl.constexpr):  # fmt: skip
    """Writes loss and statistics of a block of rows; the sum of its losses, and of how many rows. z is relative to
    `base`."""
    INFINITY = float("inf")
    mean = positive_z / tl.maximum(count, 1.0)
    above = shift - mean
    weight = negatives + positives if ALL else negatives
    if ALL:
        # One positive: softplus of the negatives' log-sum-exp above it, all digits however small it is.
        single = tl.where(
            negatives == 0.0, -INFINITY, above + tl.log2(tl.where(negatives == 0.0, 1.0, negatives))
        )
        softplus = tl.maximum(single, 0.0) * LN_2 + log1p_unit(tl.exp2(-tl.abs(single)))
        several = (above + tl.log2(weight / tl.maximum(count, 1.0))) * LN_2
        excess = tl.where(count == 1.0, softplus, several)
    else:
        empty = negatives == 0.0
        excess = tl.where(empty, -INFINITY, (above + tl.log2(tl.where(empty, 1.0, negatives))) * LN_2)
    excess = tl.where(takes_part & (count > 0.0), excess, -INFINITY)
    has_loss = excess != -INFINITY
    value = excess + tl.log2(tl.maximum(count, 1.0)) * LN_2 if ALL else excess
    value = tl.where(has_loss, value, 0.0)
    spread = tl.where(weight == 0.0, -above, tilt / tl.where(weight == 0.0, 1.0, weight))
    tilted = tl.where(has_loss, -(above + spread) * LN_2 * inverse_t, 0.0)
    inside = rows < M
    tl.store(stats + names, tl.where(takes_part, count, 0.0), mask=inside)
    tl.store(stats + M + names, tl.where(takes_part & (count > 0.0), (base + mean) * LN_2, 0.0), mask=inside)
    tl.store(stats + 2 * M + names, excess, mask=inside)
    tl.store(stats + 3 * M + names, tilted, mask=inside)
    # The logarithm of the denominator in log 2, and what rounding has taken from it (Knuth's two-sum).
    part = tl.log2(tl.where(has_loss, weight, 1.0))
    shift = tl.where(has_loss, shift, 0.0)
    log_sum = shift + part
    back = log_sum - shift
    rest = (shift - (log_sum - back)) + (part - back)
    tl.store(stats + 4 * M + names, log_sum + base, mask=inside)
    tl.store(stats + 5 * M + names, rest, mask=inside)
    keep_upstream(upstream, rows, M, has_loss, count, excess, log_sum, rest, scale, ALL)
    if PER_ROW:
        tl.store(loss + names, value, mask=inside)
    return tl.sum(value), tl.sum(has_loss.to(tl.float32))


@triton.jit
def contrast_rows(rows_a, ids_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                  rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B,
                  temperature, partials, block_sums, counters, loss, stats, rows_counted, upstream,
                  M, N, D, stride, self_offset, fixed_temperature,
                  SIMILARITY: tl.constexpr, ALL: tl.constexpr, MEAN: tl.constexpr, PER_ROW: tl.constexpr,
                  HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
                  WITH_TILT: tl.constexpr, SHARES: tl.constexpr, SORTED: tl.constexpr, FIXED: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                  ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """FIXED: whether z is relative to c, as region_contrast_pairs.py says; None: the temperature decides, here."""
    block, share = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    id_rows = load_ids(ids_a, rows, M, -2)
    takes_part = id_rows >= 0
    inverse_t = inverse_temperature(temperature, fixed_temperature, HAS_TEMPERATURE)
    hoisted = tl.zeros([BLOCK_M, BLOCK_D], rows_a.dtype.element_ty)
    if ONE_CHUNK:
        hoisted = load_rows(rows_a, rows, takes_part, tl.arange(0, BLOCK_D), stride, stride, EVEN_D)
    names = rows
    if SORTED:
        names = tl.load(names_a + rows)
    of_stretch = block * BLOCK_M // STRETCH
    base = 0.0
    if FIXED is None:
        if inverse_t <= 1.0 / COLDEST:
            base = inverse_t * LOG2_E
            shift, negatives, positives, positive_z, count, tilt = sum_tiles(
                rows, id_rows, takes_part, hoisted, inverse_t, share, of_stretch,
                rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B, M, N, D, stride, self_offset,
                SIMILARITY, ALL, HAS_GROUPS, HAS_SELF, WITH_TILT, SHARES, SORTED, True,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
        else:
            base = inverse_t * 0.0
            shift, negatives, positives, positive_z, count, tilt = sum_tiles(
                rows, id_rows, takes_part, hoisted, inverse_t, share, of_stretch,
                rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
                rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B, M, N, D, stride, self_offset,
                SIMILARITY, ALL, HAS_GROUPS, HAS_SELF, WITH_TILT, SHARES, SORTED, False,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
    else:
        if FIXED:
            base = inverse_t * LOG2_E
        shift, negatives, positives, positive_z, count, tilt = sum_tiles(
            rows, id_rows, takes_part, hoisted, inverse_t, share, of_stretch,
            rows_a, groups_a, measured_a, names_a, stretches_a, COUNT_A,
            rows_b, ids_b, groups_b, measured_b, names_b, stretches_b, COUNT_B, M, N, D, stride, self_offset,
            SIMILARITY, ALL, HAS_GROUPS, HAS_SELF, WITH_TILT, SHARES, SORTED, FIXED,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip

    last = True
    if SHARES > 1:
        at = partials + share * M + rows
        step = SHARES * M
        tl.store(at, shift, mask=rows < M)
        tl.store(at + step, negatives, mask=rows < M)
        tl.store(at + 2 * step, positives, mask=rows < M)
        tl.store(at + 3 * step, positive_z, mask=rows < M)
        tl.store(at + 4 * step, count, mask=rows < M)
        tl.store(at + 5 * step, tilt, mask=rows < M)
        tl.debug_barrier()  # the sums of all threads are written before this program is counted
        last = tl.atomic_add(counters + 1 + block, 1, sem="acq_rel") == SHARES - 1
    if last:
        if SHARES > 1:
            shift = tl.full([BLOCK_M], -float("inf"), tl.float32)
            for other in range(SHARES):
                at = partials + other * M + rows
                shift = tl.maximum(
                    shift, tl.load(at, mask=rows < M, other=-float("inf"), cache_modifier=".cg")
                )
            finite = tl.where(shift == -float("inf"), 0.0, shift)
            negatives = tl.zeros([BLOCK_M], tl.float32)
            positives = tl.zeros([BLOCK_M], tl.float32)
            positive_z = tl.zeros([BLOCK_M], tl.float32)
            count = tl.zeros([BLOCK_M], tl.float32)
            tilt = tl.zeros([BLOCK_M], tl.float32)
            for other in range(SHARES):
                at = partials + other * M + rows
                step = SHARES * M
                of_share = tl.load(at, mask=rows < M, other=-float("inf"), cache_modifier=".cg")
                keep = tl.exp2(of_share - finite)
                some_negatives = tl.load(at + step, mask=rows < M, other=0.0, cache_modifier=".cg")
                some_positives = tl.load(at + 2 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                positive_z += tl.load(at + 3 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                count += tl.load(at + 4 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                if WITH_TILT:
                    change = tl.where(of_share == -float("inf"), 0.0, of_share - finite)
                    weight = some_negatives + some_positives if ALL else some_negatives
                    some_tilt = tl.load(at + 5 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                    tilt += keep * (some_tilt + weight * change)
                negatives += keep * some_negatives
                positives += keep * some_positives
        scale, _ = load_scale(measured_a, rows, M, inverse_t, SIMILARITY)
        total, with_loss = losses_of_rows(rows, names, takes_part, base, shift, negatives, positives, positive_z, count,
                                          tilt, inverse_t, scale, loss, stats, upstream, M, ALL, PER_ROW)  # fmt: skip
        tl.store(block_sums + block, total)
        tl.store(block_sums + blocks + block, with_loss)
        tl.debug_barrier()
        if tl.atomic_add(counters, 1, sem="acq_rel") == blocks - 1:
            total, with_loss = 0.0, 0.0
            for begin in range(0, blocks, 256):
                some = begin + tl.arange(0, 256)
                total += tl.sum(
                    tl.load(block_sums + some, mask=some < blocks, other=0.0, cache_modifier=".cg")
                )
                some += blocks
                with_loss += tl.sum(
                    tl.load(block_sums + some, mask=some < 2 * blocks, other=0.0, cache_modifier=".cg")
                )
            if not PER_ROW:
                tl.store(loss, total / tl.maximum(with_loss, 1.0) if MEAN else total)
            tl.store(rows_counted, with_loss)
