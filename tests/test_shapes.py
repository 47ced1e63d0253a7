# SPDX-License-Identifier: BSD-3-Clause
"""Properties of objects: by hand, against hulls of corners, and against scikit-image."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from skimage.measure import label, regionprops

from fastseg.shapes import PLANAR, Property, object_property, object_values


def drawn(*rows: str) -> np.ndarray:
    return np.array([[[c == "#" for c in row] for row in rows]])


def disk(radius: float) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (y**2 + x**2 <= radius**2)[None]


def solid(voxels: np.ndarray) -> float:
    """Size / size of the hull of all corners, for voxels (n, axes)."""
    corners = np.array([*itertools.product((0, 1), repeat=voxels.shape[1])])
    return len(voxels) / ConvexHull((voxels[:, None] + corners).reshape(-1, voxels.shape[1])).volume


def by_definition(mask: np.ndarray, within: str, components: str, smallest: int) -> list[float]:
    """Solidities, object by object, with scikit-image's components."""
    if components == "volume":
        labels = label(mask, connectivity=3)
    else:
        labels = np.stack([label(plane, connectivity=2) for plane in mask])
    parts = [labels] if within == "volume" else labels
    objects = [np.argwhere(part == i) for part in parts for i in range(1, part.max() + 1)]
    return sorted(solid(voxels) for voxels in objects if len(voxels) > smallest)


CASES = {
    "L": (drawn("#.", "##"), 6 / 7),
    "square": (drawn("###", "###"), 1.0),
    "line": (drawn("#####"), 1.0),
    "diagonal": (drawn("#..", ".#.", "..#"), 3 / 5),
    "ring": (drawn("###", "#.#", "###"), 8 / 9),
    "U": (drawn("#.#", "#.#", "###"), 7 / 9),
    "two pieces at a corner": (drawn("##..", "##..", "..##", "..##"), 8 / 12),
}


@pytest.mark.parametrize("name", CASES)
def test_solidity_of_unit_squares(name: str) -> None:
    mask, expected = CASES[name]
    for turned in (mask, mask.transpose(0, 2, 1), mask[:, ::-1], mask[:, :, ::-1]):
        assert object_values(turned, "solidity", smallest=0).tolist() == [pytest.approx(expected, abs=1e-15)]


def test_cubes_in_3d() -> None:
    bent = np.concatenate([drawn("#.", "##"), drawn("#.", "##")])
    assert object_values(bent, "solidity", within="volume", smallest=0)[0] == pytest.approx(6 / 7)
    assert object_values(CASES["L"][0], "solidity", within="volume", smallest=0)[0] == pytest.approx(6 / 7)
    assert object_values(np.ones((3, 4, 5)), "solidity", within="volume").tolist() == [pytest.approx(1.0)]


def test_a_disk_is_nearly_solid_and_less_so_the_coarser_it_is() -> None:
    solidities = [object_values(disk(r), "solidity")[0] for r in (5, 20, 80)]
    assert solidities == sorted(solidities)
    assert solidities[0] > 0.85
    assert 0.985 < solidities[2] < 1


def test_objects_of_ten_pixels_are_ignored_and_of_eleven_count() -> None:
    mask = np.zeros((2, 9, 30), bool)
    mask[0, 1, :10] = True
    assert object_property([mask], "solidity") == 0.0
    assert object_values(mask, "object_count").tolist() == [0, 0]
    mask[0, 4, :11] = True
    mask[1, 4, :3] = True  # the same object, but too small a section of it
    assert object_values(mask, "solidity").tolist() == [1.0]
    assert object_values(mask, "object_count").tolist() == [1, 0]
    assert object_values(mask, "area_ratio").tolist() == [11 / 270]
    assert object_values(mask, "area_ratio", within="volume").tolist() == [14 / 540]
    assert object_values(mask, "object_count", within="volume").tolist() == [1]
    assert object_values(mask, "solidity", smallest=2).tolist() == [1.0, 1.0, 1.0]


def test_pieces_of_one_object_are_one_section_where_components_are_the_volumes() -> None:
    bridge, piers = drawn("#####", "....."), drawn("#...#", ".....")
    mask = np.concatenate([bridge, piers])
    assert object_values(mask, "solidity", smallest=0).tolist() == [1.0, 2 / 5]
    assert object_values(mask, "solidity", smallest=0, components="slices").tolist() == [1.0, 1.0, 1.0]


