# SPDX-License-Identifier: BSD-3-Clause
"""Files that stay open while they are few: thousands of volumes, under the limit of a process on open files."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from fastseg.data.cache import renew_after_fork

# A quarter of the usual limit of 1,024: the rest is for what else a training opens, and for readers of single chunks.
_MOST_OPEN = 256
_SHARE_OF_LIMIT = 4


class OpenFile:
    """A file that is opened when it is used, in each process anew, and closed when nobody uses it and it is the least
    recently used of too many."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._process = 0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock: Any = threading.Lock()  # held while opening
        self._users = 0

    def open(self) -> Any:
        """The format's handle."""
        raise NotImplementedError

    @contextlib.contextmanager
    def handle(self) -> Iterator[Any]:
        """The open file, for the block."""
        _pool.enter(self)
        try:
            with self._lock:
                if self._handle is None or self._process != os.getpid():
                    self._handle = self.open()
                    self._process = os.getpid()
                handle = self._handle
            yield handle
        finally:
            _pool.leave(self)

    def __getstate__(self) -> dict[str, Any]:
        of_this_process = ("_handle", "_process", "_lock", "_users")
        return {k: v for k, v in self.__dict__.items() if k not in of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        OpenFile.__init__(self)
        self.__dict__.update(state)


class _Pool:
    """The open files of this process, the least recently used first. Its lock is held for no call into a library, whose
    own lock another thread may have that waits for this one."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        # The garbage collector may run anything in the thread that holds it.
        self._lock = threading.RLock()
        # Weak, or files would outlive their volumes. What died is dropped when its turn to be closed comes.
        self._files: OrderedDict[int, weakref.ref[OpenFile]] = OrderedDict()

    def enter(self, file: OpenFile) -> None:
        with self._lock:
            file._users += 1
            self._files[id(file)] = weakref.ref(file)
            self._files.move_to_end(id(file))
            surplus = self._take_surplus() if len(self._files) > most_open() else []
        for handle, _ in surplus:
            if hasattr(handle, "close"):  # arrays in mapped files go with their last user
                handle.close()

    def leave(self, file: OpenFile) -> None:
        with self._lock:
            file._users -= 1

    def _take_surplus(self) -> list[tuple[Any, OpenFile]]:
        """Handles to close, with their former owners, whose end may need a library's lock, too."""
        taken: list[tuple[Any, OpenFile]] = []
        for key in list(self._files)[: len(self._files) - most_open()]:
            found = self._files.get(key)
            file = found() if found is not None else None
            if file is None:
                self._files.pop(key, None)
            elif file._users <= 0:
                self._files.pop(key, None)
                own = file._process == os.getpid()
                taken.append((file._handle if own else None, file))
                if own:
                    file._handle = None
            else:
                taken.append((None, file))
        return taken


def most_open() -> int:
    """How many files stay open that nobody uses."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(_MOST_OPEN, limit // _SHARE_OF_LIMIT)) if limit >= 0 else _MOST_OPEN


_pool = _Pool()
