# SPDX-License-Identifier: BSD-3-Clause
"""Objects told apart: the connected parts of what is segmented, numbered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastseg.data.sources import Slices, Source
from fastseg.data.volumes import Volume

# Voxels that share a face belong together; those that touch at an edge or a corner do not.
_CONNECTIVITY = 6
_SLAB_VOXELS = 1 << 24


class InstanceSource(Source):
    """The connected parts of equal ids in ``labels``, numbered from 1 as they are met along z, y and x; those of fewer
    than ``smallest`` voxels are background. Objects that touch are one.

    The labels are read twice, slab by slab: at first to find which parts of neighbouring slabs are one, and again as
    the numbers are read. Memory: the labels and 8 bytes for each voxel of a slab, which is a slice at least, and some
    50 bytes for each part of a slab.
    """

    axes = "zyx"

    def __init__(self, labels: Volume, smallest: int = 0, slab_voxels: int = _SLAB_VOXELS) -> None:
        super().__init__()
        self.path, self.name = labels.source.path, labels.name
        self.shape, self.voxel_size = labels.shape, labels.voxel_size
        self._labels = labels
        self._thickness = max(1, slab_voxels // (labels.shape[1] * labels.shape[2]))
        self._kept: tuple[int, np.ndarray] | None = None
        self._first, self._numbers = self._numbered(smallest)
        self.count = int(self._numbers.max(initial=0))
        self.dtype = np.dtype(np.uint16 if self.count < 1 << 16 else np.uint32)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """[first, last) along z of what is read at a time."""
        for first in range(0, self.shape[0], self._thickness):
            yield first, min(first + self._thickness, self.shape[0])

    def open(self) -> bool:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        z, *plane = slices
        found = []
        for slab in range(z.start // self._thickness, -(-z.stop // self._thickness)):
            kept = self._kept  # once: another thread may put its own there
            if kept is None or kept[0] != slab:
                numbers = self._numbers[self._first[slab] : self._first[slab + 1]]
                self._kept = kept = slab, numbers.astype(self.dtype)[self._parts(slab)[1]]
            low = slab * self._thickness
            found.append(kept[1][(slice(max(z.start - low, 0), z.stop - low), *plane)])
        return np.concatenate(found)

    def _parts(self, slab: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a slab and its connected parts, from 1; the same at each call."""
        import cc3d

        low = slab * self._thickness
        box = self._labels[low : min(low + self._thickness, self.shape[0])][0]
        return box, cc3d.connected_components(box, connectivity=_CONNECTIVITY, out_dtype=np.uint32)

    def _numbered(self, smallest: int) -> tuple[list[int], np.ndarray]:
        """Where the parts of each slab begin in the list of all, and its end; and for each part its object's number."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        first, sizes, joined = [0], [], []
        above = None
        for slab in range(-(-self.shape[0] // self._thickness)):
            box, parts = self._parts(slab)
            counts = np.bincount(parts.ravel())
            counts[0] = 0  # place 0 of each slab stands for its background
            if above is not None:
                both = (above[0] == box[0]) & (box[0] != 0)
                joined.append(np.unique(np.stack((above[1][both], parts[0][both] + first[-1])), axis=1))
            sizes.append(counts)
            above = box[-1], parts[-1].astype(np.int64) + first[-1]
            first.append(first[-1] + len(counts))
        pairs = np.concatenate(joined, 1) if joined else np.empty((2, 0), np.int64)
        graph = coo_array((np.ones(pairs.shape[1], bool), pairs), (first[-1], first[-1]))
        # Numbered in the order of their first parts, which is that of their first voxels.
        objects = connected_components(graph, directed=False)[1]
        large = np.bincount(objects, np.concatenate(sizes)) >= max(smallest, 1)
        return first, np.where(large, np.cumsum(large), 0)[objects]
