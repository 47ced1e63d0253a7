# SPDX-License-Identifier: BSD-3-Clause
"""Connected objects and their numbers, against a flood fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
        expected = flood_fill(labels, smallest)
        assert expected.max() > 1
        for slices in (1, 4, 100):
            options = {"smallest": smallest, "slab_voxels": slices * shape[1] * shape[2]}
            found = Volume(InstanceSource(open_volume(tmp_path / "labels.npy"), **options))
            assert found.dtype == np.uint16
            assert found.source.count == expected.max()
            np.testing.assert_array_equal(found[:][0], expected)
            np.testing.assert_array_equal(found[:, 3:9, 2:][0], expected[:, 3:9, 2:])
            np.testing.assert_array_equal(found[-1:][0], expected[-1:])


def test_a_slab_is_all_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tube through all slabs and back is one object, and no box larger than a slab is read."""
    labels = np.zeros((40, 30, 30), "u1")
    labels[:, 5, 5], labels[:, 20, 20], labels[39, 5, 5:21], labels[39, 5:21, 20] = 1, 1, 1, 1
    np.save(tmp_path / "labels.npy", labels)
    volume = open_volume(tmp_path / "labels.npy")
    read, boxes = volume.read, []
    monkeypatch.setattr(volume, "read", lambda a, b, out=None: boxes.append(b[0] - a[0]) or read(a, b, out))
    found = Volume(InstanceSource(volume, slab_voxels=3 * 900))
    assert found.source.count == 1
    np.testing.assert_array_equal(np.concatenate([found[z : z + 1][0] for z in range(40)]), labels)
    assert max(boxes) == 3
    assert len(boxes) == 2 * 14


def test_nothing_is_no_object(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((2, 5, 5), "u1"))
    assert not Volume(InstanceSource(open_volume(tmp_path / "labels.npy")))[:].any()
