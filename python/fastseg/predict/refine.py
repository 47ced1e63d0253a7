# SPDX-License-Identifier: BSD-3-Clause
"""A second pass over a predicted file: opening and closing of its segmentation, block by block with a halo."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.volumes import Box, Volume, open_volume
from fastseg.morphology import Step, apply_steps, halo
from fastseg.predict.grid import round_up
from fastseg.predict.stream import CHUNK

_BLOCK_VOXELS = 1 << 24


def refine_file(
    predicted: str,
    path: str,
    steps: Sequence[Step],
    *,
    source: Volume,
    restart: bool = False,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
) -> None:
    """Write ``path`` as ``predict_to_file`` would, from ``predicted``, a file of its own making: ``segmentation``
    after the ``steps``, channel by channel, and ``probability`` as it is, if it is there.

    source: the raw volume, for what the output says of itself. Goes on after a kill; memory is a few bytes for each
    voxel of a block, 16 M of them at most, and its halo.
    """
    before = open_volume(f"{predicted}:/segmentation")
    names = ("segmentation", "probability") if _holds_probability(predicted) else ("segmentation",)
    volumes = {name: open_volume(f"{predicted}:/{name}") for name in names}
    leading = (before.channels,) if before.channels > 1 else ()
    arrays = {
        name: ArraySpec(
            (*leading, *before.shape),
            np.uint8 if name == "segmentation" else np.float16,
            (*(1 for _ in leading), *CHUNK),
            voxel_size=source.voxel_size,
            attributes={"source": source.name, "origin": source.origin},
        )
        for name in names
    }
    settings = {
        "refined from": predicted,
        "morphology": [[operation, list(radii)] for operation, radii in steps],
    }
    with open_output(
        path,
        arrays,
        blocks=_blocks(before.shape),
        settings=settings,
        resume=not restart,
        rank=rank,
        world=world,
        barrier=barrier,
    ) as output:
        for start, stop in output.pending():
            results = {name: volume.read(start, stop) for name, volume in volumes.items()}
            results["segmentation"] = _refined(before, start, stop, steps)
            if not leading:
                results = {name: array[0] for name, array in results.items()}
            output.write(start, stop, results)


def _refined(before: Volume, start: Box, stop: Box, steps: Sequence[Step]) -> np.ndarray:
    around = halo(steps)
    low = [max(a - h, 0) for a, h in zip(start, around, strict=True)]
    high = [min(b + h, n) for b, h, n in zip(stop, around, before.shape, strict=True)]
    inside = tuple(slice(a - p, b - p) for a, b, p in zip(start, stop, low, strict=True))
    channels = before.read(low, high)
    return np.stack([apply_steps(mask, steps)[inside] for mask in channels]).astype(np.uint8)


def _blocks(shape: Box) -> list[tuple[Box, Box]]:
    """Chunk-aligned boxes, layer by layer: whole planes where they are small enough."""
    size = list(CHUNK)
    for axis in (2, 1, 0):
        others = math.prod(size) // size[axis]
        size[axis] = max(
            size[axis],
            min(round_up(shape[axis], CHUNK[axis]), _BLOCK_VOXELS // others // CHUNK[axis] * CHUNK[axis]),
        )
    starts = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    return [
        ((z, y, x), (min(z + size[0], shape[0]), min(y + size[1], shape[1]), min(x + size[2], shape[2])))
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]


def _holds_probability(path: str) -> bool:
    from fastseg.errors import InputError

    try:
        open_volume(f"{path}:/probability")
    except InputError:
        return False
    return True
