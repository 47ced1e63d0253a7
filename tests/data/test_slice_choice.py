# SPDX-License-Identifier: BSD-3-Clause
"""Which slices come next, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fastseg.data.slice_choice import highest_slices, spread_slices


@pytest.mark.parametrize(
    ("depth", "count", "taken", "expected"),
    [
        (12, 3, (), [2, 6, 10]),
        (30, 4, (), [3, 11, 18, 26]),
        (5, 5, (), [0, 1, 2, 3, 4]),
        (1, 1, (), [0]),
        # One in the middle of 9: at s = 1, min(4 - 1, 2 * 1.5) = 3 is the most, and at 7 again: the even three.
        (9, 2, (4,), [1, 7]),
        # Even three of 18, the gaps between them are 6: then their middles, each 3 from both sides.
        (18, 2, (3, 9, 15), [6, 12]),
        # An end gap of 9 beats the inner gap of 8: s = 3 is min(9 - 3, 2 * 3.5) = 6 away, the middle of 9..17 only 4.
        (20, 1, (9, 17), [3]),
        (4, 2, (1, 2), [0, 3]),
        (4, 1, (0, 1, 3), [2]),
    ],
)
def test_spread(depth: int, count: int, taken: tuple[int, ...], expected: list[int]) -> None:
    assert spread_slices(depth, count, taken) == expected


@pytest.mark.parametrize("depth", [10, 97])
def test_one_by_one_stays_near_the_even_spacing(depth: int) -> None:
    """Gaps are never wider than twice the even one, nor those to the ends than 3/2; at last all slices are taken.

    With v the largest distance left, N slices are v apart from one another and v / 2 from the ends: N v <= depth.
    """
    taken: list[int] = []
    for count in range(1, depth + 1):
        taken += spread_slices(depth, 1, taken)
        assert len(set(taken)) == count
        order, even = sorted(taken), depth / count
        assert max(np.diff(order), default=0) <= 2 * even + 1, order
        assert max(order[0] + 0.5, depth - 0.5 - order[-1]) <= 1.5 * even + 1, order


def test_highest_score_first_but_not_side_by_side() -> None:
    scores = np.zeros(16)
    scores[[4, 5, 6, 12]] = 0.9, 1.0, 0.8, 0.5
    assert highest_slices(scores, 2) == ([5, 12], 4.0, 4.0)
    # Three slices, 16 / 6 = 2.67 apart: 8 is 3 from 5, and the first of the slices with 0 that are free is 0.
    assert highest_slices(scores, 3)[0] == [5, 12, 0]
    assert highest_slices(scores, 1, taken=[6])[0] == [12]
    assert highest_slices(np.ones(8), 1)[0] == [0]


def test_distance_is_halved_where_nothing_is_left() -> None:
    # 6 of 13 slices: 13 / 12 apart, so that neighbours of the five at 1, 4, 7, 10, 12 take all.
    scores = np.arange(13.0)
    chosen, asked, kept = highest_slices(scores, 1, taken=[1, 4, 7, 10, 12])
    assert (chosen, asked, kept) == ([11], 13 / 12, 13 / 24)
    chosen, _, _ = highest_slices(np.ones(3), 3)
    assert sorted(chosen) == [0, 1, 2]
