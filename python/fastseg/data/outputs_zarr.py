# SPDX-License-Identifier: BSD-3-Clause
"""Zarr v3 outputs with OME-Zarr 0.5 metadata, chunks or shards compressed by zstd with a checksum.

Every array is a group of its own with one level, ``x.zarr/segmentation/0``, so that each is an image to viewers,
at its scale and place. Chunk files are written into the partial folder; the metadata, without which no one can
read them, when all blocks are finished. Then the folder is renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastseg.data.outputs_journal import Journal, append_durably, sync_folder, write_durably
from fastseg.data.outputs_spec import ArraySpec, Index, pad_to
from fastseg.errors import InputError

LEVEL = 1
_MISSING = 2**64 - 1  # offset and size of an inner chunk that a shard does not hold
_METADATA = ("zarr.json", ".zgroup", ".zarray")


class ZarrStore:
    """Chunk and shard files of the arrays of one Zarr hierarchy, under the journal's folder."""

    def __init__(self, journal: Journal, arrays: Mapping[str, ArraySpec]) -> None:
        import numcodecs

        self.journal, self.arrays = journal, arrays
        self.root = journal.file("data")
        self._codec = numcodecs.Zstd(level=LEVEL, checksum=True)

    def check_target(self, path: str) -> None:
        if os.path.isfile(path):
            raise InputError(f"{path} cannot be written: it is a file, a Zarr hierarchy is a folder")
        if os.path.isdir(path) and os.listdir(path) and not _is_zarr(path):
            raise InputError(f"{path} cannot be written: it is a folder of something else than Zarr")

    def unit(self, name: str) -> Index:
        """The box that is stored as one file: blocks must be aligned to it."""
        return self.arrays[name].shards or self.arrays[name].chunks

    def holds(self, rank: int, record: Mapping[str, Any]) -> bool:
        """Whether the chunks of a record can be there; not if a published output was removed before its journal."""
        return os.path.isdir(self.root) or self.is_published()

    def open(self, rank: int, records: Sequence[Mapping[str, Any]]) -> None:
        os.makedirs(self.root, exist_ok=True)
        sync_folder(self.journal.folder)

    def encode(self, name: str, index: Index, box: np.ndarray) -> list[str]:
        """Compress a chunk or shard and write its file; returns the folders that hold it."""
        spec = self.arrays[name]
        data = self._shard(box, spec) if spec.shards else self._chunk(box, spec.chunks)
        parts = [name, "0", "c", *map(str, index)]
        path = os.path.join(self.root, *parts)
        if data is None:  # a chunk that is absent is all 0
            if os.path.exists(path):
                os.remove(path)
                return [os.path.dirname(path)]
            return []
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            append_durably(file, [data])
        return [os.path.join(self.root, *parts[:n]) for n in range(len(parts))]

    def store(self, chunks: Sequence[list[str]]) -> dict[str, Any]:
        for folder in sorted({folder for folders in chunks for folder in folders}):
            sync_folder(folder)
        return {}

    def close(self) -> None:
        pass

    def publish(self, records: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Write the metadata and move the folder to its name; what stood there goes when it is replaced."""
        groups = {"": {}}
        for name, spec in self.arrays.items():
            os.makedirs(os.path.join(self.root, name, "0"), exist_ok=True)
            write_json(os.path.join(self.root, name, "0", "zarr.json"), array_metadata(spec))
            parts = name.split("/")
            groups |= {"/".join(parts[:n]): {} for n in range(1, len(parts))} | {name: _image(name, spec)}
        for name, attributes in groups.items():
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            write_json(os.path.join(self.root, name, "zarr.json"), group)
        parent = os.path.dirname(self.journal.path) or "."
        if os.path.isdir(self.journal.path):
            os.rename(self.journal.path, self.journal.file("replaced"))
        os.rename(self.root, self.journal.path)
        sync_folder(parent)

    def is_published(self) -> bool:
        """Whether a crash came between the renaming and the removal of the partial folder."""
        return not os.path.isdir(self.root) and os.path.isdir(self.journal.path)

    def _chunk(self, box: np.ndarray, shape: Index) -> bytes | None:
        whole = pad_to(box, shape)
        return self._codec.encode(whole) if whole.view(np.uint8).any() else None

    def _shard(self, box: np.ndarray, spec: ArraySpec) -> bytes | None:
        """Inner chunks one after the other, then an index of (offset, size) with its CRC32C."""
        import google_crc32c

        counts = tuple(s // c for s, c in zip(spec.shards, spec.chunks, strict=True))
        places = np.full((*counts, 2), _MISSING, "<u8")
        pieces, offset = [], 0
        for index in np.ndindex(*counts):
            inside = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, spec.chunks, strict=True))
            part = box[inside]
            data = self._chunk(part, spec.chunks) if part.size else None
            if data is not None:
                places[index] = offset, len(data)
                pieces.append(data)
                offset += len(data)
        if not pieces:
            return None
        table = places.tobytes()
        return b"".join((*pieces, table, google_crc32c.value(table).to_bytes(4, "little")))


def _is_zarr(path: str) -> bool:
    return any(os.path.exists(os.path.join(path, name)) for name in _METADATA)


def write_json(path: str, content: Mapping[str, Any]) -> None:
    write_durably(path, json.dumps(content, indent=1).encode())


def array_metadata(spec: ArraySpec) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[Any] = [
        little if spec.dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": LEVEL, "checksum": True}},
    ]
    if spec.shards:
        inner = {
            "chunk_shape": spec.chunks,
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    size = {"element_size_um": spec.voxel_size} if spec.voxel_size is not None else {}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": spec.shape,
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": spec.shards or spec.chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if spec.dtype.kind == "b" else 0,
        "codecs": codecs,
        "dimension_names": list(spec.axes),
        "attributes": {**size, **spec.attributes},
    }


def image_metadata(name: str, axes: str, sized: bool, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """OME-Zarr metadata of an image of one or more levels; sized: in micrometres."""
    unit = {"unit": "micrometer"} if sized else {}
    named: list[dict[str, Any]] = [
        {"name": "c", "type": "channel"} if axis == "c" else {"name": axis, "type": "space", **unit}
        for axis in axes
    ]
    return {"ome": {"version": "0.5", "multiscales": [{"name": name, "axes": named, "datasets": datasets}]}}


def _image(name: str, spec: ArraySpec) -> dict[str, Any]:
    """OME-Zarr metadata of an image of one level, at its scale and, with the attribute ``origin``, its place."""
    channels = len(spec.axes) - 3
    size = spec.voxel_size or (1.0, 1.0, 1.0)
    moves: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * channels + [float(v) for v in size]}]
    if "origin" in spec.attributes:
        place = [o * v for o, v in zip(spec.attributes["origin"], size, strict=True)]
        moves.append({"type": "translation", "translation": [0.0] * channels + place})
    dataset = {"path": "0", "coordinateTransformations": moves}
    return image_metadata(name, spec.axes, spec.voxel_size is not None, [dataset])
