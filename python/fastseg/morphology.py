# SPDX-License-Identifier: BSD-3-Clause
"""Opening and closing of binary masks with disks, balls and ellipsoids, exact block by block with a halo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Operation = Literal["open", "close"]
OPERATIONS: tuple[Operation, ...] = ("open", "close")

# (operation, radius along z, y, x); a radius of 0 leaves its axis out, as in a disk.
Step = tuple[Operation, tuple[int, int, int]]


def apply_steps(mask: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Openings and closings of a mask (z, y, x), one after the other; bool (z, y, x).

    opening = dilation of the erosion, which takes away what no structuring element fits into; closing = erosion of the
    dilation, which fills what none fits into. Both are done twice over by a border that belongs to neither side: what
    lies beyond the array neither erodes nor dilates, so that objects keep their shape there. (scipy's closing takes it
    for background, and shaves objects off at the border.) ValueError for an unknown operation or a bad radius.
    """
    from scipy import ndimage

    mask = np.asarray(mask) != 0
    if mask.ndim != 3:
        raise ValueError(f"mask must be (z, y, x), got {mask.shape}")
    for operation, radii in steps:
        element = ellipsoid(radii)
        if operation not in OPERATIONS:
            raise ValueError(f"operation must be open or close, got {operation!r}")

        def erode(values: np.ndarray, element: np.ndarray = element) -> np.ndarray:
            return ndimage.binary_erosion(values, element, border_value=1)

        def dilate(values: np.ndarray, element: np.ndarray = element) -> np.ndarray:
            return ndimage.binary_dilation(values, element, border_value=0)

        mask = dilate(erode(mask)) if operation == "open" else erode(dilate(mask))
    return mask


def halo(steps: Sequence[Step]) -> tuple[int, int, int]:
    """How far around a voxel the steps look: a block read with so much around it comes out as in the whole."""
    z, y, x = (2 * sum(radii[axis] for _, radii in steps) for axis in range(3))
    return (z, y, x)


def ellipsoid(radii: Sequence[int]) -> np.ndarray:
    """The voxels with sum (i / r)^2 <= 1 over the axes whose radius is not 0, bool (2 r + 1 per axis): a disk for two
    equal radii, a ball for three. disk(3) is scikit-image's."""
    if len(radii) != 3 or any(not isinstance(r, (int, np.integer)) or r < 0 for r in radii):
        raise ValueError(f"radii must be three whole numbers from 0 up, along z, y, x, got {radii!r}")
    grid = np.ogrid[tuple(slice(-r, r + 1) for r in radii)]
    return np.asarray(sum((axis / max(r, 1)) ** 2 for axis, r in zip(grid, radii, strict=True)) <= 1 + 1e-9)
