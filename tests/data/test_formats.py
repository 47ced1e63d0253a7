# SPDX-License-Identifier: BSD-3-Clause
"""What each format's own library wrote is read back voxel for voxel, in any box, process and thread."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import hdf5plugin
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data.tiff import TiffSource
from fastseg.data.volumes import open_volume
from tests.data.formats import Case, cases, values, write


@given(case=cases(), shape=st.tuples(*[st.integers(1, 14)] * 3), data=st.data())
def test_boxes_of_every_format(case: Case, shape: tuple[int, int, int], data: st.DataObject) -> None:
    array = values(case.dtype, shape)
    with tempfile.TemporaryDirectory() as folder:
        volume = open_volume(write(Path(folder), case, array), None if "ome" in case.options else "zyx")
        assert (volume.shape, volume.channels) == (shape, 1)
        assert volume.dtype == array.dtype.newbyteorder("=")
        for _ in range(3):
            corners = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
            box = tuple(slice(a, b) for a, b in corners)
            assert np.array_equal(volume[box][0], array[box])
        assert np.array_equal(volume[:][0], array)


@given(case=cases(["hdf5", "zarr2", "zarr3", "npy"]), shape=st.tuples(*[st.integers(1, 9)] * 3))
def test_channels_come_first(case: Case, shape: tuple[int, int, int]) -> None:
    case.options.pop("filters", None)
    array = values(case.dtype, (3, *shape))
    with tempfile.TemporaryDirectory() as folder:
        volume = open_volume(write(Path(folder), case, array))
        assert (volume.shape, volume.channels) == (shape, 3)
        assert np.array_equal(volume[:], array)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_absent_chunks_are_the_fill_value(tmp_path: Path, kind: str, dtype: str) -> None:
    version = int(kind[-1])
    for fill in (3, *([np.nan, np.inf, -np.inf] if dtype == "f4" else [])):
        for shards in (None, (4, 4, 4)) if version == 3 else (None,):
            zarr.create_array(
                tmp_path / "v.zarr", shape=(4, 5, 6), dtype=dtype, chunks=(2, 2, 2), fill_value=fill,
                zarr_format=version, shards=shards, overwrite=True,
            )[:2, :2, :2] = 1  # fmt: skip
            expected = np.full((4, 5, 6), fill, dtype)
            expected[:2, :2, :2] = 1
            np.testing.assert_array_equal(open_volume(tmp_path / "v.zarr")[:][0], expected)


def test_pages_of_a_tiled_stack_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = values("u2", (5, 256, 256))
    tifffile.imwrite(
        tmp_path / "v.tif", array, tile=(64, 64), compression="deflate", photometric="minisblack"
    )
    decoded = []
    decode = TiffSource._decode
    monkeypatch.setattr(TiffSource, "_decode", lambda s, p, i: [decoded.append(i), decode(s, p, i)][1])
    volume = open_volume(tmp_path / "v.tif")
    assert volume.chunks == (1, 64, 64)
    assert np.array_equal(volume[1:2, 60:70, 130:140][0], array[1:2, 60:70, 130:140])
    assert decoded == [2, 6]
    volume[1:2, 60:70, 130:140]
    assert decoded == [2, 6]


def test_chunks_can_be_loaded_one_by_one(tmp_path: Path) -> None:
    array = values("u2", (5, 6, 7))
    for case in (
        Case("zarr2", "<u2", (2, 2, 2), {"separator": ".", "order": "F", "compressors": numcodecs.Zlib()}),
        Case("zarr3", ">u2", (2, 2, 2), {"shards": (2, 2, 2)}),
        Case("tensorstore", "<u2", (2, 2, 2), {"driver": "n5", "metadata": {"compression": {"type": "xz"}}}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            source = open_volume(write(Path(folder), case, array)).source
            chunk = source.load((2, 1, 3))
            assert np.array_equal(chunk[:1, :, :1], array[4:, 2:4, 6:])
            assert chunk.shape == (2, 2, 2)
            assert source.load((9, 9, 9)) is None


_FORKED = """
import os, sys, threading
from fastseg.data.volumes import open_volume
volumes = [open_volume(path) for path in sys.argv[1:]]
def read():
    return [volume[:].tobytes() for volume in volumes]
expected = read()
busy = [threading.Thread(target=lambda: [read() for _ in range(40)], daemon=True) for _ in range(3)]
for thread in busy:
    thread.start()
for _ in range(10):
    pid = os.fork()
    if not pid:
        os._exit(0 if read() == expected else 1)
    if os.waitpid(pid, 0)[1]:
        sys.exit("a forked child read something else")
"""


@pytest.mark.long
def test_forked_and_spawned_processes_read(tmp_path: Path) -> None:
    """Children forked while threads read neither hang nor read anything else."""
    paths = []
    for kind, options in (
        ("zarr2", {"separator": ".", "order": "C", "compressors": numcodecs.Blosc("lz4")}),
        ("zarr3", {"shards": (2, 2, 2)}),
        ("tiff", {"tile": True, "compression": "deflate"}),
        ("npy", {"order": "C"}),
    ):
        (tmp_path / kind).mkdir()
        paths.append(write(tmp_path / kind, Case(kind, "<u2", (4, 4, 4), options), values("u2", (9, 40, 50))))
    command = [sys.executable, "-c", _FORKED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for path in paths:
            volume = open_volume(path)
            volume[:]
            found = pool.apply_async(volume.read, ((0, 0, 0), volume.shape)).get(60)
            assert np.array_equal(found, volume[:])


@pytest.mark.skipif("szip" not in h5py.filters.encode, reason="this h5py cannot write szip")
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
def test_szip(tmp_path: Path, dtype: str) -> None:
    """A case of its own: szip refuses chunks of less than a block of its own."""
    array = values(dtype, (9, 20, 33))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=array, chunks=(4, 8, 16), compression="szip")
    assert np.array_equal(open_volume(tmp_path / "v.h5")[1:8, 3:19, 5:30][0], array[1:8, 3:19, 5:30])


def test_absent_filters_are_named(tmp_path: Path) -> None:
    """In a process of its own: a filter stays registered once hdf5plugin is imported."""
    array = values("u2", (4, 5, 6))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=array, chunks=(2, 2, 2), **hdf5plugin.Blosc())
    assert np.array_equal(open_volume(tmp_path / "v.h5")[:][0], array)
    script = (
        "import sys; sys.modules['hdf5plugin'] = None\nfrom fastseg.data.volumes import open_volume\n"
        f"open_volume({str(tmp_path / 'v.h5')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "v.h5:/raw is compressed by the HDF5 filter 32001 (blosc)" in done.stderr.replace("'", "")
    assert "pip install hdf5plugin" in done.stderr


def test_locks_held_during_a_fork_do_not_stop_the_child(tmp_path: Path) -> None:
    case = Case("zarr2", "<u2", (4, 4, 4), {"separator": ".", "order": "C", "compressors": None})
    path = write(tmp_path, case, values("u2", (4, 5, 6)))
    script = (
        "import os, signal, sys\nfrom fastseg.data.volumes import open_volume\n"
        "volume = open_volume(sys.argv[1])\n"
        "with volume.source._lock:\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        signal.alarm(20)\n"
        "        volume[:]\n"
        "        os._exit(0)\n"
        "sys.exit(os.waitpid(pid, 0)[1] != 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
