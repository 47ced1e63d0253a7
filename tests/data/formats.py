# SPDX-License-Identifier: BSD-3-Clause
"""Volumes written by each format's own library, in the ways that microscopes and programs write them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as imageio
import numcodecs
import numpy as np
import tensorstore
import tifffile
import zarr
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec


@dataclass
class Case:
    """How an array (z, y, x) or (c, z, y, x) is stored; options are the library's own."""

    kind: str
    dtype: str
    chunks: tuple[int, int, int]
    options: dict[str, Any]


NUMBERS = [
    "?",
    "|u1",
    "|i1",
    "<u2",
    ">u2",
    "<i2",
    ">i2",
    "<u4",
    ">i4",
    "<i8",
    "<f2",
    ">f4",
    "<f4",
    "<f8",
    ">f8",
]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 127 - (np.dtype(dtype).kind in "if") * 60).astype(dtype)


def _hdf5(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    with h5py.File(path / "v.h5", "w", libver=options.pop("libver")) as file:
        if options.pop("contiguous"):
            file.create_dataset("group/raw", data=array)
        else:
            limited = tuple(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
            file.create_dataset("group/raw", data=array, chunks=limited, **options)
    return f"{path}/v.h5:/group/raw"


def _zarr2(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    separator = {"name": "v2", "separator": options.pop("separator")}
    stored = zarr.create_array(
        path / "v.zarr", name="a/raw", zarr_format=2, shape=array.shape, dtype=array.dtype, chunks=chunks,
        chunk_key_encoding=separator, fill_value=7, **options,
    )  # fmt: skip
    stored[...] = array
    return f"{path}/v.zarr:/a/raw"


def _zarr3(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    shards = options.pop("shards")
    stored = zarr.create_array(
        path / "v.zarr", name="a/raw", shape=array.shape, dtype=array.dtype.newbyteorder("="), chunks=chunks,
        shards=shards and tuple(c * s for c, s in zip(chunks, shards * 2, strict=False)), fill_value=7, **options,
    )  # fmt: skip
    stored[...] = array
    return f"{path}/v.zarr:/a/raw"


def _tensorstore(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    driver, metadata = options["driver"], dict(options["metadata"])
    folder = path / ("v.n5" if driver == "n5" else "v.zarr") / "raw"
    native = array.astype(array.dtype.newbyteorder("="))
    if driver == "n5":
        metadata |= {
            "dimensions": array.shape[::-1],
            "blockSize": chunks[::-1],
            "dataType": native.dtype.name,
        }
        native = native.T
    else:
        inner = {
            "configuration": {"chunk_shape": chunks, **metadata.pop("sharding")},
            "name": "sharding_indexed",
        }
        shards = [2 * c for c in chunks]
        metadata |= {
            "shape": array.shape,
            "data_type": native.dtype.name,
            "codecs": [inner],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards}},
        }
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(folder)}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(native).result()
    return f"{folder.parent}:/raw"


def _tiff(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    tile = options.pop("tile")
    if tile:
        options["tile"] = tuple(16 * c for c in chunks[-2:])
    else:
        options["rowsperstrip"] = chunks[-2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(path / "v.tif", array, photometric="minisblack", **options)
    return f"{path}/v.tif"


def _npy(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    np.save(path / "v.npy", np.asarray(array, order=options["order"]))
    return f"{path}/v.npy"


def _folder(path: Path, array: np.ndarray, chunks: Any, options: dict[str, Any]) -> str:
    for z, plane in enumerate(array):  # slice 10 must come after slice 9
        imageio.imwrite(path / f"s{z + 8}{options['suffix']}", plane)
    return f"{path}/s*{options['suffix']}"


WRITERS: dict[str, Callable[[Path, np.ndarray, Any, dict[str, Any]], str]] = {
    "hdf5": _hdf5, "zarr2": _zarr2, "zarr3": _zarr3, "tensorstore": _tensorstore, "tiff": _tiff, "npy": _npy,
    "folder": _folder,
}  # fmt: skip


def write(folder: Path, case: Case, array: np.ndarray) -> str:
    """Store an array; returns what to open."""
    chunks = (*(1 for _ in array.shape[:-3]), *case.chunks)
    return WRITERS[case.kind](folder, array, chunks, dict(case.options))


_COMPRESSORS_2 = [
    None, numcodecs.Zstd(), numcodecs.Blosc("lz4"), numcodecs.Blosc("zstd", shuffle=2), numcodecs.Zlib(),
    numcodecs.GZip(), numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.LZ4(),
]  # fmt: skip
_COMPRESSORS_3 = [
    None, [ZstdCodec(checksum=True)], [BloscCodec(cname="lz4")], [GzipCodec()], [Crc32cCodec()],
    [ZstdCodec(), Crc32cCodec()], [Crc32cCodec(), GzipCodec()],
]  # fmt: skip
_BYTES = {"name": "bytes", "configuration": {"endian": "big"}}
_SHARDINGS = [
    {"codecs": [_BYTES, {"name": "zstd", "configuration": {"level": 1}}], "index_location": "start"},
    {
        "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, _BYTES],
        "index_codecs": [_BYTES],
    },
    {"codecs": [_BYTES, {"name": "blosc", "configuration": {"cname": "zlib"}}, {"name": "crc32c"}]},
]
for _sharding in _SHARDINGS:  # indexes are little-endian by the specification's recommendation
    _little = {"name": "bytes", "configuration": {"endian": "little"}}
    _sharding["index_codecs"] = [_little] if "index_codecs" in _sharding else [_little, {"name": "crc32c"}]
_N5 = ["raw", "gzip", "bzip2", "xz", "blosc", "zstd"]
_BLOSC = {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}


@st.composite
def cases(draw: st.DrawFn, kinds: list[str] | None = None) -> Case:
    kind = draw(st.sampled_from(kinds or list(WRITERS)))
    dtype = draw(st.sampled_from(NUMBERS))
    chunks = draw(st.tuples(*[st.integers(1, 6)] * 3))
    pick = lambda values: draw(st.sampled_from(values))  # noqa: E731
    if kind == "hdf5":
        compression = pick([None, "gzip", "lzf"])
        options = {"libver": pick(["earliest", "latest"]), "contiguous": pick([False, False, True])}
        options |= {
            "compression": compression,
            "shuffle": pick([False, True]),
            "fletcher32": pick([False, True]),
        }
    elif kind == "zarr2":
        options = {"separator": pick("./"), "order": pick("CF"), "compressors": pick(_COMPRESSORS_2)}
        options["filters"] = (
            pick([None, [numcodecs.Delta(dtype)], [numcodecs.Shuffle(2)]]) if dtype == "<u2" else None
        )
    elif kind == "zarr3":
        shards = draw(st.none() | st.tuples(*[st.integers(1, 3)] * 4))
        options = {"shards": shards, "compressors": pick(_COMPRESSORS_3)}
        options["serializer"] = BytesCodec(endian=pick(["little", "big"]))
        options |= pick([{}, {"filters": [TransposeCodec(order=(2, 0, 1))]}])
    elif kind == "tensorstore":
        options = {"driver": "zarr3", "metadata": {"sharding": pick(_SHARDINGS)}}
        if dtype not in ("?", "<f2") and pick([True, False]):
            compression = pick(_N5)
            settings = _BLOSC if compression == "blosc" else {"type": compression}
            options = {"driver": "n5", "metadata": {"compression": settings}}
    elif kind == "tiff":
        dtype = dtype if dtype not in ("?", "<i8") else "|u1"
        compression, predictor = pick(
            [(None, None), ("deflate", None), ("deflate", True), ("lzw", True), ("zstd", None)]
        )
        options = {"tile": pick([False, True]), "compression": compression, "predictor": predictor}
        ome = {"ome": True, "metadata": {"axes": "ZYX"}} if dtype not in ("<f2", "|i1") else {}
        options |= pick([{}, {"bigtiff": True}, ome])
        options["byteorder"] = ">" if dtype[0] == ">" else "<"
    elif kind == "folder":
        dtype, options = pick(["|u1", "<u2"]), {"suffix": pick([".png", ".tif"])}
    else:
        options = {"order": pick("CF")}
    return Case(kind, dtype, chunks, options)
