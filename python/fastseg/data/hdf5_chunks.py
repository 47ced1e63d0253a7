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
from typing import Any

import numpy as np

from fastseg import _C
from fastseg.data.chunks import ChunkReader, read_file
from fastseg.data.codecs import stored_bytes
from fastseg.data.native_codecs import ChunkLayout

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
# Those without which, but for the shuffle, a chunk is read in one call.
_CODECS = {(): "none", (_DEFLATE,): "zlib"}
_ORDER = {_SHUFFLE: 0, _DEFLATE: 1, _LZF: 1, _FLETCHER32: 2}


class StoredChunks(ChunkReader):
    """The chunks of one dataset that were ever written. Takes 24 bytes of memory for each, whatever the shape."""

    def __init__(self, name: str, dataset: Any, filters: list[int]) -> None:
        self.name, self.shape, self.chunks = name, dataset.shape, dataset.chunks
        self.filters, self.dtype = filters, dataset.dtype
        self.bytes = int(np.prod(dataset.chunks)) * self.dtype.itemsize
        self.path = dataset.file.filename
        grid = _grid(dataset)
        self.steps = steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        shuffled = self.dtype.itemsize if _SHUFFLE in filters and self.dtype.itemsize > 1 else 0
        codec = _CODECS.get(tuple(f for f in filters if f != _SHUFFLE), "")
        most, fill = stored_bytes(self.bytes), dataset.fillvalue
        self.stored = ChunkLayout(name, self.dtype, dataset.chunks, fill, codec, most, shuffled)
        numbers, offsets, sizes, skipped = array("q"), array("q"), array("I"), array("I")

        def note(chunk: Any) -> None:
            index = (o // c for o, c in zip(chunk.chunk_offset, dataset.chunks, strict=True))
            numbers.append(sum(i * n for i, n in zip(index, steps, strict=True)))
            offsets.append(chunk.byte_offset)
            sizes.append(chunk.size)
            skipped.append(chunk.filter_mask)

        dataset.id.chunk_iter(note)
        order = np.argsort(np.array(numbers), kind="stable")
        table = [np.array(column)[order] for column in (numbers, offsets, sizes, skipped)]
        self.numbers, self.offsets, self.sizes, self.skipped = table
        self.stored.set_table(os.fsencode(self.path), steps, *table)

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        number = sum(i * n for i, n in zip(index, self.steps, strict=True))
        at = int(np.searchsorted(self.numbers, number))
        if at == len(self.numbers) or self.numbers[at] != number:
            return None
        offset, size = int(self.offsets[at]), int(self.sizes[at])
        data: Any = read_file(self.path, self.name, offset, size)
        if data is None:
            raise OSError(f"{self.path} is no longer there")
        if len(data) != size:
            raise OSError(
                f"the file ends within a chunk: {size} bytes from {offset} expected, got {len(data)}"
            )
        for place in reversed(range(len(self.filters))):
            if not self.skipped[at] >> place & 1:
                data = _undo(self.filters[place], data, self.bytes, self.dtype.itemsize)
        if len(data) != self.bytes:
            raise ValueError(f"a chunk must hold {self.bytes} bytes, got {len(data)}")
        return np.frombuffer(data, self.dtype).reshape(self.chunks)


def stored_chunks(name: str, dataset: Any) -> StoredChunks | None:
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
    return StoredChunks(name, dataset, filters)


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
