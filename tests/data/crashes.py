# SPDX-License-Identifier: BSD-3-Clause
"""Writes an output again and again in children that are killed by SIGKILL; run by test_outputs_crash.py.

    python -m tests.data.crashes FOLDER KIND HOW

HOW "random": killed at random moments. "steps": killed at the first, second, ... call that touches the disk,
half of its bytes written. "ranks": two children at a time share the output, both killed at random moments.
Prints the number of kills. Exits with a message if anything readable or wrong is found on the way.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastseg.data import outputs_hdf5, outputs_journal, outputs_zarr
from fastseg.data.outputs import ArraySpec, open_output

SHAPE = (16, 24, 40)
BLOCKS = [((z, y, 0), (z + 8, min(y + 16, 24), 40)) for z, y in itertools.product((0, 8), (0, 16))]
RNG = np.random.default_rng(0)
ARRAYS = {
    "segmentation": RNG.integers(0, 2, SHAPE).astype("u1"),
    "probability": RNG.random((2, *SHAPE)).astype("f2"),
}
ARRAYS["segmentation"][:8, :16] = 0
WANTED = 30


def specs(kind: str) -> dict[str, ArraySpec]:
    shards = (8, 16, 48) if kind == "sharded" else None
    return {
        "segmentation": ArraySpec(SHAPE, "u1", (8, 8, 16), shards, (2, 1, 1)),
        "probability": ArraySpec((2, *SHAPE), "f2", (1, 8, 16, 16)),
    }


def write(path: Path, kind: str, rank: int = 0, world: int = 1, barrier: Any = None) -> None:
    options = {"blocks": BLOCKS, "settings": {"hash": "1"}, "resume": True}
    with open_output(path, specs(kind), **options, rank=rank, world=world, barrier=barrier) as output:
        for block in output.pending():
            box = (..., *(slice(a, b) for a, b in zip(*block, strict=True)))
            output.write(*block, {name: array[box] for name, array in ARRAYS.items()})


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def was_killed(pid: int) -> bool:
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return os.WIFSIGNALED(status)


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def die_at(step: int) -> None:
    """Kill this process in the call number ``step`` of those that change the disk."""
    counter = itertools.count()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(counter) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def torn(file: Any, pieces: Any) -> None:
        pieces = list(pieces)
        if next(counter) == step:
            file.write(b"".join(pieces)[: sum(map(len, pieces)) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, pieces)

    append = outputs_journal.append_durably
    for module in (outputs_journal, outputs_hdf5, outputs_zarr):
        module.append_durably = torn
    for name in ("fsync", "rename", "replace", "mkdir", "remove", "rmdir", "unlink"):
        setattr(os, name, wrapped(getattr(os, name)))


def run(folder: Path, kind: str, how: str) -> int:
    os.fsync = lambda handle: (
        None
    )  # a kill loses nothing that was written; waiting for the disk takes minutes
    path = folder / f"v.{'h5' if kind == 'h5' else 'zarr'}"
    reference = folder / f"reference{path.suffix}"
    began = time.monotonic()
    write(reference, kind)
    took = time.monotonic() - began
    expected = content(reference)
    kills = 0
    rng = random.Random(0)
    patience = 1.0
    for attempt in itertools.count():
        if how == "steps":
            pids = [child(lambda step=attempt: (die_at(step), write(path, kind))[1])]
        elif how == "random":
            pids = [child(lambda: write(path, kind))]
        else:
            wait = multiprocessing.get_context("fork").Barrier(2).wait
            pids = [child(lambda r=rank, w=wait: write(path, kind, r, 2, w)) for rank in (0, 1)]
        if how != "steps":
            time.sleep(rng.uniform(0, 0.8 * took * patience))
            patience *= (
                1.05  # where others load the machine, no child may come further than to open what is there
            )
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        killed = [was_killed(pid) for pid in pids]
        kills += any(killed)
        is_whole = path.exists()
        if how == "steps":
            if not killed[0]:
                assert content(path) == expected, "the uninterrupted result differs"
                return kills
            # Every other time the kill hits a run that replaces an older output.
            assert not is_whole or content(path) == expected, f"something unfinished at step {attempt}"
            write(path, kind)
            assert content(path) == expected, f"another result after a kill at step {attempt}"
            assert not Path(f"{path}.partial").exists()
            if attempt % 2:
                remove(path)
        elif is_whole:
            assert content(path) == expected, "the result differs"
            if kills >= WANTED:
                return kills
            remove(path)
            patience = 1.0
    raise AssertionError


def remove(path: Path) -> None:
    outputs_journal.remove_tree(str(path))
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
