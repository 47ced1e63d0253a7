# SPDX-License-Identifier: BSD-3-Clause
"""How uncertain a network is in each slice of a volume: mean entropies of windows, from one prediction of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastseg.data.volumes import Box, Volume
from fastseg.errors import InputError
from fastseg.ops.patch_entropy import patch_entropy
from fastseg.predict import CHUNK, Grid, Network, Tiling, predict_blocks

# A slice counts by this share of its windows, the least certain ones.
_SHARE = 10


@dataclass(frozen=True)
class SliceUncertainty:
    """windows: (slices, rows, columns) mean entropies in bits of the windows in the plane of the slices, float32.
    window: their height and width in voxels."""

    windows: np.ndarray
    window: tuple[int, int]

    def scores(self) -> np.ndarray:
        """(slices,) mean entropy in bits of each slice's least certain tenth of windows, of one at least.

        Ours: a slice with one large doubtful object comes before one with a thin rim of doubt around everything.
        """
        flat = self.windows.reshape(len(self.windows), -1)
        count = max(flat.shape[1] // _SHARE, 1)
        return np.array([np.partition(row, -count)[-count:].mean(dtype=np.float64) for row in flat])

    def least_certain(self, index: int, count: int = 3) -> tuple[tuple[int, int], ...]:
        """The corners (row, column), in voxels, of the windows of a slice that are least certain, the first most so."""
        entropy = self.windows[index]
        order = np.argsort(-entropy, axis=None, kind="stable")[:count]
        return tuple(
            (int(r) * self.window[0], int(c) * self.window[1])
            for r, c in np.transpose(np.unravel_index(order, entropy.shape))
        )


def measure_uncertainty(
    volume: Volume,
    predict: Network,
    tiling: Tiling,
    axis: int,
    window: int = 32,
    *,
    classes: int = 1,
    exclusive: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> SliceUncertainty:
    """Predict a volume block by block and take the mean entropy of windows in its slices across ``axis``.

    Windows of ``window`` x ``window`` voxels (cut to the slice where it is smaller) lie side by side from the slice's
    first corner. Along each axis of the plane, a last window that reaches beyond the end counts with what lies inside
    if that is half of its side at least, and otherwise not at all.
    It is the binary entropy, with several classes the mean over them; of ``exclusive`` ones and the background that is
    left the categorical, up to log2(classes + 1). Memory: that of ``predict_blocks``, a padded copy of a block, and
    4 bytes a window. InputError if the network gives NaN.
    progress: called with the volume's name and the share that is done.
    """
    depth = volume.shape[axis]
    plane = [size for place, size in enumerate(volume.shape) if place != axis]
    side = tuple(min(window, size) for size in plane)
    counts = [-(-size // step) for size, step in zip(plane, side, strict=True)]
    total = np.zeros((depth, *counts), np.float32)
    blocks = len(Grid(volume.shape, tiling, CHUNK).blocks())
    predicted = predict_blocks(volume, predict, tiling, classes=classes, device=device)
    for number, (start, stop, probability) in enumerate(predicted, 1):
        if exclusive:
            background = (1 - probability.sum(0, keepdim=True)).clamp(min=0)
            probability = torch.cat([probability, background])
        mode = "categorical" if exclusive else "binary"
        place, sums = _window_sums(probability, start, stop, axis, (side[0], side[1]), mode)
        total[place] += sums
        if progress:
            progress(volume.name, number / blocks)
    if not np.isfinite(total.sum(dtype=np.float64)):
        raise InputError(f"{volume.name}: the network gives NaN, its training went wrong")
    inside = []
    for size, step, count in zip(plane, side, counts, strict=True):
        valid = np.minimum(size - step * np.arange(count), step)
        inside.append(valid[2 * valid >= step])
    rows, columns = inside
    means = total[:, : len(rows), : len(columns)] / (rows[:, None] * columns).astype(np.float32)
    return SliceUncertainty(means, (side[0], side[1]))


def _window_sums(
    probability: Tensor, start: Box, stop: Box, axis: int, side: tuple[int, int], mode: str
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The windows (slices, rows, columns) that a block touches, and the sums of entropy of what it holds of each."""
    rows, columns = ((a, b) for place, (a, b) in enumerate(zip(start, stop, strict=True)) if place != axis)
    # The block grows to whole windows by probabilities of 0, whose entropy is exactly 0.
    margins = [(a % s, -b % s) for (a, b), s in zip((rows, columns), side, strict=True)]
    slices_first = probability.movedim(axis + 1, 1)
    grown = pad(slices_first, (*margins[1], *margins[0]))
    entropy = patch_entropy(grown[None], (1, *side), (1, *side), mode=mode).entropy[0]
    sums = entropy.mean(dim=0) * (side[0] * side[1])
    touched = [slice(a // s, -(-b // s)) for (a, b), s in zip((rows, columns), side, strict=True)]
    return (slice(start[axis], stop[axis]), *touched), sums.cpu().numpy()
