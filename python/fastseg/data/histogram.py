# SPDX-License-Identifier: BSD-3-Clause
"""Histogram matching of one volume to others, read in blocks; the rule is that of Franco-Barranco et al. (CMPB 2022).

lookup = match_histograms(histogram_of([source]), histogram_of(targets))
matched = MatchedVolume(source, lookup)     # reads as source does, matched box by box
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastseg import _C
from fastseg.data.cache import ChunkCache
from fastseg.data.volumes import Volume, require_finite
from fastseg.errors import InputError

# Of floats, between the lowest and the highest value of all volumes together.
_FLOAT_BINS = 1 << 16


@dataclass(frozen=True)
class Histogram:
    """``values`` (n,) float64, rising: grey levels, or centres of bins of floats; ``counts`` (n,) int64 of each."""

    values: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Lookup:
    """Grey levels ``values`` (n,) and what they become, ``matched`` (n,); straight lines in between. 0 stays 0."""

    values: np.ndarray
    matched: np.ndarray

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """An array of any shape in its own dtype, integers rounded; 4 to 8 bytes per value beside it, of uint8 and
        uint16, which are looked up in a table, as many as they have."""
        if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
            out = np.empty(raw.shape, raw.dtype)
            _C.map_levels(np.ascontiguousarray(raw), self._table[raw.dtype.itemsize], out)
            return out
        return self._between(raw)

    @cached_property
    def _table(self) -> dict[int, np.ndarray]:
        """Of uint8 and uint16, what each grey level becomes, by their bytes."""
        dtypes = (np.uint8, np.uint16)
        return {i + 1: self._between(np.arange(np.iinfo(d).max + 1, dtype=d)) for i, d in enumerate(dtypes)}

    def _between(self, raw: np.ndarray) -> np.ndarray:
        found = np.interp(raw.reshape(-1), self.values, self.matched).reshape(raw.shape)
        if raw.dtype.kind in "ui":
            limits = np.iinfo(raw.dtype)
            found = np.clip(np.rint(found), limits.min, limits.max)
        return np.where(raw == 0, 0, found).astype(raw.dtype)


class MatchedVolume(Volume):
    """A volume whose boxes come matched by ``lookup``; nothing is read or kept beyond the box asked for."""

    def __init__(self, volume: Volume, lookup: Lookup) -> None:
        self.__dict__.update(volume.__dict__)
        self.volume, self.lookup = volume, lookup

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Volume:
        return MatchedVolume(self.volume.crop(start, stop), self.lookup)

    def with_cache(self, cache: ChunkCache) -> Volume:
        return MatchedVolume(self.volume.with_cache(cache), self.lookup)

    def read(self, start: Sequence[int], stop: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        box = self.volume.read(start, stop, out)
        require_finite(box, self.volume, start)
        box[...] = self.lookup(box)
        return box


def histogram_of(volumes: Sequence[Volume]) -> Histogram:
    """The histogram of all values of one or more volumes of one dtype, read block by block.

    uint8 and uint16 have a bin for each level, all others 65,536 bins, for which they are read twice. The paper takes
    the mean histogram of the target's images: this one divided by their number, which changes nothing. Memory is that
    of a block. InputError for different dtypes, or NaN and infinity.
    """
    dtypes = {volume.dtype for volume in volumes}
    if len(dtypes) != 1:
        raise InputError(f"histograms need volumes of one dtype, got {', '.join(map(str, dtypes)) or 'none'}")
    dtype = dtypes.pop()
    if dtype.kind == "u" and dtype.itemsize <= 2:
        counts = np.zeros(np.iinfo(dtype).max + 1, np.int64)
        for block in _blocks(volumes):
            _C.count_levels(block, counts)
        return Histogram(np.arange(len(counts), dtype=np.float64), counts)
    limits = [(float(block.min()), float(block.max())) for block in _blocks(volumes)]
    low, high = min(pair[0] for pair in limits), max(pair[1] for pair in limits)
    edges = np.linspace(low, high if high > low else low + 1, _FLOAT_BINS + 1)
    counts = np.zeros(_FLOAT_BINS, np.int64)
    for block in _blocks(volumes):
        counts += np.histogram(block, edges)[0]
    return Histogram((edges[1:] + edges[:-1]) / 2, counts)


def match_histograms(source: Histogram, target: Histogram) -> Lookup:
    """The lookup from a source's grey levels to those with the same share of the target's values below them.

    With c0, c1, c2 the numbers of values 0, 1 and 2, c0 is first replaced by max(0, 2 c1 - c2) in both: zeros are
    padding, and as many are kept as a line through the next two levels foretells. Then level v becomes the target's
    level at the quantile of v, by straight lines through the target's cumulative histogram; 0 stays 0. Monotone;
    matching a volume to itself gives it back within a grey level. Where neither has zeros this is scikit-image's
    ``match_histograms``, of floats within the width of a bin and of the gaps between rare values. The zero rule
    holds for the lowest three bins where these begin at 0; values below 0 have no padding.
    """
    mine, theirs = _without_padding(source), _without_padding(target)
    if not theirs.any() or not mine.any():
        return Lookup(source.values, source.values)
    # Levels that do not occur have no quantile of their own: they lie between their neighbours.
    here, there = mine > 0, theirs > 0
    quantiles = np.cumsum(mine[here]) / mine.sum()
    matched = np.interp(quantiles, np.cumsum(theirs[there]) / theirs.sum(), target.values[there])
    return Lookup(source.values[here], matched)


def _without_padding(histogram: Histogram) -> np.ndarray:
    counts = histogram.counts.astype(np.float64)
    begins_at_zero = 0 <= histogram.values[0] <= histogram.values[1] - histogram.values[0]
    if begins_at_zero:
        counts[0] = max(0.0, 2 * counts[1] - counts[2])
    return counts


def _blocks(volumes: Sequence[Volume]) -> Iterator[np.ndarray]:
    for volume in volumes:
        for start, stop in volume.blocks():
            block = volume.read(start, stop)
            require_finite(block, volume, start)
            yield block
