# SPDX-License-Identifier: BSD-3-Clause
"""The table of objects, against scikit-image's regionprops, balls and disks; fastseg measure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.measure import regionprops

from fastseg import objects
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.objects import crofton_weights, measure_objects
from tests.project import fastseg


def stored(folder: Path, array: np.ndarray, name: str = "labels", size: tuple | None = None) -> Volume:
    np.save(folder / f"{name}.npy", array)
    volume = open_volume(folder / f"{name}.npy")
    volume.voxel_size = size
    return volume


def scattered(shape: tuple[int, int, int], dtype: str = "u2") -> np.ndarray:
    """Ids far apart, objects in several pieces, some of a single voxel."""
    rng = np.random.default_rng(0)
    ids = np.array([0, 0, 3, 7, 40_000], dtype)[rng.integers(0, 5, tuple(-(-n // 6) for n in shape))]
    for axis in range(3):
        ids = ids.repeat(6, axis)
    ids = ids[: shape[0], : shape[1], : shape[2]].copy()
    ids[0, 0, 0], ids[-1, -2, -2] = 9, 11
    return ids


@pytest.mark.parametrize("shape", [(14, 150, 40), (1, 150, 40)])
def test_columns_are_those_of_regionprops(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    ids = scattered(shape)
    image = np.random.default_rng(1).integers(0, 4000, (2, *shape)).astype("u2")
    found = measure_objects(stored(tmp_path, ids), stored(tmp_path, image, "raw"))
    dims = 2 if shape[0] == 1 else 3
    truth = regionprops(
        ids.reshape(shape[3 - dims :]), image.transpose(1, 2, 3, 0).reshape(*shape[3 - dims :], 2)
    )
    assert found["id"].tolist() == [p.label for p in truth] == [3, 7, 9, 11, 40_000]
    assert found["voxels"].tolist() == [p.num_pixels for p in truth]
    assert found["touches_border"].tolist() == [1, 1, 1, int(dims == 3), 1]
    for row, prop in enumerate(truth):
        names = "zyx"[3 - dims :]
        np.testing.assert_allclose([found[n][row] for n in names], prop.centroid)
        box = [found[f"{n}_first"][row] for n in names] + [found[f"{n}_last"][row] + 1 for n in names]
        assert box == list(prop.bbox)
        for c in range(2):
            values = image[c][ids == prop.label]
            expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
            for name, value in expected.items():
                assert found[f"{name}_{c}"][row] == pytest.approx(value)
        if prop.num_pixels > 1:
            lengths = [found[f"axis_{i}_voxels"][row] for i in range(1, dims + 1)]
            places = np.argwhere(ids.reshape(shape[3 - dims :]) == prop.label).T
            spread = np.linalg.eigvalsh(np.cov(places, bias=True) + np.eye(dims) / 12)
            np.testing.assert_allclose(lengths, np.sqrt(4 * (dims + 2) * spread[::-1]), rtol=1e-9)


def ball(radius: float, size: tuple[float, float, float], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A ball or, in one slice, a disk, off the middle of a voxel."""
    steps = [int(2 * radius / s) + 5 for s in size] if shape is None else shape
    grid = [(np.arange(n) - (n - 1) / 2 + 0.13 * (n > 1)) * s for n, s in zip(steps, size, strict=True)]
    z, y, x = np.meshgrid(*grid, indexing="ij")
    return (z * z + y * y + x * x <= radius * radius).astype("u1")


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.03, 0.01, 0.02)])
def test_balls_have_the_surface_of_balls(tmp_path: Path, size: tuple[float, float, float]) -> None:
    radius = 12 * max(size)
    found = measure_objects(stored(tmp_path, ball(radius, size), size=size))
    assert found["surface_um2"][0] == pytest.approx(4 * np.pi * radius**2, rel=0.02)
    assert found["volume_um3"][0] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    assert found["sphericity"][0] == pytest.approx(1, abs=0.02)
    for name in ("equivalent_diameter_um", "axis_1_um", "axis_2_um", "axis_3_um"):
        assert found[name][0] == pytest.approx(2 * radius, rel=0.02)


def test_disks_have_the_perimeter_of_disks(tmp_path: Path) -> None:
    size, radius = (5.0, 0.3, 0.2), 6.0
    disk = ball(radius, size, (1, 47, 67))
    found = measure_objects(stored(tmp_path, disk, size=size))
    assert found["perimeter_um"][0] == pytest.approx(2 * np.pi * radius, rel=0.02)
    assert found["area_um2"][0] == pytest.approx(np.pi * radius**2, rel=0.02)
    assert found["circularity"][0] == pytest.approx(1, abs=0.04)


def test_weights_are_shares_of_all_directions() -> None:
    # Legland et al. for cubes: 0.04577789 for an axis, 0.03698062 for two, 0.03519563 for three, each for both ends.
    weights = crofton_weights((1.0, 1.0, 1.0), 3)
    for step, expected in (((0, 0, 1), 0.0457779), ((0, 1, 1), 0.0369806), ((1, 1, -1), 0.0351956)):
        share = weights[step] / 2 * np.linalg.norm(step)
        assert share == pytest.approx(2 * expected, rel=1e-3)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, image = scattered((14, 150, 40)), np.random.default_rng(1).random((14, 150, 40), "f4")
    labels, raw = stored(tmp_path, ids), stored(tmp_path, image, "raw")
    whole = measure_objects(labels, raw)
    monkeypatch.setattr(objects, "_BLOCK_VOXELS", 3000)
    assert len([*labels.blocks(3000)]) > 20
    parts = measure_objects(labels, raw)
    assert [*parts] == [*whole]
    for name, column in whole.items():
        np.testing.assert_allclose(parts[name], column, rtol=1e-6, err_msg=name)
    cropped = measure_objects(labels.crop((2, 5, 7), (14, 150, 40)))
    for row, value in enumerate(cropped["id"]):
        places = np.argwhere(ids[2:, 5:, 7:] == value) + np.array((2, 5, 7))
        assert [cropped[f"{n}_first"][row] for n in "zyx"] == places.min(0).tolist()
        np.testing.assert_allclose([cropped[n][row] for n in "zyx"], places.mean(0))


