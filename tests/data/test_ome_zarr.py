# SPDX-License-Identifier: BSD-3-Clause
"""Single OME-Zarr images with their pyramid, read back by zarr and ome-zarr-py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastseg.data import ome_zarr
from fastseg.data.exports import export_volume
from fastseg.data.volumes import Volume, open_volume
from tests.data.scenes import stored

SIZE = (0.05, 0.01, 0.01)
SHAPE = (40, 290, 530)


def written(folder: Path, array: np.ndarray, size: tuple | None = SIZE) -> tuple[Volume, str]:
    volume = stored(folder, "array", array)
    volume.voxel_size = size
    export_volume(volume, f"{folder}/out.ome.zarr")
    return volume, f"{folder}/out.ome.zarr"


def ids() -> np.ndarray:
    """Ids with nothing between them, and a quarter without any."""
    array = np.random.default_rng(0).choice([0, 3, 70_000], SHAPE).astype("u4")
    array[:, 129::3] = 0
    array[:, :128, 256:384] = 0
    return array


def test_levels_of_ids_are_single_voxels(tmp_path: Path) -> None:
    array = ids()
    _, path = written(tmp_path, array)
    np.testing.assert_array_equal(open_volume(path)[:][0], array)
    assert not (Path(path) / "0/c/0/0/2").exists(), "chunks of 0 are not stored"
    levels = [open_volume(path, level=level) for level in (0, 1, 2)]
    # z is halved once y and x are as long: 0.05 beside 0.01, 0.02, then 0.04.
    assert [v.shape for v in levels] == [SHAPE, (40, 145, 265), (40, 73, 133)]
    assert [v.voxel_size for v in levels] == [pytest.approx((0.05, 0.01 * f, 0.01 * f)) for f in (1, 2, 4)]
    for coarse, fine in zip(levels[1:], levels, strict=False):
        expected = np.pad(fine[:][0], [(0, 0), (0, 1), (0, 1)], mode="edge")[:, 1::2, 1::2]
        expected = expected[:, : coarse.shape[1], : coarse.shape[2]]
        np.testing.assert_array_equal(coarse[:][0], expected)


def test_levels_of_probabilities_are_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).random((2, 32, 260, 140)).astype("f2")
    _, path = written(tmp_path, array, (0.01, 0.01, 0.01))
    fine, coarse = open_volume(path), open_volume(path, level=1)
    np.testing.assert_array_equal(fine[:], array.astype("f4"))
    assert (fine.channels, fine.dtype, coarse.shape) == (2, np.float32, (16, 130, 70))
    cells = array.astype("f8").reshape(2, 16, 2, 130, 2, 70, 2).mean((2, 4, 6))
    np.testing.assert_allclose(coarse[:], cells, rtol=1e-6)
    monkeypatch.setattr(ome_zarr, "_BLOCK_VOXELS", 1)
    export_volume(stored(tmp_path, "array", array), f"{tmp_path}/blocks.ome.zarr")
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/blocks.ome.zarr", level=1)[:], coarse[:])


def test_what_was_there_is_replaced_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, ids())
    image = np.full((1, 30, 20), 7, "u1")
    volume, path = written(tmp_path, image, None)
    assert [level.name for level in Path(path).iterdir() if level.is_dir()] == ["0"]
    np.testing.assert_array_equal(open_volume(path)[:][0], image)
    assert open_volume(path).voxel_size is None
    monkeypatch.setattr(ome_zarr, "image_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_volume(volume, path)
    np.testing.assert_array_equal(open_volume(path)[:][0], image)
    assert {p.name for p in tmp_path.iterdir()} == {"array.npy", "out.ome.zarr"}


def test_places_and_scales_are_those_of_the_volume(tmp_path: Path) -> None:
    volume = stored(tmp_path, "array", ids())
    volume.voxel_size = SIZE
    export_volume(volume.crop((5, 10, 0), SHAPE), f"{tmp_path}/part.ome.zarr")
    (image,) = json.loads((tmp_path / "part.ome.zarr/zarr.json").read_text())["attributes"]["ome"][
        "multiscales"
    ]
    first, second = [[m[m["type"]] for m in d["coordinateTransformations"]] for d in image["datasets"][:2]]
    assert first == [[0.05, 0.01, 0.01], pytest.approx([0.25, 0.1, 0])]
    # The middle of two voxels is half a voxel from that of the first.
    assert second == [[0.05, 0.02, 0.02], pytest.approx([0.25, 0.105, 0.005])]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]


def test_zarr_reads_all_levels(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    array = ids()
    _, path = written(tmp_path, array)
    group = zarr.open_group(path, mode="r")
    for number, dataset in enumerate(group.attrs["ome"]["multiscales"][0]["datasets"]):
        found = open_volume(path, level=number)[:][0]
        np.testing.assert_array_equal(group[dataset["path"]][:], found)
    assert number == 2


def test_ome_zarr_py_reads_the_image(tmp_path: Path) -> None:
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    array = ids()
    _, path = written(tmp_path, array)
    (node,) = Reader(parse_url(path))()
    assert [level.shape for level in node.data] == [SHAPE, (40, 145, 265), (40, 73, 133)]
    np.testing.assert_array_equal(np.asarray(node.data[0]), array)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    scales = [moves[0]["scale"] for moves in node.metadata["coordinateTransformations"]]
    np.testing.assert_allclose(scales, [[0.05, 0.01 * f, 0.01 * f] for f in (1, 2, 4)])
