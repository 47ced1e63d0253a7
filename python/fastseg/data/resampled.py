# SPDX-License-Identifier: BSD-3-Clause
"""Volumes at another voxel size than they are stored at, resampled box by box as they are read.

Each axis is resampled by itself with a fixed number of taps a voxel, added up in a fixed order. So every box holds,
bit for bit, what it holds in the whole, however the volume is cut, cached or shared out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.cache import ChunkCache
from fastseg.data.volumes import Box, Volume, require_finite
from fastseg.errors import InputError

Ratio = tuple[float, float, float]

# Files state sizes in other units and with rounding: what differs by less is the same.
_SAME = 1e-3
# More is a wrong unit far more often than it is meant, and reading would cost its cube.
MOST_RATIO = 8.0
# Voxels of the file that are held at a time: larger boxes are read in parts.
_MOST_STORED = 1 << 24


class ResampledVolume(Volume):
    """``stored`` on a grid of voxels ``ratio`` (z, y, x) times as long as its own, with its channels.

    Voxel i covers [i, i + 1) * ratio of ``stored``. Along an axis with ratio > 1 it is the mean of what it covers, each
    voxel counting by the part of it within; otherwise it is interpolated linearly at its middle, and beyond the middles
    of the first and the last voxel it has their values. nearest: it is the voxel that its middle lies in, as labels
    need. Integers are rounded to even; the dtype stays, or is ``dtype``.

    shape: of the grid; by default as many voxels as ``stored`` is long, rounded. voxel_size: of the grid, to state.
    slices: an axis, and for each index along it the voxel of ``stored`` to take, in place of the nearest.
    """

    def __init__(
        self,
        stored: Volume,
        ratio: Ratio,
        *,
        nearest: bool = False,
        shape: Box | None = None,
        voxel_size: tuple[float, float, float] | None = None,
        dtype: np.dtype | None = None,
        slices: tuple[int, np.ndarray] | None = None,
    ) -> None:
        self.__dict__.update(stored.__dict__)
        self.stored, self.ratio, self.nearest, self.slices = stored, ratio, nearest, slices
        self.shape = shape or resampled_shape(stored.shape, ratio)
        self.voxel_size = voxel_size
        self.dtype = np.dtype(dtype or stored.dtype)
        self.origin = _box(round(o / r) for o, r in zip(stored.origin, ratio, strict=True))
        if stored.chunks is not None:
            self.chunks = _box(max(1, round(c / r)) for c, r in zip(stored.chunks, ratio, strict=True))
        self.first: Box = (0, 0, 0)  # of this box in the grid of all of ``stored``

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> ResampledVolume:
        """The box [start, stop) of this grid; its values are those that it has in the whole."""
        part = object.__new__(ResampledVolume)
        part.__dict__.update(super().crop(start, stop).__dict__)
        part.first = _box(f + s for f, s in zip(self.first, start, strict=True))
        return part

    def with_cache(self, cache: ChunkCache) -> ResampledVolume:
        cached = object.__new__(ResampledVolume)
        cached.__dict__.update(self.__dict__)
        cached.stored = self.stored.with_cache(cache)
        return cached

    def read(self, start: Sequence[int], stop: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            out = np.empty((self.channels, *(b - a for a, b in zip(start, stop, strict=True))), self.dtype)
        taps = [
            self._taps(axis, first + low, first + high)
            for axis, (first, low, high) in enumerate(zip(self.first, start, stop, strict=True))
        ]
        low, high = ([int(edge(t[0])) for t in taps] for edge in (np.min, np.max))
        lengths = [b - a + 1 for a, b in zip(low, high, strict=True)]
        sizes = out.shape[1:]
        longest = max((a for a in range(3) if sizes[a] > 1), key=lambda a: lengths[a], default=None)
        if math.prod(lengths) > _MOST_STORED and longest is not None:
            middle = start[longest] + sizes[longest] // 2
            for side in (slice(None, sizes[longest] // 2), slice(sizes[longest] // 2, None)):
                begin, end = list(start), list(stop)
                begin[longest] = start[longest] if side.start is None else middle
                end[longest] = middle if side.stop is not None else stop[longest]
                self.read(begin, end, out[(slice(None),) * (longest + 1) + (side,)])
            return out
        box = self.stored.read(low, [h + 1 for h in high])
        if not self.nearest:
            require_finite(box, self.stored, low)
        out[...] = self._resample(box, low, taps)
        return out

    def _taps(self, axis: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(voxels, taps) of the indices low .. high - 1 along an axis: indices into ``stored``, and their weights, None
        for a single one of weight 1."""
        ratio, size = self.ratio[axis], self.stored.shape[axis]
        index = np.arange(low, high, dtype=np.float64)
        if self.slices is not None and self.slices[0] == axis:
            return self.slices[1][low:high, None], None
        if ratio == 1.0:
            return np.minimum(np.arange(low, high), size - 1)[:, None], None
        if self.nearest:
            return nearest_voxels(index, ratio, size)[:, None], None
        if ratio < 1.0:
            middle = (index + 0.5) * ratio - 0.5
            below = np.floor(middle)
            above = middle - below
            places = np.stack([below, below + 1], axis=1).astype(np.int64)
            return places.clip(0, size - 1), np.stack([1 - above, above], axis=1)
        begin, end = index * ratio, np.minimum((index + 1) * ratio, size)
        places = np.floor(begin)[:, None] + np.arange(math.ceil(ratio) + (ratio != round(ratio)))
        weights = (np.minimum(places + 1, end[:, None]) - np.maximum(places, begin[:, None])).clip(0)
        return places.astype(np.int64).clip(0, size - 1), weights / weights.sum(axis=1, keepdims=True)

    def _resample(
        self, box: np.ndarray, low: Sequence[int], taps: Sequence[tuple[np.ndarray, np.ndarray | None]]
    ) -> np.ndarray:
        """(channels, z, y, x) on the grid of a box of ``stored`` that begins at ``low``."""
        exact = np.float32 if box.dtype.itemsize <= 2 or box.dtype == np.float32 else np.float64
        # The axis that is reduced most comes first, so that the others have the least to do.
        for axis in sorted(range(3), key=lambda a: -self.ratio[a]):
            places, weights = taps[axis]
            places = places - low[axis]
            if weights is None:
                whole = len(places) == box.shape[axis + 1] and (np.diff(places[:, 0]) == 1).all()
                box = box if whole else box.take(places[:, 0], axis + 1)
                continue
            shaped = [-1 if a == axis else 1 for a in range(3)]
            total: np.ndarray | None = None
            for place, weight in zip(places.T, weights.T.astype(exact), strict=True):
                term = box.take(place, axis + 1) * weight.reshape(shaped)
                total = term if total is None else np.add(total, term, out=total)
            assert total is not None
            box = total
        return np.rint(box) if box.dtype.kind == "f" and self.dtype.kind in "bui" else box

    def blocks(self, most_voxels: int = 1 << 24) -> Iterator[tuple[Box, Box]]:
        """As of any volume, with no more than ``most_voxels`` of the file behind a block either."""
        return super().blocks(max(int(most_voxels / math.prod(max(r, 1.0) for r in self.ratio)), 1))

    @property
    def image_files(self) -> list[str]:
        files = self.stored.image_files
        return files[self.first[0] : self.first[0] + self.shape[0]] if self.ratio[0] == 1.0 else []


