# SPDX-License-Identifier: BSD-3-Clause
"""What other programs' readers find in exported files: values, axes and voxel size."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.data.exports import export_volume, require_export
from fastseg.data.label_map import LabelMapSource
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError

SIZE = (0.3, 0.1, 0.05)
SHAPES = {
    "image": (1, 1, 13, 17),
    "stack": (1, 5, 13, 17),
    "channels": (2, 1, 13, 17),
    "both": (3, 5, 13, 17),
}


def given(folder: Path, shape: tuple[int, ...], dtype: str = "u1", size: object = SIZE) -> Volume:
    array = np.random.default_rng(0).integers(0, 5, shape).astype(dtype)
    np.save(folder / "given.npy", array)
    volume = open_volume(folder / "given.npy")
    volume.voxel_size = size
    return volume


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".nii.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, shape: str, suffix: str) -> None:
    if suffix == ".nii.gz":
        pytest.importorskip("nibabel")
    volume = given(tmp_path, SHAPES[shape])
    path = f"{tmp_path}/new/out{suffix}"
    export_volume(volume, path)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"out{suffix}"]
    if suffix == ".nii.gz":
        import nibabel

        image = nibabel.load(path)
        found = np.asarray(image.dataobj)
        found = found.reshape(*found.shape[:3], -1).transpose(3, 2, 1, 0)
        np.testing.assert_allclose(image.header.get_zooms()[:3], SIZE[::-1], rtol=1e-6)
        assert image.header.get_xyzt_units()[0] == "micron"
    else:
        again = open_volume(path)
        found = again[:]
        if suffix != ".npy" and SHAPES[shape][1] > 1:
            assert again.voxel_size == pytest.approx(SIZE, rel=1e-5)
    np.testing.assert_array_equal(found, volume[:])


def test_an_imagej_stack(tmp_path: Path) -> None:
    export_volume(given(tmp_path, SHAPES["both"]), f"{tmp_path}/out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZCYX"
        metadata = file.imagej_metadata
        assert (metadata["spacing"], metadata["unit"], metadata["max"]) == (0.3, "um", 4)
        pixels, micrometres = file.pages[0].tags["XResolution"].value
        assert pixels / micrometres == pytest.approx(20)
    export_volume(given(tmp_path, (1, 1, 13, 17), size=None), f"{tmp_path}/out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.series[0].axes == "YX"


@pytest.mark.parametrize(
    ("dtype", "name"), [("u1", "uint8"), ("f2", "float"), ("i4", "int32"), ("u4", "uint32")]
)
def test_ome_xml(tmp_path: Path, dtype: str, name: str) -> None:
    export_volume(given(tmp_path, SHAPES["both"], dtype), f"{tmp_path}/out.ome.tif")
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        assert file.series[0].axes == "ZCYX"
    assert pixels is not None
    assert [pixels.get(f"Size{axis}") for axis in "XYZC"] == ["17", "13", "5", "3"]
    assert [float(pixels.get(f"PhysicalSize{axis}") or 0) for axis in "ZYX"] == [0.3, 0.1, 0.05]
    assert pixels.get("Type") == name


def test_beyond_4_gigabytes_a_tiff_is_big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastseg.data.exports._MOST_CLASSIC_BYTES", 1000)
    volume = given(tmp_path, SHAPES["both"])
    export_volume(volume, f"{tmp_path}/out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        assert file.is_ome
    np.testing.assert_array_equal(open_volume(tmp_path / "out.tif")[:], volume[:])


@pytest.mark.parametrize("dtype", ["u1", "u2", "?"])
def test_a_png_holds_ids(tmp_path: Path, dtype: str) -> None:
    volume = given(tmp_path, SHAPES["image"], dtype)
    export_volume(volume, f"{tmp_path}/out.png")
    np.testing.assert_array_equal(imageio.imread(tmp_path / "out.png"), volume[:][0, 0])
    with pytest.raises(InputError, match=r"out.png: a PNG holds one image of one channel"):
        require_export("out.png", given(tmp_path, SHAPES["stack"]), 1)
    with pytest.raises(InputError, match=r"8 or 16 bits, not int32"):
        export_volume(given(tmp_path, SHAPES["image"], "i4"), f"{tmp_path}/out.png")
    assert not list(tmp_path.glob("*partial*"))


def test_a_label_map_takes_the_more_probable_of_what_is_segmented(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((3, 4, 9, 9)).astype("f2")
    segmentation = (probability >= 0.5).astype("u1")
    segmentation[1, 0] = 0  # as morphology may leave it
    for name, array in (("p", probability), ("s", segmentation)):
        np.save(tmp_path / f"{name}.npy", array)
    p, s = open_volume(tmp_path / "p.npy"), open_volume(tmp_path / "s.npy")
    found = Volume(LabelMapSource(s, p, [7, 300, 2]))
    assert (found.dtype, found.shape) == (np.dtype("u2"), (4, 9, 9))
    expected = np.zeros((4, 9, 9), "u2")
    for z, y, x in np.ndindex(4, 9, 9):
        best = 0.0
        for channel, value in enumerate((7, 300, 2)):
            if segmentation[channel, z, y, x] and probability[channel, z, y, x] > best:
                best, expected[z, y, x] = probability[channel, z, y, x], value
    np.testing.assert_array_equal(found[:][0], expected)
    np.testing.assert_array_equal(found[1:3, 2:5, 4:][0], expected[1:3, 2:5, 4:])
    assert len(np.unique(expected)) == 4
    with pytest.raises(InputError, match=r"channel for each of the classes \[1, 2\]"):
        LabelMapSource(s, p, [1, 2])


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr", ".nii.gz"])
def test_a_part_says_where_it_lies(tmp_path: Path, suffix: str) -> None:
    """What is found in a part of a file has no place of its own: that of the part counts."""
    part = given(tmp_path, (2, 6, 13, 17)).crop((2, 3, 5), (5, 9, 11))
    np.save(tmp_path / "found.npy", part[:])
    found = open_volume(tmp_path / "found.npy")
    found.voxel_size = SIZE
    path = f"{tmp_path}/out{suffix}"
    export_volume(found, path, like=part)
    expected = np.multiply((2, 3, 5), SIZE)
    if suffix == ".ome.tif":
        with tifffile.TiffFile(path) as file:
            planes = [e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("Plane")]
        places = [[float(plane.get(f"Position{axis}")) for axis in "ZYX"] for plane in planes]
        np.testing.assert_allclose(places, [np.add(expected, (i // 2 * SIZE[0], 0, 0)) for i in range(6)])
        assert planes[0].get("PositionXUnit") == "µm"
    elif suffix == ".ome.zarr":
        attributes = json.loads((tmp_path / "out.ome.zarr/zarr.json").read_text())["attributes"]
        (scale, move) = attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        np.testing.assert_allclose(scale["scale"][-3:], SIZE)
        np.testing.assert_allclose(move["translation"][-3:], expected)
    else:
        nibabel = pytest.importorskip("nibabel")
        np.testing.assert_allclose(nibabel.load(path).affine[:3, 3], expected[::-1], rtol=1e-6)
