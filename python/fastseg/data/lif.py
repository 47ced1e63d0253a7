# SPDX-License-Identifier: BSD-3-Clause
"""Leica's LIF as a source, by liffile: one of the images of a file, mapped into memory where it can be."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.planes import PlanesSource, chosen
from fastseg.data.sources import MICROMETRES, need
from fastseg.errors import InputError

LIF_SUFFIXES = (".lif",)

_AXES = {"X": "x", "Y": "y", "Z": "z", "T": "t", "C": "c", "S": "c"}
_NUMBERS = {"1": "x", "2": "y", "3": "z"}  # of the axes in the file's XML


class LifSource(PlanesSource):
    """image: its name or number, of several; a file of one needs none."""

    kind = "LIF"

    def __init__(self, path: str, image: str | None = None) -> None:
        self._wanted = image
        super().__init__(path)

    def open(self) -> Any:
        return need("liffile", self.path).LifFile(self.path)

    def describe(self, file: Any) -> None:
        names = [image.path for image in file.images]
        self._number = chosen(self.path, self._wanted, names)
        image = file.images[self._number]
        if len(names) > 1:
            self.name = f"{self.path}:/{image.path}"
        self.shape, self.dtype = tuple(image.shape), np.dtype(image.dtype)
        self._is_colour = "S" in image.dims
        self.axes = "".join(_AXES.get(name, "?") for name in image.dims)
        if "?" in self.axes or len({*self.axes}) < len(self.axes) or "y" not in self.axes:
            raise InputError(
                f"{self.name} has axes {dict(image.sizes)}, of which z, y, x and c can be used: save that part as "
                "TIFF"
            )
        sizes = {}
        for axis in image.xml_element.iter("DimensionDescription"):
            count, length = int(axis.get("NumberOfElements", 1)), float(axis.get("Length", 0))
            unit = MICROMETRES.get(axis.get("Unit", ""))
            if count > 1 and length and unit:  # from the middle of the first voxel to that of the last
                sizes[_NUMBERS.get(axis.get("DimID", ""), "")] = abs(length) / (count - 1) * unit
        if {"y", "x"} <= {*sizes} and ("z" in sizes or "z" not in self.axes):
            self.voxel_size = (sizes.get("z", max(sizes["y"], sizes["x"])), sizes["y"], sizes["x"])

    def plane(self, file: Any, index: dict[str, int]) -> np.ndarray:
        # Colours are stored in another order, which liffile changes in memory alone.
        out = None if self._is_colour else "memmap"
        return file.images[self._number].asarray(out=out)[tuple(index.values())]
