# SPDX-License-Identifier: BSD-3-Clause
"""Where training patches are taken: drawn by step number, alone or several from one block of chunks.

Positions depend on the seed, the step and the place in the batch alone. So the stream is the same for any
number of threads and of processes, and a resumed run needs nothing but its step to go on with the same patches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastseg.data.annotations import AnnotatedVolume, LabelIndex
from fastseg.data.volumes import Box
from fastseg.errors import InputError

# Tell apart the random numbers of groups and of their order from those of (seed, step, place).
_GROUP, _ORDER = 1, 2


@dataclass(frozen=True)
class Sampling:
    """Shares of patches placed anywhere, around a labelled voxel, around a labelled foreground voxel."""

    uniform: float = 0.1
    labelled: float = 0.45
    foreground: float = 0.45


@dataclass(frozen=True)
class _Way:
    """A way of drawing: its share, the chance of each volume, and candidate positions (None: anywhere)."""

    share: float
    edges: list[float]  # sums of the chances of the volumes
    candidates: list[np.ndarray] | None


class PatchSampler:
    """Draw (volume, start) of a patch for a step and a place in the batch.

    patches_per_block 1: each patch by itself. k > 1: patches come in groups of k whose starts lie in one cell of
    the volume, a few chunks large, so that a group reads one block of chunks. The first of a group is drawn as
    for 1, the others from the same distribution given its cell: **each patch alone is distributed as for 1**,
    only those of one group are alike. Within k * shuffle_steps steps, ``batch * shuffle_steps`` groups are dealt
    out such that every shuffle_steps steps take each of them once, in a new random order: no batch holds two
    patches of one group.

    Volumes without labels have patches anywhere. Along an axis that is shorter than the patch, patches begin at 0 and
    reach beyond its end.

    batch: of all processes together. weights: the chance of each volume; None: by its number of voxels,
    labelled voxels or foreground voxels, whichever the way of drawing is about.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        indexes: Sequence[LabelIndex],
        patch: Box,
        sampling: Sampling,
        seed: int,
        *,
        batch: int = 1,
        patches_per_block: int = 1,
        shuffle_steps: int = 8,
        weights: Sequence[float] | None = None,
    ) -> None:
        if any(volume.labels is not None for volume in volumes) and not any(
            index.labelled_voxels + index.pseudo_voxels for index in indexes
        ):
            names = ", ".join(volume.raw.name for volume in volumes)
            raise InputError(f"no annotated voxel in {names}: check labels, mask, annotated and region")
        self.patch, self.seed, self.batch = patch, seed, batch
        self.patches_per_block, self.shuffle_steps = patches_per_block, shuffle_steps
        self.limits = [np.maximum(np.subtract(volume.shape, patch), 0) for volume in volumes]
        self.origins = [np.asarray(volume.raw.origin) for volume in volumes]
        self.cells = [np.asarray(_cell(volume.raw.chunks or patch, patch)) for volume in volumes]
        counts = [
            (sampling.uniform, [int(np.prod(volume.shape)) for volume in volumes], None),
            (
                sampling.labelled,
                [index.labelled_voxels + index.pseudo_voxels for index in indexes],
                [index.labelled for index in indexes],
            ),
            (
                sampling.foreground,
                [index.foreground_voxels for index in indexes],
                [index.foreground for index in indexes],
            ),
        ]
        ways = [_Way(share, _edges(_chances(found, weights)), where) for share, found, where in counts]
        self.ways = [way for way in ways if way.share > 0 and way.edges[-1] > 0]
        self.way_edges = _edges([way.share for way in self.ways])
        if not self.ways:
            raise InputError(
                "sampling draws around labelled voxels or foreground alone, and there are none: give uniform a share"
            )
        # A window's groups and orders, and the next one's, which the readers are already at.
        self._group = lru_cache(4 * batch * shuffle_steps)(self._draw_group)
        self._order = lru_cache(8)(self._draw_order)

    def draw(self, step: int, place: int) -> tuple[int, Box]:
        """(volume, start) of the patch at ``place``, counted over the batch of all processes, of ``step``."""
        if self.patches_per_block == 1:
            rng = np.random.default_rng((self.seed, step, place))
            volume, _, start = self._draw_alone(rng)
            return volume, _box(start)
        window, within = divmod(step, self.patches_per_block * self.shuffle_steps)
        member, column = divmod(within, self.shuffle_steps)
        group = self._order(window, member)[column * self.batch + place]
        volume, starts = self._group(window, int(group))
        return volume, _box(starts[member])

    def _draw_alone(self, rng: np.random.Generator) -> tuple[int, _Way, np.ndarray]:
        way = self.ways[_choose(rng, self.way_edges)]
        volume = _choose(rng, way.edges)
        limit = self.limits[volume]
        if way.candidates is None:
            return volume, way, rng.integers(limit + 1)
        found = way.candidates[volume]
        centre = found[rng.integers(len(found))]
        return volume, way, np.clip(centre - rng.integers(self.patch), 0, limit)

    def _draw_order(self, window: int, member: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, window, member, _ORDER))
        return rng.permutation(self.batch * self.shuffle_steps)

    def _draw_group(self, window: int, group: int) -> tuple[int, np.ndarray]:
        """The volume of a group and the starts (k, 3) of its patches, all of one cell."""
        rng = np.random.default_rng((self.seed, window, group, _GROUP))
        volume, way, first = self._draw_alone(rng)
        limit, origin, cell = self.limits[volume], self.origins[volume], self.cells[volume]
        corner = (first + origin) // cell * cell - origin
        low, high = np.maximum(corner, 0), np.minimum(corner + cell, limit + 1)
        more = self.patches_per_block - 1
        if way.candidates is None:
            others = rng.integers(low, high, (more, 3))
        else:
            others = self._draw_around(way.candidates[volume], low, high, limit, more, rng)
        # The order within the group carries nothing: the first is not always the one that chose the cell.
        return volume, rng.permutation(np.concatenate((first[None], others)))

    def _draw_around(
        self,
        candidates: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        limit: np.ndarray,
        count: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Starts drawn as by _draw_alone, given that they lie in [low, high)."""
        patch = np.asarray(self.patch)
        # Before it is clipped to the volume, a start at its border may have been anything beyond.
        reach_low = np.where(low == 0, np.iinfo(np.int64).min, low)
        reach_high = np.where(high > limit, np.iinfo(np.int64).max, high)
        near = candidates[((candidates >= low) & (candidates < high + patch)).all(axis=1)]
        first = np.maximum(near - patch + 1, reach_low)
        last = np.minimum(near, reach_high - 1)
        pairs = np.maximum(last - first + 1, 0).prod(axis=1)  # of a candidate and an offset
        edges = np.cumsum(pairs)
        chosen = np.searchsorted(edges, rng.integers(edges[-1], size=count), side="right")
        return np.clip(rng.integers(first[chosen], last[chosen] + 1), 0, limit)


def _cell(chunks: Sequence[int], patch: Box) -> Box:
    """The smallest multiple of the chunks that is at least half a patch: smaller ones would make patches alike."""
    z, y, x = (c * -(-(p // 2 or 1) // c) for c, p in zip(chunks, patch, strict=True))
    return (z, y, x)


def _chances(found: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        return [float(count) for count in found]
    return [weight if count else 0.0 for count, weight in zip(found, weights, strict=True)]


def _box(start: np.ndarray) -> Box:
    return (int(start[0]), int(start[1]), int(start[2]))


def _edges(weights: Sequence[float]) -> list[float]:
    return np.cumsum(weights).tolist()


def _choose(rng: np.random.Generator, edges: list[float]) -> int:
    return bisect_right(edges, rng.random() * edges[-1])
