# SPDX-License-Identifier: BSD-3-Clause
"""Slices out as TIFF, labels back in: what arrives, what is refused, and that nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.data.annotation_import import import_annotations
from fastseg.data.annotation_plan import (
    Plan,
    PlannedSlice,
    continue_plan,
    extend_plan,
    load_plan,
    plan_of,
    taken_slices,
)
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError

SHAPE = (20, 30, 40)
SIZE = (0.2, 0.05, 0.04)
WHOLE = ((0, 20), (0, 30), (0, 40))


def plan_in(
    folder: Path,
    indexes: list[int],
    *,
    axis: str = "z",
    region: tuple[tuple[int, int], ...] = WHOLE,
    dtype: str = "uint8",
    channels: int = 1,
) -> tuple[Plan, np.ndarray]:
    """A plan of ``indexes`` in folder/plan, and the volume (channels, z, y, x) it is of."""
    array = np.random.default_rng(0).integers(0, 200, (channels, *SHAPE)).astype(dtype)
    with h5py.File(folder / "raw.h5", "w") as file:
        file["raw"] = array if channels > 1 else array[0]
        file["raw"].attrs["element_size_um"] = SIZE
    path = f"{folder}/raw.h5:/raw"
    volume = open_volume(path)
    part = volume.crop(*zip(*region, strict=True))
    plan = continue_plan(str(folder / "plan"), plan_of(volume, part, path, None, axis))
    extend_plan(plan, str(folder / "plan"), part, [PlannedSlice(index) for index in indexes])
    return plan, array


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [("uint8", 1), ("uint16", 1), ("float32", 1), ("int64", 1), ("uint8", 3), ("uint16", 2), ("float64", 3)],
)
def test_pictures_hold_the_slice_as_it_is(tmp_path: Path, dtype: str, channels: int, axis: str) -> None:
    region = ((4, 17), (3, 30), (0, 11))
    plan, array = plan_in(tmp_path, [9], axis=axis, region=region, dtype=dtype, channels=channels)
    place = "zyx".index(axis)
    cut = array[:, 4:17, 3:30, 0:11]
    picture = open_volume(tmp_path / f"plan/{axis}0009.tif")
    assert (picture.dtype, picture.channels, picture.shape) == (dtype, channels, (1, *plan.picture))
    found = picture.read((0, 0, 0), picture.shape)[:, 0]
    np.testing.assert_array_equal(found, cut.take(9 - plan.first, place + 1))
    rows, columns = (size for number, size in enumerate(SIZE) if number != place)
    if dtype != "int64":  # OME has no such type
        assert picture.voxel_size == pytest.approx((SIZE[place], rows, columns))
    with tifffile.TiffFile(picture.source.path) as file:
        assert file.pages[0].resolution == pytest.approx((1e4 / columns, 1e4 / rows), rel=1e-6)
        assert (file.pages[0].photometric.name == "RGB") == (channels == 3 and dtype == "uint8")


def test_a_plan_is_gone_on_with(tmp_path: Path) -> None:
    plan_in(tmp_path, [3])
    before = (tmp_path / "plan/z0003.tif").stat().st_mtime_ns
    plan, _ = plan_in(tmp_path, [11, 7])
    assert load_plan(str(tmp_path / "plan")) == plan
    assert plan.indexes() == [3, 11, 7]
    assert (tmp_path / "plan/z0003.tif").stat().st_mtime_ns == before
    tifffile.imwrite(tmp_path / "plan/z0015_labels.tif", np.zeros((30, 40), "u1"))
    assert taken_slices(plan, str(tmp_path / "plan")) == [3, 7, 11, 15]


def test_scores_and_places_survive(tmp_path: Path) -> None:
    plan, _ = plan_in(tmp_path, [])
    volume = open_volume(plan.path)
    planned = PlannedSlice(4, 0.625, ((0, 32), (32, 0)), (32, 32))
    extend_plan(plan, str(tmp_path / "plan"), volume, [planned])
    assert load_plan(str(tmp_path / "plan")).slices == [planned]


def test_no_file_but_the_plan_is_overwritten(tmp_path: Path) -> None:
    """The same picture may stand there, left by a crash before the plan was written; another may not."""
    plan_in(tmp_path, [3])
    stored = (tmp_path / "plan/plan.json").read_text()
    (tmp_path / "plan/plan.json").unlink()
    plan_in(tmp_path, [3])
    assert (tmp_path / "plan/plan.json").read_text() == stored
    (tmp_path / "plan/z0005.tif").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"z0005\.tif is there already and not in the plan"):
        plan_in(tmp_path, [5])
    assert (tmp_path / "plan/z0005.tif").read_bytes() == b"mine"
    assert (tmp_path / "plan/plan.json").read_text() == stored


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"axis": "y"}, "a plan of axis z, now it is y"),
        (
            {"region": ((0, 9), (0, 30), (0, 40))},
            "region z=0:20,y=0:30,x=0:40, now it is z=0:9,y=0:30,x=0:40",
        ),
        ({"dtype": "uint16"}, "a plan of dtype uint8, now it is uint16"),
        ({"channels": 2}, "a plan of channels 1, now it is 2"),
    ],
)
def test_a_plan_of_something_else_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    plan_in(tmp_path, [3])
    with pytest.raises(InputError, match=message):
        plan_in(tmp_path, [4], **changed)


def test_another_volume_is_refused(tmp_path: Path) -> None:
    plan, _ = plan_in(tmp_path, [3])
    volume = open_volume(plan.path)
    other = plan_of(volume, volume, f"{tmp_path}/other.h5:/raw", None, "z")
    with pytest.raises(InputError, match=r"a plan of volume .*raw\.h5:/raw, now it is .*other\.h5:/raw"):
        continue_plan(str(tmp_path / "plan"), other)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '{"slices": [{"index": 1}]}', "\x00\x01", '{"slices": 3}'],
)
def test_a_damaged_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=r"plan\.json is damaged or no plan: "):
        load_plan(str(tmp_path))


def test_a_plan_with_an_impossible_region_is_refused(tmp_path: Path) -> None:
    plan_in(tmp_path, [3])
    stored = json.loads((tmp_path / "plan/plan.json").read_text())
    stored["region"][1] = [5, 31]
    (tmp_path / "plan/plan.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="damaged or no plan: region"):
        load_plan(str(tmp_path / "plan"))


def test_no_plan_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no plan\.json: fastseg annotate-plan makes one"):
        import_annotations(str(tmp_path))
    with pytest.raises(InputError, match="nowhere is no folder"):
        import_annotations(str(tmp_path / "nowhere"))


def imported(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "plan/annotations.h5"
    return tuple(open_volume(f"{path}:/{name}")[:, :, :][0] for name in ("labels", "mask"))


@pytest.mark.parametrize(("suffix", "dtype"), [("tif", "uint16"), ("tiff", "int64"), ("png", "uint8")])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_labels_come_back_at_their_place(tmp_path: Path, axis: str, suffix: str, dtype: str) -> None:
    region = ((4, 17), (3, 30), (2, 13))
    plan, _ = plan_in(tmp_path, [5, 9, 10], axis=axis, region=region)
    place, rng = "zyx".index(axis), np.random.default_rng(1)
    expected = np.zeros(SHAPE, np.int64), np.zeros(SHAPE, np.uint8)
    here = [slice(*limits) for limits in region]
    for index in (5, 10):
        ids = rng.integers(0, 200, plan.picture)
        path = tmp_path / f"plan/{axis}{index:04d}_labels.{suffix}"
        imageio.imwrite(path, ids.astype(dtype)) if suffix == "png" else tifffile.imwrite(
            path, ids.astype(dtype)
        )
        here[place] = index
        expected[0][tuple(here)], expected[1][tuple(here)] = ids, 1
    done = import_annotations(str(tmp_path / "plan"))
    labels, mask = imported(tmp_path)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(mask, expected[1])
    assert labels.dtype == mask.dtype == np.uint8
    assert (done.slices, done.missing) == ([5, 10], [9])
    assert done.labelled_voxels == mask.sum()
    assert done.foreground_voxels == np.count_nonzero(labels)
    with h5py.File(done.path) as file:
        for name in ("labels", "mask"):
            assert file[name].chunks[place] == 1
            assert tuple(file[name].attrs["element_size_um"]) == SIZE
            assert file[name].id.get_num_chunks() == 2  # nothing is stored of the other slices


def test_more_slices_replace_the_file_and_its_dtype_grows(tmp_path: Path) -> None:
    plan_in(tmp_path, [3, 7])
    tifffile.imwrite(tmp_path / "plan/z0003_labels.tif", np.full((30, 40), 255, "u2"))
    import_annotations(str(tmp_path / "plan"))
    assert imported(tmp_path)[0].dtype == np.uint8
    tifffile.imwrite(tmp_path / "plan/z0007_labels.tif", np.full((30, 40), 70_000, "i4"))
    assert import_annotations(str(tmp_path / "plan")).missing == []
    labels, mask = imported(tmp_path)
    assert labels.dtype == np.uint32
    assert [labels[3].min(), labels[7].max()] == [255, 70_000]
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [3, 7]
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == [
        *("annotations.h5", "plan.json", "z0003.tif", "z0003_labels.tif", "z0007.tif", "z0007_labels.tif")
    ]


@pytest.mark.parametrize("unlabelled", [-1, 9])
def test_what_was_not_looked_at_has_mask_0(tmp_path: Path, unlabelled: int) -> None:
    plan_in(tmp_path, [3])
    ids = np.zeros((30, 40), "i2")
    ids[:, 10:20], ids[:, 20:30] = 4, unlabelled
    tifffile.imwrite(tmp_path / "plan/z0003_labels.tif", ids)
    done = import_annotations(str(tmp_path / "plan"), unlabelled)
    labels, mask = imported(tmp_path)
    np.testing.assert_array_equal(labels[3], np.where(ids == 4, 4, 0))
    np.testing.assert_array_equal(mask[3], ids != unlabelled)
    assert (done.labelled_voxels, done.foreground_voxels) == (900, 300)


GREY = np.zeros((30, 40), "u1")


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        (
            "z0003_labels.tif",
            GREY[:, :39],
            r"must be 30 x 40 \(height x width\), like its slice, got 30 x 39$",
        ),
        ("z0003_labels.png", GREY.T, r"got 40 x 30: it is transposed, rows and columns are exchanged"),
        ("z0003_labels.tif", GREY.astype("f4"), "must hold integers, got float32: save ids as 8 or 16 bit"),
        (
            "z0003_labels.png",
            np.zeros((30, 40, 3), "u1"),
            r"got 3 channels \(an image editor has saved colours",
        ),
        (
            "z0003_labels.tif",
            np.zeros((30, 40, 3), "u1"),
            r"got 3 channels \(an image editor has saved colours",
        ),
        ("z0003_labels.tif", np.zeros((5, 30, 40), "u1"), "must be one image of 30 x 40 .* got 5 of them"),
        (
            "z0003_labels.tif",
            GREY.astype("i2") - 1,
            "holds the id -1: ids must be 0 .* given as --unlabelled",
        ),
        ("z0020_labels.tif", GREY, r"z0020_labels\.tif is of no slice of the plan: names are z0000 to z0019"),
        ("y0003_labels.tif", GREY, r"y0003_labels\.tif is of no slice of the plan"),
        ("final_labels.tif", GREY, r"final_labels\.tif is of no slice of the plan"),
        ("z7_labels.png", GREY, r"z0007_labels\.tif and .*z7_labels\.png are of one slice"),
        ("z0003_labels.jpg", GREY, r"z0003_labels\.jpg must be \.tif or \.png: other formats may change ids"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, image: np.ndarray, message: str
) -> None:
    plan_in(tmp_path, [3, 7])
    path = tmp_path / "plan" / name
    if name.endswith("tif"):
        tifffile.imwrite(path, image, photometric="rgb" if image.shape[-1] == 3 else "minisblack")
    else:
        imageio.imwrite(path, image)
    tifffile.imwrite(tmp_path / "plan/z0007_labels.tif", GREY)
    with pytest.raises(InputError, match=message):
        import_annotations(str(tmp_path / "plan"))
    assert not list((tmp_path / "plan").glob("annotations*"))


def test_labels_of_slices_that_were_not_planned(tmp_path: Path) -> None:
    plan_in(tmp_path, [3, 7])
    for name in ("z0005_labels.png", "z9_labels.tif"):
        imageio.imwrite(tmp_path / "plan" / name, GREY + int(name[1:2] == "9") + 1)
    found = import_annotations(str(tmp_path / "plan"))
    assert (found.slices, found.missing) == ([5, 9], [3, 7])
    with h5py.File(found.path) as file:
        assert [int(z) for z in np.flatnonzero(file["mask"][:].any((1, 2)))] == [5, 9]
        assert (file["labels"][5] == 1).all()
        assert (file["labels"][9] == 2).all()


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_damaged_labels_are_refused(tmp_path: Path, suffix: str) -> None:
    plan_in(tmp_path, [3])
    path = tmp_path / f"plan/z0003_labels.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (30, 40)).astype("u1")
    imageio.imwrite(path, noise)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=rf"z0003_labels\.{suffix} cannot be "):
        import_annotations(str(tmp_path / "plan"))


def test_two_files_of_one_slice_and_none(tmp_path: Path) -> None:
    plan_in(tmp_path, [3])
    with pytest.raises(
        InputError, match=r"holds no labels: save those of z0003\.tif as z0003_labels\.tif or"
    ):
        import_annotations(str(tmp_path / "plan"))
    for suffix in ("tif", "png"):
        imageio.imwrite(tmp_path / f"plan/z0003_labels.{suffix}", GREY)
    with pytest.raises(InputError, match="are of one slice: keep one of them"):
        import_annotations(str(tmp_path / "plan"))
