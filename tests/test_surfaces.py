# SPDX-License-Identifier: BSD-3-Clause
"""Surface distances and section Dice against hand-made cases and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from fastseg.surfaces import average_surface_distance, section_dice, surface_distances


def cube(low: tuple[int, int, int], high: tuple[int, int, int], size: int = 12) -> np.ndarray:
    array = np.zeros((size,) * 3, np.uint8)
    array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return array


def surface_by_hand(array: np.ndarray) -> np.ndarray:
    padded = np.pad(array != 0, 1, mode="edge")
    found = []
    for place in np.argwhere(array):
        neighbours = [
            padded[tuple(place + 1 + step * np.eye(3, dtype=int)[a])] for a in range(3) for step in (-1, 1)
        ]
        if not all(neighbours):
            found.append(place)
    return np.array(found).reshape(-1, 3)


def test_a_plane_moved_by_two_slices() -> None:
    thick = cube((2, 0, 0), (12, 12, 12))
    thin = cube((4, 0, 0), (12, 12, 12))
    assert average_surface_distance(thick, thin, (3.0, 1.0, 1.0)) == 6.0
    assert average_surface_distance(thick, thick) == 0.0


def test_a_voxel_beside_a_voxel() -> None:
    found, expected = surface_distances(cube((1, 1, 1), (2, 2, 2)), cube((1, 4, 5), (2, 5, 6)), (9, 1, 2))
    assert found.tolist() == expected.tolist() == [math.hypot(3, 8)]


def test_nothing_on_one_side_or_both() -> None:
    empty, one = cube((0, 0, 0), (0, 0, 0)), cube((3, 3, 3), (4, 4, 4))
    assert average_surface_distance(empty, empty) == 0.0
    assert average_surface_distance(empty, one) == math.inf
    assert average_surface_distance(one, empty) == math.inf
    # A segmentation of everything has no surface either.
    assert average_surface_distance(np.ones_like(one), one) == math.inf


@given(
    st.integers(0, 2**32),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.floats(0.1, 0.9),
    st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
)
def test_against_brute_force(
    seed: int, shape: tuple[int, int, int], share: float, voxel: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = (rng.random(shape) < share for _ in range(2))
    a, b = (surface_by_hand(array) * voxel for array in (prediction, truth))
    found, expected = surface_distances(prediction, truth, voxel)
    if len(a) and len(b):
        distances = cdist(a, b)
        np.testing.assert_allclose(np.sort(found), np.sort(distances.min(1)))
        np.testing.assert_allclose(np.sort(expected), np.sort(distances.min(0)))
    else:
        assert (len(found), len(expected)) == (len(a), len(b))
        assert np.isinf(found).all()
        assert np.isinf(expected).all()


def test_section_dice_is_a_mean_over_sections() -> None:
    truth = cube((0, 0, 0), (2, 3, 4), 6)
    prediction = cube((0, 0, 0), (2, 1, 4), 6)
    assert section_dice(prediction, truth, 1) == pytest.approx(1 / 3)
    assert section_dice(prediction, truth, 0) == pytest.approx(2 * 4 / (4 + 12))
    assert section_dice(truth * 0, truth * 0, 1) == 1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2, 2\) and \(2, 2, 3\)"):
        surface_distances(np.ones((2, 2, 2)), np.ones((2, 2, 3)))
    with pytest.raises(ValueError, match="alike"):
        section_dice(np.ones((2, 2, 2)), np.ones((2, 2, 3)), 0)
