# SPDX-License-Identifier: BSD-3-Clause
"""ZEISS's CZI as a source, by its maker's pylibCZIrw: the first time point of a scene, mosaics put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.planes import PlanesSource, chosen
from fastseg.data.sources import need
from fastseg.errors import InputError

CZI_SUFFIXES = (".czi",)

_DTYPES = {
    "Gray8": "u1",
    "Gray16": "u2",
    "Gray32Float": "f4",
    "Bgr24": "u1",
    "Bgr48": "u2",
    "Bgr96Float": "f4",
}


class CziSource(PlanesSource):
    """scene: its number, of several; a file of one needs none."""

    kind = "CZI"

    def __init__(self, path: str, scene: str | None = None) -> None:
        self._wanted = scene
        super().__init__(path)

    def open(self) -> Any:
        czi = need("pylibCZIrw.czi", self.path)
        return czi.CziReader(self.path)

    def describe(self, file: Any) -> None:
        box, scenes = file.total_bounding_box, file.scenes_bounding_rectangle
        self._scene = None
        area = file.total_bounding_rectangle
        if scenes:
            numbers = sorted(scenes)
            self._scene = numbers[chosen(self.path, self._wanted, [str(n) for n in numbers])]
            area = scenes[self._scene]
        self._area = (area.x, area.y, area.w, area.h)
        self._first = {axis: box[axis.upper()][0] for axis in "tzc" if axis.upper() in box}
        sizes = {axis: box[axis.upper()][1] - first for axis, first in self._first.items()}
        if sizes.get("t", 1) > 1:
            raise InputError(
                f"{self.path} has {sizes['t']} time points: save the one to use as a file of its own"
            )
        kinds = {*file.pixel_types.values()}
        if len(kinds) != 1 or not kinds <= {*_DTYPES}:
            raise InputError(
                f"{self.path} must hold grey or colour channels of one kind, got {sorted(map(str, kinds))}"
            )
        (pixel,) = kinds
        self._is_colour = pixel.startswith("Bgr")
        if self._is_colour and sizes.get("c", 1) > 1:
            raise InputError(
                f"{self.path} holds {sizes['c']} colour images: save one of them as a file of its own"
            )
        self.dtype = np.dtype(_DTYPES[pixel])
        plane = (area.h, area.w)
        depth, channels = sizes.get("z", 1), sizes.get("c", 1)
        self.axes = "zyxc" if self._is_colour else "czyx"
        self.shape = (depth, *plane, 3) if self._is_colour else (channels, depth, *plane)
        metadata = _under(file.metadata, "ImageDocument", "Metadata")
        lengths = {
            d.get("@Id"): float(d.get("Value") or 0) for d in _each(metadata, "Scaling", "Items", "Distance")
        }
        z, y, x = (lengths.get(axis, 0.0) * 1e6 for axis in "ZYX")
        if min(y, x) > 0 and (z > 0 or depth == 1):
            self.voxel_size = (z or max(y, x), y, x)
        each = _each(metadata, "Information", "Image", "Dimensions", "Channels", "Channel")
        names = tuple(channel.get("@Name") or "" for channel in each)
        self.channel_names = names if len(names) == channels and all(names) and not self._is_colour else ()

    def plane(self, file: Any, index: dict[str, int]) -> np.ndarray:
        place = {axis.upper(): first + index.get(axis, 0) for axis, first in self._first.items()}
        found = file.read(roi=self._area, plane=place, scene=self._scene)
        return found[:, :, ::-1] if self._is_colour else found[:, :, 0]


def _under(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _each(value: Any, *keys: str) -> list[dict[str, Any]]:
    """XML as dictionaries: one child is itself, several are a list."""
    found = _under(value, *keys)
    return [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, dict)]