def ratio_to(volume: Volume, voxel_size: Sequence[float | None]) -> Ratio:
    """How many times as long as the volume's own voxels those of ``voxel_size`` (z, y, x) are; 1 where it says None.

    InputError where the volume states no size, or the ratio is beyond 1/8 .. 8.
    """
    stated = volume.voxel_size
    if stated is None:
        raise InputError(
            f"data.voxel_size needs the voxel size of every volume, and {volume.name} states none: add "
            "voxel_size: [z, y, x] to its entry, in micrometres"
        )
    ratio = [1.0 if w is None else w / s for w, s in zip(voxel_size, stated, strict=True)]
    for axis, value, wanted, size in zip("zyx", ratio, voxel_size, stated, strict=True):
        if not 1 / MOST_RATIO <= value <= MOST_RATIO:
            raise InputError(
                f"data.voxel_size: {wanted:g} along {axis} is {value:.3g} times the {size:g} of {volume.name}, and "
                f"must be from 1/{MOST_RATIO:g} to {MOST_RATIO:g} times it: sizes are in micrometres"
            )
    z, y, x = (1.0 if abs(r - 1) < _SAME else r for r in ratio)
    return (z, y, x)


def resampled(volume: Volume, voxel_size: Sequence[float | None]) -> Volume:
    """The volume at ``voxel_size``, itself where it is that already; errors as of ``ratio_to``."""
    ratio = ratio_to(volume, voxel_size)
    return (
        volume
        if ratio == (1.0, 1.0, 1.0)
        else ResampledVolume(volume, ratio, voxel_size=_size(volume, ratio))
    )


