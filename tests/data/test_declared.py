# SPDX-License-Identifier: BSD-3-Clause
"""What a file declares costs nothing until it is read: sparse grids, bombs, images too large for a decoder's taste."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from fastseg.data import codecs
from fastseg.data.cache import ChunkCache
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 1 GiB of address space beyond what the process has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def taking_at_most(most: int) -> Iterator[None]:
    """That so much memory at most is allocated in the block, a decoder's dictionary included."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("side", [2000, 200_000])
def test_hdf5_of_very_many_absent_chunks(tmp_path: Path, side: int) -> None:
    path = tmp_path / "sparse.h5"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", (side,) * 3, "u1", chunks=(2, 2, 2), compression="gzip", fillvalue=7)
        raw[side - 3 :, side - 3 :, side - 3 :] = 1
        raw[:4, :4, 2:4] = 2
    volume = open_volume(f"{path}:/raw")
    with taking_at_most(16 << 20):
        for found in (volume, volume.with_cache(ChunkCache(1 << 20))):
            last = found.read((side - 4,) * 3, (side,) * 3)
            assert (last[0, 1:, 1:, 1:] == 1).all()
            first = found.read((0, 0, 0), (6, 6, 6))
            assert (first[0, :4, :4, 2:4] == 2).all()
            assert (first[0, 4:] == 7).all()


PIXELS = np.arange(40 * 30, dtype="u2").reshape(40, 30)


@pytest.mark.parametrize("kind", ["bits", "grey", "grey16", "alpha", "colour", "palette", "jpeg", "bmp"])
def test_large_images_are_those_that_small_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Above Pillow's limit another decoder reads them, to the same array."""
    image = {
        "bits": lambda: Image.fromarray(PIXELS % 3 == 0),
        "grey": lambda: Image.fromarray((PIXELS % 251).astype("u1")),
        "grey16": lambda: Image.fromarray(PIXELS * 50),
        "alpha": lambda: Image.fromarray(np.stack([PIXELS % 251, PIXELS % 7 * 30], 2).astype("u1")),
        "colour": lambda: Image.fromarray(np.stack([PIXELS % n for n in (251, 13, 100)], 2).astype("u1")),
        "palette": lambda: Image.fromarray((PIXELS % 251).astype("u1")).convert("RGB").quantize(17),
        "jpeg": lambda: Image.fromarray((PIXELS % 251).astype("u1")),
        "bmp": lambda: Image.fromarray((PIXELS % 251).astype("u1")),
    }[kind]()
    path = tmp_path / f"section.{kind if kind in ('jpeg', 'bmp') else 'png'}"
    image.save(path)
    small = open_volume(path)
    expected = small[:]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setattr("fastseg.data.images._MOST_OF_PILLOW", 500)
    large = open_volume(path)
    assert (large.dtype, large.shape) == (small.dtype, small.shape)
    assert (large[:] == expected).all()


def test_a_section_that_pillow_refuses(tmp_path: Path) -> None:
    array = np.zeros((14_000, 14_000), np.uint8)
    array[-1, -2:] = 3, 4
    (tmp_path / "section.png").write_bytes(imagecodecs.png_encode(array, level=1))
    volume = open_volume(tmp_path / "section.png")
    assert volume.shape == (1, 14_000, 14_000)
    assert volume.read((0, 13_998, 13_998), (1, 14_000, 14_000))[0, 0].tolist() == [[0, 0], [3, 4]]


def test_an_image_too_large_to_decode_is_named(tmp_path: Path) -> None:
    Image.fromarray(PIXELS.astype("u1")).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (10**6).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png has 1,000,000,000,000 pixels.* tiled TIFF or OME-Zarr"):
        open_volume(tmp_path / "a.png")


