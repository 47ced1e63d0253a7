# SPDX-License-Identifier: BSD-3-Clause
"""Which slices to annotate next: spread evenly, or where a score is highest but not side by side."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def spread_slices(depth: int, count: int, taken: Collection[int] = ()) -> list[int]:
    """``count`` of the slices 0 .. depth - 1 that are not in ``taken``, as far from these and one another as can be.

    With nothing taken, slice i of N is floor((i + 1/2) depth / N). Otherwise they are chosen one by one (greedy
    farthest point): next comes the slice s with the largest

        min(|s - t| over all t that are taken or chosen, 2 (s + 1/2), 2 (depth - s - 1/2)),

    of equals the lowest. Distances to the ends count twice, because in an even spacing the ends are half a spacing
    away: with one slice in the middle, the next two make it the even spacing of three.
    count: at most depth less those taken.
    """
    if not taken:
        return [(2 * i + 1) * depth // (2 * count) for i in range(count)]
    place = np.arange(depth)
    distance = np.minimum(2 * place + 1, 2 * (depth - place) - 1)
    for slice_ in taken:
        distance = np.minimum(distance, abs(place - slice_))
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, abs(place - chosen[-1]))
    return chosen


def highest_slices(
    scores: np.ndarray, count: int, taken: Collection[int] = ()
) -> tuple[list[int], float, float]:
    """``count`` slices by falling score, none closer to another or to one in ``taken`` than a distance.

    The distance is half the spacing that all slices, taken and chosen, would have if they were even:
    depth / (2 (taken + count)). Where no slice is left that far from the others, it is halved. Of equal scores the
    lowest slice comes first.
    scores: (depth,), finite. count: at most depth less those taken.
    Returns (slices in the order of choice, distance asked for, distance kept).
    """
    depth = len(scores)
    place = np.arange(depth)
    nearest = np.full(depth, np.inf)
    for slice_ in taken:
        nearest = np.minimum(nearest, abs(place - slice_))
    asked = kept = depth / (2 * (len(taken) + count))
    chosen = []
    for _ in range(count):
        # Below a distance of 1 only the slices themselves are too near.
        while not (free := (nearest >= kept) & (nearest > 0)).any():
            kept /= 2
        chosen.append(int(np.where(free, scores, -np.inf).argmax()))
        nearest = np.minimum(nearest, abs(place - chosen[-1]))
    return chosen, asked, kept
