# SPDX-License-Identifier: BSD-3-Clause
"""Whether the numbers of annotated slices are off by one, as where they were counted from 1: the labels tell, or their
outlines, which lie on the edges of another slice of the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastseg.data.annotations import IGNORED, AnnotatedVolume, Annotation

# Slices that are looked at, and how many must say the same.
_MOST_SLICES, _FEWEST_SLICES, _MOST_SAY_SO = 16, 3, 0.75
# How much steeper the image is along the outlines in the other slice than in its own.
_STEEPER = 1.1


def doubtful_slices(volume: AnnotatedVolume) -> list[str]:
    """A line where the annotated slices of a volume are probably others than those that are named; none where all is
    well, and where nothing is known. Reads three slices for each of 16 annotated ones at most."""
    slices = volume.annotated_slices()
    if slices is None or volume.labels is None:
        return []
    axis, last = volume.annotation.axis, volume.shape[volume.annotation.axis] - 1
    plain = replace(volume, annotation=Annotation(), mask=None, pseudo=None)
    chosen = slices[(slices > 0) & (slices < last)]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _MOST_SLICES)).astype(int)]
    filled, steep = [], []
    for number in chosen.tolist():
        low, high = [0, 0, 0], list(volume.shape)
        low[axis], high[axis] = number - 1, number + 2
        target, codes = plain.read_target(low, high)
        shown = np.moveaxis((target != 0).any(0) & (codes[0] != IGNORED), axis, 0)
        filled.append(shown.any((1, 2)))
        outline = _outline(shown[1])
        if outline.any():
            raw = np.moveaxis(volume.raw.read(low, high).astype(np.float32).mean(0), axis, 0)
            steep.append([_steepness(image)[outline].mean() for image in raw])
    name, word = volume.raw.name, "zyx"[axis]
    if filled and not np.array(filled)[:, 1].any():
        for side, step in ((0, -1), (2, 1)):
            share = np.array(filled)[:, side].mean()
            if share >= _MOST_SAY_SO:
                return [
                    f"{name}: the annotated slices hold no label, and those at {word} {step:+d} do: slices are counted "
                    f"from 0, and annotated: seems to be {-step:+d} off"
                ]
    if len(steep) < _FEWEST_SLICES:
        return []
    scores = np.array(steep)
    for side, step in ((0, -1), (2, 1)):
        wins = scores[:, side] > np.maximum(scores[:, 1], scores[:, 2 - side])
        if wins.mean() >= _MOST_SAY_SO and scores[:, side].mean() > _STEEPER * scores[:, 1].mean():
            return [
                f"{name}: the outlines of the labels lie on the edges of the image at {word} {step:+d} rather than of "
                f"their own slices, in {wins.sum()} of {len(wins)} slices: labels and image seem to be one slice apart"
            ]
    return []


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels beside whose next one along an axis is another class."""
    edge = np.zeros(mask.shape, bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return edge


def _steepness(image: np.ndarray) -> np.ndarray:
    """How much each pixel differs from the next one along both axes."""
    steep = np.zeros(image.shape, np.float32)
    steep[:-1] += np.abs(np.diff(image, axis=0))
    steep[:, :-1] += np.abs(np.diff(image, axis=1))
    return steep
