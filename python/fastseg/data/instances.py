# SPDX-License-Identifier: BSD-3-Clause
"""Objects told apart: the connected parts of what is segmented, numbered."""

from __future__ import annotations

import numpy as np

from fastseg.data.sources import Slices, Source
from fastseg.data.volumes import Volume

# Voxels that share a face belong together; those that touch at an edge or a corner do not.
_CONNECTIVITY = 6


class InstanceSource(Source):
    """The connected parts of equal ids in ``labels``, numbered from 1 as they are met along z, y and x; those of fewer
    than ``smallest`` voxels are background. Objects that touch are one. Memory: the labels and 4 bytes per voxel."""

    axes = "zyx"

    def __init__(self, labels: Volume, smallest: int = 0) -> None:
        import cc3d

        super().__init__()
        self.path, self.name = labels.source.path, labels.name
        self.shape, self.voxel_size = labels.shape, labels.voxel_size
        parts = cc3d.connected_components(labels[:][0], connectivity=_CONNECTIVITY, out_dtype=np.uint32)
        sizes = np.bincount(parts.ravel())
        kept = sizes >= max(smallest, 1)
        kept[0] = False
        numbers = np.where(kept, np.cumsum(kept), 0)
        self.count = int(numbers.max(initial=0))
        self.dtype = np.dtype(np.uint16 if self.count < 1 << 16 else np.uint32)
        self._array = numbers.astype(self.dtype)[parts]

    def open(self) -> bool:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        return self._array[slices]
