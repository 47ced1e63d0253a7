# SPDX-License-Identifier: BSD-3-Clause
"""Decoded chunks of files, kept while there is room, and locks that a fork leaves usable."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from fastseg import _C


class _Forked(Protocol):
    def after_fork(self) -> None: ...


# A lock that another thread of the parent held during the fork would stay locked in the child for ever.
_locked: weakref.WeakSet[_Forked] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [owner.after_fork() for owner in list(_locked)])


def renew_after_fork(owner: _Forked) -> None:
    """Have ``owner.after_fork()`` called in every forked child, to make its locks anew."""
    _locked.add(owner)


class ChunkCache(_C.ChunkCache):
    """Decoded chunks shared by threads, the least recently used dropped first (csrc/chunk_cache.cpp).

    Holds at most ``most_bytes``, always the last one included. A chunk that two threads ask for at the same time
    is decoded by one of them; the other waits. Copies made by pickle and forks begin empty.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        renew_after_fork(self)

    def after_fork(self) -> None:  # what other threads were decoding never comes
        self.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkCache, (self.most_bytes,)
