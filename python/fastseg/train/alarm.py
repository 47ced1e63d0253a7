# SPDX-License-Identifier: BSD-3-Clause
"""An error on one process of a run reaches the others, which may wait for that process in the depths of a library."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time

import torch.distributed as dist

from fastseg.errors import InputError

_ERROR, _HEARD = "fastseg/error", "fastseg/heard"
_GONE = "another process of the run is gone, killed or out of memory; its own output says why"

# What gloo, NCCL and torch's store say when the process at the other end is no more.
_LOST = re.compile(
    r"Connection (reset|closed|refused)|Broken pipe|remote process exited|ncclRemoteError", re.I
)

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_THE_OTHERS = 5.0


class Alarm:
    """A thread per process that looks for another's error in the store, and then ends its own process.

    Ending is abrupt: the main thread may sit in a collective operation that nothing but the lost process could
    finish. A run loses nothing by it that its last checkpoint does not hold.
    """

    def __init__(self, store: dist.Store, rank: int, count: int) -> None:
        self.store, self.rank, self.count = store, rank, count
        self.silent = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="fastseg-alarm", daemon=True)
        self.thread.start()

    def ring(self, error: Exception) -> None:
        """Give ``error`` to the others, and wait a little for them to hear it. Where another was first, this process
        ends here: with that one's message, or silently if all found the same."""
        self.silence()
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        try:
            first = self.store.compare_set(_ERROR, "", f"{self.rank}:{message}").decode()
            if first == f"{self.rank}:{message}":
                self._wait_for_the_others()
                return
        except (RuntimeError, OSError):
            # The store is gone, and with it the process to tell. The error itself is raised by the caller.
            return
        self._leave(None if first.partition(":")[2] == message else first)

    def silence(self) -> None:
        self.silent.set()
        self.thread.join()

    def raise_lost(self, error: Exception) -> None:
        """If ``error`` is how torch tells of a process that is gone, end with the reason that one gave; or raise
        InputError if it gave none, as when it was killed."""
        if isinstance(error, InputError) or not _LOST.search(str(error)):
            return
        # The other says why before it goes; this process may only not have looked yet.
        if not self.silent.wait(2 * _SECONDS_BETWEEN_LOOKS):
            raise InputError(f"{_GONE} ({str(error).splitlines()[0]})") from error

    def _watch(self) -> None:
        while not self.silent.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                first = self.store.get(_ERROR).decode() if self.store.check([_ERROR]) else None
            except (RuntimeError, OSError):
                if not self.silent.wait(2 * _SECONDS_BETWEEN_LOOKS):
                    print(f"fastseg: {_GONE}", file=sys.stderr, flush=True)
                    os._exit(2)
                return
            if first is not None:
                self._leave(first)

    def _leave(self, first: str | None) -> None:
        if first is not None:
            rank, _, message = first.partition(":")
            print(
                f"fastseg: process {self.rank}: process {rank} ended the run: {message}",
                file=sys.stderr,
                flush=True,
            )
        with contextlib.suppress(RuntimeError, OSError):
            self.store.add(_HEARD, 1)
            if self.rank == 0:  # which may hold the store
                self._wait_for_the_others()
        os._exit(2)

    def _wait_for_the_others(self) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_THE_OTHERS
        while self.store.add(_HEARD, 0) < self.count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.rank == 0:
            time.sleep(0.2)  # for the last one to read that it was heard
