# SPDX-License-Identifier: BSD-3-Clause
"""One volume as an OME-Zarr 0.5 image: a pyramid of levels that viewers load as they need them.

Each level is made from the one before it, block by block. The folder gets its name when all of it is there.
"""

from __future__ import annotations

import itertools
import os
import shutil
from typing import Any

import numpy as np

from fastseg.data.outputs_spec import ArraySpec, pad_to
from fastseg.data.outputs_zarr import LEVEL, array_metadata, image_metadata, write_json
from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import Box, Volume, open_volume

_CHUNK: Box = (16, 128, 128)
# The coarsest level fits onto a screen.
_COARSEST = 256
_BLOCK_VOXELS = 1 << 24


def write_ome_zarr(volume: Volume, path: str, dtype: np.dtype, origin: Box) -> None:
    """Write ``volume`` to the folder ``path``, in place of what is there; ``origin`` is its place in voxels.

    A level has half as many voxels as the one before along y and x, and along z once its voxels are about as long there
    as beside: means of floats, and single voxels of integers, which may be ids. The last level has 256 voxels a side at
    most. Memory: a few bytes for each of 16 M voxels; disk: a third more than the volume.
    """
    partial = f"{path[: -len('.ome.zarr')]}.partial.ome.zarr"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_levels(volume, partial, dtype, os.path.basename(path), origin)
        if os.path.isdir(path):
            replaced = f"{partial}.replaced"
            os.rename(path, replaced)
            os.rename(partial, path)
            shutil.rmtree(replaced)
        else:
            os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_levels(volume: Volume, root: str, dtype: np.dtype, name: str, origin: Box) -> None:
    size = volume.voxel_size or (1.0, 1.0, 1.0)
    factors = [1, 1, 1]
    datasets: list[dict[str, Any]] = []
    level: Volume = volume
    while True:
        spec = _write_level(level, f"{root}/{len(datasets)}", dtype, volume.voxel_size, factors)
        # The middle of the first voxel is that of all it covers.
        first = [o * s + (f - 1) / 2 * s for o, f, s in zip(origin, factors, size, strict=True)]
        scale = [f * s for f, s in zip(factors, size, strict=True)]
        none = len(spec.shape) - 3
        moves = [
            {"type": "scale", "scale": [1.0] * none + scale},
            {"type": "translation", "translation": [0.0] * none + first},
        ]
        datasets.append({"path": str(len(datasets)), "coordinateTransformations": moves})
        if max(spec.shape[-3:]) <= _COARSEST:
            break
        stored = open_volume(f"{root}:/{len(datasets) - 1}")
        halved = [n > 1 and s < 2 * min(scale[1:]) for n, s in zip(level.shape, scale, strict=True)]
        ratio = tuple(2.0 if half else 1.0 for half in halved)
        if not any(halved[a] for a in range(3) if level.shape[a] > _COARSEST):
            break  # only z is long, and its voxels are
        shape = tuple(-(-n // int(r)) for n, r in zip(level.shape, ratio, strict=True))
        factors = [f * int(r) for f, r in zip(factors, ratio, strict=True)]
        level = ResampledVolume(stored, ratio, nearest=dtype.kind in "bui", shape=shape)
    attributes = image_metadata(name, spec.axes, volume.voxel_size is not None, datasets)
    write_json(f"{root}/zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _write_level(
    level: Volume, folder: str, dtype: np.dtype, size: tuple[float, float, float] | None, factors: list[int]
) -> ArraySpec:
    import numcodecs

    leading = (level.channels,) if level.channels > 1 else ()
    voxel_size = None if size is None else tuple(f * s for f, s in zip(factors, size, strict=True))
    shape, chunks = (*leading, *level.shape), (*(1 for _ in leading), *_CHUNK)
    spec = ArraySpec(shape, dtype, chunks, voxel_size=voxel_size).settled(os.path.basename(folder))
    chunk = spec.chunks[-3:]
    codec = numcodecs.Zstd(level=LEVEL, checksum=True)
    os.makedirs(folder)
    write_json(f"{folder}/zarr.json", array_metadata(spec))
    planes = chunk[0]
    rows = max(chunk[1], _BLOCK_VOXELS // (planes * level.shape[2]) // chunk[1] * chunk[1])
    for z, y in itertools.product(range(0, level.shape[0], planes), range(0, level.shape[1], rows)):
        stop = (min(z + planes, level.shape[0]), min(y + rows, level.shape[1]), level.shape[2])
        block = level.read((z, y, 0), stop).astype(spec.dtype, copy=False)
        corners = (range(0, n, c) for n, c in zip(block.shape[2:], chunk[1:], strict=True))
        for c, y0, x0 in itertools.product(range(level.channels), *corners):
            box = pad_to(block[c, :, y0 : y0 + chunk[1], x0 : x0 + chunk[2]], chunk)
            if not box.view(np.uint8).any():
                continue  # a chunk that is absent is all 0
            index = (*((c,) if leading else ()), z // planes, (y + y0) // chunk[1], x0 // chunk[2])
            file = os.path.join(folder, "c", *map(str, index))
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(file, "wb") as out:
                out.write(codec.encode(box))
    return spec
