# SPDX-License-Identifier: BSD-3-Clause
"""Objects that touch, taken apart by a seeded watershed: at their necks, on the distance to what is no object, or along
boundaries that a network found."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from fastseg.data.instances import InstanceSource
from fastseg.data.sources import Slices, Source
from fastseg.data.volumes import Volume
from fastseg.errors import InputError

# Of the box around one connected part, which is taken apart in memory, some 60 bytes a voxel.
_MOST_VOXELS = 1 << 27

# Numbers from 1 for the voxels of a part, of its mask in the box around it.
Split = Callable[[np.ndarray, tuple[slice, slice, slice]], np.ndarray]


class SplitSource(Source):
    """The connected ``parts``, each taken apart by ``split`` (``at_necks`` or ``at_boundaries``), numbered anew from 1.

    A part is looked at as a whole and by itself, so that the numbers do not depend on any blocks. They are kept in the
    file ``path`` until ``close``, 4 bytes for each voxel. InputError where the box around a part is too large.
    """

    axes = "zyx"

    def __init__(self, parts: InstanceSource, path: str, split: Split) -> None:
        super().__init__()
        self.path, self.name, self.shape, self.voxel_size = path, parts.name, parts.shape, parts.voxel_size
        self.count = 0
        # Numbers that are final are stored as negative ones beside those of parts that are still to be looked at.
        self._stored = np.memmap(path, np.int32, "w+", shape=self.shape)
        for part, box in _copied(parts, self._stored):
            voxels = np.prod([s.stop - s.start for s in box])
            if voxels > _MOST_VOXELS:
                low = tuple(s.start for s in box)
                self.close()
                raise InputError(
                    f"{parts.name}: the object at (z, y, x) = {low} spans {voxels:,} voxels, and at most "
                    f"{_MOST_VOXELS:,} can be taken apart: predict.instances: components leaves them as they are"
                )
            view = self._stored[box]
            inside = view == part
            numbers = split(inside, box)[inside]
            view[inside] = -(numbers + self.count)
            self.count += int(numbers.max())
        self.dtype = np.dtype(np.uint16 if self.count < 1 << 16 else np.uint32)

    def open(self) -> bool:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        return (-self._stored[slices]).astype(self.dtype)

    def close(self) -> None:
        del self._stored
        os.remove(self.path)


def at_necks(parts: InstanceSource, neck: float) -> Split:
    """Where a neck is narrower than ``neck`` times the smaller of the two objects that it joins."""

    def split(inside: np.ndarray, box: tuple[slice, slice, slice]) -> np.ndarray:
        found = split_at_necks(_padded(inside, box, parts.shape), neck, parts.voxel_size)
        return found[tuple(slice(s.start > 0, (s.start > 0) + s.stop - s.start) for s in box)]

    return split


def at_boundaries(boundary: Volume, probability: Volume, smallest: int = 0) -> Split:
    """Along a class of boundaries: each connected piece that is none, of ``smallest`` voxels or more, is an object, and
    what is left goes to the one that it is reached from over the lowest ``probability`` of a boundary. A part without
    such a piece is one object. Both volumes have one channel and the shape of the parts."""

    def split(inside: np.ndarray, box: tuple[slice, slice, slice]) -> np.ndarray:
        from scipy import ndimage
        from skimage.segmentation import watershed

        start, stop = [s.start for s in box], [s.stop for s in box]
        seeds, _ = ndimage.label(inside & (boundary.read(start, stop)[0] == 0))
        few = np.bincount(seeds.ravel()) < smallest
        seeds[few[seeds]] = 0
        if not seeds.any():
            return inside.astype(np.int32)
        heights = probability.read(start, stop)[0]
        numbers = np.unique(seeds)
        return watershed(heights, np.searchsorted(numbers, seeds), mask=inside)

    return split


def split_at_necks(
    inside: np.ndarray, neck: float, voxel_size: tuple[float, float, float] | None = None
) -> np.ndarray:
    """A mask (z, y, x) as numbered objects, from 1; what lies beyond it is unknown, not background.

    With d the distance to the background in voxels, plus one, two maxima are two objects where on the way from one to
    the other d falls below ``neck`` times the smaller of them. Each voxel goes to the object that it rises to.
    """
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    if inside.all():
        return np.ones(inside.shape, np.int32)
    # Along an axis of one voxel there is nothing to be near to; skimage looks for neighbours there all the same.
    kept = [axis for axis, size in enumerate(inside.shape) if size > 1]
    flat = inside.reshape([inside.shape[axis] for axis in kept])
    size = np.array(voxel_size or (1.0, 1.0, 1.0))[kept]
    distance = ndimage.distance_transform_edt(flat, sampling=size / size.min())
    height = np.log(distance + 1)
    filled = reconstruction(height + np.log(neck), height, "dilation")
    seeds, _ = ndimage.label(local_maxima(filled) & flat, np.ones([3] * len(kept)))
    return watershed(-distance, seeds, mask=flat).reshape(inside.shape)


def _copied(parts: InstanceSource, stored: np.memmap) -> list[tuple[int, tuple[slice, slice, slice]]]:
    """Write the numbers of all parts to ``stored``; returns each with the box around it."""
    from scipy import ndimage

    low = np.full((parts.count + 1, 3), np.iinfo(np.int64).max)
    high = np.zeros((parts.count + 1, 3), np.int64)
    for first, last in parts.slabs():
        numbers = parts.read((slice(first, last), *(slice(0, n) for n in parts.shape[1:])))
        stored[first:last] = numbers
        for part, box in enumerate(ndimage.find_objects(numbers), 1):
            if box is not None:
                at = [first, 0, 0]
                low[part] = np.minimum(low[part], [s.start + a for s, a in zip(box, at, strict=True)])
                high[part] = np.maximum(high[part], [s.stop + a for s, a in zip(box, at, strict=True)])
    return [
        (part, tuple(slice(int(a), int(b)) for a, b in zip(low[part], high[part], strict=True)))
        for part in range(1, parts.count + 1)
    ]


def _padded(inside: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """With the background around it, but beyond the volume."""
    return np.pad(inside, [(int(s.start > 0), int(s.stop < n)) for s, n in zip(box, shape, strict=True)])
