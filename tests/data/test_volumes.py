# SPDX-License-Identifier: BSD-3-Clause
"""open_volume: every format read lazily as (channels, z, y, x), and each unusable file named."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.data.volumes import open_volume, require_finite
from fastseg.errors import InputError

SHAPE = (5, 13, 17)


def content(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write(folder: Path, kind: str, array: np.ndarray) -> str:
    if kind == "hdf5":
        with h5py.File(folder / "v.h5", "w") as file:
            file.create_dataset("group/raw", data=array, chunks=(2, 5, 8), compression="gzip")
        return f"{folder}/v.h5:/group/raw"
    if kind == "npy":
        np.save(folder / "v.npy", array)
        return f"{folder}/v.npy"
    if kind == "folder":
        for z, plane in enumerate(array):  # slice 10 must come after slice 9
            imageio.imwrite(folder / f"s{z + 8}.png", plane)
        return f"{folder}/s*.png"
    options = {
        "tiff": {},
        "tiff-deflate": {"compression": "deflate"},
        "tiff-tiled": {"tile": (16, 16), "compression": "deflate"},
        "tiff-big": {"bigtiff": True},
        "tiff-imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    }
    tifffile.imwrite(folder / "v.tif", array, **options[kind])
    return f"{folder}/v.tif"


KINDS = ["hdf5", "npy", "folder", "tiff", "tiff-deflate", "tiff-tiled", "tiff-big", "tiff-imagej"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f4"])
def test_every_format_gives_the_same_boxes(tmp_path: Path, kind: str, dtype: str) -> None:
    if kind == "folder" and dtype not in ("u1", "<u2"):
        pytest.skip("PNG holds unsigned integers")
    array = content(dtype)
    volume = open_volume(write(tmp_path, kind, array))
    assert (volume.shape, volume.channels) == (SHAPE, 1)
    assert volume.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(volume.read((0, 0, 0), SHAPE)[0], array)
    assert np.array_equal(volume[1:4, 2:11, 5:6][0], array[1:4, 2:11, 5:6])
    assert volume[:].flags.c_contiguous
    assert np.array_equal(pickle.loads(pickle.dumps(volume))[2:3], volume[2:3])


def test_crop_counts_from_its_own_origin(tmp_path: Path) -> None:
    array = content("u2")
    crop = open_volume(write(tmp_path, "npy", array)).crop((1, 2, 3), (4, 12, 17)).crop((1, 0, 0), (3, 5, 5))
    assert crop.origin == (2, 2, 3)
    assert np.array_equal(crop[:][0], array[2:4, 2:7, 3:8])
    with pytest.raises(InputError, match=r"range z 0:4 must lie within 0:2"):
        crop.crop((0, 0, 0), (4, 5, 5))


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("yx", (13, 17), (1, 1, 13, 17)),
        ("czyx", (2, 5, 13, 17), (2, 5, 13, 17)),
        ("zyxc", (5, 13, 17, 3), (3, 5, 13, 17)),
        ("yxc", (13, 17, 3), (3, 1, 13, 17)),
        ("xyz", (17, 13, 5), (1, 5, 13, 17)),
    ],
)
def test_axes(tmp_path: Path, axes: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = content("u2", shape)
    np.save(tmp_path / "v.npy", array)
    volume = open_volume(tmp_path / "v.npy", axes)
    assert (volume.channels, *volume.shape) == expected
    rank = [axes.index(a) for a in "czyx" if a in axes]
    assert np.array_equal(volume[:].reshape(expected), array.transpose(rank).reshape(expected))


def test_rgb_folder_drops_transparency(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (13, 17, 4), np.uint8)
    imageio.imwrite(tmp_path / "a.png", image)
    volume = open_volume(tmp_path)
    assert (volume.channels, *volume.shape) == (3, 1, 13, 17)
    assert np.array_equal(volume[:][:, 0], np.moveaxis(image[:, :, :3], -1, 0))


@pytest.mark.parametrize("chunks", [None, (2, 5, 8)])
@pytest.mark.parametrize("most", [1, 100, 1000, 10**9])
def test_blocks_tile_the_volume_once(tmp_path: Path, chunks: tuple[int, ...] | None, most: int) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", SHAPE, "u1", chunks=chunks)
    volume = open_volume(tmp_path / "v.h5")
    seen = np.zeros(SHAPE, int)
    for start, stop in volume.blocks(most):
        seen[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] += 1
    assert (seen == 1).all()


def test_voxel_size_of_an_imagej_stack(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "v.tif",
        content("u2"),
        imagej=True,
        resolution=(4, 2),
        metadata={"spacing": 3, "unit": "um", "axes": "ZYX"},
    )
    assert open_volume(tmp_path / "v.tif").voxel_size == (3.0, 0.5, 0.25)


def _truncated_hdf5(folder: Path) -> str:
    path = write(folder, "hdf5", np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype("u1"))
    file = folder / "v.h5"
    file.write_bytes(file.read_bytes()[:50_000])
    return path


def _hdf5_of_two(folder: Path) -> str:
    with h5py.File(folder / "v.h5", "w") as file:
        file["raw"], file["labels/mito"] = content("u1"), content("u1")
    return f"{folder}/v.h5"


def _mixed_folder(folder: Path) -> str:
    imageio.imwrite(folder / "a.png", content("u1")[0])
    imageio.imwrite(folder / "b.png", content("u1")[0][:5])
    return str(folder)


UNUSABLE = {
    "missing file": (lambda f: f"{f}/none.tif", r"none\.tif does not exist"),
    "missing HDF5 file": (lambda f: f"{f}/none.h5:/raw", r"none\.h5 does not exist"),
    "missing dataset": (lambda f: _hdf5_of_two(f) + ":/row", r"no dataset /row; it has /labels/mito, /raw"),
    "group, not dataset": (
        lambda f: _hdf5_of_two(f) + ":/labels",
        r"no dataset /labels; it has /labels/mito",
    ),
    "dataset not named": (_hdf5_of_two, r"needs a dataset, as in v\.h5:/labels/mito"),
    "truncated HDF5": (_truncated_hdf5, r"v\.h5 cannot be opened as HDF5: .*truncated"),
    "no HDF5": (
        lambda f: [(f / "v.h5").write_text("text"), f"{f}/v.h5:/raw"][1],
        r"cannot be opened as HDF5",
    ),
    "no TIFF": (lambda f: [(f / "v.tif").write_text("text"), f"{f}/v.tif"][1], r"cannot be opened as TIFF"),
    "no npy": (lambda f: [(f / "v.npy").write_text("text"), f"{f}/v.npy"][1], r"cannot be opened as \.npy"),
    "no image": (
        lambda f: [(f / "v.png").write_text("text"), f"{f}/v.png"][1],
        r"cannot be read as an image",
    ),
    "empty pattern": (lambda f: f"{f}/*.png", r"matches no image"),
    "mixed sizes": (_mixed_folder, r"b\.png must be \(13, 17\) uint8 like .*a\.png, got \(5, 17\)"),
    "unknown suffix": (lambda f: [(f / "v.xyz").write_text("text"), f"{f}/v.xyz"][1], r"no known suffix"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_are_named(tmp_path: Path, case: str) -> None:
    make, message = UNUSABLE[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message):
        open_volume(path)[:]


def test_truncated_tiff_is_named(tmp_path: Path) -> None:
    path = Path(
        write(tmp_path, "tiff-deflate", np.random.default_rng(0).integers(0, 255, (9, 64, 64)).astype("u1"))
    )
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"v\.tif cannot be"):
        open_volume(path)[:]


def test_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "hdf5", np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype("u1"))
    with h5py.File(tmp_path / "v.h5") as file:
        offset = file["group/raw"].id.get_chunk_info(100).byte_offset
    content = bytearray((tmp_path / "v.h5").read_bytes())
    content[offset : offset + 20] = b"x" * 20
    (tmp_path / "v.h5").write_bytes(content)
    with pytest.raises(InputError, match=r"v\.h5:/group/raw cannot be read at \[0:64, 0:64, 0:64\]"):
        open_volume(path)[:]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_placed_in_the_file(tmp_path: Path, value: float) -> None:
    array = content("f4")
    array[3, 7, 11] = value
    volume = open_volume(write(tmp_path, "npy", array)).crop((1, 2, 3), SHAPE)
    with pytest.raises(InputError, match=r"v\.npy holds (nan|inf) at \(z, y, x\) = \(3, 7, 11\)"):
        require_finite(volume.read((1, 0, 0), (3, 11, 14)), volume, (1, 0, 0))
    require_finite(volume.read((0, 0, 0), (2, 11, 14)), volume, (0, 0, 0))
