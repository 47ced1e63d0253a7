# SPDX-License-Identifier: BSD-3-Clause
"""Intensity scaling of raw data: the numbers are found once per volume, the arithmetic runs on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastseg.data.volumes import Volume, require_finite

Mode = Literal["zscore", "range", "percentile", "none"]

# 64 blocks of 2**19 voxels fix the mean and deviation of a volume to far below its noise.
_BLOCKS = 64
_BLOCK_SHAPE = (32, 128, 128)

# What "percentile" takes for black and white, and from how many values of each channel.
_PERCENTILES = (1.0, 99.0)
_MOST_VALUES = 1 << 20


@dataclass(frozen=True)
class Intensity:
    """``(raw - shift) * scale``, one pair per channel."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


def measure_intensity(volume: Volume, mode: Mode) -> Intensity:
    """zscore: to mean 0, deviation 1; range: integers to [0, 1] by their dtype; percentile: each channel's 1st and 99th
    percentile to 0 and 1, values beyond staying beyond; none: as it is.

    zscore and percentile read the whole volume up to 32 M voxels, beyond that 64 blocks spread evenly over it.
    """
    channels = volume.channels
    if mode == "range" and volume.dtype.kind in "ui":
        limits = np.iinfo(volume.dtype)
        return Intensity((float(limits.min),) * channels, (1.0 / (limits.max - limits.min),) * channels)
    if mode == "percentile":
        return _between_percentiles(volume)
    if mode != "zscore":
        return Intensity((0.0,) * channels, (1.0,) * channels)

    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    for start, stop in _sample_boxes(volume):
        box = _read_finite(volume, start, stop)
        # Pairwise merge (Chan et al. 1979): float data with a large offset keep their deviation.
        here, here_mean = box.shape[1], box.mean(axis=1, dtype=np.float64)
        here_squares = box.var(axis=1, dtype=np.float64) * here
        delta = here_mean - mean
        total = count + here
        squares += here_squares + delta**2 * (count * here / total)
        mean += delta * (here / total)
        count = total
    deviation = np.sqrt(squares / count)
    scale = 1.0 / np.where(deviation > 0, deviation, 1.0)
    return Intensity(tuple(float(m) for m in mean), tuple(float(s) for s in scale))


def _between_percentiles(volume: Volume) -> Intensity:
    boxes = _sample_boxes(volume)
    per_box = -(-_MOST_VALUES // len(boxes))
    values = []
    for start, stop in boxes:
        box = _read_finite(volume, start, stop)
        values.append(box[:, :: -(-box.shape[1] // per_box)])
    low, high = np.percentile(np.concatenate(values, axis=1).astype(np.float64), _PERCENTILES, axis=1)
    scale = 1.0 / np.where(high > low, high - low, 1.0)
    return Intensity(tuple(map(float, low)), tuple(map(float, scale)))


def _read_finite(volume: Volume, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    """(channels, voxels) of a box."""
    box = volume.read(start, stop)
    require_finite(box, volume, start)
    return box.reshape(len(box), -1)


def scale_intensity(raw: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, C, z, y, x) of any dtype to float32, with one shift and scale (B or 1, C) per sample and channel."""
    per_channel = (*shift.shape, 1, 1, 1)
    # In place after one copy: on a CPU, fresh memory for each step costs more than the arithmetic.
    return raw.to(torch.float32, copy=True).sub_(shift.view(per_channel)).mul_(scale.view(per_channel))


def _sample_boxes(volume: Volume) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    if math.prod(volume.shape) <= _BLOCKS * math.prod(_BLOCK_SHAPE):
        return [(start, stop) for start, stop in volume.blocks()]
    size = np.minimum(_BLOCK_SHAPE, volume.shape)
    # An additive recurrence on the powers of the plastic number covers a box evenly with any number of points.
    steps = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    points = (0.5 + np.arange(1, _BLOCKS + 1)[:, None] * steps) % 1.0
    starts = (points * (np.asarray(volume.shape) - size + 1)).astype(np.int64)
    return [(tuple(map(int, s)), tuple(map(int, s + size))) for s in starts]