def test_slices_lie_across_the_axis() -> None:
    mask = np.random.default_rng(0).random((7, 9, 11)) < 0.4
    for axis in range(3):
        moved = np.moveaxis(mask, 0, axis)
        for name in ("solidity", "area_ratio", "object_count", "eccentricity"):
            expected = object_values(mask, name, smallest=3)
            np.testing.assert_array_equal(object_values(moved, name, smallest=3, axis=axis), expected)


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 0.5, 0.8]), st.sampled_from([0, 3, 10]))
def test_every_way_of_looking_is_the_definition(seed: int, share: float, smallest: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 3)) < share
    for within, components in (("slices", "volume"), ("slices", "slices"), ("volume", "volume")):
        options = {"within": within, "components": components, "smallest": smallest}
        found = np.sort(object_values(mask, "solidity", **options))
        expected = by_definition(mask, within, components, smallest)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        # area / hull, so that the areas are right too.
        assert len(object_values(mask, "area_ratio", **options)) == len(expected)
        assert object_values(mask, "object_count", **options).sum() == len(expected)


def test_areas_and_counts_are_those_of_regionprops() -> None:
    mask = np.random.default_rng(2).random((6, 40, 50)) < 0.2
    labels = label(mask, connectivity=3)
    regions = [region for plane in labels for region in regionprops(plane) if region.area > 10]
    areas = sorted(region.area / (40 * 50) for region in regions)
    assert np.sort(object_values(mask, "area_ratio")).tolist() == areas
    np.testing.assert_array_equal(
        object_values(mask, "eccentricity"), [region.eccentricity for region in regions]
    )
    np.testing.assert_array_equal(object_values(mask, "area"), [region.area for region in regions])


def test_scikit_images_solidity_is_another_one_that_large_objects_share() -> None:
    """It counts pixels whose centres lie in the hull of the midpoints of pixels' edges."""
    mask = drawn("#.", "##")
    assert regionprops(label(mask[0], connectivity=2))[0].solidity == 1.0
    rng = np.random.default_rng(0)
    plane = np.zeros((256, 256), bool)
    for _ in range(12):
        y, x, r = *rng.integers(30, 226, 2), rng.integers(8, 30)
        plane |= np.hypot(*np.ogrid[-y : 256 - y, -x : 256 - x]) < r
    theirs = [region.solidity for region in regionprops(label(plane, connectivity=2)) if region.area > 10]
    ours = np.sort(object_values(plane[None], "solidity"))
    np.testing.assert_allclose(ours, np.sort(theirs), atol=0.05)
    assert (ours <= np.sort(theirs)).all()


def test_real_mitochondria(sample) -> None:
    import h5py

    with h5py.File(sample("em_lucchi/train.h5")) as file:
        mask = file["mito"][:24]
    labels = label(mask, connectivity=3)
    theirs = [r.solidity for plane in labels for r in regionprops(plane) if r.area > 10]
    ours = object_values(mask, "solidity")
    assert len(ours) == len(theirs)
    assert abs(ours.mean() - np.mean(theirs)) < 0.02


@pytest.mark.parametrize("name", get_args(Property))
def test_every_property_of_nothing_is_0_and_of_something_finite(name: Property) -> None:
    mask = np.zeros((3, 12, 12), bool)
    assert object_property([mask, mask], name) == 0.0
    assert object_property([], name) == 0.0
    mask[:, 2:8, 3:7] = True
    withins = ("slices",) if name in PLANAR else ("slices", "volume")
    for within in withins:
        assert np.isfinite(object_values(mask, name, within=within)).all()
        assert len(object_values(mask, name, within=within)) == (3 if within == "slices" else 1)


def test_the_mean_is_over_the_objects_of_all_masks() -> None:
    one, three = disk(4), np.concatenate([CASES["square"][0].repeat(3, 1).repeat(3, 2)] * 3)
    values = [*object_values(one, "solidity"), 1.0, 1.0, 1.0]
    assert object_property([one, three], "solidity") == pytest.approx(np.mean(values))


def test_bad_input() -> None:
    mask = np.ones((2, 5, 5), bool)
    with pytest.raises(ValueError, match=r"mask must be \(z, y, x\), got \(5, 5\)"):
        object_values(mask[0], "solidity")
    with pytest.raises(ValueError, match=r"property must be one of solidity, area_ratio, .*, got 'beauty'"):
        object_values(mask, "beauty")
    with pytest.raises(ValueError, match="property eccentricity is of slices, not of a volume"):
        object_values(mask, "eccentricity", within="volume")
    with pytest.raises(ValueError, match="components: slices is of slices, not of a volume"):
        object_values(mask, "solidity", within="volume", components="slices")
