# SPDX-License-Identifier: BSD-3-Clause
"""An out-of-memory error says what to lower."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from fastseg.errors import InputError
from fastseg.train.ranks import Ranks

_ADVICE = "lower train.batch, data.patch or network.width, or set train.precision: bf16"

_CPU_ALLOCATOR = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes|std::bad_alloc")


@contextlib.contextmanager
def explaining_out_of_memory(ranks: Ranks, sizes: dict[str, Any], advice: str = _ADVICE) -> Iterator[None]:
    """Turn a failed allocation, on a GPU, by torch's CPU allocator or by numpy, into an InputError.

    sizes: the settings that decide how much is needed, by their key. advice: what to do about them.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        shortage = _shortage(error, ranks.device)
        if shortage is None:
            raise
        settings = ", ".join(f"{key} {value}" for key, value in sizes.items())
        shared = f" shared out over {ranks.count} processes" if ranks.count > 1 else ""
        raise InputError(f"out of memory {shortage}, with {settings}{shared}: {advice}") from error


def _shortage(error: Exception, device: torch.device) -> str | None:
    """Where memory ran out, and how much there was; None if the error is another."""
    if isinstance(error, torch.OutOfMemoryError):
        text = str(error)
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        held = f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB free" if total else ""
        return f"on {device} (asked for {asked[1] if asked else 'more'}{held})"
    if isinstance(error, MemoryError):
        return f"in main memory ({str(error) or 'no size stated'})"
    found = _CPU_ALLOCATOR.search(str(error))
    if found is None:
        return None
    asked_bytes = f"asked for {int(found[1]) / 2**20:,.0f} MiB" if found[1] else "no size stated"
    return f"in main memory ({asked_bytes})"
