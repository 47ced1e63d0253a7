# SPDX-License-Identifier: BSD-3-Clause
"""From a volume's file to a segmentation's file: resumable, and shared among processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseg.data.outputs import ArraySpec, Output, open_output
from fastseg.data.volumes import Box, Volume
from fastseg.predict.decide import segmented
from fastseg.predict.grid import Grid, Tiling
from fastseg.predict.stream import CHUNK, Network, Waited, predict_blocks


def predict_to_file(
    volume: Volume,
    network: Network,
    path: str,
    tiling: Tiling,
    *,
    classes: int = 1,
    threshold: float = 0.5,
    exclusive: bool = False,
    probability: bool = True,
    device: torch.device | str = "cpu",
    settings: Mapping[str, Any] | None = None,
    restart: bool = False,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
    waited: Waited | None = None,
    quiet: bool = True,
) -> None:
    """Write ``segmentation`` (uint8, 1 where ``segmented`` says so) and ``probability`` (float16)
    of a volume to ``path``, an .h5 or .zarr, (z, y, x) for one class and (C, z, y, x) for more.

    network gives probabilities. The output appears under its name only when it is whole; until then finished
    blocks are kept in ``<path>.partial``, and the same call goes on from them after a kill, to the same result bit
    for bit. settings: what else decides the result, such as the checkpoint's hash; a partial output of other
    settings is an InputError, unless ``restart`` throws it away.
    rank, world, barrier: several processes share the blocks; see ``open_output``. waited: is added to.
    """
    leading = (classes,) if classes > 1 else ()
    kinds = {"segmentation": np.uint8} | ({"probability": np.float16} if probability else {})
    arrays = {
        name: ArraySpec(
            (*leading, *volume.shape),
            dtype,
            (*(1 for _ in leading), *CHUNK),
            voxel_size=volume.voxel_size,
            attributes={"source": volume.name, "origin": volume.origin},
        )
        for name, dtype in kinds.items()
    }
    blocks = Grid(volume.shape, tiling, CHUNK).blocks()
    boxes = {(block.start, block.stop): block for block in blocks}
    decided_by = {
        "raw changed": raw_changed(volume),
        "threshold": threshold,
        "exclusive": exclusive,
        "tiling": asdict(tiling),
        **(settings or {}),
    }
    ranks = {"rank": rank, "world": world, "barrier": barrier}
    with (
        open_output(
            path, arrays, blocks=list(boxes), settings=decided_by, resume=not restart, **ranks
        ) as output,
        ThreadPoolExecutor(1, thread_name_prefix="fastseg-write") as writer,
    ):
        pending = [boxes[box] for box in output.pending()]
        writing: Future[None] | None = None
        left = len(pending)
        waited = waited or Waited()
        for start, stop, values in predict_blocks(
            volume, network, tiling, classes=classes, device=device, blocks=pending, waited=waited
        ):
            results = {"segmentation": segmented(values, threshold, exclusive).view(torch.uint8)}
            if probability:
                results["probability"] = values.half()
            del values  # or it would be held while the next block is predicted, as would results
            if classes == 1:
                results = {name: tensor[0] for name, tensor in results.items()}
            # One block is compressed and written while the next is predicted; no more wait.
            _wait(writing, waited)
            writing = writer.submit(_write, output, start, stop, to_host(results))
            del results
            left -= 1
            if not quiet:
                show_progress(volume.name, 1 - left / len(pending))
        _wait(writing, waited)


def _wait(writing: Future[None] | None, waited: Waited) -> None:
    if writing is not None:
        began = time.perf_counter()
        writing.result()
        waited.writing += time.perf_counter() - began


def _write(output: Output, start: Box, stop: Box, results: Callable[[], dict[str, np.ndarray]]) -> None:
    output.write(start, stop, results())


def to_host(tensors: dict[str, Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to copy tensors of one device to the host; what comes back waits for them, in whichever thread calls it. So
    the GPU is given the windows of the next block before it is done with this one."""
    copied = None
    if next(iter(tensors.values())).is_cuda:
        pinned = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for n, t in tensors.items()}
        tensors = {name: pinned[name].copy_(t, non_blocking=True) for name, t in tensors.items()}
        copied = torch.cuda.Event()
        copied.record()

    def wait() -> dict[str, np.ndarray]:
        if copied is not None:
            copied.synchronize()
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    return wait


def raw_changed(volume: Volume) -> list[int] | None:
    """Size and time of the file of a volume, to tell whether it is another one by now."""
    stated = os.stat(volume.source.path) if os.path.exists(volume.source.path) else None
    return stated and [stated.st_size, stated.st_mtime_ns]


def show_progress(name: str, share: float) -> None:
    """The share of a volume that is predicted, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\rpredict {name}: {100 * share:.0f} %", end="\n" if share == 1 else "", file=sys.stderr)
