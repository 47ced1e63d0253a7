# SPDX-License-Identifier: BSD-3-Clause
"""Where prediction puts its windows, and in which boxes and which order the result is written.

The windows of one grid cover the volume. In y and x the volume is cut into tiles; the windows that touch a tile,
layer by layer along z, are its column. Going down a column each window is predicted once, and its slabs, the
boxes that are written, become final one after the other. Only windows on a border between tiles are predicted
once for each: the price for a memory that does not grow with the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fastseg.data.volumes import Box


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut: window (z, y, x) as the network takes it, overlap as a share of the window, windows
    per batch, voxels held in accumulation at most (a few windows' worth at least).

    skip_below: windows whose raw values all lie at or below it are taken as background, unseen by the network.
    halo (z, y, x): how far from its border a window knows less than the network looks. Such voxels, where the volume
    goes on, count only if no window has them further inside, so that with an ``overlap`` of 2 halo / window the result
    is that of the whole volume.
    """

    window: Box
    overlap: float = 0.5
    batch: int = 2
    block_voxels: int = 1 << 25
    skip_below: float | None = None
    halo: Box = (0, 0, 0)


@dataclass(frozen=True)
class Block:
    """One slab of a column, [start, stop) in the volume."""

    column: int
    start: Box
    stop: Box


@dataclass(frozen=True)
class Column:
    """A tile [low, high) in (y, x) and the starts of the windows that touch it, per axis (z, y, x)."""

    low: tuple[int, int]
    high: tuple[int, int]
    starts: tuple[list[int], list[int], list[int]]

    @property
    def windows_per_layer(self) -> int:
        return len(self.starts[1]) * len(self.starts[2])

    @property
    def windows(self) -> int:
        return len(self.starts[0]) * self.windows_per_layer

    def window(self, index: int) -> Box:
        """The start of a window; they count layer by layer, then row by row."""
        layer, within = divmod(index, self.windows_per_layer)
        row, place = divmod(within, len(self.starts[2]))
        return (self.starts[0][layer], self.starts[1][row], self.starts[2][place])


class Grid:
    """The columns and blocks of a volume of ``shape``; blocks start at multiples of ``chunk``."""

    def __init__(self, shape: Box, tiling: Tiling, chunk: Box) -> None:
        self.shape, self.tiling = shape, tiling
        self.positions = [
            window_starts(n, w, tiling.overlap) for n, w in zip(shape, tiling.window, strict=True)
        ]
        self.slab = round_up(tiling.window[0], chunk[0])
        self.depth = 2 * self.slab  # a window touches two slabs at most
        self.tile = _choose_tile(shape[1:], chunk[1:], max(tiling.block_voxels // self.depth, 1))

    @cached_property
    def columns(self) -> list[Column]:
        window, columns = self.tiling.window, []
        corners = itertools.product(*(range(0, n, t) for n, t in zip(self.shape[1:], self.tile, strict=True)))
        for low in corners:
            high = tuple(min(a + t, n) for a, t, n in zip(low, self.tile, self.shape[1:], strict=True))
            rows, places = (
                [p for p in starts if p < b and p + w > a]
                for starts, w, a, b in zip(self.positions[1:], window[1:], low, high, strict=True)
            )
            columns.append(Column(low, (high[0], high[1]), (self.positions[0], rows, places)))
        return columns

    def blocks(self, part: int = 0, parts: int = 1) -> list[Block]:
        """All blocks in order, or the contiguous share of one of several processes."""
        blocks = list(self._all_blocks())
        return blocks[len(blocks) * part // parts : len(blocks) * (part + 1) // parts]

    def _all_blocks(self) -> Iterator[Block]:
        depth = self.shape[0]
        for number, column in enumerate(self.columns):
            for z in range(0, depth, self.slab):
                yield Block(number, (z, *column.low), (min(z + self.slab, depth), *column.high))


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Starts of the windows along one axis; the last ends flush with the axis."""
    stride = max(1, round(window * (1 - overlap)))
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def _choose_tile(shape: tuple[int, ...], chunk: tuple[int, ...], most: int) -> tuple[int, int]:
    """A chunk-aligned tile (y, x) of at most about ``most`` pixels, near a square: that has the least border."""
    size = [min(n, c) for n, c in zip(shape, chunk, strict=True)]
    growing = True
    while growing:
        growing = False
        for axis in sorted((0, 1), key=lambda a: size[a]):
            larger = min(shape[axis], size[axis] + chunk[axis])
            if larger > size[axis] and larger * size[1 - axis] <= most:
                size[axis], growing = larger, True
                break
    return (size[0], size[1])


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
