# SPDX-License-Identifier: BSD-3-Clause
"""The metadata of Zarr arrays, versions 2 and 3: where a chunk is stored, and how it is decoded.

https://zarr-specs.readthedocs.io: version 2, core protocol v3, codecs bytes, transpose, gzip, blosc, crc32c and
sharding_indexed 1.0.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastseg.data import codecs
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.sources import reason
from fastseg.errors import InputError

_MOST_INDEX_BYTES = 1 << 30  # of a shard


@dataclass(frozen=True)
class Node:
    """An array or group: its metadata and attributes."""

    folder: str
    is_array: bool
    metadata: Mapping[str, Any]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Shard:
    """counts: chunks of a shard along each axis."""

    counts: tuple[int, ...]
    index_at_end: bool
    has_checksum: bool

    @property
    def index_bytes(self) -> int:
        return 16 * math.prod(self.counts) + 4 * self.has_checksum

    def of(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i // n for i, n in zip(chunk, self.counts, strict=True))


@dataclass(frozen=True)
class ArrayLayout:
    """chunks: what is decoded as one piece, of a sharded array its inner chunks. orders: one permutation per
    transpose, in the order of encoding. pipeline: (name, settings) of the codecs of bytes, in that order."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    prefix: str
    separator: str
    pipeline: list[tuple[str, Mapping[str, Any]]]
    orders: list[tuple[int, ...]] = field(default_factory=list)
    shard: Shard | None = None

    @property
    def chunk_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.chunks)

    @property
    def stored_bytes(self) -> int:
        """The most that a chunk takes in its file and between its codecs, one of which may store wider numbers."""
        widened = 8 if any(name == "astype" for name, _ in self.pipeline) else 1
        return codecs.stored_bytes(widened * self.chunk_bytes)

    def stored_as(self, name: str, prefix: str) -> ChunkLayout:
        """C++ decodes chunks of one codec, or none."""
        codec = self.pipeline[0][0] if self.pipeline else "none"
        codec = "" if len(self.pipeline) > 1 else codec
        chunks = (self.dtype, self.chunks, self.fill, codec, self.stored_bytes)
        files = None if self.shard else (prefix, self.separator, False)
        return ChunkLayout(name, *chunks, order=self._order, files=files)

    @property
    def _order(self) -> tuple[int, ...]:
        """Which axis each axis of a stored chunk is."""
        axes = tuple(range(len(self.chunks)))
        for order in self.orders:
            axes = tuple(axes[a] for a in order)
        return axes

    def decode(self, data: Any) -> np.ndarray:
        size = self.chunk_bytes
        for place, (name, settings) in reversed(list(enumerate(self.pipeline))):
            is_last = place == 0
            most = size if is_last else self.stored_bytes
            data = codecs.decode(name, settings, data, most, exact=is_last)
        stored = codecs.as_array(data, self.dtype, tuple(self.chunks[axis] for axis in self._order))
        return stored.transpose(np.argsort(self._order))


def read_node(folder: str) -> Node | None:
    """The array or group in a folder, None if there is none; InputError if its metadata are damaged."""
    newer = _read_json(os.path.join(folder, "zarr.json"))
    if newer is not None:
        attributes = newer.get("attributes")
        return Node(
            folder, newer.get("node_type") == "array", newer, attributes if _is_dict(attributes) else {}
        )
    for name, is_array in ((".zarray", True), (".zgroup", False)):
        older = _read_json(os.path.join(folder, name))
        if older is not None:
            return Node(folder, is_array, older, _read_json(os.path.join(folder, ".zattrs")) or {})
    return None


def parse_array(node: Node) -> ArrayLayout:
    """InputError for what is not supported, anything else for what is damaged."""
    layout = (_parse_3 if node.metadata["zarr_format"] == 3 else _parse_2)(node.metadata)
    if len(layout.chunks) != len(layout.shape) or min(layout.chunks, default=1) < 1:
        raise ValueError(f"chunks {layout.chunks} do not fit the shape {layout.shape}")
    if any(sorted(order) != list(range(len(layout.shape))) for order in layout.orders):
        raise ValueError(f"transposing by {layout.orders}")
    return layout


