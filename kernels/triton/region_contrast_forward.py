# SPDX-License-Identifier: BSD-3-Clause
"""Forward kernels of region_contrast: lengths of the rows, then a log-sum-exp over tiles of products.

A program owns BLOCK_M anchors and goes through its share of the candidates, BLOCK_N at a time. z is kept in units of
log 2, so that exp2 needs no multiplication. Programs of one block of anchors leave their sums in `partials`; the one
that comes last adds them up, in the order of the shares, and the last of all adds up the losses, in the order of the
blocks: who is last does not change a bit.
"""

import triton
import triton.language as tl

COSINE, DOT, NEG_MSE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
SHORTEST_SQUARE = tl.constexpr(1e-24)  # as in the definition: a shorter row is the zero vector to "cosine"
PARTIALS = 6  # shift, sums over negatives and positives, sum and number of positive z, tilt


@triton.jit
def load_rows(base, rows, takes_part, d, D, EVEN_D: tl.constexpr):
    """(rows, d) of a row-major matrix; 0 in rows that take no part, whatever they hold, and beyond D."""
    pointers = base + rows.to(tl.int64)[:, None] * D + d[None, :]
    mask = takes_part[:, None] if EVEN_D else takes_part[:, None] & (d < D)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_ids(ids, rows, count, absent: tl.constexpr):
    """Ids, `absent` for rows that take no part: two sides with different ones never agree. Registers hold an id per
    candidate, so int32 stays int32."""
    found = tl.load(ids + rows, mask=rows < count, other=0)
    if ids.dtype.element_ty != tl.int64:
        found = found.to(tl.int32)
    return tl.where((rows < count) & (found >= 0), found, absent)


