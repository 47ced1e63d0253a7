# SPDX-License-Identifier: BSD-3-Clause
"""Objects that touch are taken apart at their necks, and others left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastseg.data import touching
from fastseg.data.instances import InstanceSource
from fastseg.data.touching import SplitSource, at_boundaries, at_necks, split_at_necks
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError


def balls(shape: tuple[int, int, int], *centres: tuple[float, ...], depth: float = 1.0) -> np.ndarray:
    """(z, y, x, radius) each; a voxel is ``depth`` times as thick as wide."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    each = [((z - a) * depth) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= r * r for a, b, c, r in centres]
    return np.logical_or.reduce(each)


SHAPES = {
    "one disk": (balls((1, 60, 60), (0, 30, 30, 20)), 1),
    "two that touch": (balls((1, 60, 90), (0, 30, 25, 18), (0, 30, 58, 18)), 2),
    "two of another size": (balls((1, 60, 90), (0, 30, 26, 22), (0, 30, 55, 9)), 2),
    "two that are one": (balls((1, 60, 90), (0, 30, 30, 18), (0, 30, 40, 18)), 1),
    "three in a row": (balls((1, 40, 110), (0, 20, 20, 14), (0, 20, 45, 14), (0, 20, 70, 14)), 3),
    "a bar": (np.pad(np.ones((1, 9, 70), bool), ((0, 0), (9, 9), (9, 9))), 1),
    "two balls": (balls((30, 40, 70), (15, 20, 18, 13), (15, 20, 41, 13)), 2),
    "two at the edge": (balls((1, 40, 60), (0, 0, 15, 12), (0, 0, 36, 12)), 2),
    "a slice across y": (balls((1, 60, 90), (0, 30, 25, 18), (0, 30, 58, 18)).transpose(1, 0, 2), 2),
    "all of it": (np.ones((1, 20, 20), bool), 1),
    "a point": (np.pad(np.ones((1, 1, 1), bool), 2), 1),
}


@pytest.mark.parametrize("case", SHAPES)
def test_necks(case: str) -> None:
    mask, count = SHAPES[case]
    found = split_at_necks(mask, 0.8)
    assert found.max() == count
    assert np.array_equal(found > 0, mask)


def test_the_cut_is_at_the_neck_and_knows_the_shape_of_voxels() -> None:
    found = split_at_necks(balls((1, 60, 90), (0, 30, 25, 18), (0, 30, 58, 18)), 0.8)[0]
    assert np.ptp(found[30, 10:40]) == 0
    assert np.ptp(found[30, 44:70]) == 0
    assert found[30, 25] != found[30, 58]
    thick = balls((20, 60, 60), (4, 30, 30, 20), (13, 30, 30, 20), depth=4.0)
    assert split_at_necks(thick, 0.8, (4.0, 1.0, 1.0)).max() == 2


def made(tmp_path: Path, mask: np.ndarray, slab: int, smallest: int = 0) -> np.ndarray:
    np.save(tmp_path / "mask.npy", mask.astype("u1"))
    parts = InstanceSource(open_volume(str(tmp_path / "mask.npy")), smallest, slab)
    source = SplitSource(parts, str(tmp_path / "objects"), at_necks(parts, 0.8))
    volume = Volume(source)
    found = np.concatenate([volume[z : z + 1][0] for z in range(len(mask))])
    assert np.array_equal(found, volume[:][0])
    assert (volume.dtype, source.count) == (np.dtype(np.uint16), found.max())
    source.close()
    assert not (tmp_path / "objects").exists()
    return found


def test_numbers_are_unique_whatever_the_slabs(tmp_path: Path) -> None:
    """A pair at one place, a pair at another, each across several slabs, one alone, and a crumb."""
    pairs = [
        (15, 20, 18, 13),
        (15, 20, 41, 13),
        (32, 60, 20, 9),
        (46, 60, 20, 9),
        (30, 60, 60, 10),
        (2, 70, 70, 1),
    ]
    mask = balls((60, 75, 75), *pairs)
    whole = made(tmp_path, mask, 1 << 30)
    assert sorted(np.unique(whole)) == [*range(7)]
    assert np.array_equal(whole > 0, mask)
    for slab in (1, 75 * 75 * 7):
        assert np.array_equal(made(tmp_path, mask, slab), whole)
    assert made(tmp_path, mask, 1 << 30, smallest=20).max() == 5


def test_none_at_all(tmp_path: Path) -> None:
    assert not made(tmp_path, np.zeros((3, 20, 20), bool), 400).any()


def test_one_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touching, "_MOST_VOXELS", 1000)
    with pytest.raises(
        InputError, match=r"at \(z, y, x\) = \(5, 10, 7\) spans [\d,]+ voxels, and at most 1,000"
    ):
        made(tmp_path, balls((30, 40, 40), (15, 20, 17, 10)), 1 << 30)
    assert not (tmp_path / "objects").exists()


def test_boundaries_take_apart_what_touches(tmp_path: Path) -> None:
    """Two squares and a ridge between them that is steeper on one side, a crumb of interior in the ridge, and an object
    that is all boundary."""
    mask = np.zeros((1, 20, 40), bool)
    mask[0, 2:18, 2:30] = mask[0, 5:8, 34:38] = True
    edge = np.zeros(mask.shape, bool)
    edge[0, 2:18, 14:18] = edge[0, 5:8, 34:38] = True
    edge[0, 9, 15] = False
    ridge = np.zeros(mask.shape, np.float32)
    ridge[0, :, 14:18] = 0.6, 0.7, 0.8, 0.9
    np.save(tmp_path / "mask.npy", mask.astype("u1"))
    np.save(tmp_path / "edge.npy", edge.astype("u1"))
    np.save(tmp_path / "ridge.npy", ridge)
    volumes = [open_volume(str(tmp_path / f"{name}.npy")) for name in ("mask", "edge", "ridge")]
    for slab in (1, 1 << 20):
        for smallest, count in ((0, 4), (5, 3)):
            parts = InstanceSource(volumes[0], smallest, slab)
            source = SplitSource(parts, str(tmp_path / "objects"), at_boundaries(*volumes[1:], smallest))
            found = Volume(source)[:][0]
            source.close()
            assert found.max() == count
            assert np.array_equal(found > 0, mask)
        # The crest is the last column: it, too, goes to one of both.
        assert np.array_equal(np.unique(found[0, 2:18, 2:17]), [1])
        assert np.array_equal(np.unique(found[0, 2:18, 18:30]), [2])
