# SPDX-License-Identifier: BSD-3-Clause
"""Numbered objects as two classes: what lies inside of them, and their boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastseg.data.cache import ChunkCache
from fastseg.data.volumes import Box, Volume

# What a configuration calls them, and the ids that they have.
PARTS = {"interior": 1, "boundary": 2}


class PartsVolume(Volume):
    """``labels``, any id an object and 0 background, as 0, 1 (interior) and 2 (boundary), made as boxes are read.

    A voxel of an object is boundary where one that is up to ``width`` (z, y, x) voxels away along an axis has another
    id; both sides of where two objects touch are, and none of the background. What is not known takes no part: beyond
    the volume, where ``mask`` is 0, and voxels of ``ignore``, which keep that id. A box holds what it holds in the
    whole.
    """

    def __init__(
        self, labels: Volume, width: Box, mask: Volume | None = None, ignore: int | None = None
    ) -> None:
        self.__dict__.update(labels.__dict__)
        self.labels, self.mask, self.width, self.ignore = labels, mask, width, ignore
        self.dtype = np.dtype(np.uint8) if ignore is None else np.result_type(np.uint8, labels.dtype)

    def _of(self, labels: Volume, mask: Volume | None) -> PartsVolume:
        return PartsVolume(labels, self.width, mask, self.ignore)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> PartsVolume:
        return self._of(self.labels.crop(start, stop), self.mask and self.mask.crop(start, stop))

    def with_cache(self, cache: ChunkCache) -> PartsVolume:
        return self._of(self.labels.with_cache(cache), self.mask and self.mask.with_cache(cache))

    def read(self, start: Sequence[int], stop: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        low = [max(a - w, 0) for a, w in zip(start, self.width, strict=True)]
        high = [min(b + w, n) for b, w, n in zip(stop, self.width, self.shape, strict=True)]
        ids = self.labels.read(low, high)[0]
        known = np.ones(ids.shape, bool) if self.mask is None else self.mask.read(low, high)[0] != 0
        if self.ignore is not None:
            known &= ids != self.ignore
        before = [w - (a - first) for a, first, w in zip(start, low, self.width, strict=True)]
        after = [w - (last - b) for b, last, w in zip(stop, high, self.width, strict=True)]
        beyond = [*zip(before, after, strict=True)]
        ids, known = np.pad(ids, beyond), np.pad(known, beyond)
        inside = [slice(w, w + b - a) for a, b, w in zip(start, stop, self.width, strict=True)]
        own = ids[tuple(inside)]
        differs = np.zeros(own.shape, bool)
        for axis, width in enumerate(self.width):
            for step in (s for s in range(-width, width + 1) if s):
                beside = list(inside)
                beside[axis] = slice(inside[axis].start + step, inside[axis].stop + step)
                differs |= (ids[tuple(beside)] != own) & known[tuple(beside)]
        found = (own != 0) * (1 + differs.astype(self.dtype))
        if self.ignore is not None:
            found[own == self.ignore] = self.ignore
        if out is None:
            return found[None].astype(self.dtype, copy=False)
        out[0] = found
        return out
