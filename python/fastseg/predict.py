# SPDX-License-Identifier: BSD-3-Clause
"""Sliding-window prediction from file to file, in memory that does not depend on the volume's size.

The windows of one grid cover the volume. The volume is cut into blocks; of each block, every window that
touches it is predicted and blended within the block, then the block is written. A window on a border between
blocks is predicted once for each, the price for needing no memory beyond a block; the result does not depend
on how the blocks were cut.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.volumes import Box, Volume, require_finite

# Chunks of the output: a few hundred KiB each, as viewers and later random reads like them.
_CHUNK = (16, 128, 128)


@dataclass(frozen=True)
class Tiling:
    """window (z, y, x) as the network takes it, overlap as a share of the window, voxels of a block at most."""

    window: Box
    overlap: float = 0.5
    block_voxels: int = 1 << 25
    batch: int = 2


def predict_blocks(
    volume: Volume,
    network: Callable[[Tensor], Tensor],
    tiling: Tiling,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Box, Box, Tensor]]:
    """Yield (start, stop, prediction) of the blocks of a volume; prediction is float32 (C, z, y, x) on ``device``.

    network: raw windows (B, channels, *window) in the volume's dtype to (B, C, *window); what it returns is
    blended with weights that fall off linearly from the window's centre. A network that returns its input gets
    back exactly its input, whatever the overlap: a running weighted mean of equal values is that value.
    A volume smaller than the window is mirrored up to it.
    Memory: 4 (C + 1) bytes per voxel of a block, and one block of raw data with a window's margin.
    """
    positions = [_positions(n, w, tiling.overlap) for n, w in zip(volume.shape, tiling.window, strict=True)]
    weight = torch.from_numpy(_blend_weight(tiling.window)).to(device)
    for start, stop in _blocks(volume.shape, tiling.block_voxels):
        touching = [
            [p for p in places if p < b and p + w > a]
            for places, w, a, b in zip(positions, tiling.window, start, stop, strict=True)
        ]
        low = tuple(places[0] for places in touching)
        high = tuple(places[-1] + w for places, w in zip(touching, tiling.window, strict=True))
        raw = _read_padded(volume, low, high)
        mean: Tensor | None = None
        total = torch.zeros(tuple(b - a for a, b in zip(start, stop, strict=True)), device=device)
        windows = list(itertools.product(*touching))
        for first in range(0, len(windows), tiling.batch):
            group = windows[first : first + tiling.batch]
            boxes = [raw[_box(w, low, tiling.window)] for w in group]
            output = network(torch.from_numpy(np.stack(boxes)).to(device)).float()
            if mean is None:
                mean = torch.zeros((output.shape[1], *total.shape), device=device)
            for place, values in zip(group, output, strict=True):
                _blend(mean, total, values, weight, place, start)
        assert mean is not None
        yield start, stop, mean


def predict_to_file(
    volume: Volume,
    network: Callable[[Tensor], Tensor],
    path: str,
    tiling: Tiling,
    *,
    threshold: float = 0.5,
    probability: bool = True,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> None:
    """Write ``/segmentation`` (uint8, 1 where the probability reaches the threshold) and ``/probability``
    (float16) of a volume to an HDF5 file or a Zarr hierarchy, (z, y, x) for one class and (C, z, y, x) for more.

    network gives probabilities. The output appears under its name only when it is whole.
    """
    done, voxels = 0, int(np.prod(volume.shape))
    predictions = predict_blocks(volume, network, tiling, device=device)
    first = next(predictions)
    classes = len(first[2])
    predictions = itertools.chain([first], predictions)
    del first  # its memory goes with it when it is written
    leading = (classes,) if classes > 1 else ()
    kinds = {"segmentation": np.uint8} | ({"probability": np.float16} if probability else {})
    specs = {
        name: ArraySpec(
            (*leading, *volume.shape),
            dtype,
            (*(1 for _ in leading), *_CHUNK),
            voxel_size=volume.voxel_size,
            attributes={"source": volume.name, "origin": volume.origin},
        )
        for name, dtype in kinds.items()
    }
    with open_output(path, specs, blocks=list(_blocks(volume.shape, tiling.block_voxels))) as output:
        for start, stop, values in predictions:
            arrays = {"segmentation": (values >= threshold).cpu().numpy()}
            if probability:
                arrays["probability"] = values.half().cpu().numpy()
            output.write(start, stop, {n: a if classes > 1 else a[0] for n, a in arrays.items()})
            done += int(np.prod([b - a for a, b in zip(start, stop, strict=True)]))
            if not quiet and sys.stderr.isatty():
                print(f"\rpredict {volume.name}: {100 * done // voxels} %", end="", file=sys.stderr)
        if not quiet and sys.stderr.isatty():
            print(file=sys.stderr)


def _positions(size: int, window: int, overlap: float) -> list[int]:
    """Starts of the windows along one axis; the last ends flush with the axis."""
    stride = max(1, round(window * (1 - overlap)))
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def _blocks(shape: Box, most_voxels: int) -> Iterator[tuple[Box, Box]]:
    """Chunk-aligned boxes of at most about most_voxels, near cubes, which have the fewest shared windows."""
    size = np.minimum(shape, _CHUNK)
    growing = True
    while growing:
        growing = False
        for axis in np.argsort(size / np.minimum(shape, 1 << 30)):
            larger = size.copy()
            larger[axis] = min(shape[axis], size[axis] + _CHUNK[axis])
            if larger[axis] > size[axis] and int(np.prod(larger.astype(np.int64))) <= most_voxels:
                size, growing = larger, True
                break
    for start in itertools.product(*(range(0, n, int(s)) for n, s in zip(shape, size, strict=True))):
        z, y, x = (min(a + int(s), n) for a, s, n in zip(start, size, shape, strict=True))
        yield start, (z, y, x)


def _blend_weight(window: Sequence[int]) -> np.ndarray:
    ramps = [np.minimum(np.arange(1, w + 1), np.arange(w, 0, -1)) / ((w + 1) // 2) for w in window]
    return np.einsum("i,j,k->ijk", *ramps).astype(np.float32)


def _blend(mean: Tensor, total: Tensor, values: Tensor, weight: Tensor, place: Box, start: Box) -> None:
    """Merge one window into the weighted mean of its block: mean += w / (sum of w) * (value - mean)."""
    inside, within = [], []
    for p, w, a, n in zip(place, weight.shape, start, total.shape, strict=True):
        low, high = max(p - a, 0), min(p - a + w, n)
        inside.append(slice(low, high))
        within.append(slice(low + a - p, high + a - p))
    part, here = weight[tuple(within)], tuple(inside)
    total[here] += part
    target = mean[(slice(None), *here)]
    target += (part / total[here]) * (values[(slice(None), *within)] - target)


def _read_padded(volume: Volume, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
    stop = tuple(min(h, n) for h, n in zip(high, volume.shape, strict=True))
    raw = volume.read(low, stop)
    require_finite(raw, volume, low)
    pad = [(0, 0)] + [(0, h - s) for h, s in zip(high, stop, strict=True)]
    return np.pad(raw, pad, mode="symmetric") if any(p for _, p in pad) else raw


def _box(place: Sequence[int], low: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(p - a, p - a + w) for p, a, w in zip(place, low, window, strict=True)))
