# SPDX-License-Identifier: BSD-3-Clause
"""Chunks fetched and decoded past the HDF5 library, and the cache that threads share."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data.cache import ChunkCache
from fastseg.data.chunks import ChunkReader
from fastseg.data.hdf5 import Hdf5Source
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError

FILTERS = {
    "none": {},
    "gzip": {"compression": "gzip", "compression_opts": 1},
    "gzip shuffle": {"compression": "gzip", "shuffle": True},
    "gzip checksum": {"compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "all": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    "shuffle": {"shuffle": True},
    "checksum": {"fletcher32": True},
}


def write(folder: Path, array: np.ndarray, chunks: tuple[int, ...], **options: object) -> Path:
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("raw", data=array, chunks=chunks, **options)
    return folder / "v.h5"


@given(data=st.data())
def test_boxes_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["u1", "<u2", ">u2", "i4", "<f4", ">f8", "?"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=3, max_size=4)))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    array = rng.integers(0, data.draw(st.sampled_from([2, 256])), shape).astype(
        dtype
    )  # or noise: filters give up
    path = write(
        tmp_path_factory.mktemp("f"), array, chunks, **FILTERS[data.draw(st.sampled_from([*FILTERS]))]
    )
    plain = open_volume(f"{path}:/raw")
    volume = plain.with_cache(ChunkCache(data.draw(st.sampled_from([1, 1 << 20]))))
    assert volume.cache is not None
    for _ in range(3):
        start = [data.draw(st.integers(0, n - 1)) for n in volume.shape]
        stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, volume.shape, strict=True)]
        found = volume.read(start, stop)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(found, plain.read(start, stop))
        out = np.zeros((volume.channels, 14, 14, 14), found.dtype)[
            :, : found.shape[1], 1 : 1 + found.shape[2]
        ]
        assert volume.read(start, stop, out[..., : found.shape[3]]).base is not None
        assert np.array_equal(out[..., : found.shape[3]], found)


def test_axes_of_any_order(tmp_path: Path) -> None:
    array = np.arange(5 * 7 * 6 * 2).reshape(5, 7, 6, 2).astype("u2")
    path = write(tmp_path, array, (2, 3, 4, 1), compression="gzip")
    for axes in ("zyxc", "xyzc", "yxzc"):
        plain = open_volume(f"{path}:/raw", axes)
        assert np.array_equal(plain.with_cache(ChunkCache(1 << 20))[1:, 2:, 1:4], plain[1:, 2:, 1:4])


def test_chunks_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        array = file.create_dataset("raw", (8, 8, 8), "u2", chunks=(4, 4, 4), compression="gzip", fillvalue=7)
        array[:4, :4, :4] = 1
    reader = Hdf5Source(f"{tmp_path}/v.h5", "raw").chunk_reader()
    assert reader is not None
    assert reader.load((0, 0, 1)) is None
    cache = ChunkCache(1 << 20)
    volume = open_volume(tmp_path / "v.h5").with_cache(cache)[:]
    assert np.array_equal(volume, open_volume(tmp_path / "v.h5")[:])
    assert volume.sum() == 64 + 7 * (512 - 64)


@pytest.mark.parametrize("options", [{"scaleoffset": 3}, {"compression": "szip"}])
def test_other_filters_are_left_to_the_library(tmp_path: Path, options: dict[str, object]) -> None:
    array = np.arange(512).reshape(8, 8, 8).astype("i4")
    volume = open_volume(write(tmp_path, array, (4, 4, 4), **options))
    assert volume.source.chunk_reader() is None
    assert np.array_equal(volume.with_cache(ChunkCache(1))[:], volume[:])
    assert np.array_equal(volume.read((0, 0, 0), (8, 8, 8), np.zeros((1, 8, 8, 8), "i4")), volume[:])


def test_user_blocks_and_other_drivers_are_left_to_the_library(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w", userblock_size=512) as file:
        file.create_dataset("raw", data=np.arange(512).reshape(8, 8, 8), chunks=(4, 4, 4))
    volume = open_volume(tmp_path / "v.h5")
    assert volume.source.chunk_reader() is None
    assert volume.with_cache(ChunkCache(1))[:].max() == 511


def test_external_links_lead_to_the_file_that_holds_the_chunks(tmp_path: Path) -> None:
    array = np.arange(512).reshape(8, 8, 8)
    write(tmp_path, array, (4, 4, 4), compression="gzip")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["there"] = h5py.ExternalLink("v.h5", "/raw")
    volume = open_volume(f"{tmp_path}/link.h5:/there").with_cache(ChunkCache(1))
    assert volume.cache is not None
    assert np.array_equal(volume[:][0], array)


def test_sources_pickle_after_reading(tmp_path: Path) -> None:
    path = write(tmp_path, np.arange(512).reshape(8, 8, 8), (4, 4, 4), compression="gzip")
    source = Hdf5Source(str(path), "raw")
    reader = source.chunk_reader()
    again = pickle.loads(pickle.dumps(source)).chunk_reader()
    assert reader is not None
    assert reader is not again
    assert np.array_equal(again.load((1, 1, 1)), reader.load((1, 1, 1)))


DAMAGES = {
    "zeros": "",
    "short": "a chunk must hold 64 bytes, got 2",
    "checksum": "the checksum of a chunk must be 0x",
    "truncated": "the file ends within a chunk: ",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunks_are_placed(tmp_path: Path, damage: str) -> None:
    array = np.random.default_rng(0).integers(0, 9, (8, 8, 10)).astype("u1")
    options = {"fletcher32": True} if damage == "checksum" else {"compression": "gzip"}
    path = write(tmp_path, array, (4, 4, 4), **options)
    with h5py.File(path) as file:
        info = file["raw"].id.get_chunk_info_by_coord((4, 4, 8))
    content = bytearray(path.read_bytes())
    at = info.byte_offset
    if damage == "checksum":
        content[at] ^= 1
    elif damage == "short":  # a whole gzip stream of too few bytes
        import zlib

        packed = zlib.compress(b"ab")
        content[at : at + len(packed)] = packed
    elif damage == "zeros":
        content[at : at + info.size] = bytes(info.size)
    volume = open_volume(path).with_cache(ChunkCache(1))
    if damage == "truncated":
        volume.read((0, 0, 0), (1, 1, 1))
        content = content[: at + 3]
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate(len(content))
    with pytest.raises(
        InputError, match=r"v\.h5:/raw cannot be read at \[4:8, 4:8, 8:10\]: " + DAMAGES[damage]
    ):
        volume.read((3, 3, 7), (8, 8, 10))
    if damage != "truncated":
        volume.read((0, 0, 0), (4, 4, 4))


class Numbers(ChunkReader):
    """Chunks of 1000 equal numbers, decoded by Python; odd ones are absent if asked for."""

    name, shape, chunks = "numbers", (10_000_000,), (1000,)

    def __init__(self, *, absent: bool = False) -> None:
        self.stored = ChunkLayout(f"numbers, {absent}", np.dtype("u1"), self.chunks, fill=7)
        self.absent, self.loads, self.gate = absent, list[int](), threading.Event()
        self.gate.set()

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        self.loads.append(index[0])
        self.gate.wait(20)
        return None if self.absent else np.full(1000, index[0] % 256, "u1")

    def read(self, cache: ChunkCache, *chunks: int) -> list[int]:
        """Of a range of chunks, the numbers."""
        out = np.zeros(1000 * len(chunks), "u1")
        cache.read(self, [1000 * chunks[0]], out)
        return out[::1000].tolist()


def test_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    numbers, cache = Numbers(), ChunkCache(3 * (1000 + 512))
    for key in (0, 1, 2, 0, 3, 0, 1):  # 3 drops 1, which must be loaded again and drops 2
        assert numbers.read(cache, key) == [key]
    assert numbers.loads == [0, 1, 2, 3, 1]
    assert cache.held == 3 * (1000 + 512)
    # What was found was used, and what a box touches is found together.
    assert numbers.read(cache, 0, 1) == [0, 1]
    assert numbers.read(cache, 4, 5) == [4, 5]
    assert numbers.read(cache, 1) == [1]
    assert numbers.loads == [0, 1, 2, 3, 1, 4, 5]
    absent = Numbers(absent=True)
    for key in range(10_000):  # chunks never written take little, but not nothing
        assert absent.read(cache, key) == [7]
    assert cache.held <= cache.most_bytes
    assert len(cache) <= 9
    assert cache.decoded == 7 + 10_000
    again = pickle.loads(pickle.dumps(cache))
    assert (again.most_bytes, len(again), again.held) == (cache.most_bytes, 0, 0)


def test_a_chunk_is_decoded_once_however_many_ask() -> None:
    numbers, cache = Numbers(), ChunkCache(1 << 20)
    numbers.gate.clear()
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(numbers.read, cache, 5) for _ in range(6)]
        time.sleep(0.05)
        numbers.gate.set()
        assert [future.result() for future in asked] == [[5]] * 6
    assert numbers.loads == [5]


def test_an_error_is_not_kept() -> None:
    numbers, cache, fetch = Numbers(), ChunkCache(1 << 20), Numbers.fetch

    def fail(_: tuple[int, ...]) -> np.ndarray:
        raise ZeroDivisionError("out of\nluck")

    numbers.fetch = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(InputError, match=r"^numbers cannot be read at \[3000:4000\]: out of luck$"):
            numbers.read(cache, 3)
    assert (len(cache), cache.held, cache.decoded) == (0, 0, 0)
    numbers.fetch = fetch.__get__(numbers)  # type: ignore[method-assign]
    assert numbers.read(cache, 3) == [3]


def test_a_fork_waits_for_no_thread_of_its_parent() -> None:
    """In the child nobody decodes what another thread of the parent was at."""
    numbers, cache = Numbers(), ChunkCache(1 << 20)
    numbers.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(numbers.read, cache, 5)
        while not numbers.loads:
            time.sleep(0.001)
        if not (child := os.fork()):
            signal.alarm(20)
            numbers.gate = threading.Event()
            numbers.gate.set()
            os._exit(numbers.read(cache, 5) != [5])
        numbers.gate.set()
        assert reading.result() == [5]
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("error", "message", "start", "out"),
    [
        (ValueError, "start and out must have the 1 axes of chunks, got 2 and 1", [0, 0], np.zeros(5, "u1")),
        (
            ValueError,
            "start and out must have the 1 axes of chunks, got 1 and 2",
            [0],
            np.zeros((5, 1), "u1"),
        ),
        (ValueError, "start must be from 0 to 2\\^61, got -1", [-1], np.zeros(5, "u1")),
        (TypeError, "out must hold what arrays of uint8 do, got int8", [0], np.zeros(5, "i1")),
        (TypeError, "out must be numpy arrays, got list", [0], [0] * 5),
    ],
)
def test_bad_boxes_are_named(error: type[Exception], message: str, start: list[int], out: Any) -> None:
    with pytest.raises(error, match=message):
        ChunkCache(1).read(Numbers(), start, out)


def test_decoding_holds_no_lock(tmp_path: Path) -> None:
    """While one thread holds the lock of h5py, another reads."""
    from h5py._objects import phil

    path = write(tmp_path, np.arange(512).reshape(8, 8, 8), (4, 4, 4), compression="gzip")
    volume = open_volume(path).with_cache(ChunkCache(1))
    with (
        ThreadPoolExecutor(1) as pool,
        phil,
    ):  # the lock is free before the thread is waited for, whatever happens
        # An object of h5py's that another test left in a cycle would wait for the lock in whichever thread frees it.
        gc.collect()
        gc.disable()
        try:
            assert pool.submit(lambda: int(volume[:].max())).result(timeout=60) == 511
        finally:
            gc.enable()
