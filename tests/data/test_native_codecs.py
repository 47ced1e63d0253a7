# SPDX-License-Identifier: BSD-3-Clause
"""Chunks read and decoded in one call: what codecs.py makes of each is the definition."""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr

from fastseg import _C
from fastseg.data import native_codecs
from fastseg.data.cache import ChunkCache
from fastseg.data.chunks import ChunkReader, Places
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError

SHAPE = (5, 6, 8)
WHOLE_FILE = -1  # a size
PACK = {
    "none": bytes,
    "zlib": zlib.compress,
    "gzip": imagecodecs.gzip_encode,
    "zstd": imagecodecs.zstd_encode,
    "blosc": lambda data: numcodecs.Blosc(shuffle=2).encode(np.frombuffer(data, "u1")),
}


def content(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, SHAPE).astype(dtype)


def shuffled(array: np.ndarray) -> bytes:
    return array.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


class Stored(ChunkReader):
    """Chunks along the first axis, at places of files; those that C++ leaves to Python are noted."""

    name = "stored"

    def __init__(self, layout: ChunkLayout) -> None:
        self.stored, self.left = layout, list[int]()

    def places(self, indices: np.ndarray) -> Places:
        assert (indices[:, 1:] == 0).all()
        return self.given

    def fetch(self, index: tuple[int, ...]) -> None:
        self.left.append(index[0])

    def check_still_there(self) -> None: ...

    def read(
        self,
        shape: tuple[int, ...],
        dtype: str,
        offsets: list[int],
        sizes: list[int],
        files: list[str],
    ) -> np.ndarray:
        self.given, self.left = (files, offsets, sizes), []
        out = np.zeros((shape[0] * len(sizes), *shape[1:]), np.dtype(dtype).newbyteorder("="))
        ChunkCache(0).read(self, [0] * len(shape), out)
        return out.reshape(-1, *shape)


@pytest.mark.parametrize("codec", PACK)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "f8", "?"])
def test_chunks_are_those_that_were_written(tmp_path: Path, codec: str, dtype: str) -> None:
    array = content(dtype)
    for plain, apart in ((array.tobytes(), 0), (shuffled(array), array.dtype.itemsize)):
        stored = b"head" + PACK[codec](plain)
        source = Stored(ChunkLayout("stored", array.dtype, SHAPE, 0, codec, len(stored), apart, b"head"))
        (tmp_path / "a").write_bytes(stored)
        (tmp_path / "b").write_bytes(b"?" * 7 + stored + b"?")
        paths = [f"{tmp_path}/a", f"{tmp_path}/b"]
        first, second = source.read(SHAPE, dtype, [0, 7], [WHOLE_FILE, len(stored)], paths)
        assert source.left == []
        for found in (first, second):
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("items", [3, 6])
def test_numbers_of_odd_sizes_are_unshuffled(tmp_path: Path, items: int) -> None:
    data = np.arange(240, dtype="u1")
    (tmp_path / "a").write_bytes(data.reshape(-1, items).T.tobytes())
    np.testing.assert_array_equal(_C.unshuffle((tmp_path / "a").read_bytes(), items), data)
    source = Stored(ChunkLayout("stored", np.dtype("u1"), (240,), 0, "none", 240, items))
    (found,) = source.read((240,), "u1", [0], [WHOLE_FILE], [f"{tmp_path}/a"])
    np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize("codec", PACK)
def test_what_is_not_as_expected_is_left_to_others(tmp_path: Path, codec: str) -> None:
    array = content("<u2")
    whole = PACK[codec](array.tobytes())
    files = {
        "cut": whole[:-1],
        "longer": whole + b"\0" * (5 if codec != "none" else 1),
        "short": PACK[codec](array.tobytes()[:-2]),
        "too much": PACK[codec](array.tobytes() + b"ab"),
        "noise": np.random.default_rng(1).bytes(len(whole)) if codec != "none" else b"",
        "empty": b"",
    }
    if codec == "zstd":
        del files["longer"]  # a frame of zeros is no frame: the library's own business
    for name, stored in files.items():
        (tmp_path / name).write_bytes(stored)
    (tmp_path / "folder").mkdir()
    (tmp_path / "whole").write_bytes(whole)
    names = [*files, "folder", "absent", "whole"]
    source = Stored(ChunkLayout("stored", array.dtype, SHAPE, 5, codec, 4096))
    paths = [f"{tmp_path}/{name}" for name in names]
    found = source.read(SHAPE, "u2", [0] * len(names), [WHOLE_FILE] * len(names), paths)
    assert source.left == [*range(len(names) - 2)]  # and Python says of all that they were never written
    assert (found[:-1] == 5).all()
    np.testing.assert_array_equal(found[-1], array)
    # Sizes and offsets that a damaged index states, a header that is another, a chunk that takes too much.
    path = f"{tmp_path}/whole"
    for offset, size in ((1, len(whole)), (-1, 5), (0, len(whole) + 1), (2**62, 5), (0, 2**62)):
        source.read(SHAPE, "u2", [offset], [size], [path])
        assert source.left == [0]
    for most, header in ((4096, b"another"), (len(whole) - 1, b"")):
        other = Stored(ChunkLayout("stored", array.dtype, SHAPE, 0, codec, most, 0, header))
        other.read(SHAPE, "u2", [0], [WHOLE_FILE], [path])
        assert other.left == [0]


