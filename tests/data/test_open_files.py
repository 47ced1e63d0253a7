# SPDX-License-Identifier: BSD-3-Clause
"""More volumes than a process may open files, read from any thread."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from fastseg.data import open_files
from fastseg.data.cache import ChunkCache
from fastseg.data.open_files import OpenFile
from fastseg.data.volumes import Volume, open_volume


class Handle:
    is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Counted(OpenFile):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[Handle] = []

    def open(self) -> Handle:
        self.given.append(Handle())
        return self.given[-1]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of its own, of two files."""
    monkeypatch.setattr(open_files, "_pool", open_files._Pool())
    monkeypatch.setattr(open_files, "most_open", lambda: 2)


def write_volumes(folder: Path, count: int) -> Iterator[Volume]:
    """Of the formats that keep files open, each full of its number."""
    for number in range(count):
        array = np.full((2, 16, 16), number, np.uint8)
        with h5py.File(folder / f"{number}.h5", "w") as file:
            file.create_dataset("raw", data=array, chunks=(1, 8, 8), compression="gzip")
            file.create_dataset("blosc", data=array, chunks=(1, 8, 8), scaleoffset=0)  # left to the library
        tifffile.imwrite(folder / f"{number}.tif", array, compression="zlib")
        np.save(folder / f"{number}.npy", array)
        names = (f"{number}.h5:/raw", f"{number}.h5:/blosc", f"{number}.tif", f"{number}.npy")
        for name in names:
            yield open_volume(folder / name)


def open_in(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in names if name.startswith(str(folder))]


def require_numbers(volumes: list[Volume]) -> None:
    cache = ChunkCache(1 << 20)
    for place, volume in enumerate(volumes):
        cached = volume.with_cache(cache).read((0, 3, 3), (2, 13, 13))
        assert (cached == place // 4).all()
        assert (volume.read((0, 3, 3), (2, 13, 13)) == place // 4).all()


def test_more_volumes_than_open_files(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 60, limits[1]))
    try:
        volumes = list(write_volumes(tmp_path, 30))
        require_numbers(volumes)
        assert max(map(int, os.listdir("/proc/self/fd"))) < taken + 59
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("two")
def test_threads_read_more_volumes_than_stay_open(tmp_path: Path) -> None:
    volumes = list(write_volumes(tmp_path, 3))
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(require_numbers, volumes) for _ in range(24)]:
            done.result()
    gc.collect()
    assert len(open_in(tmp_path)) <= 4  # h5py opens a file twice


@pytest.mark.usefixtures("two")
def test_the_least_recently_used_that_nobody_uses_is_closed() -> None:
    a, b, c, d = files = [Counted() for _ in range(4)]
    for file in (a, b, a, c):
        with file.handle() as handle:
            assert not handle.is_closed
    assert [[h.is_closed for h in f.given] for f in files] == [[False], [True], [False], []]
    with a.handle() as held, c.handle(), d.handle(), b.handle():
        assert not held.is_closed
        assert len(b.given) == 2
    with d.handle():
        pass
    assert sum(not h.is_closed for f in files for h in f.given) <= 3
    with a.handle() as again:
        assert not again.is_closed


@pytest.mark.usefixtures("two")
def test_a_file_that_cannot_be_opened_is_used_by_nobody() -> None:
    class Broken(OpenFile):
        def open(self) -> None:
            raise OSError("no such thing")

    broken = Broken()
    for _ in range(3):
        with pytest.raises(OSError, match="no such thing"), broken.handle():
            pass
    assert broken._users == 0


@pytest.mark.usefixtures("two")
def test_volumes_that_are_gone_hold_no_file(tmp_path: Path) -> None:
    volumes = list(write_volumes(tmp_path, 1))
    require_numbers(volumes)
    assert open_in(tmp_path)
    del volumes
    gc.collect()
    assert open_in(tmp_path) == []
