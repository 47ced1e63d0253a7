# SPDX-License-Identifier: BSD-3-Clause
"""From a volume's file to a segmentation's file."""

from __future__ import annotations

import sys

import numpy as np
import torch

from fastseg.data.hdf5 import Hdf5Output
from fastseg.data.volumes import Volume
from fastseg.predict.grid import Tiling
from fastseg.predict.stream import CHUNK, Network, predict_blocks


def predict_to_file(
    volume: Volume,
    network: Network,
    path: str,
    tiling: Tiling,
    *,
    classes: int = 1,
    threshold: float = 0.5,
    probability: bool = True,
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> None:
    """Write ``/segmentation`` (uint8, 1 where the probability reaches the threshold) and ``/probability``
    (float16) of a volume to an HDF5 file, (z, y, x) for one class and (C, z, y, x) for more.

    network gives probabilities. The file appears under its name only when it is whole.
    """
    done, voxels = 0, int(np.prod(volume.shape))
    with Hdf5Output(path) as output:
        leading = (classes,) if classes > 1 else ()
        kinds = {"segmentation": np.uint8} | ({"probability": np.float16} if probability else {})
        outputs = {
            name: output.create(
                name,
                (*leading, *volume.shape),
                dtype,
                chunks=(*(1 for _ in leading), *CHUNK),
                voxel_size=volume.voxel_size,
                source=volume.name,
                origin=volume.origin,
            )
            for name, dtype in kinds.items()
        }
        for start, stop, values in predict_blocks(volume, network, tiling, classes=classes, device=device):
            arrays = {"segmentation": (values >= threshold).to(torch.uint8), "probability": values.half()}
            box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            for name, dataset in outputs.items():
                array = arrays[name].cpu().numpy()
                dataset[(slice(None), *box) if classes > 1 else box] = array if classes > 1 else array[0]
            output.check()
            done += int(np.prod([b - a for a, b in zip(start, stop, strict=True)]))
            if not quiet and sys.stderr.isatty():
                print(f"\rpredict {volume.name}: {100 * done // voxels} %", end="", file=sys.stderr)
        if not quiet and sys.stderr.isatty():
            print(file=sys.stderr)
