# SPDX-License-Identifier: BSD-3-Clause
"""The running weighted mean of overlapping windows, over the blocks that windows may still touch.

A window's weight is a product of one Gaussian per axis, and windows come layer by layer, row by row. So what it
counts for at a voxel, w / (sum of w over it and the windows before it), follows from three rows of the grid:

    sum of w / w = 1 + before_x + total_x * (before_y + total_y * before_z)

with the weights along an axis of the windows before (before) and of all windows (total), in units of the window's
own. Nothing is kept beside the mean. Bytes per voxel of a window and class: 12, the mean read and written and the
prediction read; on a CPU the weights of a row stay in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastseg import _C
from fastseg.data.volumes import Box
from fastseg.predict.grid import Block, Grid

# The weight of a voxel in the halo beside that of others: below what float32 keeps of a sum. Its inverse and that of
# the Gaussian's foot, 3000, go in the third power, for three axes, into a float32.
_IN_HALO = 1e-8


class Blend:
    """The blocks of a run, down a column of the grid: ``begin``, ``add`` batch by batch, ``finished``."""

    def __init__(self, grid: Grid, classes: int, device: torch.device) -> None:
        self.window, self.classes, self.device = grid.tiling.window, classes, device
        self._numbers = [{start: n for n, start in enumerate(starts)} for starts in grid.positions]
        self._shares = [
            [torch.from_numpy(part).to(device) for part in blend_shares(*axis)]
            for axis in zip(grid.positions, self.window, grid.tiling.halo, strict=True)
        ]
        row = torch.zeros(self.window[2], device=device)
        self._background = row.expand(classes, *self.window)

    def begin(self, run: Sequence[Block]) -> None:
        self._waiting = deque(run)
        self._means: dict[Block, Tensor] = {}

    def add(
        self, group: list[tuple[Box, Tensor | None]], network: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Box, Box, Tensor]]:
        """Blend a batch of (start, raw) windows; those without raw data are background, 0 in every channel.

        Yields the blocks that turn out to be finished: windows come layer by layer, so that one at z is the sign
        that all above z is final.
        """
        seen = [raw for _, raw in group if raw is not None]
        outputs = network(torch.stack(seen)).float().detach().contiguous() if seen else ()
        if seen and outputs.shape != (len(seen), self.classes, *self.window):
            raise ValueError(
                f"network must return {(len(seen), self.classes, *self.window)} (B, classes, *window), "
                f"got {tuple(outputs.shape)}"
            )
        predicted = iter(outputs)
        for start, raw in group:
            yield from self.finished(start[0])
            self._merge(start, self._background if raw is None else next(predicted))

    def finished(self, layer: int | None = None) -> Iterator[tuple[Box, Box, Tensor]]:
        """The blocks that no window from the layer at z = ``layer`` on touches; None: no window is left."""
        while self._waiting and (layer is None or self._waiting[0].stop[0] <= layer):
            block = self._waiting.popleft()
            yield block.start, block.stop, self._means.pop(block)

    def _merge(self, start: Box, values: Tensor) -> None:
        for block in self._waiting:
            inside, within = [], []
            for p, w, low, high in zip(start, self.window, block.start, block.stop, strict=True):
                first, last = max(p, low), min(p + w, high)
                inside.append(slice(first - low, last - low))
                within.append(slice(first - p, last - p))
            if within[0].stop <= within[0].start:
                continue
            if block not in self._means:
                size = (b - a for a, b in zip(block.start, block.stop, strict=True))
                self._means[block] = torch.zeros((self.classes, *size), device=self.device)
            mean = self._means[block][(slice(None), *inside)]
            self._merge_part(mean, values[(slice(None), *within)], start, within)

    def _merge_part(self, mean: Tensor, values: Tensor, start: Box, within: list[slice]) -> None:
        """mean += w / (sum of w) * (value - mean), for the part ``within`` of the window at ``start``.

        Where a window is the first, its weight is exactly 1 and the mean exactly the value; between equal values
        the mean is that value exactly.
        """
        (before_z, _), (before_y, total_y), (before_x, total_x) = (
            [share[numbers[p], part] for share in shares]
            for shares, numbers, p, part in zip(self._shares, self._numbers, start, within, strict=True)
        )
        if self.device.type == "cpu":
            shares = (before_z, before_y, total_y, before_x, total_x)
            _C.blend_tile(mean.numpy(), values.numpy(), *(share.numpy() for share in shares))
        else:
            others = before_y + total_y * before_z[:, None]
            weight = torch.addcmul(1 + before_x, others[..., None], total_x).reciprocal_()
            mean.lerp_(values, weight)


def blend_shares(starts: Sequence[int], window: int, halo: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, at each place of each window, (windows, window) float32: the weights of the windows before it
    and of all windows, in units of its own.

    The weight is a Gaussian about the window's centre with a standard deviation of an eighth of the window: the width
    nnU-Net and MONAI blend with. It never reaches 0. In the halo, where other windows go on, it is so small that any
    other window's voxel outweighs it.
    """
    weight = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / (window / 8)) ** 2)
    weights = np.tile(weight, (len(starts), 1))
    if halo:
        weights[1:, :halo] *= _IN_HALO
        weights[:-1, -halo:] *= _IN_HALO
    line = np.zeros(starts[-1] + window)
    before = np.empty((len(starts), window))
    for row, own, start in zip(before, weights, starts, strict=True):
        row[:] = line[start : start + window]
        line[start : start + window] += own
    total = np.stack([line[start : start + window] for start in starts])
    return (before / weights).astype(np.float32), (total / weights).astype(np.float32)
