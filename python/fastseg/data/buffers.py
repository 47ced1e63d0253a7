# SPDX-License-Identifier: BSD-3-Clause
"""Batches of patches, and the ring of buffers that they are read into."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """raw (B, C, z, y, x) in the file's dtype, target (B, K, ...), uint8 or of soft pseudo-labels their floating
    dtype, codes (B, 1, ...) uint8; shift and scale
    (B, C) and voxel_size (B, 3), float64, of each sample's volume. z, y, x: the patch and its margin.

    step and places say which patches these are. The memory of a batch goes back to its loader when nothing
    refers to its tensors any more: one may be kept as long as one likes.
    """

    raw: Tensor
    target: Tensor
    codes: Tensor
    shift: Tensor
    scale: Tensor
    voxel_size: np.ndarray
    step: int
    places: range
    buffer: Buffer | None = field(default=None, repr=False)

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``; copies from pinned memory overlap with what the device does."""
        names = ("raw", "target", "codes", "shift", "scale")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        if device.type == "cuda" and self.buffer is not None:
            self.buffer.copied = torch.cuda.Event()
            self.buffer.copied.record()
        return Batch(**moved, voxel_size=self.voxel_size, step=self.step, places=self.places)


class Buffer:
    """Arrays of one batch, filled by readers and lent to whoever uses the batch."""

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], np.dtype]], pinned: bool) -> None:
        self.arrays = {name: _array(shape, dtype, pinned) for name, (shape, dtype) in shapes.items()}
        self.copied: Any = None  # an event on the device, recorded after the last copy out of this buffer

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def lend(self, ring: BufferRing) -> dict[str, Tensor]:
        """The arrays as tensors; when the last of them and of their views is gone, the buffer is back in ``ring``."""
        returned = itertools.count(1)

        def give_back() -> None:
            if next(returned) == len(self.arrays):
                ring.put(self)

        lent = {name: array[...] for name, array in self.arrays.items()}
        for view in lent.values():  # which a tensor's storage holds as long as anything refers to it
            weakref.finalize(view, give_back).atexit = False
        return {name: torch.from_numpy(view) for name, view in lent.items()}


class BufferRing:
    """Buffers of one size, used over and over. One more is made only when the user keeps that many batches."""

    def __init__(
        self, shapes: dict[str, tuple[tuple[int, ...], np.dtype]], count: int, pinned: bool = False
    ) -> None:
        self.shapes, self.count, self.pinned = shapes, count, pinned
        # Appending to and popping from a deque is atomic: a buffer may come back in the middle of anything.
        self.free: deque[Buffer] = deque(Buffer(shapes, pinned) for _ in range(count))
        self.bytes = sum(buffer.bytes for buffer in self.free)

    def take(self) -> Buffer:
        try:
            buffer = self.free.popleft()
        except IndexError:
            return Buffer(self.shapes, self.pinned)
        if buffer.copied is not None:
            buffer.copied.synchronize()
            buffer.copied = None
        return buffer

    def put(self, buffer: Buffer) -> None:
        if len(self.free) < self.count:
            self.free.append(buffer)


def _array(shape: tuple[int, ...], dtype: np.dtype, pinned: bool) -> np.ndarray:
    if not pinned:
        return np.zeros(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
