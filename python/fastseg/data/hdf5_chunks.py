# SPDX-License-Identifier: BSD-3-Clause
"""Chunks of an HDF5 dataset read from the file past the HDF5 library, whose one lock would serialise the readers.

The library is asked once where each chunk lies; then a chunk is one read at an offset and one decompression, both
outside Python's lock. Known filters, in the order in which HDF5 applies them: byte shuffle, gzip or lzf, Fletcher's
checksum. A dataset with any other (szip, blosc, zstd, ...) is left to the library.
"""

from __future__ import annotations

import itertools
import math
import os
from array import array
from typing import Any, NamedTuple

import numpy as np

from fastseg import _C
from fastseg.data.codecs import stored_bytes
from fastseg.data.native_codecs import ChunkFormat
from fastseg.data.open_files import OpenFile

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
# Those without which, but for the shuffle, a chunk is read in one call.
_CODECS = {(): "none", (_DEFLATE,): "zlib"}
_ORDER = {_SHUFFLE: 0, _DEFLATE: 1, _LZF: 1, _FLETCHER32: 2}


class StoredChunk(NamedTuple):
    """A chunk as the file holds it; bit i of ``skipped`` is set where filter i of the dataset was not applied."""

    data: bytes
    skipped: int


class _ByteFile(OpenFile):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def open(self) -> Any:
        return open(self.path, "rb", buffering=0)


class StoredChunks:
    """The chunks of one dataset that were ever written. Takes 24 bytes of memory for each, whatever the shape."""

    def __init__(self, dataset: Any, filters: list[int]) -> None:
        self.filters, self.chunks = filters, dataset.chunks
        self.dtype, self.fill = dataset.dtype, dataset.fillvalue
        self.bytes = int(np.prod(self.chunks)) * self.dtype.itemsize
        self.file = _ByteFile(dataset.file.filename)
        self.grid = _grid(dataset)
        self.steps = np.array([math.prod(self.grid[axis + 1 :]) for axis in range(len(self.grid))], np.int64)
        shuffled = self.dtype.itemsize if _SHUFFLE in filters and self.dtype.itemsize > 1 else 0
        codec = _CODECS.get(tuple(f for f in filters if f != _SHUFFLE), "")
        most = stored_bytes(self.bytes)
        self.format = ChunkFormat(self.dtype, self.chunks, codec, most, shuffled)
        numbers, offsets, sizes, skipped = array("q"), array("q"), array("I"), array("I")

        def note(chunk: Any) -> None:
            index = tuple(o // c for o, c in zip(chunk.chunk_offset, self.chunks, strict=True))
            numbers.append(self._number(index))
            offsets.append(chunk.byte_offset)
            sizes.append(chunk.size)
            skipped.append(chunk.filter_mask)

        dataset.id.chunk_iter(note)
        order = np.argsort(np.array(numbers), kind="stable")
        self.numbers, self.offsets, self.sizes, self.skipped = (
            np.array(column)[order] for column in (numbers, offsets, sizes, skipped)
        )

    def read(self, index: tuple[int, ...]) -> StoredChunk | None:
        number = self._number(index)
        at = int(np.searchsorted(self.numbers, number))
        if at == len(self.numbers) or self.numbers[at] != number:
            return None
        offset, size = int(self.offsets[at]), int(self.sizes[at])
        with self.file.handle() as file:
            # Sizes come from files that may be damaged: never more than there is.
            data = os.pread(file.fileno(), min(size, os.fstat(file.fileno()).st_size), offset)
        if len(data) != size:
            raise OSError(
                f"the file ends within a chunk: {size} bytes from {offset} expected, got {len(data)}"
            )
        return StoredChunk(data, int(self.skipped[at]))

    def load(self, indices: list[tuple[int, ...]]) -> list[np.ndarray | bool | None]:
        """Chunks of the grid decoded in one call: None was never written, False is left to ``decode``."""
        if not self.format.known or not len(self.numbers):
            return [False if len(self.numbers) else None] * len(indices)
        numbers = np.array(indices) @ self.steps
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        there = self.numbers[at] == numbers
        # Those to which not every filter was applied are left: a size of 0 fails.
        sizes = np.where(self.skipped[at] == 0, self.sizes[at], 0)
        with self.file.handle() as file:
            places = self.offsets[at[there]].tolist(), sizes[there].tolist()
            found = iter(self.format.read(*places, open_file=file.fileno()))
        return [next(found) if is_there else None for is_there in there.tolist()]

    def _number(self, index: tuple[int, ...]) -> int:
        """In C order within the grid of chunks."""
        number = 0
        for i, n in zip(index, self.grid, strict=True):
            if not 0 <= i < n:
                raise IndexError(f"chunk {index} is outside the grid {self.grid} of the dataset's chunks")
            number = number * n + i
        return number

    def decode(self, stored: StoredChunk | None) -> np.ndarray:
        if stored is None:
            return np.full(self.chunks, self.fill, self.dtype)
        data: Any = stored.data
        for place in reversed(range(len(self.filters))):
            if not stored.skipped >> place & 1:
                data = _undo(self.filters[place], data, self.bytes, self.dtype.itemsize)
        if len(data) != self.bytes:
            raise ValueError(f"a chunk must hold {self.bytes} bytes, got {len(data)}")
        return np.frombuffer(data, self.dtype).reshape(self.chunks)


def stored_chunks(dataset: Any) -> StoredChunks | None:
    """None where only the library can read the dataset."""
    chunks = dataset.chunks
    if chunks is None or dataset.dtype.kind not in "buif" or not hasattr(dataset.id, "chunk_iter"):
        return None
    # Offsets count from the end of a user block, and other drivers split or map the file.
    if dataset.file.userblock_size or dataset.file.driver != "sec2":
        return None
    if math.prod(_grid(dataset)) >= 2**63:
        return None
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    ranks = [_ORDER.get(code, -1) for code in filters]
    if -1 in ranks or any(b <= a for a, b in itertools.pairwise(ranks)):
        return None
    return StoredChunks(dataset, filters)


def _grid(dataset: Any) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))


def _undo(code: int, data: Any, size: int, itemsize: int) -> Any:
    import imagecodecs

    if code == _FLETCHER32:
        content, stored = data[:-4], int.from_bytes(data[-4:], "little")
        found = imagecodecs.h5checksum_fletcher32(content)
        if found != stored:
            raise ValueError(f"the checksum of a chunk must be {stored:#010x}, got {found:#010x}")
        return content
    if code == _DEFLATE:  # libdeflate: twice the speed of the zlib within HDF5
        return imagecodecs.deflate_decode(data, out=size)
    if code == _LZF:
        return imagecodecs.lzf_decode(data, out=size)
    return _C.unshuffle(bytes(data), itemsize)