BOMB = bytes(64 << 20)
BOMBS = {
    "bz2": (codecs.bz2.compress, {"id": "bz2", "level": 9}),
    "lzma": (codecs.lzma.compress, {"id": "lzma", "format": 1, "check": -1, "preset": None, "filters": None}),
    "zstd": (imagecodecs.zstd_encode, {"id": "zstd", "level": 1}),
    "zlib": (codecs.zlib.compress, {"id": "zlib", "level": 1}),
    "gzip": (lambda data: gzip.compress(data, 1), {"id": "gzip", "level": 1}),
    "lz4": (numcodecs.LZ4().encode, {"id": "lz4", "acceleration": 1}),
    "blosc": (numcodecs.Blosc("zstd", 9).encode, {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 1}),
}


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("codec", BOMBS)
def test_bombs_are_not_decoded(tmp_path: Path, codec: str, filtered: bool) -> None:
    """A chunk of 4 KiB that its codec makes 64 MiB of; last in the pipeline, or before a filter of unknown size."""
    encode, stated = BOMBS[codec]
    metadata = {
        "zarr_format": 2,
        "shape": [32, 32],
        "chunks": [32, 32],
        "dtype": "<i4",
        "compressor": stated,
        "filters": [{"id": "delta", "dtype": "<i4", "astype": "<i4"}] if filtered else None,
        "fill_value": 0,
        "order": "C",
    }
    folder = tmp_path / "v.zarr"
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps(metadata))
    ones = np.ones((32, 32), "<i4")
    values = np.diff(ones.ravel(), prepend=0).astype("<i4") if filtered else ones
    (folder / "0.0").write_bytes(encode(values.tobytes()))
    assert (open_volume(folder)[:] == 1).all()
    (folder / "0.0").write_bytes(encode(BOMB))
    bomb = open_volume(folder)
    with taking_at_most(24 << 20), pytest.raises(InputError, match=r"chunk \(0, 0\) in .* is damaged"):
        bomb[:]


@pytest.mark.parametrize("name", ["bz2", "lzma"])
def test_streams_one_after_another_are_one(name: str) -> None:
    library = getattr(codecs, name)
    data = library.compress(b"abc") + library.compress(b"") + library.compress(b"defg") + b"junk"
    assert codecs.decode(name, {}, data, 7) == b"abcdefg"
    for left, most in ((data, 6), (data[:20], 7), (b"junk", 7)):
        with pytest.raises((ValueError, OSError, EOFError, codecs.lzma.LZMAError)):
            codecs.decode(name, {}, left, most)


@pytest.mark.parametrize("compress", [gzip.compress, codecs.zlib.compress])
def test_a_deflated_stream_is_as_long_as_the_chunk(compress: Callable[[bytes], bytes]) -> None:
    """zlib's streams come under the name of gzip too."""
    content = bytes(range(256)) * 40
    data = compress(content)
    for view in (data, memoryview(data)):
        assert codecs.decode("gzip", {}, view, len(content)) == content
    flipped = data[:30] + bytes([data[30] ^ 1]) + data[31:]
    for damaged in (data + b"more", data[:-1], data[:-5], data[:12], b"", flipped):
        with pytest.raises((ValueError, RuntimeError, codecs.zlib.error)):
            codecs.decode("gzip", {}, damaged, len(content))


def test_an_lzma_dictionary_beyond_reason_is_refused() -> None:
    filters = [{"id": codecs.lzma.FILTER_LZMA2, "dict_size": 3 << 30}]
    with pytest.raises(ValueError, match="it declares 3,221,225,472 bytes, at most 1,073,741,824"):
        codecs.decode("lzma", {"filters": filters, "format": codecs.lzma.FORMAT_RAW}, b"x", 7)


def test_a_chunk_file_longer_than_any_chunk_is_not_read(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "v.zarr", shape=(8, 8), chunks=(8, 8), dtype="u1", zarr_format=2)
    array[:] = 1
    with open(tmp_path / "v.zarr" / "0.0", "ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"0\.0 has 1,099,511,627,776 bytes, a chunk at most 1,048,704"):
        open_volume(tmp_path / "v.zarr")[:]


def test_chunks_too_large_to_decode_are_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v.zarr", shape=(10**6,) * 2, chunks=(10**6,) * 2, dtype="u1", zarr_format=2)
    with pytest.raises(
        InputError, match=r"chunks \(1000000, 1000000\) of 931 GiB, each of which must be decoded"
    ):
        open_volume(tmp_path / "v.zarr")


def test_ome_tiff_of_very_many_planes(tmp_path: Path) -> None:
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" SizeZ="2000000000" SizeC="1" SizeT="1">'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((16, 16), "u1"), description=ome, metadata=None)
    with pytest.raises(InputError, match=r"declare 2,000,000,000 planes, more than 10,000,000"):
        open_volume(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("chunks", [None, (1, 64, 100)])
def test_blocks_of_long_lines_are_no_larger_than_others(
    tmp_path: Path, chunks: tuple[int, int, int] | None
) -> None:
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file.create_dataset("raw", (3, 70, 10**9), "u1", chunks=chunks)
    volume = open_volume(f"{tmp_path / 'long.h5'}:/raw")
    voxels = 0
    for start, stop in volume.blocks():
        block = int(np.prod(np.subtract(stop, start)))
        assert block <= 1 << 24
        voxels += block
    assert voxels == 3 * 70 * 10**9
