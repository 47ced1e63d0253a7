# SPDX-License-Identifier: BSD-3-Clause
"""Zarr arrays as sources: versions 2 and 3, sharded or not, and OME-Zarr images.

Chunks are found and decoded here and not by zarr-python, whose event loop runs in a thread of its own: that thread
does not live on in a forked process, where reading would wait for it for ever, and every chunk goes through it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastseg.data import codecs
from fastseg.data.cache import ChunkCache
from fastseg.data.chunks import ChunkedSource, read_file
from fastseg.data.ngff import array_axes, array_voxel_size, choose_array
from fastseg.data.sources import guess_axes, reason
from fastseg.data.zarr_metadata import ArrayLayout, parse_array, read_node
from fastseg.errors import InputError

ZARR_SUFFIXES = (".zarr",)

# Shard indexes: 16 bytes per chunk, so those of a million chunks.
_INDEX_BYTES = 16 << 20
_MISSING = 2**64 - 1


class ZarrSource(ChunkedSource):
    """``brain.zarr:/raw``. Of an OME-Zarr image its level (0 is the finest), unless the path names one."""

    def __init__(self, path: str, dataset: str | None = None, level: int | None = None) -> None:
        super().__init__()
        self.path = path
        inner, image = choose_array(path, (dataset or "").strip("/"), level)
        self.dataset = "/" + inner
        self.name = f"{path}:{self.dataset}" if inner else path
        self.folder = os.path.join(path, inner) if inner else path
        node = read_node(self.folder)
        if node is None or not node.is_array:
            raise InputError(f"{self.name} is no Zarr array")
        try:
            self.layout: ArrayLayout = parse_array(node)
        except InputError as error:
            raise InputError(f"{self.name} cannot be read: {error}") from error
        except Exception as error:  # metadata may be damaged in any way
            raise InputError(
                f"{self.name} cannot be read: its metadata are damaged: {reason(error)}"
            ) from error
        self.shape, self.dtype, self.chunks = self.layout.shape, self.layout.dtype, self.layout.chunks
        self.fill = self.layout.fill
        self.axes = array_axes(node, image, len(self.shape)) or guess_axes(len(self.shape))
        self.voxel_size = array_voxel_size(node, image, self.axes)
        self.channel_names = image.channels if image else ()
        self._indexes = ChunkCache(_INDEX_BYTES)

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return f"{self.folder}/{self.layout.key(self._shard_of(index))}"

    def chunk_bytes(self, index: tuple[int, ...]) -> bytes | None:
        path = self.chunk_name(index)
        if self.layout.shard is None:
            return read_file(path, self.name, most=self.layout.stored_bytes)
        place = self._place_in_shard(path, index)
        if place is None:
            return None
        offset, size = place
        is_sane = size <= self.layout.stored_bytes and offset < 2**62
        data = read_file(path, self.name, offset, size) if is_sane else b""
        if data is None or len(data) != size or not size:
            raise InputError(f"{self.name} cannot be read: {path} ends before chunk {index}")
        return data

    def load_chunks(self, indices: list[tuple[int, ...]]) -> list[np.ndarray | bool | None]:
        form = self.layout.format
        if form is None:
            return super().load_chunks(indices)
        if self.layout.shard is None:
            prefix, separator = f"{self.folder}/{self.layout.prefix}", self.layout.separator
            files = [prefix + separator.join(map(str, index)) for index in indices]
            found = form.read([0] * len(files), [-1] * len(files), files)
        else:
            files = [self.chunk_name(index) for index in indices]
            places = [self._place_in_shard(*pair) for pair in zip(files, indices, strict=True)]
            there = [i for i, place in enumerate(places) if place is not None]
            offsets, sizes = ([min(p[part], 2**62) for p in places if p is not None] for part in (0, 1))
            found = [None] * len(files)
            for i, chunk in zip(there, form.read(offsets, sizes, [files[i] for i in there]), strict=True):
                found[i] = chunk
        if self.layout.orders:
            return [self.layout.in_file_axes(c) if isinstance(c, np.ndarray) else c for c in found]
        return found

    def _place_in_shard(self, path: str, index: tuple[int, ...]) -> tuple[int, int] | None:
        """Offset and size of a chunk, whatever the shard's index says; None where it is absent."""
        table = self._indexes.get(self._shard_of(index), lambda: self._shard_index(path))
        if table is None or not table.size:
            return None
        inner = tuple(i % n for i, n in zip(index, table.shape[:-1], strict=True))
        offset, size = table[inner].tolist()
        return None if offset == size == _MISSING else (offset, size)

    def undo(self, data: bytes) -> np.ndarray:
        return self.layout.decode(data)

    def _shard_of(self, index: tuple[int, ...]) -> tuple[int, ...]:
        if self.layout.shard is None:
            return index
        return tuple(i // n for i, n in zip(index, self.layout.shard.counts, strict=True))

    def _shard_index(self, path: str) -> np.ndarray:
        """(*chunks of the shard, 2): offset and size of each; empty if the shard is absent."""
        shard = self.layout.shard
        assert shard is not None
        content: Any = read_file(
            path, self.name, -shard.index_bytes if shard.index_at_end else 0, shard.index_bytes
        )
        if content is None:
            return np.empty(0, "<u8")
        try:
            if shard.has_checksum:
                content = codecs.decode("crc32c", {}, content, shard.index_bytes)
            return codecs.as_array(content, np.dtype("<u8"), (*shard.counts, 2))
        except ValueError as error:
            raise InputError(
                f"{self.name} cannot be read: {path}: its shard index is damaged: {error}"
            ) from error


def is_zarr(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("zarr.json", ".zarray", ".zgroup"))
