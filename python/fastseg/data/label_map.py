# SPDX-License-Identifier: BSD-3-Clause
"""The classes of a prediction, a channel each, as one image of ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastseg.data.sources import Slices, Source
from fastseg.data.volumes import Volume
from fastseg.errors import InputError


class LabelMapSource(Source):
    """Per voxel the id of the class that is segmented there, of several the one of the highest probability, of equals
    the first; 0 where there is none. Nothing is stored: boxes are made as they are read."""

    axes = "zyx"

    def __init__(self, segmentation: Volume, probability: Volume | None, classes: Sequence[int]) -> None:
        super().__init__()
        if segmentation.channels != len(classes) or 0 in classes:
            raise InputError(
                f"{segmentation.name} must have a channel for each of the classes {list(classes)}, none of them 0, got "
                f"{segmentation.channels}"
            )
        if probability is None and len(classes) > 1:
            raise InputError(f"{segmentation.name}: a map of several classes needs their probabilities")
        self.path, self.name = segmentation.source.path, segmentation.name
        self.segmentation, self.probability = segmentation, probability
        self.shape, self.voxel_size = segmentation.shape, segmentation.voxel_size
        highest, lowest = max(classes), min(0, *classes)
        self.dtype = np.result_type(np.min_scalar_type(highest), np.min_scalar_type(lowest))
        self._ids = np.array([0, *classes], self.dtype)

    def open(self) -> bool:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        start, stop = [s.start for s in slices], [s.stop for s in slices]
        chosen = self.segmentation.read(start, stop) != 0
        if self.probability is None:
            return self._ids[chosen[0].astype(np.intp)]
        score = np.where(chosen, self.probability.read(start, stop), -1)
        return self._ids[np.where(chosen.any(0), 1 + score.argmax(0), 0)]
