# SPDX-License-Identifier: BSD-3-Clause
"""Signals by which a scheduler announces the end of a job."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """``name`` of the signal that asked this process to stop, None as long as none did."""

    name: str | None = None


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Take note of SIGTERM and SIGUSR1 instead of dying by them. Outside the main thread, where Python takes no
    signals, nothing is noted."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _: object) -> None:
        request.name = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
