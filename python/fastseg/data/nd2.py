# SPDX-License-Identifier: BSD-3-Clause
"""Nikon's ND2 as a source, by nd2: the first time point of a position, frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.planes import PlanesSource, chosen
from fastseg.data.sources import need
from fastseg.errors import InputError

ND2_SUFFIXES = (".nd2",)


class Nd2Source(PlanesSource):
    """position: its number, of several; a file of one needs none."""

    kind = "ND2"

    def __init__(self, path: str, position: str | None = None) -> None:
        self._wanted = position
        super().__init__(path)

    def open(self) -> Any:
        return need("nd2", self.path).ND2File(self.path)

    def describe(self, file: Any) -> None:
        sizes = dict(file.sizes)
        positions = sizes.pop("P", 1)
        self._loops = [axis for axis in file.sizes if axis not in "CYXS"]
        self._counts = [file.sizes[axis] for axis in self._loops]
        if sizes.get("T", 1) > 1:
            raise InputError(
                f"{self.path} has {sizes['T']} time points: save the one to use as a file of its own"
            )
        odd = {*sizes} - {*"TZCYXS"}
        if odd or {"C", "S"} <= {*sizes}:
            raise InputError(f"{self.path} has axes {dict(file.sizes)}, of which z, y, x and c can be used")
        self._fixed = {"P": chosen(self.path, self._wanted, [str(n) for n in range(positions)]), "T": 0}
        # A frame holds all channels, and is what is read at a time: its colours or channels come last.
        channels = sizes.get("S", sizes.get("C", 1))
        self._has_channels = channels > 1
        self._last = "S" in sizes
        self.dtype = np.dtype(file.dtype)
        self.axes = "zyxc" if self._has_channels else "zyx"
        self.shape = (sizes.get("Z", 1), sizes["Y"], sizes["X"], *([channels] if self._has_channels else []))
        size = file.voxel_size()
        if min(size.y, size.x) > 0 and (size.z > 0 or self.shape[0] == 1):
            self.voxel_size = (size.z or size.y, size.y, size.x)
        names = tuple(each.channel.name or "" for each in getattr(file.metadata, "channels", None) or ())
        self.channel_names = names if len(names) == channels and all(names) and not self._last else ()

    def plane(self, file: Any, index: dict[str, int]) -> np.ndarray:
        place = {**self._fixed, "Z": index["z"]}
        frame = 0
        for axis, count in zip(self._loops, self._counts, strict=True):
            frame = frame * count + place[axis]
        found = file.read_frame(frame)
        return np.moveaxis(found, 0, -1) if self._has_channels and not self._last else found
