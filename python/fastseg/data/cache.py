# SPDX-License-Identifier: BSD-3-Clause
"""Decoded pieces of files, kept while there is room, and locks that a fork leaves usable."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np


class _Forked(Protocol):
    def after_fork(self) -> None: ...


# What an entry of a cache takes beside its array, about; it bounds the number of chunks never written.
_ENTRY_BYTES = 512

_ABSENT: Any = object()

# A lock that another thread of the parent held during the fork would stay locked in the child for ever.
_locked: weakref.WeakSet[_Forked] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [owner.after_fork() for owner in list(_locked)])


def renew_after_fork(owner: _Forked) -> None:
    """Have ``owner.after_fork()`` called in every forked child, to make its locks anew."""
    _locked.add(owner)


class ChunkCache:
    """Decoded chunks shared by threads, the least recently used dropped first.

    Holds at most ``most_bytes``, always the last one included. A chunk that two threads ask for at the same time
    is decoded by one of them, outside the lock; the other waits. Copies made by pickle and forks begin empty.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self.decoded = 0  # chunks, for those who look for the reason of a slow loader
        self._held = 0
        self._chunks: OrderedDict[Hashable, np.ndarray | None] = OrderedDict()
        self._coming: dict[Hashable, Future[dict[Hashable, np.ndarray | None]]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        return self.get_all([key], lambda _: [load()])[0]

    def get_all(
        self, keys: Sequence[Hashable], load: Callable[[list[Any]], list[np.ndarray | None]]
    ) -> list[np.ndarray | None]:
        """The chunks of ``keys``, all different. ``load`` gives those that are neither there nor being decoded by
        another thread, at once."""
        found: dict[Hashable, np.ndarray | None] = {}
        mine: list[Hashable] = []
        others: list[tuple[Hashable, Future[dict[Hashable, np.ndarray | None]]]] = []
        with self._lock:
            for key in keys:
                chunk = self._chunks.get(key, _ABSENT)
                if chunk is not _ABSENT:
                    self._chunks.move_to_end(key)
                    found[key] = chunk
                elif key in self._coming:
                    others.append((key, self._coming[key]))
                else:
                    mine.append(key)
            if mine:
                batch: Future[dict[Hashable, np.ndarray | None]] = Future()
                self._coming.update(dict.fromkeys(mine, batch))
        if mine:  # before waiting for others, who may wait for these
            found.update(self._load(mine, batch, load))
        for key, coming in others:
            try:
                found[key] = coming.result()[key]
            except Exception:  # of that chunk, or of another that was to be decoded with it
                found[key] = self.get_all([key], load)[0]
        return [found[key] for key in keys]

    def _load(
        self,
        keys: list[Hashable],
        batch: Future[dict[Hashable, np.ndarray | None]],
        load: Callable[[list[Any]], list[np.ndarray | None]],
    ) -> dict[Hashable, np.ndarray | None]:
        try:
            chunks = dict(zip(keys, load(keys), strict=True))
        except BaseException as error:
            with self._lock:
                for key in keys:
                    del self._coming[key]
            batch.set_exception(error)
            raise
        with self._lock:
            self.decoded += len(keys)
            for key, chunk in chunks.items():
                del self._coming[key]
                self._chunks[key] = chunk
                self._held += _size(chunk)
            while self._held > self.most_bytes and len(self._chunks) > 1:
                self._held -= _size(self._chunks.popitem(last=False)[1])
        batch.set_result(chunks)
        return chunks

    def __getstate__(self) -> dict[str, Any]:
        return {"most_bytes": self.most_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ChunkCache.__init__(self, state["most_bytes"])


def _size(chunk: np.ndarray | None) -> int:
    return _ENTRY_BYTES + (0 if chunk is None else chunk.nbytes)
