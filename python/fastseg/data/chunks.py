# SPDX-License-Identifier: BSD-3-Clause
"""Boxes assembled from the chunks of a file: fetched as stored, decoded by any thread, each once while it is cached.

A source takes part by two methods: ``chunk_bytes(index)`` gives a chunk as it is stored, None if it was never
written, and ``decode(stored)`` gives the array of a whole chunk, of fill values for None. Neither holds a lock.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

import numpy as np

from fastseg.data.sources import Slices, Source, describe_box, reason
from fastseg.errors import InputError

# What an entry of the cache takes beside its array, about; it bounds the number of chunks never written.
_ENTRY_BYTES = 512


class ChunkCache:
    """Decoded chunks shared by threads, the least recently used dropped first.

    Holds at most ``most_bytes``, always the last one included. A chunk that two threads ask for at the same time
    is decoded by one of them; the other waits.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.decoded = 0  # chunks, for those who look for the reason of a slow loader
        self._held = 0
        self._chunks: OrderedDict[Hashable, np.ndarray | None] = OrderedDict()
        self._coming: dict[Hashable, Future[np.ndarray | None]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
            coming = self._coming.get(key)
            if coming is None:
                mine = self._coming[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            chunk = load()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self.decoded += 1
            self._chunks[key] = chunk
            self._held += _size(chunk)
            while self._held > self.most_bytes and len(self._chunks) > 1:
                self._held -= _size(self._chunks.popitem(last=False)[1])
        mine.set_result(chunk)
        return chunk


def offers_chunks(source: Source) -> bool:
    """Whether the chunks of ``source`` can be fetched and decoded one by one, or the file alone knows how."""
    if source.chunks is None or not hasattr(source, "chunk_bytes"):
        return False
    return not hasattr(source, "offers_chunks") or source.offers_chunks()


def read_chunked(source: Source, slices: Slices, out: np.ndarray, cache: ChunkCache) -> None:
    """Fill ``out``, which has the file's axes, with the box ``slices``. InputError names a damaged chunk's place."""
    assert source.chunks is not None
    touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(slices, source.chunks, strict=True)]
    for index in itertools.product(*touched):
        chunk = cache.get((source.name, index), lambda i=index: _load(source, i))
        if chunk is None:
            chunk = cache.get((source.name, None), lambda: source.decode(None))
        inside, outside = [], []
        for i, c, s in zip(index, source.chunks, slices, strict=True):
            low, high = max(i * c, s.start), min((i + 1) * c, s.stop)
            inside.append(slice(low - i * c, high - i * c))
            outside.append(slice(low - s.start, high - s.start))
        out[tuple(outside)] = chunk[tuple(inside)]


def _load(source: Source, index: tuple[int, ...]) -> np.ndarray | None:
    try:
        stored = source.chunk_bytes(index)
        return None if stored is None else source.decode(stored)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        assert source.chunks is not None
        extent = zip(index, source.chunks, source.shape, strict=True)
        box = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in extent)
        raise InputError(f"{source.name} cannot be read at {describe_box(box)}: {reason(error)}") from error


def _size(chunk: np.ndarray | None) -> int:
    return _ENTRY_BYTES + (0 if chunk is None else chunk.nbytes)
