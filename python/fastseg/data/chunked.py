# SPDX-License-Identifier: BSD-3-Clause
"""Arrays stored as a grid of separately compressed chunks in files of their own: Zarr and N5."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np

from fastseg.data.cache import ByteCache
from fastseg.data.sources import Slices, Source, reason
from fastseg.errors import InputError

# As for HDF5: a few patches' chunks, so that reading slice by slice decodes each chunk once.
_CACHE_BYTES = 64 << 20


class ChunkedSource(Source):
    """A source that hands out single chunks: their bytes, and what these decode to.

    Both may be called from any thread and in forked processes: there is no handle, no lock around reading or
    decoding, and no thread behind it.
    """

    chunks: tuple[int, ...]
    fill: Any

    def __init__(self) -> None:
        super().__init__()
        self._cache = ByteCache(_CACHE_BYTES)

    def open(self) -> Any:
        return True

    def chunk_bytes(self, index: tuple[int, ...]) -> bytes | None:
        """The stored bytes of one chunk of the grid; None where it is absent, that is, all fill value."""
        raise NotImplementedError

    def undo(self, data: bytes) -> np.ndarray:
        """What :meth:`decode` returns, with any error a codec may raise."""
        raise NotImplementedError

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk."""
        raise NotImplementedError

    def decode(self, data: bytes | None, index: tuple[int, ...] | None = None) -> np.ndarray:
        """A whole chunk, beyond the array's end too, in the file's dtype. index: for the error alone."""
        if data is None:
            return np.full(self.chunks, self.fill, self.dtype)
        try:
            return self.undo(data)
        except Exception as error:  # half a dozen libraries, each with errors of its own
            where = f"chunk {index} in {self.chunk_name(index)}" if index is not None else "a chunk"
            raise InputError(f"{self.name} cannot be read: {where} is damaged: {reason(error)}") from error

    def read(self, slices: Slices) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in slices], self.dtype.newbyteorder("="))
        touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(slices, self.chunks, strict=True)]
        for index in itertools.product(*touched):
            target, within = [], []
            for i, c, s in zip(index, self.chunks, slices, strict=True):
                low, high = max(i * c, s.start), min((i + 1) * c, s.stop)
                target.append(slice(low - s.start, high - s.start))
                within.append(slice(low - i * c, high - i * c))
            out[tuple(target)] = self._cache.get(index, lambda i=index: self._chunk(i))[tuple(within)]
        return out

    def _chunk(self, index: tuple[int, ...]) -> np.ndarray:
        data = self.chunk_bytes(index)
        if data is None:  # takes no room in the cache
            return np.broadcast_to(np.asarray(self.fill, self.dtype), self.chunks)
        return self.decode(data, index)


def read_file(path: str, name: str, offset: int = 0, size: int = -1) -> bytes | None:
    """A file's bytes, the last ones for a negative offset; None if there is no file."""
    try:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            start = min(offset, length) if offset >= 0 else max(length + offset, 0)
            file.seek(start)
            # Sizes come from files that may be damaged: never more than there is.
            return file.read(length - start if size < 0 else min(size, length - start))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {path}: {reason(error)}") from error