def _parse_2(metadata: Mapping[str, Any]) -> ArrayLayout:
    if not isinstance(metadata["dtype"], str):
        raise InputError(f"dtype {metadata['dtype']} is not a number")
    dtype = np.dtype(metadata["dtype"])
    shape = _sizes(metadata["shape"])
    stages = [*(metadata.get("filters") or []), *([metadata["compressor"]] if metadata["compressor"] else [])]
    pipeline = [(stage["id"], {k: v for k, v in stage.items() if k != "id"}) for stage in stages]
    _require_known(pipeline)
    is_fortran = metadata.get("order", "C") == "F"
    return ArrayLayout(
        shape,
        _sizes(metadata["chunks"]),
        dtype,
        _fill(metadata.get("fill_value"), dtype),
        "",
        metadata.get("dimension_separator", "."),
        pipeline,
        [tuple(reversed(range(len(shape))))] if is_fortran else [],
    )


def _parse_3(metadata: Mapping[str, Any]) -> ArrayLayout:
    name = metadata["data_type"]
    if not isinstance(name, str) or np.dtype(_dtype_name(name)).kind not in "buif":
        raise InputError(f"data type {name} is not supported")
    if metadata["chunk_grid"]["name"] != "regular":
        raise InputError(f"chunk grid {metadata['chunk_grid']['name']} is not supported")
    if metadata.get("storage_transformers"):
        raise InputError("storage transformers are not supported")
    chunks = _sizes(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    stages, shard = metadata["codecs"], None
    if _name(stages[0]) == "sharding_indexed":
        outer, inner = chunks, stages[0]["configuration"]
        chunks = _sizes(inner["chunk_shape"])
        index_codecs = [_name(codec) for codec in inner["index_codecs"]]
        if len(stages) > 1 or index_codecs not in (["bytes"], ["bytes", "crc32c"]):
            raise InputError("shards whose whole or whose index is compressed are not supported")
        if (
            len(outer) != len(chunks)
            or min(chunks) < 1
            or any(o % c for o, c in zip(outer, chunks, strict=True))
        ):
            raise ValueError(f"shards {outer} are no multiples of chunks {chunks}")
        counts = tuple(o // c for o, c in zip(outer, chunks, strict=True))
        at_end = inner.get("index_location", "end") == "end"
        shard = Shard(counts, at_end, len(index_codecs) == 2)
        if shard.index_bytes > _MOST_INDEX_BYTES:
            raise InputError(f"shards of {math.prod(counts):,} chunks are not supported")
        stages = inner["codecs"]
    dtype, orders, pipeline = np.dtype(_dtype_name(name)), [], []
    is_bytes = False
    for stage in stages:
        settings = stage.get("configuration") or {} if _is_dict(stage) else {}
        if not is_bytes and _name(stage) == "transpose":
            orders.append(_order(settings["order"], len(chunks)))
        elif not is_bytes and _name(stage) == "bytes":
            dtype = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
            is_bytes = True
        elif is_bytes:
            pipeline.append((_name(stage).removeprefix("numcodecs."), settings))
        else:
            raise InputError(f"codec {_name(stage)} is not supported")
    if not is_bytes:
        raise ValueError("no codec makes bytes")
    _require_known(pipeline)
    keys = metadata["chunk_key_encoding"]
    is_default = keys["name"] == "default"
    separator = (keys.get("configuration") or {}).get("separator", "/" if is_default else ".")
    fill = _fill(metadata["fill_value"], dtype)
    prefix = f"c{separator}" if is_default else ""
    shape = _sizes(metadata["shape"])
    return ArrayLayout(shape, chunks, dtype, fill, prefix, separator, pipeline, orders, shard)


def _require_known(pipeline: list[tuple[str, Mapping[str, Any]]]) -> None:
    for name, settings in pipeline:
        if not codecs.known_codec(name, settings):
            raise InputError(
                f"codec {name} is not supported; supported are {', '.join(sorted(codecs.NAMES))}"
            )


def _fill(value: Any, dtype: np.dtype) -> Any:
    if isinstance(value, str) and value.startswith("0x"):  # the bits of a float
        return np.asarray(int(value, 16), f"u{dtype.itemsize}").view(dtype.newbyteorder("="))[()]
    return np.asarray(0 if value is None else float(value) if isinstance(value, str) else value).astype(
        dtype
    )[()]


def _dtype_name(name: str) -> str:
    return name if re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", name) else "V1"


def _order(order: Any, ndim: int) -> tuple[int, ...]:
    named = {"C": range(ndim), "F": reversed(range(ndim))}  # of drafts of the specification
    return tuple(named[order] if isinstance(order, str) else (int(a) for a in order))


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(values)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in sizes):
        raise ValueError(f"sizes {sizes}")
    return sizes


def _name(codec: Any) -> str:
    return codec if isinstance(codec, str) else codec["name"]


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read: it holds no JSON object")
    return content