def resampled_annotated(volume: AnnotatedVolume, voxel_size: Sequence[float | None]) -> AnnotatedVolume:
    """Raw data, labels and mask at ``voxel_size``, labels and mask by nearest voxel.

    Of annotated slices across an axis that is resampled, each stays annotated: a slice of the grid that holds the
    middle of one, or the nearest to it if several, has the labels of that one; where slices are thinner than the
    stored ones, those whose middle lies in an annotated one have its labels.
    """
    raw = resampled(volume.raw, voxel_size)
    if not isinstance(raw, ResampledVolume):
        return volume
    stated, axis = volume.annotated_slices(), volume.annotation.axis
    annotation, slices = volume.annotation, None
    if stated is not None and raw.ratio[axis] != 1.0:
        chosen = _slices(raw.shape[axis], raw.ratio[axis], volume.shape[axis], stated)
        kept = np.flatnonzero(np.isin(chosen, stated)) + raw.origin[axis]
        annotation, slices = Annotation(axis, tuple(int(i) for i in kept)), (axis, chosen)
    options = {"nearest": True, "voxel_size": raw.voxel_size, "slices": slices}
    return replace(
        volume,
        raw=raw,
        labels=volume.labels and ResampledVolume(volume.labels, raw.ratio, **options),
        mask=volume.mask and ResampledVolume(volume.mask, raw.ratio, **options),
        annotation=annotation,
    )


def resampled_shape(shape: Box, ratio: Ratio) -> Box:
    return _box(max(1, math.floor(n / r + 0.5)) for n, r in zip(shape, ratio, strict=True))


def nearest_voxels(index: np.ndarray, ratio: float, size: int) -> np.ndarray:
    """The stored voxels that the middles of the voxels ``index`` lie in."""
    return np.floor((index + 0.5) * ratio).astype(np.int64).clip(0, size - 1)


def _slices(count: int, ratio: float, size: int, annotated: np.ndarray) -> np.ndarray:
    """For each slice of a grid the stored slice to take its labels from."""
    chosen = nearest_voxels(np.arange(count, dtype=np.float64), ratio, size)
    holding = np.floor((annotated + 0.5) / ratio).astype(np.int64).clip(0, count - 1)
    distance = np.abs((annotated + 0.5) / ratio - (holding + 0.5))
    # The nearest to the middle is written last, of two the first.
    for place in np.lexsort((-annotated, -distance)):
        chosen[holding[place]] = annotated[place]
    return chosen


def _size(volume: Volume, ratio: Ratio) -> tuple[float, float, float]:
    assert volume.voxel_size is not None
    z, y, x = (s * r for s, r in zip(volume.voxel_size, ratio, strict=True))
    return (z, y, x)


def _box(values: Iterator[int]) -> Box:
    z, y, x = values
    return (z, y, x)
