# SPDX-License-Identifier: BSD-3-Clause
"""Connected objects and their numbers, against a flood fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastseg.data.instances import InstanceSource
from fastseg.data.volumes import Volume, open_volume


def flood_fill(labels: np.ndarray, smallest: int) -> np.ndarray:
    """Objects by walking from voxel to voxel over faces, in the order of their first voxels."""
    found, number = np.zeros(labels.shape, int), 0
    seen = np.zeros(labels.shape, bool)
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    for start in np.ndindex(labels.shape):
        if seen[start] or not labels[start]:
            continue
        part, left = [], [start]
        seen[start] = True
        while left:
            here = left.pop()
            part.append(here)
            for step in steps:
                there = tuple(int(n) for n in np.add(here, step))
                inside = all(0 <= n < size for n, size in zip(there, labels.shape, strict=True))
                if inside and not seen[there] and labels[there] == labels[start]:
                    seen[there] = True
                    left.append(there)
        if len(part) >= smallest:
            number += 1
            for voxel in part:
                found[voxel] = number
    return found


def test_objects_are_those_of_a_flood_fill(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape, smallest in (((6, 9, 8), 0), ((6, 9, 8), 4), ((1, 20, 20), 3)):
        labels = rng.choice([0, 0, 1, 300], shape).astype("u2")
        np.save(tmp_path / "labels.npy", labels)
        found = Volume(InstanceSource(open_volume(tmp_path / "labels.npy"), smallest))
        expected = flood_fill(labels, smallest)
        assert found.dtype == np.uint16
        assert found.source.count == expected.max() > 1
        pairs = np.unique(np.stack((found[:][0].ravel(), expected.ravel())), axis=1)
        assert pairs.shape[1] == expected.max() + 1, "each number stands for one object"
        assert pairs[:, 0].tolist() == [0, 0]
    np.testing.assert_array_equal(found[:, 3:9, 2:][0], found[:][0, :, 3:9, 2:])


def test_nothing_is_no_object(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((2, 5, 5), "u1"))
    assert not Volume(InstanceSource(open_volume(tmp_path / "labels.npy")))[:].any()
