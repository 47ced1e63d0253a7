# SPDX-License-Identifier: BSD-3-Clause
"""MRC volumes of electron microscopy as sources, by mrcfile, mapped into memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.sources import Slices, Source, guess_axes, need, reason
from fastseg.errors import InputError

MRC_SUFFIXES = (".mrc", ".rec", ".map")

_ANGSTROM = 1e-4  # in micrometres


class MrcSource(Source):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        with self.handle() as file:
            self.shape, self.dtype = tuple(file.data.shape), file.data.dtype
            size = [float(file.voxel_size[axis]) * _ANGSTROM for axis in "zyx"]
        self.axes = guess_axes(len(self.shape))
        if min(size) > 0:  # 0 where it is not known
            self.voxel_size = (size[0], size[1], size[2])

    def open(self) -> Any:
        mrcfile = need("mrcfile", self.path)
        try:
            return mrcfile.mmap(self.path, "r")
        except Exception as error:  # damaged headers raise whatever mrcfile stumbles over
            raise InputError(
                f"{self.path} cannot be opened as MRC: {reason(error)} (docs/volumes.md lists formats)"
            ) from error

    def read(self, slices: Slices) -> np.ndarray:
        with self.handle() as file:
            return np.array(file.data[slices])
