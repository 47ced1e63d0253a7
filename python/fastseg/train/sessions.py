# SPDX-License-Identifier: BSD-3-Clause
"""When, where and for how long a run was trained, a row for each time: what its log, the same on every machine, does
not say."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import torch

import fastseg
from fastseg.errors import InputError, Interrupted
from fastseg.train.checkpoint import RunFolder, read_json, write_atomically
from fastseg.train.device import device_name
from fastseg.train.ranks import Ranks

SESSIONS_FILE = "sessions.json"


@contextlib.contextmanager
def recorded(run: RunFolder, ranks: Ranks, *, goes_on: bool) -> Iterator[None]:
    """Keep a row of the block in ``sessions.json``: ``begun``, ``seconds``, ``ended`` (finished, interrupted or failed,
    then with ``why``), versions, device and processes. One that was killed keeps ``ended`` null. The first process
    writes.

    goes_on: whether a checkpoint of an earlier session is gone on with; otherwise earlier rows are of another run.
    """
    if not ranks.first:
        yield
        return
    row: dict[str, Any] = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": None,
        "ended": None,
        "version": fastseg.__version__,
        "torch": torch.__version__,
        "device": f"{ranks.device} ({device_name(ranks.device)})",
        "processes": ranks.count,
    }
    rows = [*(read_sessions(run) if goes_on else []), row]
    begun = time.monotonic()
    _write(run, rows)
    try:
        yield
        row["ended"] = "finished"
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        row |= {"ended": "interrupted" if stopped else "failed", "why": str(error) or type(error).__name__}
        raise
    finally:
        row["seconds"] = round(time.monotonic() - begun, 3)
        with contextlib.suppress(InputError):  # a full disk must not hide what ended the training
            _write(run, rows)


def read_sessions(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of earlier sessions; none where the file is absent or unreadable."""
    rows = read_json(run.file(SESSIONS_FILE))
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _write(run: RunFolder, rows: list[dict[str, Any]]) -> None:
    write_atomically(run.file(SESSIONS_FILE), (json.dumps(rows, indent=2) + "\n").encode())
