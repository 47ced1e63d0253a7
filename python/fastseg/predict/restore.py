# SPDX-License-Identifier: BSD-3-Clause
"""A second pass over a predicted file: from the voxel size of the network back to that of the volume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import Box, open_volume
from fastseg.predict.decide import segmented
from fastseg.predict.second_pass import second_pass


def restore_file(
    predicted: str,
    path: str,
    *,
    source: ResampledVolume,
    threshold: float,
    exclusive: bool,
    probability: bool,
    **options: Any,
) -> None:
    """Write ``path`` on the grid of ``source.stored`` from ``predicted``, the prediction of ``source``: its
    ``probability``, resampled as raw data are, and ``segmentation``, as ``segmented`` says.

    options: as of ``second_pass``. Memory: a few bytes for each of at most 16 M voxels of the two grids.
    """
    stored = source.stored
    z, y, x = (1 / ratio for ratio in source.ratio)
    coarse = open_volume(f"{predicted}:/probability")
    back = ResampledVolume(coarse, (z, y, x), shape=stored.shape, dtype=np.dtype(np.float32))

    def compute(start: Box, stop: Box) -> Mapping[str, np.ndarray]:
        chance = back.read(start, stop)
        return {
            "segmentation": segmented(torch.from_numpy(chance), threshold, exclusive)
            .view(torch.uint8)
            .numpy(),
            "probability": chance.astype(np.float16),
        }

    second_pass(
        path,
        compute,
        source=stored,
        channels=coarse.channels,
        probability=probability,
        settings={
            "restored from": predicted,
            "ratio": list(source.ratio),
            "threshold": threshold,
            "exclusive": exclusive,
        },
        finer=math.prod(max(1 / ratio, 1.0) for ratio in source.ratio),
        **options,
    )
