# SPDX-License-Identifier: BSD-3-Clause
"""Boxes put together from the chunks of a file by a ``ChunkCache``: one call reads, decodes and copies all that a patch
touches, outside Python's lock where C++ knows the codec."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastseg import _C
from fastseg.data.cache import ChunkCache
from fastseg.data.sources import Slices, Source, describe_box, reason
from fastseg.errors import InputError

METADATA = ("zarr.json", ".zarray", "attributes.json")  # of Zarr 3, Zarr 2, N5

# Of chunks the files, offsets and sizes.
Places = tuple[list[str], list[int], list[int]]


class ChunkReader:
    """What a ``ChunkCache`` reads by. Its methods are called from any thread and in forked processes."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    stored: _C.ChunkLayout

    def places(self, indices: np.ndarray) -> Places:
        """Where chunks (n, axes) of the grid are stored, if ``stored`` does not say so."""
        raise NotImplementedError

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        """A chunk that C++ did not decode; None where it was never written, that is, all fill value. Any error."""
        raise NotImplementedError

    def load(self, index: tuple[int, ...]) -> np.ndarray | None:
        """The same with an InputError that names the file and the chunk's place."""
        try:
            return self.fetch(index)
        except InputError:
            raise
        except Exception as error:  # half a dozen libraries decode, each with errors of its own
            raise InputError(f"{self.name} cannot be read{self.place(index)}: {reason(error)}") from error

    def place(self, index: tuple[int, ...]) -> str:
        extent = zip(index, self.chunks or self.shape, self.shape, strict=True)
        return f" at {describe_box(tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in extent))}"

    def check_still_there(self) -> None:
        """InputError if the array is gone, removed or its disk unmounted: all its chunks would pass for fill value."""


class ChunkedSource(Source, ChunkReader):
    """A source that is read chunk by chunk. There is no lock around reading or decoding, and no thread behind it."""

    cache_bytes = 64 << 20  # a few patches' chunks, so that reading slice by slice decodes each chunk once

    def __init__(self) -> None:
        super().__init__()
        self._cache = ChunkCache(self.cache_bytes)

    def chunk_reader(self) -> ChunkReader | None:
        return self

    def open(self) -> Any:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in slices], self.dtype.newbyteorder("="))
        self.read_into(slices, out)
        return out

    def read_into(self, slices: Slices, out: np.ndarray) -> None:
        self._cache.read(self, [s.start for s in slices], out)


class FolderOfChunks(ChunkedSource):
    """Zarr and N5: a file for each chunk or each shard, below the folder that holds the array's metadata."""

    folder: str

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk."""
        raise NotImplementedError

    def place(self, index: tuple[int, ...]) -> str:
        return f": chunk {index} in {self.chunk_name(index)} is damaged"

    def check_still_there(self) -> None:
        if not any(os.path.exists(os.path.join(self.folder, name)) for name in METADATA):
            raise InputError(
                f"{self.name} cannot be read: {self.folder} held an array when it was opened, and no longer does"
            )


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
