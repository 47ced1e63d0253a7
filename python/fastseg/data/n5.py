# SPDX-License-Identifier: BSD-3-Clause
"""N5 datasets as sources (https://github.com/saalfeldlab/n5).

N5 names the fastest axis first; shapes here are the reverse, (z, y, x) of an N5 dataset (x, y, z).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastseg.data import codecs
from fastseg.data.chunks import FolderOfChunks, read_file
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.sources import MICROMETRES, attribute_voxel_size, guess_axes, listing, reason
from fastseg.errors import InputError

N5_SUFFIXES = (".n5",)

_CODECS = {"raw": None, "gzip": "gzip", "bzip2": "bz2", "xz": "lzma", "blosc": "blosc", "zstd": "zstd"}
_DTYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]
_MOST_GROUPS = 200


class N5Source(FolderOfChunks):
    def __init__(self, path: str, dataset: str | None = None) -> None:
        super().__init__()
        self.path = path
        if dataset is None:
            found = _datasets(path)
            if len(found) != 1:
                base = os.path.basename(path.rstrip("/"))
                raise InputError(
                    f"{path} needs a dataset, as in {base}:{(found or ['/s0'])[0]}; it has {listing(found)}"
                )
            dataset = found[0]
        self.dataset = "/" + dataset.strip("/")
        self.name = f"{path}:{self.dataset}"
        self.folder = os.path.join(path, self.dataset.strip("/"))
        attributes = _attributes(self.folder)
        if "dimensions" not in attributes:
            raise InputError(f"{path} has no dataset {self.dataset}; it has {listing(_datasets(path))}")
        try:
            self._parse(attributes)
        except InputError:
            raise
        except Exception as error:  # metadata may be damaged in any way
            raise InputError(
                f"{self.name} cannot be read: its attributes are damaged: {reason(error)}"
            ) from error

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return "/".join((self.folder, *map(str, reversed(index))))

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        data = read_file(self.chunk_name(index), self.name, most=self._most_stored)
        return None if data is None else self._undo(data)

    def _undo(self, data: bytes) -> np.ndarray:
        """A block: mode and number of axes (2 bytes each), its size (4 bytes an axis), the values, big-endian."""
        ndim = len(self.shape)
        mode, stated = (int.from_bytes(data[at : at + 2], "big") for at in (0, 2))
        header = 4 + 4 * ndim + 4 * mode
        if mode > 1 or stated != ndim or len(data) < header:
            raise ValueError(f"its header states mode {mode} and {stated} axes")
        box = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, 4 + 4 * ndim, 4))[::-1]
        if not all(0 < n <= c for n, c in zip(box, self.chunks, strict=True)):
            raise ValueError(f"its header states the size {box}")
        content: Any = memoryview(data)[header:]
        if self._codec:
            size = self.dtype.itemsize * math.prod(box)
            content = codecs.decode(self._codec, {}, content, size, exact=True)
        block = codecs.as_array(content, self.dtype, box)
        if box == self.chunks:
            return block
        whole = np.zeros(self.chunks, self.dtype)
        whole[tuple(slice(n) for n in box)] = block
        return whole

    def _parse(self, attributes: Mapping[str, Any]) -> None:
        if attributes["dataType"] not in _DTYPES:
            raise InputError(f"{self.name} must hold numbers, got N5 data type {attributes['dataType']}")
        self.dtype = np.dtype(attributes["dataType"]).newbyteorder(">")
        self.shape = tuple(int(n) for n in reversed(attributes["dimensions"]))
        self.chunks = tuple(int(n) for n in reversed(attributes["blockSize"]))
        if len(self.shape) != len(self.chunks) or min(*self.chunks, 1) < 1 or min(*self.shape, 0) < 0:
            raise ValueError(f"block size {self.chunks} of dimensions {self.shape}")
        stated = attributes.get("compression", attributes.get("compressionType", "raw"))
        kind = stated["type"] if isinstance(stated, Mapping) else stated
        if kind not in _CODECS:
            raise InputError(
                f"{self.name}: N5 compression {kind} is not supported; supported are {', '.join(_CODECS)}"
            )
        self._codec = _CODECS[kind]
        self._most_stored = codecs.stored_bytes(self.dtype.itemsize * math.prod(self.chunks))
        header = struct.pack(f">HH{len(self.shape)}I", 0, len(self.shape), *reversed(self.chunks))
        # Of whole blocks; those at the border are smaller, and state it.
        codec = self._codec or "none"
        files = (self.folder + "/", "/", True)
        how = (self.dtype, self.chunks, 0, codec, self._most_stored)
        self.stored = ChunkLayout(self.name, *how, header=header, files=files)
        axes = "".join(str(axis).lower() for axis in reversed(attributes.get("axes") or ()))
        self.axes = axes if len(axes) == len(self.shape) else guess_axes(len(self.shape))
        self.voxel_size = self._voxel_size(attributes)

    def _voxel_size(self, attributes: Mapping[str, Any]) -> tuple[float, float, float] | None:
        """From ``pixelResolution`` of the dataset, or of the group above times the downsampling factors."""
        factors = [1.0] * 3
        stated = attributes.get("pixelResolution")
        if stated is None:
            stated = _attributes(os.path.dirname(self.folder)).get("pixelResolution")
            factors = [float(f) for f in attributes.get("downsamplingFactors", factors)]
        if isinstance(stated, Mapping) and stated.get("unit") in MICROMETRES and self.axes[-3:] == "zyx":
            size = [float(v) * f for v, f in zip(stated["dimensions"][:3], factors, strict=True)]
            z, y, x = (v * MICROMETRES[stated["unit"]] for v in reversed(size))
            return (z, y, x)
        return attribute_voxel_size(attributes)


def is_n5(folder: str) -> bool:
    """Whether a folder without the suffix is a dataset or the root of an N5 hierarchy."""
    path = os.path.join(folder, "attributes.json")
    return os.path.isfile(path) and not {"n5", "dimensions"}.isdisjoint(_attributes(folder))


def _attributes(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "attributes.json")
    content = read_file(path, folder)
    try:
        attributes = json.loads(content) if content else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    return attributes if isinstance(attributes, dict) else {}


def _datasets(root: str) -> list[str]:
    found, groups = [], [""]
    for count, group in enumerate(groups):
        if count < _MOST_GROUPS and "dimensions" in _attributes(os.path.join(root, group)):
            found.append("/" + group)
        elif count < _MOST_GROUPS:
            with os.scandir(os.path.join(root, group)) as entries:
                groups += sorted(os.path.join(group, entry.name) for entry in entries if entry.is_dir())
    return sorted(found)
