# SPDX-License-Identifier: BSD-3-Clause
"""Boxes assembled from the chunks of a file: fetched as stored, decoded by any thread, each once while it is cached,
and copied in one call outside Python's lock.

A source takes part by two methods: ``chunk_bytes(index)`` gives a chunk as it is stored, None if it was never
written, and ``decode(stored)`` gives the array of a whole chunk, of fill values for None. Neither holds a lock. With a
third, ``load_chunks(indices)``, most chunks are read and decoded in one call (native_codecs.py).
"""

from __future__ import annotations

import itertools
import math
import os
from contextlib import suppress
from typing import Any

import numpy as np

from fastseg import _C
from fastseg.data.cache import ChunkCache
from fastseg.data.sources import Slices, Source, describe_box, reason
from fastseg.errors import InputError

# As for HDF5: a few patches' chunks, so that reading slice by slice decodes each chunk once.
_CACHE_BYTES = 64 << 20

METADATA = ("zarr.json", ".zarray", "attributes.json")  # of Zarr 3, Zarr 2, N5

# Of decoded chunks that are copied by one call, and held until then: all that a patch touches, few of a large box.
_HELD_BYTES = 8 << 20


class ChunkedSource(Source):
    """A source that hands out single chunks: their bytes, and what these decode to.

    Both may be called from any thread and in forked processes: there is no handle, no lock around reading or
    decoding, and no thread behind it.
    """

    chunks: tuple[int, ...]
    fill: Any
    folder: str  # of the array: its metadata, and below it its chunks

    def __init__(self) -> None:
        super().__init__()
        self._cache = ChunkCache(_CACHE_BYTES)

    def open(self) -> Any:
        return True

    def chunk_bytes(self, index: tuple[int, ...]) -> bytes | None:
        """The stored bytes of one chunk of the grid; None where it is absent, that is, all fill value."""
        raise NotImplementedError

    def undo(self, data: bytes) -> np.ndarray:
        """The array that stored bytes decode to, with any error a codec may raise."""
        raise NotImplementedError

    def load_chunks(self, indices: list[tuple[int, ...]]) -> list[np.ndarray | bool | None]:
        """As ``decode(chunk_bytes(index))`` of each, but None where it is absent and False where this way fails."""
        return [False] * len(indices)

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk."""
        raise NotImplementedError

    def check_still_there(self) -> None:
        """InputError if the array is gone, removed or its disk unmounted: all its chunks would pass for fill value."""
        if not any(os.path.exists(os.path.join(self.folder, name)) for name in METADATA):
            raise InputError(
                f"{self.name} cannot be read: {self.folder} held an array when it was opened, and no longer does"
            )

    def decode(self, data: bytes | None) -> np.ndarray:
        """A whole chunk, beyond the array's end too, in the file's dtype."""
        return np.full(self.chunks, self.fill, self.dtype) if data is None else self.undo(data)

    def read(self, slices: Slices) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in slices], self.dtype.newbyteorder("="))
        self.read_into(slices, out)
        return out

    def read_into(self, slices: Slices, out: np.ndarray) -> None:
        read_chunked(self, slices, out, self._cache)


def offers_chunks(source: Source) -> bool:
    """Whether the chunks of ``source`` can be fetched and decoded one by one, or the file alone knows how."""
    if source.chunks is None or not hasattr(source, "chunk_bytes"):
        return False
    return not hasattr(source, "offers_chunks") or source.offers_chunks()


def read_chunked(source: Source, slices: Slices, out: np.ndarray, cache: ChunkCache) -> None:
    """Fill ``out``, which has the file's axes, with the box ``slices``. InputError names a damaged chunk's place."""
    assert source.chunks is not None
    touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(slices, source.chunks, strict=True)]
    # Chunks beyond the grid's last are not asked for, but the last one may reach beyond the box, as may the first.
    places = [[i * c - s.start for i in r] for r, c, s in zip(touched, source.chunks, slices, strict=True)]
    keys = ((source.name, index) for index in itertools.product(*touched))
    corners = itertools.product(*places)
    held = max(1, _HELD_BYTES // (math.prod(source.chunks) * source.dtype.itemsize))
    while some := list(itertools.islice(keys, held)):
        chunks = cache.get_all(some, lambda absent: _load_all(source, absent))
        if any(chunk is None for chunk in chunks):
            empty = cache.get((source.name, None), lambda: source.decode(None))
            chunks = [empty if chunk is None else chunk for chunk in chunks]
        _C.copy_boxes(out, chunks, list(itertools.islice(corners, held)))


def _load_all(source: Source, keys: list[Any]) -> list[np.ndarray | None]:
    """The chunks of keys, all in one call where the source can; what it leaves (False) one by one, with its errors."""
    found: list[Any] = [False] * len(keys)
    if hasattr(source, "load_chunks"):
        with suppress(OSError, ValueError):  # which come again, and are placed
            found = source.load_chunks([index for _, index in keys])
    loaded = [_load(source, key) if chunk is False else chunk for key, chunk in zip(keys, found, strict=True)]
    if isinstance(source, ChunkedSource) and any(chunk is None for chunk in loaded):
        source.check_still_there()
    return loaded


def _load(source: Source, key: Any) -> np.ndarray | None:
    index = key[1]
    try:
        stored = source.chunk_bytes(index)
        return None if stored is None else source.decode(stored)
    except InputError:
        raise
    except Exception as error:  # half a dozen libraries decode, each with errors of its own
        if isinstance(source, ChunkedSource):
            place = f": chunk {index} in {source.chunk_name(index)} is damaged"
        else:
            assert source.chunks is not None
            extent = zip(index, source.chunks, source.shape, strict=True)
            place = f" at {describe_box(tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in extent))}"
        raise InputError(f"{source.name} cannot be read{place}: {reason(error)}") from error


def read_file(path: str, name: str, offset: int = 0, size: int = -1, most: int | None = None) -> bytes | None:
    """A file's bytes, the last ones for a negative offset; None if there is no file. most: bytes that it may have."""
    try:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            start = min(offset, length) if offset >= 0 else max(length + offset, 0)
            if most is not None and length > most:
                raise InputError(
                    f"{name} cannot be read: {path} has {length:,} bytes, a chunk at most {most:,}"
                )
            file.seek(start)
            # Sizes come from files that may be damaged: never more than there is.
            return file.read(length - start if size < 0 else min(size, length - start))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {path}: {reason(error)}") from error
