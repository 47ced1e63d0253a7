# SPDX-License-Identifier: BSD-3-Clause
"""Opening and closing: the definition pixel by pixel, borders, and blocks with a halo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastseg.morphology import apply_steps, ellipsoid, halo

PAPER = [("open", (0, 3, 3)), ("close", (0, 3, 3)), ("open", (0, 1, 1)), ("close", (0, 1, 1))]


def by_definition(mask: np.ndarray, operation: str, radii: tuple[int, int, int]) -> np.ndarray:
    """What lies beyond the array takes no part."""
    offsets = np.argwhere(ellipsoid(radii)) - radii

    def neighbours(values: np.ndarray, place: tuple[int, ...]) -> list[bool]:
        around = place + offsets
        inside = ((around >= 0) & (around < values.shape)).all(axis=1)
        return [bool(values[tuple(p)]) for p in around[inside]]

    def each(values: np.ndarray, rule) -> np.ndarray:
        out = np.zeros_like(values)
        for place in itertools.product(*map(range, values.shape)):
            out[place] = rule(neighbours(values, np.asarray(place)))
        return out

    rules = (all, any) if operation == "open" else (any, all)
    for rule in rules:
        mask = each(mask, rule)
    return mask


@pytest.mark.parametrize("operation", ["open", "close"])
@pytest.mark.parametrize("radii", [(0, 1, 1), (0, 3, 3), (1, 2, 2), (2, 2, 2), (0, 0, 2)])
def test_it_is_the_definition(operation: str, radii: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    share = 0.05 if max(radii) * min(radii) > 2 else 0.25
    mask = rng.random((4, 14, 13)) < (1 - share if operation == "open" else share)
    expected = by_definition(mask, operation, radii)
    assert (apply_steps(mask, [(operation, radii)]) == expected).all()
    assert expected.any()
    assert not expected.all()


def test_disks_and_balls() -> None:
    disk = ellipsoid((0, 3, 3))
    assert disk.shape == (1, 7, 7)
    # scikit-image's disk(3).
    assert disk[0].sum(axis=1).tolist() == [1, 5, 5, 7, 5, 5, 1]
    assert ellipsoid((1, 1, 1)).sum() == 7
    assert ellipsoid((0, 0, 0)).sum() == 1


def test_specks_go_and_holes_fill() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 8:30, 8:30] = True
    mask[0, 18, 18] = False
    mask[0, 36, 36] = True
    clean = apply_steps(mask, PAPER)
    assert clean[0, 18, 18]
    assert not clean[0, 36, 36]


def test_objects_at_the_border_keep_their_shape() -> None:
    mask = np.zeros((1, 30, 30), bool)
    mask[0, :12] = True
    assert (apply_steps(mask, PAPER) == mask).all()
    assert apply_steps(~mask, PAPER).sum() == (~mask).sum()
    assert apply_steps(np.ones((3, 5, 5), bool), [("close", (1, 1, 1))]).all()


@pytest.mark.parametrize("steps", [PAPER, [("close", (1, 2, 2)), ("open", (1, 1, 2))]])
def test_blocks_with_a_halo_are_those_of_the_whole(steps: list) -> None:
    mask = np.random.default_rng(1).random((5, 60, 50)) < 0.5
    whole, around = apply_steps(mask, steps), halo(steps)
    for start in itertools.product((0, 2), (0, 25, 41), (0, 17)):
        stop = np.minimum(np.add(start, (3, 20, 33)), mask.shape)
        low, high = np.maximum(np.subtract(start, around), 0), np.minimum(stop + around, mask.shape)
        block = apply_steps(mask[tuple(map(slice, low, high))], steps)
        inside = tuple(map(slice, np.subtract(start, low), np.subtract(stop, low)))
        assert (block[inside] == whole[tuple(map(slice, start, stop))]).all()
    assert halo(PAPER) == (0, 16, 16)


def test_bad_steps() -> None:
    mask = np.ones((1, 4, 4), bool)
    with pytest.raises(ValueError, match="operation must be open or close, got 'dilate'"):
        apply_steps(mask, [("dilate", (0, 1, 1))])
    with pytest.raises(ValueError, match="radii must be three whole numbers"):
        apply_steps(mask, [("open", (1, -1, 1))])
    with pytest.raises(ValueError, match=r"mask must be \(z, y, x\), got \(4, 4\)"):
        apply_steps(mask[0], [])
