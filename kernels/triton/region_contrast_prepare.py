# SPDX-License-Identifier: BSD-3-Clause
"""Preparation of region_contrast: lengths of rows and, for many pairs, rows sorted by group and id.

Sorted, the positives of a row lie beside one another: nearly all tiles of pairs are all negatives, or of groups that
have nothing to do with one another. Forward and backward share what is made here.
"""

import torch
from torch import Tensor

import triton
import triton.language as tl

from .launch import launch
from .region_contrast_pairs import (
    COSINE,
    GROUP_HIGH,
    GROUP_LOW,
    ID_HIGH,
    ID_LOW,
    ODD,
    STRETCH,
    WHOLE,
    load_ids,
    load_rows,
)

SHORTEST_SQUARE = tl.constexpr(1e-24)  # as in the definition: a shorter row is the zero vector to "cosine"


def order_of(ids: Tensor, groups: Tensor | None) -> Tensor:
    """Rows by falling group and id, those that take no part last."""
    found, order = torch.sort(ids, descending=True, stable=True)
    if groups is None:
        return order
    lowest = torch.iinfo(groups.dtype).min
    by_id = torch.where(found >= 0, groups[order], lowest)
    return order[torch.sort(by_id, descending=True, stable=True)[1]]


@triton.jit
def measure(square, D, SIMILARITY: tl.constexpr):
    """scale of a row of this square length for cosine, offset for neg_mse."""
    if SIMILARITY == COSINE:
        short = square < SHORTEST_SQUARE
        return tl.where(short, 0.0, 1.0 / tl.sqrt(tl.where(short, 1.0, square)))
    else:
        return -square / D


