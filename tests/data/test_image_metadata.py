# SPDX-License-Identifier: BSD-3-Clause
"""What TIFF, OME-Zarr, N5 and our own outputs state of a volume: axes, levels, voxel size, planes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from tests.data.formats import Case, values, write


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((5, 20, 30), {"metadata": {"axes": "ZYX"}, "ome": True}, (1, 5, 20, 30)),
        ((2, 5, 20, 30), {"metadata": {"axes": "CZYX"}, "ome": True}, (2, 5, 20, 30)),
        ((5, 2, 20, 30), {"metadata": {"axes": "ZCYX"}, "ome": True, "compression": "zstd"}, (2, 5, 20, 30)),
        ((5, 2, 20, 30), {"metadata": {"axes": "ZCYX"}, "imagej": True}, (2, 5, 20, 30)),
        ((20, 30, 3), {"photometric": "rgb", "compression": "zstd"}, (3, 1, 20, 30)),
        ((3, 20, 30), {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, (3, 1, 20, 30)),
        ((5, 20, 30, 3), {"photometric": "rgb", "compression": "deflate", "rowsperstrip": 7}, (3, 5, 20, 30)),
        ((20, 40, 30), {"volumetric": True, "tile": (16, 16, 16), "compression": "zstd"}, (1, 20, 40, 30)),
    ],
)
def test_axes_of_tiffs(
    tmp_path: Path, shape: tuple[int, ...], options: dict, expected: tuple[int, ...]
) -> None:
    array = values("u1", shape)
    tifffile.imwrite(tmp_path / "v.tif", array, **{"photometric": "minisblack"} | options)
    volume = open_volume(tmp_path / "v.tif")
    assert (volume.channels, *volume.shape) == expected
    if shape[-1] == 3:
        array = np.moveaxis(array, -1, 0)
    elif "ZCYX" in str(options):
        array = array.swapaxes(0, 1)
    assert np.array_equal(volume[:], array.reshape(expected))
    assert np.array_equal(volume[0:1, 3:19, 16:30], array.reshape(expected)[:, 0:1, 3:19, 16:30])


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    options = {"ome": True, "metadata": {"axes": "TZYX"}, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "v.tif", values("u1", (2, 5, 20, 30)), **options)
    with pytest.raises(InputError, match=r"v\.tif has 2 time points"):
        open_volume(tmp_path / "v.tif")
    assert open_volume(tmp_path / "v.tif", "czyx").channels == 2


def test_physical_size_of_an_ome_tiff(tmp_path: Path) -> None:
    size = {"PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.008, "PhysicalSizeZ": 0.04}
    tifffile.imwrite(
        tmp_path / "v.tif", values("u1", (5, 20, 30)), ome=True, metadata={"axes": "ZYX", **size}
    )
    assert open_volume(tmp_path / "v.tif").voxel_size == (0.04, 0.008, 0.004)


def test_ome_tiff_of_several_files(tmp_path: Path) -> None:
    """Each file names its sister: planes come from both."""
    array = values("u2", (2, 20, 30))
    for z, plane in enumerate(array):
        tifffile.imwrite(
            tmp_path / f"p{z}.ome.tif", plane, compression="zstd", metadata=None, description=_ome(z)
        )
    volume = open_volume(tmp_path / "p0.ome.tif")
    assert volume.shape == (2, 20, 30)
    assert np.array_equal(volume[:][0], array)


def _ome(own: int) -> str:
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="p{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(2)
    )
    return (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="30" SizeY="20" SizeZ="2" SizeC="1" '
        f'SizeT="1"><Channel ID="Channel:0:0"/>{planes}</Pixels></Image></OME>'
    )


def _ome_zarr(folder: Path, version: int, axes: str = "tczyx") -> tuple[str, list[np.ndarray]]:
    """Two levels, as bioformats2raw and ome-zarr-py write them."""
    levels = [values("u2", (1, 2, 4, 8, 10)), values("u2", (1, 2, 4, 4, 5))]
    group = zarr.open_group(folder / "brain.ome.zarr", mode="w", zarr_format=version)
    names = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    image = {
        "axes": [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *names],
        "datasets": [
            {
                "path": str(i),
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 40, 8 * s, 8 * s]}],
            }
            for i, s in enumerate((1, 2))
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 1, 0.5]}],
    }
    images = {"version": "0.4" if version == 2 else "0.5", "multiscales": [image]}
    group.attrs.update(images if version == 2 else {"ome": images})
    for i, level in enumerate(levels):
        group.create_array(str(i), shape=level.shape, dtype="u2", chunks=(1, 1, 2, 4, 4))[...] = level
    return f"{folder}/brain.ome.zarr", levels


@pytest.mark.parametrize("version", [2, 3])
def test_levels_of_an_ome_zarr_image(tmp_path: Path, version: int) -> None:
    path, levels = _ome_zarr(tmp_path, version)
    for volume, level, size in (
        (open_volume(path), 0, (0.04, 0.008, 0.004)),
        (open_volume(path, level=1), 1, (0.04, 0.016, 0.008)),
        (open_volume(f"{path}:/1"), 1, (0.04, 0.016, 0.008)),
        (open_volume(f"{path}/1"), 1, (0.04, 0.016, 0.008)),
    ):
        assert np.array_equal(volume[:], levels[level][0])
        assert volume.voxel_size == size
        assert volume.chunks == (2, 4, 4)
    for wrong, message in (
        (lambda: open_volume(path, level=2), r"has the levels 0\.\.1, got level 2"),
        (lambda: open_volume(f"{path}:/1", level=1), "is one array: level 1 can be chosen"),
        (lambda: open_volume(f"{path}:/5"), r"no array or group /5; it has"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


def test_outputs_are_read_back_with_their_voxel_size(tmp_path: Path) -> None:
    array = values("u1", (4, 5, 6))
    for kind in ("h5", "zarr"):
        spec = ArraySpec((4, 5, 6), "u1", (2, 2, 2), voxel_size=(2, 0.5, 0.25))
        with open_output(tmp_path / f"v.{kind}", {"a": spec, "b": spec}) as output:
            output.write((0, 0, 0), (4, 5, 6), {"a": array, "b": array + 1})
        volume = open_volume(f"{tmp_path}/v.{kind}:/b")
        assert (volume.voxel_size, volume.axes) == ((2, 0.5, 0.25), "zyx")
        assert np.array_equal(volume[:][0], array + 1)
        with pytest.raises(InputError, match=rf"v\.{kind}:/a; it has /a, /b"):
            open_volume(tmp_path / f"v.{kind}")


def test_voxel_size_of_n5(tmp_path: Path) -> None:
    case = Case(
        "tensorstore", "|u1", (2, 2, 2), {"driver": "n5", "metadata": {"compression": {"type": "gzip"}}}
    )
    path = write(tmp_path, case, values("u1", (4, 5, 6)))
    attributes = tmp_path / "v.n5/raw/attributes.json"
    content = json.loads(attributes.read_text())
    content["pixelResolution"] = {"unit": "nm", "dimensions": [4, 8, 40]}
    attributes.write_text(json.dumps(content))
    assert open_volume(path).voxel_size == (0.04, 0.008, 0.004)
    del content["pixelResolution"]
    content["downsamplingFactors"] = [2, 2, 1]
    attributes.write_text(json.dumps(content))
    above = {"n5": "2.0.0", "pixelResolution": {"unit": "um", "dimensions": [4, 8, 40]}}
    (tmp_path / "v.n5/attributes.json").write_text(json.dumps(above))
    assert open_volume(tmp_path / "v.n5").voxel_size == (40, 16, 8)
    assert open_volume(tmp_path / "v.n5/raw").shape == (4, 5, 6)