@triton.jit
def measure_rows(rows_a, ids_a, rows_b, ids_b, scale, offset, counters, M, N, D, blocks_a, blocks_b, COUNTERS,
                 SIMILARITY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """scale and offset of the anchors and, after those, of the bank; and counters back to 0."""
    program = tl.program_id(0)
    at = program * BLOCK_M + tl.arange(0, BLOCK_M)
    if program >= blocks_a + blocks_b:
        at -= (blocks_a + blocks_b) * BLOCK_M
        tl.store(counters + at, tl.zeros([BLOCK_M], tl.int32), mask=at < COUNTERS)
    else:
        if program < blocks_a:
            rows, base, ids, count, first = at, rows_a, ids_a, M, 0
        else:
            rows, base, ids, count, first = at - blocks_a * BLOCK_M, rows_b, ids_b, N, M
        takes_part = load_ids(ids, rows, count, -1) >= 0
        square = tl.zeros([BLOCK_M], tl.float32)
        for begin in range(0, D, BLOCK_D):
            values = load_rows(base, rows, takes_part, begin + tl.arange(0, BLOCK_D), D, False).to(tl.float32)
            square += tl.sum(values * values, 1)
        if SIMILARITY == COSINE:
            short = square < SHORTEST_SQUARE
            measured = tl.where(short, 0.0, 1.0 / tl.sqrt(tl.where(short, 1.0, square)))
            tl.store(scale + first + rows, measured, mask=rows < count)
        else:
            tl.store(offset + first + rows, -square / D, mask=rows < count)


@triton.jit
def inverse_temperature(temperature, fixed, HAS_TEMPERATURE: tl.constexpr):
    if HAS_TEMPERATURE:
        return 1.0 / tl.load(temperature).to(tl.float32)
    else:
        return 1.0 / fixed


@triton.jit
def rounded_product(a, b):
    """a b, rounded before anything is added: the compiler would make one FMA of z = a b and z - shift, and the largest
    term would no longer be 0 to all digits."""
    return tl.fma(a, b, tl.zeros(a.shape, tl.float32))


@triton.jit
def load_scale(scale, offset, rows, count, inverse_t, SIMILARITY: tl.constexpr):
    """scale_i and offset_i of z, the latter in units of log 2 over the temperature."""
    one, zero = tl.full(rows.shape, 1.0, tl.float32), tl.zeros(rows.shape, tl.float32)
    if SIMILARITY == COSINE:
        return tl.load(scale + rows, mask=rows < count, other=0.0), zero
    elif SIMILARITY == NEG_MSE:
        found = tl.load(offset + rows, mask=rows < count, other=0.0)
        return one, rounded_product(found, zero + inverse_t * LOG2_E)
    else:
        return one, zero


@triton.jit
def scaled(dot, factor, scale_rows, scale_to, offset_rows, offset_to, SIMILARITY: tl.constexpr):
    """z of a tile, in units of log 2, with the same bits in either pass."""
    z = rounded_product(dot * (factor * scale_rows)[:, None], tl.broadcast_to(scale_to[None, :], dot.shape))
    if SIMILARITY == NEG_MSE:
        z += offset_rows[:, None] + offset_to[None, :]
    return z


@triton.jit
def products(rows_a, rows, part_a, rows_b, candidates, part_b, D, hoisted, PRECISION: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
             ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """A tile of <row, candidate>; `hoisted` are the rows themselves where D fits into one chunk. And the candidates."""
    if ONE_CHUNK:
        to = load_rows(rows_b, candidates, part_b, tl.arange(0, BLOCK_D), D, EVEN_D)
        return tl.dot(hoisted, tl.trans(to), input_precision=PRECISION), to
    else:
        dot = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        to = tl.zeros([BLOCK_N, BLOCK_D], rows_b.dtype.element_ty)
        for begin in range(0, D, BLOCK_D):
            d = begin + tl.arange(0, BLOCK_D)
            left = load_rows(rows_a, rows, part_a, d, D, EVEN_D)
            to = load_rows(rows_b, candidates, part_b, d, D, EVEN_D)
            dot = tl.dot(left, tl.trans(to), dot, input_precision=PRECISION)
        return dot, to


@triton.jit
def relate(id_rows, id_candidates, groups_a, rows, M, groups_b, candidates, N, self_offset,
           HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr):  # fmt: skip
    """Which pairs of a tile are positives and which negatives."""
    positive = id_rows[:, None] == id_candidates[None, :]
    negative = (id_rows[:, None] != id_candidates[None, :]) & (id_candidates >= 0)[None, :]
    if HAS_GROUPS:
        of_rows = tl.load(groups_a + rows, mask=rows < M, other=0)
        of_candidates = tl.load(groups_b + candidates, mask=candidates < N, other=0)
        negative &= of_rows[:, None] == of_candidates[None, :]
    if HAS_SELF:
        positive &= (rows + self_offset)[:, None] != candidates[None, :]
        negative &= (rows + self_offset)[:, None] != candidates[None, :]
    return positive, negative


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1], all digits: 2 artanh(s) with s = u / (2 + u) at most 1/3."""
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))
    series = 1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * series)))
    return 2.0 * s * (1.0 + q * series)


@triton.jit
def losses_of_rows(rows, takes_part, shift, negatives, positives, positive_z, count, tilt, inverse_t, loss, stats, M,
                   ALL: tl.constexpr, PER_ROW: tl.constexpr):  # fmt: skip
    """Writes loss and statistics of a block of rows; the sum of its losses, and of how many rows."""
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
    tl.store(stats + rows, tl.where(takes_part, count, 0.0), mask=inside)
    tl.store(stats + M + rows, tl.where(takes_part, mean * LN_2, 0.0), mask=inside)
    tl.store(stats + 2 * M + rows, excess, mask=inside)
    tl.store(stats + 3 * M + rows, tilted, mask=inside)
    # The logarithm of the denominator in log 2, and what rounding has taken from it (Knuth's two-sum).
    part = tl.log2(tl.where(has_loss, weight, 1.0))
    shift = tl.where(has_loss, shift, 0.0)
    log_sum = shift + part
    back = log_sum - shift
    rest = (shift - (log_sum - back)) + (part - back)
    tl.store(stats + 4 * M + rows, log_sum, mask=inside)
    tl.store(stats + 5 * M + rows, rest, mask=inside)
    if PER_ROW:
        tl.store(loss + rows, value, mask=inside)
    return tl.sum(value), tl.sum(has_loss.to(tl.float32))


@triton.jit
def contrast_rows(rows_a, ids_a, groups_a, rows_b, ids_b, groups_b, scale_a, offset_a, scale_b, offset_b,
                  temperature, partials, block_sums, counters, loss, stats, rows_counted,
                  M, N, D, self_offset, fixed_temperature,
                  SIMILARITY: tl.constexpr, ALL: tl.constexpr, MEAN: tl.constexpr, PER_ROW: tl.constexpr,
                  HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
                  WITH_TILT: tl.constexpr, SHARES: tl.constexpr, PRECISION: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                  ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    block, share = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    id_rows = load_ids(ids_a, rows, M, -2)
    takes_part = id_rows >= 0
    inverse_t = inverse_temperature(temperature, fixed_temperature, HAS_TEMPERATURE)
    scale_rows, offset_rows = load_scale(scale_a, offset_a, rows, M, inverse_t, SIMILARITY)
    factor = inverse_t * LOG2_E * (2.0 / D if SIMILARITY == NEG_MSE else 1.0)
    hoisted = tl.zeros([BLOCK_M, BLOCK_D], rows_a.dtype.element_ty)
    if ONE_CHUNK:
        hoisted = load_rows(rows_a, rows, takes_part, tl.arange(0, BLOCK_D), D, EVEN_D)

    INFINITY = float("inf")
    shift = tl.full([BLOCK_M], -INFINITY, tl.float32)
    negatives = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.float32)
    positive_z = tl.zeros([BLOCK_M], tl.float32)
    count = tl.zeros([BLOCK_M], tl.float32)
    tilt = tl.zeros([BLOCK_M], tl.float32)
    tiles = tl.cdiv(N, BLOCK_N)
    each = tl.cdiv(tiles, SHARES)
    for tile in range(share * each, tl.minimum(tiles, (share + 1) * each)):
        candidates = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        id_candidates = load_ids(ids_b, candidates, N, -1)
        dot, _ = products(rows_a, rows, takes_part, rows_b, candidates, id_candidates >= 0, D, hoisted, PRECISION,
                          BLOCK_M, BLOCK_N, BLOCK_D, ONE_CHUNK, EVEN_D)  # fmt: skip
        scale_to, offset_to = load_scale(scale_b, offset_b, candidates, N, inverse_t, SIMILARITY)
        z = scaled(dot, factor, scale_rows, scale_to, offset_rows, offset_to, SIMILARITY)
        positive, negative = relate(id_rows, id_candidates, groups_a, rows, M, groups_b, candidates, N, self_offset,
                                    HAS_GROUPS, HAS_SELF)  # fmt: skip
        counted = positive | negative if ALL else negative
        raised = tl.maximum(shift, tl.max(tl.where(counted, z, -INFINITY), 1))
        finite = tl.where(raised == -INFINITY, 0.0, raised)  # no candidate yet: nothing is added
        keep = tl.exp2(shift - finite)
        e = tl.where(counted, tl.exp2(z - finite[:, None]), 0.0)
        if WITH_TILT:
            change = tl.where(shift == -INFINITY, 0.0, shift - finite)
            weight = negatives + positives if ALL else negatives
            tilt = keep * (tilt + weight * change)
            tilt += tl.sum(tl.where(counted, e * (z - finite[:, None]), 0.0), 1)
        if ALL:
            positives = positives * keep + tl.sum(tl.where(positive, e, 0.0), 1)
            e = tl.where(positive, 0.0, e)
        negatives = negatives * keep + tl.sum(e, 1)
        positive_z += tl.sum(tl.where(positive, z, 0.0), 1)
        count += tl.sum(positive.to(tl.float32), 1)
        shift = raised

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
            shift = tl.full([BLOCK_M], -INFINITY, tl.float32)
            for other in range(SHARES):
                at = partials + other * M + rows
                shift = tl.maximum(shift, tl.load(at, mask=rows < M, other=-INFINITY, cache_modifier=".cg"))
            finite = tl.where(shift == -INFINITY, 0.0, shift)
            negatives = tl.zeros([BLOCK_M], tl.float32)
            positives = tl.zeros([BLOCK_M], tl.float32)
            positive_z = tl.zeros([BLOCK_M], tl.float32)
            count = tl.zeros([BLOCK_M], tl.float32)
            tilt = tl.zeros([BLOCK_M], tl.float32)
            for other in range(SHARES):
                at = partials + other * M + rows
                step = SHARES * M
                of_share = tl.load(at, mask=rows < M, other=-INFINITY, cache_modifier=".cg")
                keep = tl.exp2(of_share - finite)
                some_negatives = tl.load(at + step, mask=rows < M, other=0.0, cache_modifier=".cg")
                some_positives = tl.load(at + 2 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                positive_z += tl.load(at + 3 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                count += tl.load(at + 4 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                if WITH_TILT:
                    change = tl.where(of_share == -INFINITY, 0.0, of_share - finite)
                    weight = some_negatives + some_positives if ALL else some_negatives
                    some_tilt = tl.load(at + 5 * step, mask=rows < M, other=0.0, cache_modifier=".cg")
                    tilt += keep * (some_tilt + weight * change)
                negatives += keep * some_negatives
                positives += keep * some_positives
        total, with_loss = losses_of_rows(rows, takes_part, shift, negatives, positives, positive_z, count, tilt,
                                          inverse_t, loss, stats, M, ALL, PER_ROW)  # fmt: skip
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
