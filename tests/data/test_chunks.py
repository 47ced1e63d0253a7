# SPDX-License-Identifier: BSD-3-Clause
"""Chunks fetched and decoded past the HDF5 library, and the cache that threads share."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data.cache import ChunkCache
from fastseg.data.chunks import offers_chunks
from fastseg.data.hdf5 import Hdf5Source
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
    source = Hdf5Source(f"{tmp_path}/v.h5", "raw")
    assert source.chunk_bytes((0, 0, 1)) is None
    assert (source.decode(None) == 7).all()
    cache = ChunkCache(1 << 20)
    volume = open_volume(tmp_path / "v.h5").with_cache(cache)[:]
    assert np.array_equal(volume, open_volume(tmp_path / "v.h5")[:])
    assert volume.sum() == 64 + 7 * (512 - 64)


@pytest.mark.parametrize("options", [{"scaleoffset": 3}, {"compression": "szip"}])
def test_other_filters_are_left_to_the_library(tmp_path: Path, options: dict[str, object]) -> None:
    array = np.arange(512).reshape(8, 8, 8).astype("i4")
    volume = open_volume(write(tmp_path, array, (4, 4, 4), **options))
    assert not offers_chunks(volume.source)
    assert np.array_equal(volume.with_cache(ChunkCache(1))[:], volume[:])
    assert np.array_equal(volume.read((0, 0, 0), (8, 8, 8), np.zeros((1, 8, 8, 8), "i4")), volume[:])


def test_user_blocks_and_other_drivers_are_left_to_the_library(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w", userblock_size=512) as file:
        file.create_dataset("raw", data=np.arange(512).reshape(8, 8, 8), chunks=(4, 4, 4))
    volume = open_volume(tmp_path / "v.h5")
    assert not offers_chunks(volume.source)
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
    source.chunk_bytes((0, 0, 0))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(
        again.decode(again.chunk_bytes((1, 1, 1))), source.decode(source.chunk_bytes((1, 1, 1)))
    )


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


def test_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    cache = ChunkCache(3 * (1000 + 512))
    loads: list[int] = []

    def load(key: int) -> np.ndarray:
        loads.append(key)
        return np.full(1000, key, "u1")

    for key in (0, 1, 2, 0, 3, 0, 1):  # 3 drops 1, which must be loaded again and drops 2
        assert cache.get(key, lambda k=key: load(k))[0] == key % 256
    assert loads == [0, 1, 2, 3, 1]
    assert cache._held == 3 * (1000 + 512)
    for key in range(10_000):  # chunks never written take little, but not nothing
        cache.get(("none", key), lambda: None)
    assert cache._held <= cache.most_bytes
    assert len(cache._chunks) <= 9


def test_a_chunk_is_decoded_once_however_many_ask() -> None:
    cache, calls, gate = ChunkCache(1 << 20), [], threading.Event()

    def slow() -> np.ndarray:
        calls.append(1)
        gate.wait(10)
        return np.ones(4)

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(cache.get, "key", slow) for _ in range(6)]
        time.sleep(0.05)
        gate.set()
        results = [future.result() for future in asked]
    assert len(calls) == 1
    assert all(result is results[0] for result in results)

    def fail() -> np.ndarray:
        raise InputError("damaged")

    for _ in range(2):  # an error is not kept
        with pytest.raises(InputError, match="damaged"):
            cache.get("other", fail)
    assert cache.get("other", slow) is not None


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
