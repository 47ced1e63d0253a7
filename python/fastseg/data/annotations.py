# SPDX-License-Identifier: BSD-3-Clause
"""A raw volume with what is known about it: targets, and a code per voxel that says how far to trust them.

Codes are those of the op masked_bce: 0 ignored, 1 labelled, 2 pseudo-labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastseg import _C
from fastseg.data.cache import ChunkCache
from fastseg.data.label_facts import IdCounts
from fastseg.data.volumes import Box, Volume, require_finite
from fastseg.errors import InputError

IGNORED, LABELLED, PSEUDO = 0, 1, 2

# Enough positions that a run seldom draws one twice, few enough to keep in memory for any volume.
_MOST_CANDIDATES = 100_000


@dataclass(frozen=True)
class Annotation:
    """What is annotated: all voxels, or the given slices (file coordinates) along one axis."""

    axis: int = 0
    slices: tuple[int, ...] | None = None


@dataclass
class AnnotatedVolume:
    """Raw data, labels and mask of one shape, read together box by box.

    labels: any integer ids. ``classes`` None makes one target channel, label != 0; otherwise one channel per
    id. Voxels with ``ignore_label`` get code 0. mask: codes 0, 1, 2, over the annotation.
    pseudo: a channel per class, 0 and 1 (integers) or probabilities (floats). They are the target, with code 2,
    where mask and annotation say nothing: what is annotated stays as it is, and an ignored label stays ignored.
    as_ids: the target is the labels' ids as they are, in one channel, instead of classes.
    Without labels every target and every code is 0.
    """

    raw: Volume
    labels: Volume | None = None
    mask: Volume | None = None
    annotation: Annotation = field(default_factory=Annotation)
    classes: tuple[int, ...] | None = None
    ignore_label: int | None = None
    pseudo: Volume | None = None
    as_ids: bool = False

    def __post_init__(self) -> None:
        for what, volume in (("labels", self.labels), ("mask", self.mask)):
            if volume is None:
                continue
            if volume.shape != self.raw.shape:
                raise InputError(
                    f"{what} {volume.name} must have the shape of raw {self.raw.name}, {self.raw.shape} "
                    f"(z, y, x), got {volume.shape}"
                )
            if volume.channels != 1:
                raise InputError(f"{what} {volume.name} must have one channel, got {volume.channels}")
            if volume.dtype.kind not in "bui":
                raise InputError(f"{what} {volume.name} must hold integers, got {volume.dtype}")
        if self.pseudo is not None:
            expected, found = (
                (self.target_channels, *self.raw.shape),
                (self.pseudo.channels, *self.pseudo.shape),
            )
            if found != expected:
                raise InputError(
                    f"pseudo-labels {self.pseudo.name} must be {expected} (classes, z, y, x) as the used part of raw "
                    f"{self.raw.name}, got {found}"
                )
        if self.annotation.slices is not None:
            axis, low = "zyx"[self.annotation.axis], self.raw.origin[self.annotation.axis]
            high = low + self.raw.shape[self.annotation.axis]
            outside = [s for s in self.annotation.slices if not low <= s < high]
            if outside:
                raise InputError(
                    f"annotated slices {outside} of {self.raw.name} must lie in {axis} {low}:{high}"
                )

    @property
    def shape(self) -> Box:
        return self.raw.shape

    @property
    def target_channels(self) -> int:
        return 1 if self.as_ids else len(self.classes or (1,))

    @property
    def target_dtype(self) -> np.dtype:
        """uint8, or that of the pseudo-labels where they are probabilities, or of the labels as ids."""
        if self.as_ids and self.labels is not None:
            return self.labels.dtype
        soft = self.pseudo is not None and self.pseudo.dtype.kind == "f"
        return self.pseudo.dtype if soft and self.pseudo is not None else np.dtype(np.uint8)

    def annotated_slices(self) -> np.ndarray | None:
        """Annotated slices along the annotation's axis, counted from this volume's own origin."""
        if self.annotation.slices is None:
            return None
        return np.asarray(self.annotation.slices, np.int64) - self.raw.origin[self.annotation.axis]

    def with_cache(self, cache: ChunkCache) -> AnnotatedVolume:
        """The same, read through a cache of decoded chunks where the file allows it."""
        names = ("raw", "labels", "mask", "pseudo")
        volumes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(self, **{name: volume.with_cache(cache) for name, volume in volumes.items()})

    def read_raw(
        self, start: Sequence[int], stop: Sequence[int], out: np.ndarray | None = None
    ) -> np.ndarray:
        """(channels, z, y, x) in the file's dtype; InputError with the place if it holds NaN or infinity."""
        box = self.raw.read(start, stop, out)
        require_finite(box, self.raw, start)
        return box

    def read_target(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        target: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        *,
        ids: IdCounts | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Target (classes, z, y, x) of ``target_dtype`` in [0, 1] and codes (1, z, y, x) uint8, in place where arrays
        are given. ids: to count the labels' own ids in, at labelled voxels."""
        box = tuple(b - a for a, b in zip(start, stop, strict=True))
        target = np.empty((self.target_channels, *box), self.target_dtype) if target is None else target
        codes = np.empty((1, *box), np.uint8) if codes is None else codes
        if self.labels is None:
            target[...], codes[...] = 0, IGNORED
            return target, codes
        # Where nobody asks for the ids later, they need no memory of their own.
        is_mask = not self.as_ids and self.classes is None and self.ignore_label is None and ids is None
        in_place = is_mask and self.labels.dtype == target.dtype
        labels = self.labels.read(start, stop, target if in_place else None)
        if self.as_ids:
            target[...] = labels
        elif self.classes is None and target.dtype == np.uint8:
            _C.copy_boxes(target, [labels], [(0, 0, 0, 0)], nonzero=True)
        elif self.classes is None:
            np.not_equal(labels, 0, out=target, casting="unsafe")
        else:
            for channel, value in zip(target, self.classes, strict=True):
                np.equal(labels[0], value, out=channel, casting="unsafe")
        self._read_codes(start, stop, codes)
        if self.pseudo is not None:
            silent = codes == IGNORED
            np.copyto(target, self.pseudo.read(start, stop), casting="unsafe", where=silent)
            codes[silent] = PSEUDO
        if self.ignore_label is not None:
            codes[labels == self.ignore_label] = IGNORED
        if ids is not None:
            ids.add(labels[codes == LABELLED])
        return target, codes

    def _read_codes(self, start: Sequence[int], stop: Sequence[int], codes: np.ndarray) -> None:
        if self.mask is not None:
            mask = self.mask.read(start, stop)
            if mask.dtype == bool:
                mask = mask.view(np.uint8)
            wrong = (mask < IGNORED) | (mask > PSEUDO)
            if wrong.any():
                place = np.argwhere(wrong[0])[0]
                where = tuple(int(v) for v in place + start + self.mask.origin)
                raise InputError(
                    f"mask {self.mask.name} must hold the codes 0 (ignored), 1 (labelled) and 2 (pseudo-labelled), "
                    f"got {mask[0][tuple(place)]} at (z, y, x) = {where}"
                )
            codes[...] = mask
        else:
            codes[...] = LABELLED
        slices = self.annotated_slices()
        if slices is not None:
            axis = self.annotation.axis
            off = ~np.isin(np.arange(start[axis], stop[axis]), slices)
            codes[(slice(None),) * (axis + 1) + (off,)] = IGNORED


@dataclass
class LabelIndex:
    """What a pass over the labels of one volume found, for drawing patches and for telling the user.

    labelled, foreground: up to 100,000 positions (z, y, x) each, drawn uniformly. The counts are exact; ids are those
    of the labels at labelled voxels.
    """

    labelled: np.ndarray
    foreground: np.ndarray
    labelled_voxels: int
    pseudo_voxels: int
    foreground_voxels: int
    ids: IdCounts = field(default_factory=IdCounts)


def index_labels(volume: AnnotatedVolume, seed: int) -> LabelIndex:
    """Read the labels, if any, once, block by block; without pseudo-labels annotated slices alone where they are
    given."""
    if volume.labels is None:
        nowhere = np.empty((0, 3), np.int64)
        return LabelIndex(nowhere, nowhere, 0, 0, 0)
    labelled, foreground = (_Reservoir(np.random.default_rng((seed, number))) for number in range(2))
    pseudo, ids = 0, IdCounts()
    for start, stop in _annotated_blocks(volume):
        target, codes = volume.read_target(start, stop, ids=ids)
        if target.dtype.kind == "f":
            target = target >= 0.5
        labelled.add(codes[0], None, start)
        foreground.add(codes[0], as_mask(target[0] if len(target) == 1 else target.any(axis=0)), start)
        if volume.pseudo is not None:
            pseudo += int(np.count_nonzero(codes == PSEUDO))
    return LabelIndex(
        labelled.positions, foreground.positions, labelled.seen - pseudo, pseudo, foreground.seen, ids
    )


def as_mask(values: np.ndarray) -> np.ndarray:
    """A byte per value, in one piece, that is 0 where the value is."""
    return np.ascontiguousarray(values if values.dtype.itemsize == 1 else values != 0).view(np.uint8)


def _annotated_blocks(volume: AnnotatedVolume) -> Iterator[tuple[Box, Box]]:
    slices = volume.annotated_slices()
    if slices is None or volume.pseudo is not None:
        yield from volume.raw.blocks()
        return
    axis = volume.annotation.axis
    for index in slices:
        low, high = [0, 0, 0], list(volume.shape)
        low[axis], high[axis] = int(index), int(index) + 1
        for start, stop in volume.raw.crop(low, high).blocks():
            (z0, y0, x0), (z1, y1, x1) = np.add(start, low).tolist(), np.add(stop, low).tolist()
            yield (z0, y0, x0), (z1, y1, x1)


class _Reservoir:
    """A uniform sample of positions from a stream of marked voxels.

    Algorithm L (Li 1994): the first ones, then after geometric gaps one that takes the place of another. What is drawn
    grows with the logarithm of the number of voxels, and does not depend on how the stream is cut into blocks.
    """

    def __init__(self, rng: np.random.Generator, most: int = _MOST_CANDIDATES) -> None:
        self.rng, self.most, self.seen = rng, most, 0
        self._kept = np.empty((most, 3), np.int64)
        # Of the positions to take, the last one beyond what was looked at: ranks in the stream, places in kept.
        self._ranks = self._slots = np.arange(most)
        self._log_share = 0.0  # of the voxels that are taken

    @property
    def positions(self) -> np.ndarray:
        return self._kept[: self.seen].copy()

    def add(self, codes: np.ndarray, target: np.ndarray | None, start: Sequence[int]) -> None:
        """The voxels of the block at ``start`` that are marked in codes and, if given, in target."""
        seen, most = self.seen, self.seen + codes.size
        if self._ranks[-1] < most:
            self._draw(most)
        near = int(np.searchsorted(self._ranks, most))
        flat, marked = _C.find_marked(codes, target, self._ranks[:near] - seen)
        self.seen += marked
        taken = int(np.searchsorted(self._ranks, self.seen))
        if taken:
            flat = flat[:taken]
            here = np.stack(np.unravel_index(flat, codes.shape), axis=1) + np.asarray(start)
            self._kept[self._slots[:taken]] = here  # of equal slots the last stays
            self._ranks, self._slots = self._ranks[taken:], self._slots[taken:]

    def _draw(self, most: int) -> None:
        """Ranks and slots up to ``most``, in batches in which the share hardly falls."""
        ranks, slots = [self._ranks], [self._slots]
        while ranks[-1][-1] < most:
            shares, gaps = np.log1p(-self.rng.random((2, self.most // 16 + 1)))
            shares = self._log_share + np.cumsum(shares) / self.most
            self._log_share = shares[-1]
            gaps = (gaps / np.log1p(-np.exp(shares))).astype(np.int64) + 1
            ranks.append(ranks[-1][-1] + np.cumsum(gaps))
            slots.append(self.rng.integers(self.most, size=len(gaps)))
        self._ranks, self._slots = np.concatenate(ranks), np.concatenate(slots)
