# SPDX-License-Identifier: BSD-3-Clause
"""Voxel metrics of a segmentation against labels, counted block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from fastseg import _C
from fastseg.data.annotations import AnnotatedVolume, as_mask
from fastseg.data.volumes import Volume
from fastseg.errors import InputError


@dataclass(frozen=True)
class Confusion:
    """Voxel counts of a binary segmentation. A ratio with nothing to count is 1: nothing was missed or added."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def dice(self) -> float:
        return _ratio(
            2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative
        )

    @property
    def iou(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    def as_dict(self) -> dict[str, float | int]:
        scores = {name: getattr(self, name) for name in ("dice", "iou", "precision", "recall")}
        return {**scores, **asdict(self)}


def count_confusion(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> Confusion:
    """Confusion of two arrays of one shape, nonzero meaning foreground, where ``valid`` is nonzero."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have the target's shape {target.shape}, got {prediction.shape}")
    within = None if valid is None else as_mask(np.broadcast_to(valid, target.shape))
    inside, true, predicted, both = _C.count_confusion(as_mask(prediction), as_mask(target), within)
    return Confusion(both, predicted - both, true - both, inside - true - predicted + both)


def evaluate_volume(prediction: Volume, truth: AnnotatedVolume) -> list[Confusion]:
    """One Confusion per class, over the labelled voxels of ``truth``; prediction has a channel per class."""
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction {prediction.name} must have the shape of {truth.raw.name}, {truth.shape} (z, y, x), "
            f"got {prediction.shape}"
        )
    classes = len(truth.classes or [1])
    if prediction.channels != classes:
        raise InputError(
            f"prediction {prediction.name} must have {classes} channels, got {prediction.channels}"
        )
    counts = [Confusion()] * classes
    for start, stop in prediction.blocks():
        segmented = prediction.read(start, stop)
        target, codes = truth.read_target(start, stop)
        valid = codes[0] == 1
        counts = [
            count + count_confusion(s, t, valid)
            for count, s, t in zip(counts, segmented, target, strict=True)
        ]
    return counts


def total(counts: Iterable[Confusion]) -> Confusion:
    """Counts of several volumes together."""
    return sum(counts, Confusion())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
