# SPDX-License-Identifier: BSD-3-Clause
"""Threads that read ahead for a generator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Readers(ThreadPoolExecutor):
    """On the way out what has not begun is cancelled, and what has begun is not waited for.

    A generator that is left half-way may be closed by the garbage collector, in any thread and at any time: also
    while that thread holds a lock that the readers need, such as the one of h5py.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count, thread_name_prefix="fastseg-read")

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)
