# SPDX-License-Identifier: BSD-3-Clause
"""Which ids labels hold, and what of them is probably not meant: said before a network learns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastseg import _C
from fastseg.data.volumes import Volume

_LOSSY_SUFFIXES = (".jpg", ".jpeg")
_MOST_SHOWN = 8

# Ids counted in a table, of a byte each way; wider ranges are sorted.
_MOST_COUNTED = 1 << 20

# A drawn mask that was smoothed has most pixels at two ends and a few of many greys between.
_FEWEST_GREYS, _MOST_GREY_SHARE = 8, 0.3


@dataclass
class IdCounts:
    """The ids in rising order, and how many voxels each has."""

    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, labels: np.ndarray) -> None:
        ids, counts = _count(labels)
        self.merge(IdCounts(ids, counts))

    def merge(self, other: IdCounts) -> None:
        self.ids, place = np.unique(np.concatenate((self.ids, other.ids)), return_inverse=True)
        sums = np.zeros(len(self.ids), np.int64)
        np.add.at(sums, place, np.concatenate((self.counts, other.counts)))
        self.counts = sums

    def __str__(self) -> str:
        """``0 (97 %), 1 (2.5 %), 255 (0.5 %)``, the most frequent ones of many."""
        total = max(int(self.counts.sum()), 1)
        shown = np.sort(np.argsort(-self.counts, kind="stable")[:_MOST_SHOWN])
        text = ", ".join(f"{self.ids[i]} ({100 * self.counts[i] / total:.3g} %)" for i in shown)
        rest = len(self.ids) - len(shown)
        return text + (f" and {rest:,} more" if rest else "")


def label_warnings(
    labels: Sequence[Volume], counts: Sequence[IdCounts], classes: Sequence[int] | None
) -> list[str]:
    """What is suspicious about the ids at annotated voxels of the training labels, a line each.

    counts: without what ``data.ignore_label`` leaves out.
    """
    lines = []
    for volume, found in zip(labels, counts, strict=True):
        if volume.name.lower().endswith(_LOSSY_SUFFIXES):
            lines.append(f"labels {volume.name}: JPEG changes ids at edges; store labels as PNG or TIFF")
        lines += _suspicious_ids(volume, found, classes)
    everything = IdCounts()
    for found in counts:
        everything.merge(found)
    if classes is None:
        missing = not everything.ids.any()
    else:
        absent = [value for value in classes if value not in everything.ids]
        missing = len(absent) == len(classes)
        if not missing:
            lines += [f"class {value} of data.classes is in no training volume" for value in absent]
    if missing and labels:
        names = ", ".join(volume.name for volume in labels[:3]) + (", ..." if len(labels) > 3 else "")
        wanted = "" if classes is None else f" of data.classes {list(classes)}"
        lines.append(
            f"no foreground at all{wanted} where {names} are annotated: their ids are {everything or 'none'}"
        )
    return lines


def _suspicious_ids(volume: Volume, found: IdCounts, classes: Sequence[int] | None) -> list[str]:
    meaning = "are learnt as foreground" if classes is None else "are learnt as background"
    known = set(classes or ())
    lines = []
    for value in found.ids[found.ids < 0]:
        if int(value) not in known:
            lines.append(
                f"labels {volume.name} hold the id {value}, whose voxels {meaning}: if they are not annotated, set "
                f"data.ignore_label: {value}"
            )
    if len(found.ids) < 2 or int(found.ids[-1]) in known:
        return lines
    highest, others = int(found.ids[-1]), found.ids[:-1]
    dtype_highest = volume.dtype.kind in "ui" and highest in (255, int(np.iinfo(volume.dtype).max))
    greys = (found.ids > 0) & (found.ids < highest)
    few = found.counts[greys].sum() < _MOST_GREY_SHARE * found.counts.sum()
    if highest <= 255 and greys.sum() >= _FEWEST_GREYS and few and others[0] == 0 and dtype_highest:
        lines.append(
            f"labels {volume.name} hold 0, {highest} and {greys.sum()} ids between, each of few voxels: these look "
            f"like the smoothed edges of a drawn mask and {meaning}; save it without smoothing"
        )
    elif dtype_highest and others.any() and highest > 2 * int(others[-1]):
        lines.append(
            f"labels {volume.name} hold the id {highest} beside {', '.join(map(str, others[-3:]))}, and its voxels "
            f"{meaning}: if they are not annotated, set data.ignore_label: {highest}"
        )
    return lines


def _count(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not labels.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if labels.dtype.kind in "bu" and labels.dtype.itemsize <= 2:
        counts = np.zeros(1 << 8 * labels.dtype.itemsize, np.int64)
        _C.count_levels(np.ascontiguousarray(labels).view(f"u{labels.dtype.itemsize}"), counts)
        ids = np.flatnonzero(counts)
        return ids, counts[ids]
    low, high = int(labels.min()), int(labels.max())
    if high - low < _MOST_COUNTED:
        shifted = labels.astype(np.int64, copy=False).ravel() - low
        counts = np.bincount(shifted)
        ids = np.flatnonzero(counts)
        return ids + low, counts[ids]
    return np.unique(labels, return_counts=True)