def test_bad_arguments_are_named() -> None:
    one = np.zeros(1, "u1")
    with pytest.raises(ValueError, match="item_bytes must divide the 5 of data, got 2"):
        _C.unshuffle(b"12345", 2)
    with pytest.raises(ValueError, match="codec must be none, zlib, gzip, zstd or blosc, got lz5"):
        _C.ChunkLayout("", np.dtype("u1"), (4,), one, "lz5", 9, 0, b"", (), None)
    with pytest.raises(ValueError, match="files, offsets and sizes must be 2, got 1, 2 and 2"):
        Stored(ChunkLayout("", np.dtype("u1"), (4,), 0, "none", 9)).read((4,), "u1", [0, 0], [1, 1], ["a"])
    with pytest.raises(ValueError, match="shuffled_bytes must divide the 4 of a chunk, got 3"):
        ChunkLayout("", np.dtype("u1"), (4,), 0, "none", 9, 3)
    with pytest.raises(ValueError, match="order must have each of the 2 axes once"):
        ChunkLayout("", np.dtype("u1"), (4, 4), 0, order=(1, 1))
    with pytest.raises(ValueError, match="dtype must have a size"):
        ChunkLayout("", np.dtype("V0"), (4,))
    with pytest.raises(ValueError, match="fill must be a number of the dtype"):
        _C.ChunkLayout("", np.dtype("u2"), (4,), one, "", 9, 0, b"", (), None)
    with pytest.raises(ValueError, match="library must be deflate, zstd or blosc, got lz5"):
        _C.set_codec_functions("lz5", [1])
    with pytest.raises(ValueError, match="addresses must be 3, got 1"):
        _C.set_codec_functions("zstd", [1])


def test_memory_is_used_again_but_never_shared(tmp_path: Path) -> None:
    source = Stored(ChunkLayout("memory", np.dtype("u1"), (1 << 20,), 0, "none", 1 << 21))
    for value in range(40):
        (tmp_path / str(value)).write_bytes(bytes([value]) * (1 << 20))
    cache, out = ChunkCache(12 << 20), np.zeros(1 << 20, "u1")
    source.given = ([""], [0], [WHOLE_FILE])
    rng = np.random.default_rng(0)
    for value in rng.integers(0, 40, 400).tolist():  # most are dropped for others, a few found
        source.given[0][0] = f"{tmp_path}/{value}"
        cache.read(source, [value << 20], out)
        assert (out[0], out[12345], out[-1]) == (value,) * 3
    assert 12 <= len(cache) + 1 <= 13
    assert 200 < cache.decoded < 400


FORMATS = {
    "hdf5": dict(compression="gzip", shuffle=True),
    "hdf5 plain": {},
    "zstd": zarr.codecs.ZstdCodec(),
    "gzip": zarr.codecs.GzipCodec(),
    "blosc": zarr.codecs.BloscCodec(),
    "none": None,
    "shards": zarr.codecs.ZstdCodec(),
    "n5": None,
}


def volume_of(folder: Path, name: str, array: np.ndarray) -> str:
    """Chunks of which some were never written, and some reach beyond the border."""
    chunks = (4, 4, 4)
    if name.startswith("hdf5"):
        with h5py.File(folder / "v.h5", "w") as file:
            made = file.create_dataset(
                "raw", array.shape, array.dtype, chunks=chunks, fillvalue=3, **FORMATS[name]
            )
            made[4:] = array[4:]
        return f"{folder}/v.h5"
    if name == "n5":
        (folder / "v.n5" / "raw").mkdir(parents=True)
        attributes = {"dimensions": array.shape[::-1], "blockSize": (4, 4, 4), "dataType": "uint16"}
        text = json.dumps({**attributes, "compression": {"type": "gzip"}})
        (folder / "v.n5" / "raw" / "attributes.json").write_text(text)
        for z, y, x in np.ndindex(3, 3, 3):
            block = array[4 * z :, 4 * y :, 4 * x :][:4, :4, :4]
            header = struct.pack(">HH3I", 0, 3, *block.shape[::-1])
            path = folder / "v.n5" / "raw" / str(x) / str(y) / str(z)
            path.parent.mkdir(parents=True, exist_ok=True)
            if z:
                path.write_bytes(header + imagecodecs.gzip_encode(block.astype(">u2").tobytes()))
        return f"{folder}/v.n5"
    made = zarr.create_array(
        folder / "v.zarr",
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=(8, 8, 8) if name == "shards" else None,
        compressors=FORMATS[name],
        fill_value=3,
    )
    made[4:] = array[4:]
    return f"{folder}/v.zarr"


