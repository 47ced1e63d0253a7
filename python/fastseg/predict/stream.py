# SPDX-License-Identifier: BSD-3-Clause
"""Windows in, blended blocks out: one column of a grid at a time, in memory that does not depend on the volume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastseg.data.readers import Readers
from fastseg.data.volumes import Box, Volume, require_finite
from fastseg.predict.blend import Blend
from fastseg.predict.grid import Block, Column, Grid, Tiling, round_up

Network = Callable[[Tensor], Tensor]

# Output chunks of a few hundred KiB, as viewers and later random reads like them.
CHUNK: Box = (16, 128, 128)


@dataclass
class Waited:
    """Seconds that a prediction has waited for raw data, and for the file that it is written to."""

    reading: float = 0.0
    writing: float = 0.0


def predict_blocks(
    volume: Volume,
    network: Network,
    tiling: Tiling,
    *,
    classes: int = 1,
    device: torch.device | str = "cpu",
    blocks: Sequence[Block] | None = None,
    waited: Waited | None = None,
) -> Iterator[tuple[Box, Box, Tensor]]:
    """Yield (start, stop, prediction) of the blocks of a volume; prediction is float32 (classes, z, y, x) on
    ``device``.

    network: raw windows (B, channels, *window) in the volume's dtype to (B, classes, *window). What it returns
    is blended with Gaussian weights about the window's centre. A network that returns its input gets back
    exactly its input, whatever the overlap: a running weighted mean of equal values is that value. A volume
    smaller than the window is mirrored up to it.
    blocks: some of ``Grid(volume.shape, tiling, CHUNK).blocks()``, in their order; all by default. Each comes out
    the same bit for bit whichever others are asked for, as the batches of windows are cut per column.
    waited: is added to.
    Memory: 4 classes bytes for each of at most ``tiling.block_voxels`` voxels, and the raw data of one layer of
    windows and of the one read ahead.
    """
    grid = Grid(volume.shape, tiling, CHUNK)
    blend = Blend(grid, classes, torch.device(device))
    wanted = grid.blocks() if blocks is None else list(blocks)
    with Readers(1) as reader:
        for run in _runs(wanted):
            blend.begin(run)
            yield from _predict_run(volume, network, grid, run, blend, reader, waited or Waited())


def _runs(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Groups of blocks that follow one another in one column."""
    run: list[Block] = []
    for block in blocks:
        if run and not (block.column == run[-1].column and block.start[0] == run[-1].stop[0]):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _predict_run(
    volume: Volume,
    network: Network,
    grid: Grid,
    run: list[Block],
    blend: Blend,
    reader: Readers,
    waited: Waited,
) -> Iterator[tuple[Box, Box, Tensor]]:
    column, tiling = grid.columns[run[0].column], grid.tiling
    window, batch, per_layer = tiling.window, tiling.batch, column.windows_per_layer
    layers = [
        i for i, z in enumerate(column.starts[0]) if z < run[-1].stop[0] and z + window[0] > run[0].start[0]
    ]
    # Batches are counted from the column's first window, so that a window always shares its batch with the
    # same others: what a network returns for one may depend on the others in the last bit.
    first = layers[0] * per_layer // batch * batch
    last = min(round_up((layers[-1] + 1) * per_layer, batch), column.windows)
    raw = _read_layers(volume, column, window, first // per_layer, -(-last // per_layer), reader, waited)
    group: list[tuple[Box, Tensor | None]] = []
    low, layer, on_device = None, None, None  # of the layer that the window at hand is in
    for index in range(first, last):
        if layer is None or index % per_layer == 0:
            low, layer, kept = next(raw)
            # On a CPU the layer is there already, whole.
            before = None if blend.device.type == "cpu" else on_device
            on_device = sent(layer, kept, before, blend.device)
        start = column.window(index)
        box = (slice(None), *(slice(p - a, p - a + w) for p, a, w in zip(start, low, window, strict=True)))
        empty = tiling.skip_below is not None and bool(layer[box].max() <= tiling.skip_below)
        group.append((start, None if empty else on_device[box]))
        if len(group) == batch or index + 1 == last:
            yield from blend.add(group, network)
            group = []
    yield from blend.finished()


def _read_layers(
    volume: Volume, column: Column, window: Box, first: int, last: int, reader: Readers, waited: Waited
) -> Iterator[tuple[Box, np.ndarray, int]]:
    """(low, raw, kept) of the layers first .. last - 1, read one ahead; the first ``kept`` planes of raw are the last
    of the layer before, and not read again."""
    layers, rows, places = column.starts
    low = (rows[0], places[0])
    high = (rows[-1] + window[1], places[-1] + window[2])

    def read(layer: int) -> np.ndarray:
        begin = layers[layer] if layer == first else layers[layer - 1] + window[0]
        return _read_padded(volume, (begin, *low), (layers[layer] + window[0], *high))

    raw, ahead = np.empty(0), reader.submit(read, first)
    for layer in range(first, last):
        began = time.perf_counter()
        fresh = ahead.result()
        waited.reading += time.perf_counter() - began
        if layer + 1 < last:
            ahead = reader.submit(read, layer + 1)
        kept = window[0] - fresh.shape[1]
        raw = np.concatenate((raw[:, -kept:], fresh), axis=1) if kept else fresh
        yield (layers[layer], *low), raw, kept


def sent(layer: np.ndarray, kept: int, before: Tensor | None, device: torch.device) -> Tensor:
    """The layer on ``device``, where its first ``kept`` planes may be already, as the last of ``before``. The rest goes
    to a GPU without waiting for what the GPU does."""
    if before is None:
        kept = 0
    fresh = torch.from_numpy(np.ascontiguousarray(layer[:, kept:]))
    if device.type == "cuda":
        fresh = fresh.pin_memory()
    if before is None or not kept:
        return fresh.to(device, non_blocking=True)
    whole = torch.empty(layer.shape, dtype=fresh.dtype, device=device)
    whole[:, :kept] = before[:, -kept:]
    whole[:, kept:].copy_(fresh, non_blocking=True)
    return whole


def _read_padded(volume: Volume, low: Box, high: Box) -> np.ndarray:
    stop = tuple(min(h, n) for h, n in zip(high, volume.shape, strict=True))
    raw = volume.read(low, stop)
    require_finite(raw, volume, low)
    pad = [(0, 0)] + [(0, h - s) for h, s in zip(high, stop, strict=True)]
    return np.pad(raw, pad, mode="symmetric") if any(p for _, p in pad) else raw
