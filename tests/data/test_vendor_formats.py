# SPDX-License-Identifier: BSD-3-Clause
"""NIfTI, MRC and Imaris as their own libraries write them, and the way over from formats that are not read."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from fastseg.data.exports import export_volume
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype("i2")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
def test_nifti(tmp_path: Path, suffix: str, unit: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([-0.5, 0.25, 2.0, 1])
    affine[:3, 3] = 10, 20, 30
    image = nibabel.Nifti1Image(ARRAY.transpose(), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / f"v{suffix}")
    volume = open_volume(tmp_path / f"v{suffix}")
    assert (volume.shape, volume.dtype) == (ARRAY.shape, ARRAY.dtype)
    np.testing.assert_array_equal(volume[1:4, 2:, :5][0], ARRAY[1:4, 2:, :5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:][0], ARRAY)
    factor = {"mm": 1e3, "micron": 1, "unknown": None}[unit]
    assert volume.voxel_size == (None if factor is None else (2 * factor, 0.25 * factor, 0.5 * factor))
    # What is made of a part of it lies where that part lay.
    part = volume.crop((1, 2, 3), (4, 6, 7))
    export_volume(part, f"{tmp_path}/out.nii.gz", like=part)
    out = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(out.dataobj, ARRAY.transpose()[3:7, 2:6, 1:4])
    np.testing.assert_allclose(out.affine[:3, 3], (affine @ [3, 2, 1, 1])[:3])
    np.testing.assert_allclose(out.affine[:3, :3], affine[:3, :3])
    assert out.header.get_xyzt_units()[0] == unit


def test_nifti_with_a_slope_and_of_several_times(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(ARRAY.transpose(), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "v.nii")
    volume = open_volume(tmp_path / "v.nii")
    assert volume.dtype == np.float32
    stored = nibabel.load(tmp_path / "v.nii").get_fdata()
    np.testing.assert_allclose(volume[:][0], stored.transpose(), rtol=1e-6)
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5, 2), "u1"), np.eye(4)), tmp_path / "times.nii")
    with pytest.raises(InputError, match=r"2 time points: .* or channels \('xyzc'\)"):
        open_volume(tmp_path / "times.nii")
    assert open_volume(tmp_path / "times.nii", "xyzc").channels == 2


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
@pytest.mark.parametrize("stated", ["|AppMag = 20|MPP = 0.499|Left = 25.7", "|AppMag = 20"])
def test_aperio_slides(tmp_path: Path, compression: str | None, stated: str) -> None:
    """A tiled level, a thumbnail and a smaller level, as Aperio's scanner writes them."""
    y, x = np.mgrid[:300, :500]
    image = np.stack((y % 256, x % 256, (x + y) // 4 % 256), -1).astype("u1")
    description = f"Aperio Image Library v11.2.1\r\n500x300 [0,0 500x300] (240x240) JPEG/RGB Q=70{stated}"
    options = {"photometric": "rgb", "compression": compression, "metadata": None, "description": description}
    with tifffile.TiffWriter(tmp_path / "slide.svs") as file:
        file.write(image, tile=(240, 240), **options)
        file.write(image[::4, ::4], photometric="rgb", metadata=None, description=description)
        file.write(image[::2, ::2], tile=(240, 240), **options)
    volume = open_volume(tmp_path / "slide.svs")
    assert (volume.shape, volume.channels, volume.dtype) == ((1, 300, 500), 3, np.uint8)
    assert volume.voxel_size == (pytest.approx((0.499,) * 3) if "MPP" in stated else None)
    found = pickle.loads(pickle.dumps(volume))[:, 200:260, 230:400][:, 0].transpose(1, 2, 0)
    error = np.abs(found.astype(int) - image[200:260, 230:400])
    assert np.median(error) <= (3 if compression == "jpeg" else 0)


@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f4"])
def test_mrc(tmp_path: Path, dtype: str) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    array = (ARRAY // 2).astype(dtype)
    with mrcfile.new(tmp_path / "v.mrc", array) as file:
        file.voxel_size = (13.0, 14.0, 15.0)  # x, y, z in Angstrom
    volume = open_volume(tmp_path / "v.mrc")
    assert volume.voxel_size == pytest.approx((15e-4, 14e-4, 13e-4))
    np.testing.assert_array_equal(volume[1:4, 2:, :5][0], array[1:4, 2:, :5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:][0], array)


def write_imaris(path: Path, times: int = 1) -> np.ndarray:
    """Two channels at two levels, padded to whole chunks, numbers as arrays of single characters."""
    stack = np.stack([ARRAY, ARRAY + 1])
    with h5py.File(path, "w") as file:
        info = file.create_group("DataSetInfo/Image").attrs
        text = {"Unit": "um", "X": "7", "Y": "6", "Z": "5"}
        text |= {f"ExtMin{k}": "1.0" for k in range(3)} | {
            "ExtMax0": "8.0",
            "ExtMax1": "4.0",
            "ExtMax2": "11.0",
        }
        for name, value in text.items():
            info[name] = np.array([c.encode() for c in value], "S1")
        for time in range(times):
            for channel, array in enumerate(stack):
                group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint {time}/Channel {channel}")
                padded = np.zeros((8, 8, 8), "i2")
                padded[:5, :6, :7] = array
                group.create_dataset("Data", data=padded, chunks=(4, 4, 4), compression="gzip")
                for axis, size in zip("ZYX", array.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = np.array([c.encode() for c in str(size)], "S1")
    return stack


def test_imaris(tmp_path: Path) -> None:
    stack = write_imaris(tmp_path / "v.ims")
    volume = open_volume(tmp_path / "v.ims")
    assert (volume.channels, volume.shape, volume.chunks) == (2, (5, 6, 7), (4, 4, 4))
    assert volume.voxel_size == pytest.approx((2.0, 0.5, 1.0))
    np.testing.assert_array_equal(volume[:], stack)
    np.testing.assert_array_equal(volume[1:4, 2:, :5], stack[:, 1:4, 2:, :5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:], stack)
    dataset = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 1/Data"
    assert open_volume(f"{tmp_path}/v.ims:/{dataset}").shape == (8, 8, 8)
    write_imaris(tmp_path / "times.ims", 2)
    with pytest.raises(
        InputError, match=r"has 2 time points: name a dataset of one, as in .*times\.ims:/DataSet"
    ):
        open_volume(tmp_path / "times.ims")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mrc", ".ims"])
@pytest.mark.parametrize("content", [b"", b"no volume at all" * 100])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    for library in {".ims": ["h5py"], ".mrc": ["mrcfile"]}.get(suffix, ["nibabel"]):
        pytest.importorskip(library)
    (tmp_path / f"v{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=rf"v{suffix}.* cannot be opened as"):
        open_volume(tmp_path / f"v{suffix}")


@pytest.mark.parametrize(("suffix", "library"), [(".nii", "nibabel"), (".mrc", "mrcfile")])
def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / f"v{suffix}").write_bytes(b"")
    with pytest.raises(InputError, match=rf"needs {library}: pip install 'fastseg\[formats\]'"):
        open_volume(tmp_path / f"v{suffix}")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.oib", "bioformats2raw"),
        ("a.VSI", "Fiji"),
        ("a.mrxs", "QuPath"),
        ("a.dcm", "dcm2niix"),
        ("a.nrrd", "SimpleITK"),
    ],
)
def test_the_way_over_is_told(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}: convert it to OME-Zarr or TIFF first, with .*{way}"):
        open_volume(tmp_path / name)
