# SPDX-License-Identifier: BSD-3-Clause
"""Decoded pieces of files, kept while there is room, and locks that a fork leaves usable."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np


class _Forked(Protocol):
    def after_fork(self) -> None: ...


# A lock that another thread of the parent held during the fork would stay locked in the child for ever.
_locked: weakref.WeakSet[_Forked] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [owner.after_fork() for owner in list(_locked)])


def renew_after_fork(owner: _Forked) -> None:
    """Have ``owner.after_fork()`` called in every forked child, to make its locks anew."""
    _locked.add(owner)


class ByteCache:
    """Least recently used arrays up to a number of bytes; decoding happens outside the lock."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._held = 0
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = decode()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self._held += array.nbytes
            while self._held > self.most_bytes and len(self._arrays) > 1:
                self._held -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"most_bytes": self.most_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ByteCache.__init__(self, state["most_bytes"])
