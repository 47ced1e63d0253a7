# SPDX-License-Identifier: BSD-3-Clause
"""How well a segmentation's surface, and its shape between slices, agree with the truth.

Voxel counts say little of what sparse annotation spoils: outlines that jump from slice to slice. Distances between
surfaces and the Dice of sections across the slices show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each surface voxel of ``prediction`` to the nearest of ``truth``, and the other way round.

    Arguments: two arrays (z, y, x), nonzero is foreground; voxel_size (z, y, x) in the unit of the distances. A
    surface voxel is a foreground voxel with a background face neighbour; what lies beyond the array is taken to go
    on as at its border, so that objects cut by the border have no surface there.
    Returns two float64 arrays, empty where that segmentation has no surface, and infinite where only the other one
    has none. Memory: about 40 bytes per voxel of the box about both.
    """
    from scipy import ndimage

    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise ValueError(
            f"prediction and truth must be (z, y, x) alike, got {prediction.shape} and {truth.shape}"
        )
    surfaces = [_surface(array != 0) for array in (prediction, truth)]
    if not all(surface.any() for surface in surfaces):
        found, expected = (np.full(np.count_nonzero(surface), math.inf) for surface in surfaces)
        return found, expected
    box = ndimage.find_objects((surfaces[0] | surfaces[1]).astype(np.uint8))[0]
    found, expected = (surface[box] for surface in surfaces)
    to_truth = ndimage.distance_transform_edt(~expected, sampling=voxel_size)
    to_prediction = ndimage.distance_transform_edt(~found, sampling=voxel_size)
    return to_truth[found], to_prediction[expected]


def average_surface_distance(
    prediction: np.ndarray, truth: np.ndarray, voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
) -> float:
    """The average symmetric surface distance: the mean of ``surface_distances`` over both surfaces together.

    0 where neither has a surface, infinite where one has none.
    """
    distances = np.concatenate(surface_distances(prediction, truth, voxel_size))
    return float(distances.mean()) if len(distances) else 0.0


def section_dice(prediction: np.ndarray, truth: np.ndarray, axis: int) -> float:
    """The mean Dice over the sections across ``axis`` in which either has foreground; 1 where none has.

    axis 1 gives the xz sections, which show how an outline goes on from slice to slice.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must be alike, got {prediction.shape} and {truth.shape}")
    found, true = prediction != 0, truth != 0
    others = tuple(a for a in range(found.ndim) if a != axis)
    both, total = (found & true).sum(others), found.sum(others) + true.sum(others)
    used = total > 0
    return float((2 * both[used] / total[used]).mean()) if used.any() else 1.0


def _surface(mask: np.ndarray) -> np.ndarray:
    inner = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        inner[tuple(behind)] &= mask[tuple(ahead)]
        inner[tuple(ahead)] &= mask[tuple(behind)]
    return mask & ~inner
