# SPDX-License-Identifier: BSD-3-Clause
"""What both passes of region_contrast make of a tile of pairs: products, z, and which tiles need which care.

A pair is a positive, a negative or neither. Sorted rows (see region_contrast_prepare.py) let whole tiles be all
negatives: "lean" tiles, in which no id is looked at. The others are "masked". Tiles of pairs that are neither are left
out.

z is kept in units of log 2, so that exp2 needs no multiplication. FIXED: z is relative to the largest that a cosine can
give, c = log2(e) / T, and the sums of exp2(z) need no running maximum: right as long as exp2(-2 c) is a normal number.
"""

import triton
import triton.language as tl

COSINE, DOT, NEG_MSE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
STRETCH = tl.constexpr(128)  # sorted rows that have one entry in `stretches`; tiles are 128, 64 or 32 of them
ENTRIES = 6  # of `stretches`, an array each, as below
ID_LOW, ID_HIGH, GROUP_LOW, GROUP_HIGH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
WHOLE, ODD = tl.constexpr(4), tl.constexpr(5)
CHUNK = tl.constexpr(256)  # entries looked at together
COLDEST = tl.constexpr(0.026)  # T from here on may be FIXED: exp2(-2 c) is 2^-111


@triton.jit
def load_rows(base, rows, takes_part, d, D, stride, EVEN_D: tl.constexpr):
    """(rows, d) of a row-major matrix; 0 in rows that take no part, whatever they hold, and beyond D."""
    pointers = base + rows.to(tl.int64)[:, None] * stride + d[None, :]
    mask = takes_part[:, None] if EVEN_D else takes_part[:, None] & (d < D)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_ids(ids, rows, count, absent: tl.constexpr):
    """Ids, `absent` for rows that take no part: two sides with different ones never agree. Registers hold an id per
    candidate, so int32 stays int32."""
    found = tl.load(ids + rows, mask=rows < count, other=-1)
    if ids.dtype.element_ty != tl.int64:
        found = found.to(tl.int32)
    return tl.where((rows < count) & (found >= 0), found, absent)


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
def load_scale(measured, rows, count, inverse_t, SIMILARITY: tl.constexpr):
    """scale_i and offset_i of z, the latter in units of log 2 over the temperature."""
    one, zero = tl.full(rows.shape, 1.0, tl.float32), tl.zeros(rows.shape, tl.float32)
    if SIMILARITY == COSINE:
        return tl.load(measured + rows, mask=rows < count, other=0.0), zero
    elif SIMILARITY == NEG_MSE:
        found = tl.load(measured + rows, mask=rows < count, other=0.0)
        return one, rounded_product(found, zero + inverse_t * LOG2_E)
    else:
        return one, zero


