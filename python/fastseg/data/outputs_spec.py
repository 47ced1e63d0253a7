# SPDX-License-Identifier: BSD-3-Clause
"""What an array of an output is to be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Index = tuple[int, ...]


@dataclass(frozen=True)
class ArraySpec:
    """One array of an output.

    shape: (z, y, x) or (c, z, y, x). chunks: of the same length, cut to the shape. shards: multiples of chunks,
    for Zarr alone: what is stored as one file. voxel_size: micrometres (z, y, x). attributes: strings, numbers
    and sequences of them; ``origin`` (z, y, x) is the place in the raw volume.
    """

    shape: tuple[int, ...]
    dtype: Any
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    voxel_size: tuple[float, float, float] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> str:
        return "czyx"[-len(self.shape) :]

    def settled(self, name: str) -> ArraySpec:
        """As it is stored: little-endian, chunks cut to the shape. ValueError if it cannot be."""
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
            raise ValueError(f"array names are words joined by /, got {name!r}")
        shards = self.shards or self.chunks
        if len(self.shape) not in (3, 4) or not len(self.shape) == len(self.chunks) == len(shards):
            raise ValueError(
                f"{name}: shape, chunks and shards must be (z, y, x) or (c, z, y, x) alike, got {self.shape}, "
                f"{self.chunks} and {self.shards}"
            )
        if min(*self.shape, *self.chunks) < 1 or any(s % c for s, c in zip(shards, self.chunks, strict=True)):
            raise ValueError(
                f"{name}: shape and chunks must be positive and shards multiples of chunks, got {self.shape}, "
                f"{self.chunks} and {self.shards}"
            )
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "buif" or dtype.itemsize > 8:
            raise ValueError(
                f"{name}: dtype must be bool, an integer or a float of 2 to 8 bytes, got {dtype}"
            )
        chunks = tuple(min(c, n) for c, n in zip(self.chunks, self.shape, strict=True))
        # An axis of one cut chunk has one chunk per shard as well.
        whole = zip(shards, self.chunks, self.shape, strict=True)
        cut = tuple(min(c, n) if n <= c else s for s, c, n in whole) if self.shards else None
        attributes = as_json(self.attributes)
        return replace(self, dtype=dtype.newbyteorder("<"), chunks=chunks, shards=cut, attributes=attributes)

    def described(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "chunks": list(self.chunks),
            "shards": list(self.shards) if self.shards else None,
            "voxel_size": list(self.voxel_size) if self.voxel_size else None,
            "attributes": dict(self.attributes),
        }


def pad_to(box: np.ndarray, shape: Index) -> np.ndarray:
    """``box`` as a contiguous array of ``shape``, with zeros beyond its end."""
    if box.shape == shape:
        return np.ascontiguousarray(box)
    whole = np.zeros(shape, box.dtype)
    whole[tuple(slice(n) for n in box.shape)] = box
    return whole


def as_json(value: Any) -> Any:
    """What JSON gives back of a value; NumPy's numbers and arrays are taken as Python's."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
