# SPDX-License-Identifier: BSD-3-Clause
"""An error on one process of a run reaches the others, which may wait for that process in the depths of a library."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch.distributed as dist

from fastseg.errors import InputError, log_unexpected

_ERROR, _SAID, _HEARD = "fastseg/error", "fastseg/said", "fastseg/heard"
_STORE_GONE = (RuntimeError, OSError)
_GONE = "another process of the run is gone, killed or out of memory; its own output says why"

# What gloo, NCCL and torch's store say when the process at the other end is no more.
_LOST = re.compile(
    r"Connection (reset|closed|refused)|Broken pipe|remote process exited|ncclRemoteError", re.I
)

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_THE_OTHERS = 5.0


class _News(NamedTuple):
    """Which process failed, the exit code for all, and why."""

    rank: int
    code: int
    message: str

    def __str__(self) -> str:
        return f"{self.rank} {self.code} {self.message}"

    @classmethod
    def parse(cls, text: bytes) -> _News:
        rank, code, message = text.decode().split(" ", 2)
        return cls(int(rank), int(code), message)


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

    def ring(self, error: Exception) -> NoReturn:
        """Say ``error``, give it to the others, wait a little for them to hear it, and end this process.

        Where another was first, that one's message is said, or nothing if all found the same.
        """
        self.silence()
        ours = isinstance(error, InputError)
        news = _News(self.rank, 2 if ours else 1, str(error) if ours else f"{type(error).__name__}: {error}")
        try:
            first = _News.parse(self.store.compare_set(_ERROR, "", str(news)))
        except _STORE_GONE:
            first = news  # and nobody there to tell it to
        if first.rank != self.rank:
            self._leave(first, silently=first.message == news.message)
        if ours:
            print(f"fastseg: {news.message}", file=sys.stderr, flush=True)
        else:
            print(f"fastseg: {log_unexpected(error)}", file=sys.stderr, flush=True)
        with contextlib.suppress(*_STORE_GONE):
            self.store.set(_SAID, "")
            self._wait_for_the_others()
        os._exit(news.code)

    def silence(self) -> None:
        self.silent.set()
        self.thread.join()

    def part(self) -> None:
        """At the end of the run, on all processes: stop looking. The first, which may hold the store, goes last."""
        self.silence()
        with contextlib.suppress(*_STORE_GONE):
            if self.rank == 0:
                self._wait_for_the_others()
            else:
                self.store.add(_HEARD, 1)

    def meaning_of(self, error: Exception) -> Exception:
        """An InputError where ``error`` is how torch tells of a process that is gone. If that process left a reason,
        this call does not return."""
        if isinstance(error, InputError) or not _LOST.search(str(error)):
            return error
        # A process says why before it goes; this one may only not have looked yet.
        self.silent.wait(2 * _SECONDS_BETWEEN_LOOKS)
        return InputError(f"{_GONE} ({str(error).splitlines()[0]})")

    def _watch(self) -> None:
        while not self.silent.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                first = _News.parse(self.store.get(_ERROR)) if self.store.check([_ERROR]) else None
            except _STORE_GONE:
                if not self.silent.wait(2 * _SECONDS_BETWEEN_LOOKS):
                    print(f"fastseg: {_GONE}", file=sys.stderr, flush=True)
                    os._exit(2)
                return
            if first is not None:
                self._leave(first)

    def _leave(self, first: _News, silently: bool = False) -> NoReturn:
        if not silently:
            text = f"fastseg: process {self.rank}: process {first.rank} ended the run: {first.message}"
            print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(*_STORE_GONE):
            # A launcher ends the others as soon as one has ended: not before the first has said why.
            self.store.wait([_SAID], timedelta(seconds=_SECONDS_FOR_THE_OTHERS))
            self.store.add(_HEARD, 1)
            if self.rank == 0:  # which may hold the store
                self._wait_for_the_others()
        os._exit(first.code)

    def _wait_for_the_others(self) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_THE_OTHERS
        while self.store.add(_HEARD, 0) < self.count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.rank == 0:
            time.sleep(0.2)  # for the last one to read that it was heard
