# SPDX-License-Identifier: BSD-3-Clause
"""Imaris files as sources: HDF5 with a dataset per channel, padded to whole chunks, of the first time point."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.hdf5 import Hdf5Source
from fastseg.data.sources import Slices, Source
from fastseg.errors import InputError

IMARIS_SUFFIXES = (".ims",)


class ImarisSource(Source):
    """level: 0 is the finest. InputError where there are several time points."""

    axes = "czyx"

    def __init__(self, path: str, level: int = 0) -> None:
        super().__init__()
        self.name = self.path = path
        group = f"DataSet/ResolutionLevel {level}/TimePoint 0"
        first = Hdf5Source(path, f"{group}/Channel 0/Data")
        with first.handle() as file:
            times, channels = len(file[f"DataSet/ResolutionLevel {level}"]), len(file[group])
            sizes = [_number(file[f"{group}/Channel 0"].attrs, f"ImageSize{axis}") for axis in "ZYX"]
            groups = [file.get(f"DataSetInfo/Channel {number}") for number in range(channels)]
            names = tuple(_text(group.attrs.get("Name", "")) if group is not None else "" for group in groups)
            info = dict(file["DataSetInfo/Image"].attrs) if "DataSetInfo/Image" in file else {}
        if times > 1:
            raise InputError(f"{path} has {times} time points: name a dataset of one, as in {first.name}")
        more = [Hdf5Source(path, f"{group}/Channel {number}/Data") for number in range(1, channels)]
        self.channel_names = names if all(names) else ()
        self.sources, self.dtype = [first, *more], first.dtype
        shape = [int(size) if size else stored for size, stored in zip(sizes, first.shape, strict=True)]
        self.shape = (channels, *shape)
        self.chunks = (1, *first.chunks) if first.chunks else None
        ends = [(_number(info, f"ExtMin{k}"), _number(info, f"ExtMax{k}")) for k in (2, 1, 0)]
        extent = [high - low for low, high in ends if low is not None and high is not None]
        if len(extent) == 3 and min(extent) > 0 and _text(info.get("Unit", "")) in ("um", "µm"):
            z, y, x = (length / n for length, n in zip(extent, shape, strict=True))
            self.voxel_size = (z, y, x)

    def open(self) -> bool:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        return np.stack([source.read(slices[1:]) for source in self.sources[slices[0]]])


def _text(value: Any) -> str:
    """Imaris stores texts as arrays of single bytes."""
    return b"".join(np.ravel(value)).decode() if isinstance(value, np.ndarray) else str(value)


def _number(attributes: Any, name: str) -> float | None:
    try:
        return float(_text(attributes[name]))
    except (KeyError, ValueError):
        return None