@pytest.mark.parametrize("name", FORMATS)
def test_both_ways_give_the_same_and_this_one_is_taken(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (10, 11, 9)).astype("u2")
    path = volume_of(tmp_path, name, array)
    array[:4] = 0 if name == "n5" else 3
    cache, volume = ChunkCache(1 << 20), open_volume(path)
    reader = volume.source.chunk_reader()
    assert reader is not None
    left: list[tuple[int, ...]] = []
    fetch = reader.fetch
    reader.fetch = lambda index: [left.append(index), fetch(index)][1]  # type: ignore[func-returns-value,method-assign]
    np.testing.assert_array_equal(volume.with_cache(cache)[:][0], array)
    assert cache.decoded == 27
    assert len(left) == (14 if name == "n5" else 0)  # smaller blocks at the border are left to Python
    monkeypatch.setattr(native_codecs, "_LIBRARY_OF", {})
    np.testing.assert_array_equal(open_volume(path).with_cache(ChunkCache(1))[:][0], array)


def test_libraries_that_show_no_symbols_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        native_codecs._LIBRARIES, "zstd", (("ZSTD_nothing",), ("imagecodecs._zstd", "no_such.module"))
    )
    native_codecs._found.cache_clear()
    try:
        array = np.arange(10 * 11 * 9).reshape(10, 11, 9).astype("u2")
        path = volume_of(tmp_path, "zstd", array)
        volume = open_volume(path)
        np.testing.assert_array_equal(volume[4:][0], array[4:])
    finally:
        native_codecs._found.cache_clear()


def test_filters_that_were_not_applied_to_a_chunk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        made = file.create_dataset("raw", (4, 8), "u2", chunks=(4, 4), compression="gzip", shuffle=True)
        made[...] = 1
        made.id.write_direct_chunk((0, 4), np.full((4, 4), 7, "u2").tobytes(), filter_mask=0b11)
    volume = open_volume(tmp_path / "v.h5").with_cache(ChunkCache(1))
    assert (volume[:][0, 0, :, :4] == 1).all()
    assert (volume[:][0, 0, :, 4:] == 7).all()


class Slow(ChunkReader):
    """Chunks that the test lets go; one of them is damaged."""

    name, shape, chunks = "slow", (4, 1), (1, 1)

    def __init__(self, folder: Path) -> None:
        self.stored = ChunkLayout(f"slow {folder}", np.dtype("u1"), (1, 1), 0, "none", 1)
        self.folder, self.asked, self.go = folder, list[list[int]](), threading.Event()
        for number in range(1, 4):
            (folder / str(number)).write_bytes(bytes([number]))

    def places(self, indices: np.ndarray) -> Places:
        asked = indices[:, 0].tolist()
        self.asked.append(asked)
        self.go.wait(20)
        return [f"{self.folder}/{i}" for i in asked], [0] * len(asked), [1] * len(asked)

    def fetch(self, index: tuple[int, ...]) -> np.ndarray:
        raise InputError(f"chunk {index} is damaged")


def test_who_waits_for_a_chunk_does_not_fail_with_another(tmp_path: Path) -> None:
    source, cache = Slow(tmp_path), ChunkCache(1 << 20)

    def read(low: int, high: int) -> list[int]:
        out = np.zeros((high - low, 1), np.uint8)
        cache.read(source, [low, 0], out)
        return out.ravel().tolist()

    with ThreadPoolExecutor(2) as pool:
        damaged = pool.submit(read, 0, 2)
        while not source.asked:
            os.sched_yield()
        whole = pool.submit(read, 1, 4)
        while len(source.asked) < 2:
            os.sched_yield()
        source.go.set()
        with pytest.raises(InputError, match=r"chunk \(0, 0\) is damaged"):
            damaged.result()
        assert whole.result() == [1, 2, 3]
    # Each was asked for by one thread; the one that waited asked again, for its own alone.
    assert source.asked == [[0, 1], [2, 3], [1]]