def test_any_integers_are_ids_and_negative_ones_are_no_objects(tmp_path: Path) -> None:
    found = measure_objects(stored(tmp_path, np.array([[[-1, 0, 5, 5]]], "i4")))
    assert found["id"].tolist() == [5]
    large = (1 << 64) - 2
    found = measure_objects(stored(tmp_path, np.array([[[0, 1, large, large]]], "u8")))
    assert (found["id"].tolist(), found["voxels"].tolist()) == ([1, large], [1, 2])
    found = measure_objects(stored(tmp_path, np.array([[[0, large, large + 1]]], "u8")))
    assert found["id"].tolist() == [large, large + 1]
    assert all(
        len(column) == 0 for column in measure_objects(stored(tmp_path, np.zeros((2, 3, 3), "u1"))).values()
    )


def test_refusals(tmp_path: Path) -> None:
    labels = stored(tmp_path, np.ones((2, 3, 3), "u1"))
    with pytest.raises(InputError, match=r"must hold a number for each object, .* got 1 channels of float32"):
        measure_objects(stored(tmp_path, np.ones((2, 3, 3), "f4"), "soft"))
    with pytest.raises(InputError, match=r"raw .*raw.npy must have the shape of .*, \(2, 3, 3\)"):
        measure_objects(labels, stored(tmp_path, np.ones((2, 3, 4), "u1"), "raw"))
    with pytest.raises(InputError, match="holds nan"):
        measure_objects(labels, stored(tmp_path, np.full((2, 3, 3), np.nan, "f4"), "raw"))


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    ids = np.zeros((6, 20, 20), "u2")
    ids[1:3, 2:4, 5:9], ids[4, 10, 10] = 1, 2
    options = {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 0.5, "unit": "um"}}
    tifffile.imwrite(tmp_path / "cells.tif", ids, resolution=(10.0, 10.0), **options)
    tifffile.imwrite(tmp_path / "raw.tif", ids * 100 + 7)
    arguments = (
        "measure",
        tmp_path / "cells.tif",
        "--raw",
        tmp_path / "raw.tif",
        "--output",
        tmp_path / "t.csv",
    )
    done = fastseg(*arguments)
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path}/t.csv: 2 objects\n"), done.stderr
    with open(tmp_path / "t.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["id"], first["voxels"], second["voxels"]) == ("1", "16", "1")
    assert float(first["volume_um3"]) == pytest.approx(16 * 0.5 * 0.1 * 0.1)
    assert [float(first[n]) for n in "zyx"] == [1.5, 2.5, 6.5]
    assert [int(first[f"x_{end}"]) for end in ("first", "last")] == [5, 8]
    assert (first["mean"], second["max"]) == ("107", "207")
    done = fastseg(*arguments)
    assert done.returncode == 2
    assert "add --overwrite" in done.stderr
    np.save(tmp_path / "mask.npy", (ids == 1).astype("u1"))
    done = fastseg("measure", tmp_path / "mask.npy", "--output", tmp_path / "t.csv", "--overwrite")
    assert "holds one id, so all of it is one object" in done.stdout
    assert "states no voxel size" in done.stdout
    done = fastseg("measure", tmp_path / "mask.npy", "--output", tmp_path / "t.txt")
    assert "--output must end in .csv" in done.stderr


def test_ids_of_a_folder_are_those_of_each_file(tmp_path: Path) -> None:
    """Ids begin anew in each image: object 1 of one is not object 1 of another."""
    for folder in ("objects", "images"):
        (tmp_path / folder).mkdir()
    for name, width in (("b_10", 3), ("b_2", 4)):
        ids = np.zeros((6, 8), "u2")
        ids[:2, :width], ids[4, 1:3] = 1, 2
        tifffile.imwrite(tmp_path / f"objects/{name}.tif", ids)
        tifffile.imwrite(tmp_path / f"images/{name}_raw.tif", ids * np.uint16(width))
    table = tmp_path / "t.csv"
    arguments = ("measure", tmp_path / "objects", "--output", table, "--overwrite")
    done = fastseg(*arguments, "--raw", tmp_path / "images")
    assert done.stdout.startswith(f"wrote {table}: 4 objects\n"), done.stderr
    with open(table, newline="") as file:
        rows = [(row["file"], row["id"], row["voxels"], row["mean"]) for row in csv.DictReader(file)]
    assert rows == [
        ("b_2.tif", "1", "8", "4"),
        ("b_2.tif", "2", "2", "8"),
        ("b_10.tif", "1", "6", "3"),
        ("b_10.tif", "2", "2", "6"),
    ]
    assert f"wrote {table}: 2 objects\n" in fastseg(*arguments, "--stack").stdout
    tifffile.imwrite(tmp_path / "objects/deep.tif", np.ones((3, 6, 8), "u2"), photometric="minisblack")
    refused = fastseg(*arguments)
    assert "deep.tif does not go into one table with the files before" in refused.stderr
    assert table.exists()