@triton.jit
def measure_rows(rows_a, ids_a, rows_b, ids_b, measured, counters, M, N, D, blocks_a, blocks_b, COUNTERS,
                 SIMILARITY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """scale or offset of the anchors and, after those, of the bank; and counters back to 0."""
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
            values = load_rows(base, rows, takes_part, begin + tl.arange(0, BLOCK_D), D, D, False).to(
                tl.float32
            )
            square += tl.sum(values * values, 1)
        tl.store(measured + first + rows, measure(square, D, SIMILARITY), mask=rows < count)


@triton.jit
def gather_rows(rows, ids, groups, order, other_ids, sorted_rows, measured, sorted_ids, sorted_groups, names, stretches,
                counters, M, D, stride, others, self_offset, COUNTERS,
                SIMILARITY: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_OTHER_SELF: tl.constexpr,
                SIZE: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """A stretch of sorted rows, filled up with zeros to a multiple of SIZE rows and to `stride` columns, and what
    `classify` asks of it. HAS_OTHER_SELF: row i is row i + self_offset of the other side; where such have different
    ids, they are among the negatives, and the stretch is ODD. And counters back to 0."""
    stretch = tl.program_id(0)
    at = stretch * SIZE + tl.arange(0, SIZE)
    name = tl.load(order + at, mask=at < M, other=0)
    found = tl.load(ids + name, mask=at < M, other=0).to(tl.int64)
    takes_part = (at < M) & (found >= 0)
    found = tl.where(takes_part, found, -1)
    square = tl.zeros([SIZE], tl.float32)
    for begin in range(0, stride, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        values = load_rows(rows, name, takes_part, d, D, D, False)
        tl.store(
            sorted_rows + at.to(tl.int64)[:, None] * stride + d[None, :], values, mask=(d < stride)[None, :]
        )
        square += tl.sum(values.to(tl.float32) * values.to(tl.float32), 1)
    tl.store(measured + at, measure(square, D, SIMILARITY))
    tl.store(sorted_ids + at, found)
    tl.store(names + at, name)

    count = tl.num_programs(0)
    entry = stretches + stretch
    lowest, highest = -0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF
    tl.store(entry + ID_LOW * count, tl.min(tl.where(takes_part, found, highest)))
    tl.store(entry + ID_HIGH * count, tl.max(tl.where(takes_part, found, -1)))
    tl.store(entry + WHOLE * count, tl.min(takes_part.to(tl.int64)))
    if HAS_GROUPS:
        group = tl.load(groups + name, mask=at < M, other=0).to(tl.int64)
        tl.store(sorted_groups + at, group)
        tl.store(entry + GROUP_LOW * count, tl.min(tl.where(takes_part, group, highest)))
        tl.store(entry + GROUP_HIGH * count, tl.max(tl.where(takes_part, group, lowest)))
    odd = tl.zeros([SIZE], tl.int64)
    if HAS_OTHER_SELF:
        itself = name + self_offset
        there = takes_part & (itself >= 0) & (itself < others)
        odd = (there & (tl.load(other_ids + itself, mask=there, other=0).to(tl.int64) != found)).to(tl.int64)
    tl.store(entry + ODD * count, tl.max(odd))
    for begin in range(stretch * SIZE, COUNTERS, count * SIZE):
        some = begin + tl.arange(0, SIZE)
        tl.store(counters + some, tl.zeros([SIZE], tl.int32), mask=some < COUNTERS)


class Side:
    """Rows of one side as the kernels want them: as they came, or sorted in `kept`, where forward leaves them for
    backward."""

    def __init__(self, rows, ids, groups, measured):
        self.rows, self.ids, self.groups, self.measured = rows, ids, groups, measured
        self.count, self.stride = rows.shape
        self.names = self.stretches = ids  # not looked at
        self.stretch_count = 0


def padded_length(D: int) -> int:
    """Of a sorted row: the chunk that the kernels multiply at once, or a multiple of it."""
    return max(16, triton.next_power_of_2(D)) if D <= 256 else triton.cdiv(D, 64) * 64


def floats_of_side(rows: int, D: int, dtype: torch.dtype) -> tuple[list[int], int]:
    """Where the arrays of sorted rows begin in `kept`, in float32, and how many there are in all."""
    count, stride = triton.cdiv(rows, STRETCH.value), padded_length(D)
    padded = count * STRETCH.value
    sizes = [padded * stride * dtype.itemsize // 4, padded, 2 * padded, 2 * padded, 2 * padded, 2 * 6 * count]
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + triton.cdiv(size, 32) * 32)
    return begins[:-1], begins[-1]


def sorted_side(kept: Tensor, rows: Tensor, has_groups: bool) -> Side:
    """A view of `kept`, which holds the sorted rows of this side."""
    M, D = rows.shape
    begins, _ = floats_of_side(M, D, rows.dtype)
    count, stride = triton.cdiv(M, STRETCH.value), padded_length(D)
    padded = count * STRETCH.value
    values, measured, *numbers = (kept[begin:] for begin in begins)
    values = values[: padded * stride * rows.dtype.itemsize // 4].view(rows.dtype).view(padded, stride)
    ids, groups, names, stretches = (array[: array.numel() // 2 * 2].view(torch.int64) for array in numbers)
    side = Side(values, ids, groups if has_groups else None, measured)
    side.names, side.stretches, side.stretch_count = names, stretches, count
    return side


def sort_side(kept, rows, ids, groups, other_ids, self_offset, counters, similarity) -> Side:
    """The same, and fills it. `other_ids` are given where rows are compared with others that may be themselves."""
    side = sorted_side(kept, rows, groups is not None)
    M, D = rows.shape
    launch(
        gather_rows,
        (side.stretch_count,),
        rows,
        ids,
        groups,
        order_of(ids, groups),
        other_ids,
        side.rows,
        side.measured,
        side.ids,
        side.groups,
        side.names,
        side.stretches,
        counters,
        M,
        D,
        side.stride,
        0 if other_ids is None else other_ids.shape[0],
        self_offset,
        counters.numel(),
        SIMILARITY=similarity,
        HAS_GROUPS=groups is not None,
        HAS_OTHER_SELF=other_ids is not None,
        SIZE=STRETCH.value,
        BLOCK_D=64,
        num_warps=8,
    )
    return side
