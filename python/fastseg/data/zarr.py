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
from fastseg.data.chunks import ChunkReader, FolderOfChunks, Places, read_file
from fastseg.data.native_codecs import ABSENT, ChunkLayout
from fastseg.data.ngff import array_axes, array_voxel_size, choose_array
from fastseg.data.sources import guess_axes, reason
from fastseg.data.zarr_metadata import ArrayLayout, Shard, parse_array, read_node
from fastseg.errors import InputError

ZARR_SUFFIXES = (".zarr",)

# Shard indexes: 16 bytes per chunk, so those of a million chunks.
_INDEX_BYTES = 16 << 20
_MISSING = 2**64 - 1


class ZarrSource(FolderOfChunks):
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
            self._prefix = f"{self.folder}/{self.layout.prefix}"
            self.stored = self.layout.stored_as(self.name, self._prefix)
        except InputError as error:
            raise InputError(f"{self.name} cannot be read: {error}") from error
        except Exception as error:  # metadata may be damaged in any way
            raise InputError(
                f"{self.name} cannot be read: its metadata are damaged: {reason(error)}"
            ) from error
        self.shape, self.dtype, self.chunks = self.layout.shape, self.layout.dtype, self.layout.chunks
        self.axes = array_axes(node, image, len(self.shape)) or guess_axes(len(self.shape))
        self.voxel_size = array_voxel_size(node, image, self.axes)
        self.channel_names = image.channels if image else ()
        self._indexes = _ShardIndexes(self, self.layout.shard) if self.layout.shard else None

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk, mostly with others."""
        shard = self.layout.shard
        return self._prefix + self.layout.separator.join(map(str, shard.of(index) if shard else index))

    def places(self, indices: np.ndarray) -> Places:
        assert self._indexes is not None, "only of shards"
        offsets, sizes = self._indexes.read(indices).T
        absent = (offsets == _MISSING) & (sizes == _MISSING)
        # Whatever a shard's index says: what no file holds stays so as a signed number.
        offsets, sizes = (np.minimum(part, 2**62).astype(np.int64) for part in (offsets, sizes))
        files = [self.chunk_name(index) for index in indices.tolist()]
        return files, offsets.tolist(), np.where(absent, ABSENT, sizes).tolist()

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        path = self.chunk_name(index)
        if self._indexes is None:
            data = read_file(path, self.name, most=self.layout.stored_bytes)
        else:
            _, (offset,), (size,) = self.places(np.array([index]))
            if size == ABSENT:
                return None
            is_sane = size <= self.layout.stored_bytes and offset < 2**62
            data = read_file(path, self.name, offset, size) if is_sane else b""
            if data is None or len(data) != size or not size:
                raise InputError(f"{self.name} cannot be read: {path} ends before chunk {index}")
        return None if data is None else self.layout.decode(data)


class _ShardIndexes(ChunkReader):
    """The indexes of all shards as one array: offset and size of each chunk, of which a shard's are a chunk."""

    def __init__(self, source: ZarrSource, shard: Shard) -> None:
        self.name, self._source, self._shard = source.name, source, shard
        name = f"{source.name}, index"
        self.stored = ChunkLayout(name, np.dtype("<u8"), (*shard.counts, 2), _MISSING)
        self._cache = ChunkCache(_INDEX_BYTES)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Offsets and sizes (n, 2) of chunks (n, axes), which lie in one box of few shards."""
        low = indices.min(0)
        found = np.empty((*(indices.max(0) + 1 - low), 2), np.uint64)
        self._cache.read(self, [*low.tolist(), 0], found)
        return found[tuple((indices - low).T)]

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        shard, counts = self._shard, self._shard.counts
        path = self._source.chunk_name(tuple(i * n for i, n in zip(index, counts, strict=False)))
        start = -shard.index_bytes if shard.index_at_end else 0
        content: Any = read_file(path, self.name, start, shard.index_bytes)
        if content is None:
            return None
        try:
            if shard.has_checksum:
                content = codecs.decode("crc32c", {}, content, shard.index_bytes)
            return codecs.as_array(content, np.dtype("<u8"), (*counts, 2))
        except ValueError as error:
            raise InputError(
                f"{self.name} cannot be read: {path}: its shard index is damaged: {error}"
            ) from error


def is_zarr(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("zarr.json", ".zarray", ".zgroup"))