@triton.jit
def products(rows_a, rows, part_a, rows_b, candidates, part_b, D, stride, hoisted, PRECISION: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
             ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """A tile of <row, candidate>; `hoisted` are the rows themselves where D fits into one chunk. And the candidates."""
    if ONE_CHUNK:
        to = load_rows(rows_b, candidates, part_b, tl.arange(0, BLOCK_D), D, stride, EVEN_D)
        return tl.dot(hoisted, tl.trans(to), input_precision=PRECISION), to
    else:
        dot = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        to = tl.zeros([BLOCK_N, BLOCK_D], rows_b.dtype.element_ty)
        for begin in range(0, D, BLOCK_D):
            d = begin + tl.arange(0, BLOCK_D)
            left = load_rows(rows_a, rows, part_a, d, D, stride, EVEN_D)
            to = load_rows(rows_b, candidates, part_b, d, D, stride, EVEN_D)
            dot = tl.dot(left, tl.trans(to), dot, input_precision=PRECISION)
        return dot, to


@triton.jit
def lean_products(rows_a, rows, part_a, rows_b, measured_b, first, stride, hoisted, inverse_t, SIMILARITY: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                  ONE_CHUNK: tl.constexpr, EVEN_D: tl.constexpr):  # fmt: skip
    """The same, and scale and offset, of sorted candidates from `first` on that all take part. Where a row is one
    chunk, it is as long as that: one address, and the rest are constants."""
    others = tl.arange(0, BLOCK_N)
    if ONE_CHUNK:
        start = rows_b + first.to(tl.int64) * BLOCK_D
        to = tl.load(start + (others * BLOCK_D)[:, None] + tl.arange(0, BLOCK_D)[None, :])
        dot = tl.dot(hoisted, tl.trans(to), input_precision=PRECISION)
    else:
        all_there = tl.arange(0, BLOCK_N) >= 0
        dot, to = products(rows_a, rows, part_a, rows_b, first + others, all_there, stride, stride, hoisted, PRECISION,
                           BLOCK_M, BLOCK_N, BLOCK_D, False, EVEN_D)  # fmt: skip
    found = tl.load(measured_b + first + others)
    one, zero = tl.full(found.shape, 1.0, tl.float32), tl.zeros(found.shape, tl.float32)
    if SIMILARITY == COSINE:
        return dot, to, found, zero
    elif SIMILARITY == NEG_MSE:
        return dot, to, one, rounded_product(found, zero + inverse_t * LOG2_E)
    else:
        return dot, to, one, zero


@triton.jit
def z_of(dot, factor, scale_rows, offset_rows, scale_to, offset_to,
         SIMILARITY: tl.constexpr, FIXED: tl.constexpr):  # fmt: skip
    """z of a tile. Either pass rounds it alike; where nothing bounds it, also with rows and candidates swapped."""
    if FIXED:
        below = tl.zeros(dot.shape, tl.float32) - factor
        along_rows = tl.broadcast_to((factor * scale_rows)[:, None], dot.shape)
        z = tl.fma(dot * scale_to[None, :], along_rows, below)
    else:
        if SIMILARITY == COSINE:
            dot *= scale_rows[:, None] * scale_to[None, :]
        z = rounded_product(dot, tl.zeros(dot.shape, tl.float32) + factor)
        if SIMILARITY == NEG_MSE:
            z += offset_rows[:, None] + offset_to[None, :]
    return z


@triton.jit
def relate(id_rows, id_candidates, groups_a, rows, M, groups_b, candidates, N, names_a, names_b, self_offset,
           HAS_GROUPS: tl.constexpr, HAS_SELF: tl.constexpr, SORTED: tl.constexpr):  # fmt: skip
    """Which pairs of a tile are positives and which negatives; `names` are the numbers of sorted rows before."""
    positive = id_rows[:, None] == id_candidates[None, :]
    negative = (id_rows[:, None] != id_candidates[None, :]) & (id_candidates >= 0)[None, :]
    if HAS_GROUPS:
        of_rows = tl.load(groups_a + rows, mask=rows < M, other=0)
        of_candidates = tl.load(groups_b + candidates, mask=candidates < N, other=0)
        negative &= of_rows[:, None] == of_candidates[None, :]
    if HAS_SELF:
        if SORTED:
            rows = tl.load(names_a + rows).to(tl.int32)
            candidates = tl.load(names_b + candidates).to(tl.int32)
        other = (rows + self_offset)[:, None] != candidates[None, :]
        positive &= other
        negative &= other
    return positive, negative


@triton.jit
def related_tiles(
    id_rows, groups_a, rows, M, ids_b, groups_b, N, HAS_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Of rows as they come: the first tile of candidates that has one in the groups or among the ids of these rows, and
    the one after the last such tile. Images that lie one after the other are left out so, but for their own."""
    first, last = 0, tl.cdiv(N, BLOCK_N)
    if HAS_GROUPS:
        LOOK: tl.constexpr = 4 * CHUNK
        lowest, highest = -0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF
        ids = id_rows.to(tl.int64)
        groups = tl.load(groups_a + rows, mask=rows < M, other=0).to(tl.int64)
        id_low, id_high = tl.min(tl.where(ids >= 0, ids, highest)), tl.max(ids)
        group_low, group_high = (
            tl.min(tl.where(ids >= 0, groups, highest)),
            tl.max(tl.where(ids >= 0, groups, lowest)),
        )
        firsts, lasts = tl.full([LOOK], 0x7FFFFFFF, tl.int32), tl.zeros([LOOK], tl.int32)
        for begin in range(0, N, LOOK):
            at = begin + tl.arange(0, LOOK)
            found = load_ids(ids_b, at, N, -1)
            group = tl.load(groups_b + at, mask=at < N, other=0)
            related = (group >= group_low) & (group <= group_high) | (found >= id_low) & (found <= id_high)
            related &= found >= 0
            firsts = tl.minimum(firsts, tl.where(related, at, 0x7FFFFFFF))
            lasts = tl.maximum(lasts, tl.where(related, at + 1, 0))
        last = tl.cdiv(tl.max(lasts), BLOCK_N)
        first = tl.minimum(tl.min(firsts) // BLOCK_N, last)
    return first, last


@triton.jit
def classify(stretches_a, of_rows, COUNT_A, stretches_b, COUNT_B, t, begin, end, HAS_GROUPS: tl.constexpr):
    """Of stretches t in [begin, end) of the candidates: which are lean to the rows of stretch `of_rows`, those before
    and those after them, and which are masked. A stretch without a row that takes part has ID_LOW above ID_HIGH."""
    low, high = tl.load(stretches_a + of_rows), tl.load(stretches_a + COUNT_A + of_rows)
    inside = (t >= begin) & (t < end)
    id_low = tl.load(stretches_b + t, mask=inside, other=1)
    id_high = tl.load(stretches_b + COUNT_B + t, mask=inside, other=0)
    touched = inside & (id_low <= id_high) & (low <= high)
    lean = touched & (tl.load(stretches_b + WHOLE * COUNT_B + t, mask=inside, other=0) != 0)
    lean &= tl.load(stretches_a + ODD * COUNT_A + of_rows) == 0
    if HAS_GROUPS:
        group_low = tl.load(stretches_a + GROUP_LOW * COUNT_A + of_rows)
        group_high = tl.load(stretches_a + GROUP_HIGH * COUNT_A + of_rows)
        to_low = tl.load(stretches_b + GROUP_LOW * COUNT_B + t, mask=inside, other=0)
        to_high = tl.load(stretches_b + GROUP_HIGH * COUNT_B + t, mask=inside, other=0)
        lean &= (group_low == group_high) & (to_low == to_high) & (group_low == to_low)
        touched &= ((to_low <= group_high) & (to_high >= group_low)) | ((id_low <= high) & (id_high >= low))
    before, after = lean & (id_low > high), lean & (id_high < low)  # ids go down
    return before, after, touched & ~before & ~after


@triton.jit
def lean_stretches(stretches_a, of_rows, COUNT_A, stretches_b, COUNT_B, begin, end, HAS_GROUPS: tl.constexpr):
    """The first and the number of lean stretches before, and of those after. Either lie one beside the other, as rows
    are sorted."""
    first_before, first_after, number_before, number_after = COUNT_B, COUNT_B, 0, 0
    for chunk in range(begin, end, CHUNK):
        t = chunk + tl.arange(0, CHUNK)
        before, after, _masked = classify(
            stretches_a, of_rows, COUNT_A, stretches_b, COUNT_B, t, begin, end, HAS_GROUPS
        )
        first_before = tl.minimum(first_before, tl.min(tl.where(before, t, COUNT_B)))
        first_after = tl.minimum(first_after, tl.min(tl.where(after, t, COUNT_B)))
        number_before += tl.sum(before.to(tl.int32))
        number_after += tl.sum(after.to(tl.int32))
    return first_before, number_before, first_after, number_after


@triton.jit
def next_stretch(masked, t, last, none):
    """The first masked stretch after `last`, or `none`."""
    return tl.min(tl.where(masked & (t > last), t, none))
