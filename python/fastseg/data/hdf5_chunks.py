# SPDX-License-Identifier: BSD-3-Clause
"""Chunks of an HDF5 dataset read from the file past the HDF5 library, whose one lock would serialise the readers.

The library is asked once where each chunk lies; then a chunk is one read at an offset and one decompression, both
outside Python's lock. Known filters, in the order in which HDF5 applies them: byte shuffle, gzip or lzf, Fletcher's
checksum. A dataset with any other (szip, blosc, zstd, ...) is left to the library.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, NamedTuple

import numpy as np

_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_ORDER = {_SHUFFLE: 0, _DEFLATE: 1, _LZF: 1, _FLETCHER32: 2}


class StoredChunk(NamedTuple):
    """A chunk as the file holds it; bit i of ``skipped`` is set where filter i of the dataset was not applied."""

    data: bytes
    skipped: int


class StoredChunks:
    """The chunks of one dataset. Takes 16 bytes of memory for each; open in one process alone."""

    def __init__(self, dataset: Any, filters: list[int]) -> None:
        self.filters, self.chunks = filters, dataset.chunks
        self.dtype, self.fill = dataset.dtype, dataset.fillvalue
        self.bytes = int(np.prod(self.chunks)) * self.dtype.itemsize
        self.file = open(dataset.file.filename, "rb", buffering=0)  # noqa: SIM115 - closed with its owner
        grid = tuple(-(-n // c) for n, c in zip(dataset.shape, self.chunks, strict=True))
        self.offsets = np.full(grid, -1, np.int64)
        self.sizes = np.zeros(grid, np.uint32)
        self.skipped = np.zeros(grid, np.uint32)

        def note(chunk: Any) -> None:
            place = tuple(o // c for o, c in zip(chunk.chunk_offset, self.chunks, strict=True))
            self.offsets[place], self.sizes[place] = chunk.byte_offset, chunk.size
            self.skipped[place] = chunk.filter_mask

        dataset.id.chunk_iter(note)

    def read(self, index: tuple[int, ...]) -> StoredChunk | None:
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        if offset < 0:
            return None
        data = os.pread(self.file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(
                f"the file ends within a chunk: {size} bytes from {offset} expected, got {len(data)}"
            )
        return StoredChunk(data, int(self.skipped[index]))

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
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    ranks = [_ORDER.get(code, -1) for code in filters]
    if -1 in ranks or any(b <= a for a, b in itertools.pairwise(ranks)):
        return None
    return StoredChunks(dataset, filters)


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
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
