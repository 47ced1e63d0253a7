# SPDX-License-Identifier: BSD-3-Clause
"""From one output to another, block by block: what is done to a prediction as a whole once it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.volumes import Box, Volume
from fastseg.predict.grid import round_up
from fastseg.predict.stream import CHUNK

BLOCK_VOXELS = 1 << 24

# The arrays of a block by name, (classes, z, y, x).
Compute = Callable[[Box, Box], Mapping[str, np.ndarray]]


def second_pass(
    path: str,
    compute: Compute,
    *,
    source: Volume,
    channels: int,
    probability: bool,
    settings: Mapping[str, Any],
    predicted_by: Mapping[str, Any] | None = None,
    finer: float = 1.0,
    restart: bool = False,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
) -> None:
    """Write ``path`` as ``predict_to_file`` would, ``segmentation`` and, if asked for, ``probability``, on the grid of
    ``source``, the volume that was predicted. Goes on after a kill; blocks are shared out over processes.

    settings, predicted_by: what decides the result, in this pass and in the one before it; what was begun with others
    is not gone on with. finer: voxels that ``compute`` reads for one that is written; blocks have as many fewer.
    """
    names = ("segmentation", "probability") if probability else ("segmentation",)
    leading = (channels,) if channels > 1 else ()
    arrays = {
        name: ArraySpec(
            (*leading, *source.shape),
            np.uint8 if name == "segmentation" else np.float16,
            (*(1 for _ in leading), *CHUNK),
            voxel_size=source.voxel_size,
            attributes={"source": source.name, "origin": source.origin},
        )
        for name in names
    }
    with open_output(
        path,
        arrays,
        blocks=blocks_of(source.shape, int(BLOCK_VOXELS / finer)),
        settings={**settings, "predicted by": predicted_by},
        resume=not restart,
        rank=rank,
        world=world,
        barrier=barrier,
    ) as output:
        for start, stop in output.pending():
            results = {name: array for name, array in compute(start, stop).items() if name in names}
            if not leading:
                results = {name: array[0] for name, array in results.items()}
            output.write(start, stop, results)


def blocks_of(shape: Box, block_voxels: int) -> list[tuple[Box, Box]]:
    """Chunk-aligned boxes, layer by layer: whole planes where they are small enough."""
    size = list(CHUNK)
    for axis in (2, 1, 0):
        others = math.prod(size) // size[axis]
        size[axis] = max(
            size[axis],
            min(round_up(shape[axis], CHUNK[axis]), block_voxels // others // CHUNK[axis] * CHUNK[axis]),
        )
    starts = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    return [
        ((z, y, x), (min(z + size[0], shape[0]), min(y + size[1], shape[1]), min(x + size[2], shape[2])))
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]
