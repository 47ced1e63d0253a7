# SPDX-License-Identifier: BSD-3-Clause
"""What the chosen weights make of a few boxes of the run's volumes: small ones, so that a page about a terabyte takes
no longer and no more memory than one about an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastseg.data.annotations import LABELLED, AnnotatedVolume
from fastseg.data.volumes import Box
from fastseg.methods.config_file import load_config
from fastseg.methods.inference import predictor, tiling_of, trained_network
from fastseg.methods.registry import method_of
from fastseg.metrics import count_confusion
from fastseg.morphology import apply_steps
from fastseg.predict import Network, predict_blocks, segmented
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.device import choose_device
from fastseg.train.inputs import open_annotated

# Pictures of each part of the data, and pixels of a picture, of all its channels together.
_PICTURES, _MOST_PIXELS = 2, 320 * 320
# Looked at for a picture: slices, and places along each axis of a slice.
_SLICES, _PLACES = 4, 2

PARTS = {"train": "training", "validation": "validation", "target": "target"}


@dataclass(frozen=True)
class Sample:
    """A slice: image (C, h, w) as stored; predicted (classes, h, w) bool; truth, likewise, and known (h, w) bool, where
    that is known, or None without labels. pixel: (height, width) of one. names: of the classes."""

    title: str
    image: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray | None
    known: np.ndarray | None
    pixel: tuple[float, float]
    names: tuple[str, ...] = ("",)

    @property
    def dice(self) -> list[float]:
        """Of each class, over what is known in the picture; none where nothing is."""
        if self.truth is None or self.known is None or not self.known.any():
            return []
        both = zip(self.predicted, self.truth, strict=True)
        return [count_confusion(predicted, truth, self.known).dice for predicted, truth in both]


@dataclass(frozen=True)
class Place:
    """A box one slice thick across ``axis``, and how much it has to show."""

    low: Box
    high: Box
    axis: int
    interest: float


def draw_samples(run: RunFolder, notes: list[str]) -> dict[str, list[Sample]]:
    """Up to two samples of data.train, data.validation and data.target each, by part. What cannot be read or predicted
    is left out, with a line in ``notes``."""
    config = load_config(run.file("config.yaml"))
    if not method_of(config).segments(config):
        return {}
    state = run.load_for_prediction(config.predict.checkpoint)
    # A report may be made elsewhere than the training was.
    name = "auto" if config.train.device.startswith("cuda") else config.train.device
    device = choose_device(name)
    network = trained_network(config, state, [], device)
    found: dict[str, list[Sample]] = {}
    for part, title in PARTS.items():
        entries = getattr(config.data, part)[:_PICTURES]
        for number, entry in enumerate(entries):
            try:
                volume = open_annotated(entry, config.data)
                # Its grey levels are scaled as those of the whole volume.
                predict = predictor(network, volume.raw, config, device)
                for place in places(volume, config)[: -(-_PICTURES // len(entries))]:
                    sample = _predict(volume, place, predict, config, device)
                    found.setdefault(title, []).append(sample)
            except Exception as error:  # a page without this picture is better than none
                notes.append(f"no picture of data.{part}.{number} ({entry.raw}): {_reason(error)}")
    return found


def places(volume: AnnotatedVolume, config: Config) -> list[Place]:
    """Boxes within labelled slices, or any where nothing is labelled, the one with most to show first: foreground and
    background in equal parts, or the strongest contrasts."""
    stated = volume.annotated_slices()
    axis = volume.annotation.axis if stated is not None else config.slice_axis
    slices = np.arange(volume.shape[axis]) if stated is None else stated
    evenly = sorted({int(slices[(2 * i + 1) * len(slices) // (2 * _SLICES)]) for i in range(_SLICES)})
    side = max(math.isqrt(_MOST_PIXELS // min(volume.raw.channels, 3)), 1)
    along = [
        _spread(size, min(size, side)) if other != axis else [(s, s + 1) for s in evenly]
        for other, size in enumerate(volume.shape)
    ]
    found = []
    for ranges in itertools.product(*along):
        (z0, z1), (y0, y1), (x0, x1) = ranges
        low, high = (z0, y0, x0), (z1, y1, x1)
        found.append(Place(low, high, axis, _interest(volume, low, high)))
    # Of one slice a single box, so that two pictures show two slices where there are two.
    best = {p.low[axis]: p for p in sorted(found, key=lambda p: p.interest)}
    return sorted(best.values(), key=lambda p: (-p.interest, p.low))


def _spread(size: int, length: int) -> list[tuple[int, int]]:
    starts = sorted({(size - length) * (2 * i + 1) // (2 * _PLACES) for i in range(_PLACES)})
    return [(start, start + length) for start in starts]


def _interest(volume: AnnotatedVolume, low: Box, high: Box) -> float:
    if volume.labels is not None:
        target, codes = volume.read_target(low, high)
        known = codes[0] == LABELLED
        foreground = np.count_nonzero(known & (target != 0).any(0))
        return float(foreground) * float(np.count_nonzero(known) - foreground)
    return float(volume.read_raw(low, high).std())


def _predict(
    volume: AnnotatedVolume, place: Place, predict: Network, config: Config, device: torch.device
) -> Sample:
    """The sample of a place, from the windows that cover it alone."""
    low, high = zip(*_around(place, config.window, volume.shape), strict=True)
    part = volume.raw.crop(low, high)
    tiling = tiling_of(config, predict, part, device)
    classes = len(config.data.classes or [1])
    masks = np.empty((classes, *part.shape), bool)
    for start, stop, values in predict_blocks(part, predict, tiling, classes=classes, device=device):
        found = segmented(values, config.predict.threshold, config.exclusive)
        masks[(slice(None), *map(slice, start, stop))] = found.cpu().numpy()
    steps = config.predict.morphology_steps(len(config.data.patch), config.slice_axis)
    if steps:
        masks = np.stack([apply_steps(mask, steps) for mask in masks])
    inside = tuple(slice(a - p, b - p) for a, b, p in zip(place.low, place.high, low, strict=True))
    truth = known = None
    if volume.labels is not None:
        target, codes = volume.read_target(place.low, place.high)
        truth = (target != 0).take(0, place.axis + 1)
        known = (codes[0] == LABELLED).take(0, place.axis)
    raw = volume.raw
    voxel = raw.voxel_size or (1.0, 1.0, 1.0)
    plane = [a for a in range(3) if a != place.axis]
    where = ", ".join(
        f"{'zyx'[a]} {place.low[a] + raw.origin[a]}"
        + ("" if a == place.axis else f" to {place.high[a] + raw.origin[a] - 1}")
        for a in range(3)
    )
    return Sample(
        f"{raw.label}, {where}",
        raw.read(place.low, place.high).take(0, place.axis + 1),
        masks[(slice(None), *inside)].take(0, place.axis + 1) != 0,
        truth,
        known,
        (voxel[plane[0]], voxel[plane[1]]),
        tuple(config.data.class_names) or ("",),
    )


def _around(place: Place, window: Box, shape: Box) -> Iterator[tuple[int, int]]:
    """Per axis the place, grown to the window about its middle where the volume is that large."""
    for low, high, size, whole in zip(place.low, place.high, window, shape, strict=True):
        length = min(max(high - low, size), whole)
        start = min(max((low + high - length) // 2, 0), whole - length)
        yield start, start + length


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
