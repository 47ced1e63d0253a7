# SPDX-License-Identifier: BSD-3-Clause
"""NIfTI volumes as sources, by nibabel. Slices of ``.nii`` are read from the file; ``.nii.gz`` is unpacked whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseg.data.sources import MICROMETRES, Slices, Source, describe_box, need, reason
from fastseg.errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_UNITS = {"meter": "meter", "mm": "mm", "micron": "micron"}


class NiftiSource(Source):
    """``affine`` and ``units`` (space, time) are those of the header, for outputs of the same volume. The order of
    voxels is that of the file: nothing is turned to a common orientation."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        with self.handle() as (image, _):
            header, proxy = image.header, image.dataobj
            self.shape = tuple(int(n) for n in image.shape)
            self.affine, self.units = image.affine, header.get_xyzt_units()
            is_scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
            self.dtype = np.dtype(np.float32) if is_scaled else image.get_data_dtype()
            width, height, depth = (*(float(size) for size in header.get_zooms()[:3]), 1.0)[:3]
        self.axes = "xyztc"[: len(self.shape)]
        unit = MICROMETRES.get(_UNITS.get(self.units[0], ""))
        if unit is not None and min(depth, height, width) > 0:
            self.voxel_size = (depth * unit, height * unit, width * unit)

    def open(self) -> Any:
        nibabel = need("nibabel", self.path)
        try:
            image = nibabel.load(self.path)
            return image, np.asanyarray(image.dataobj) if self.path.lower().endswith(".gz") else image.dataobj
        except Exception as error:  # damaged headers raise whatever nibabel stumbles over
            raise InputError(
                f"{self.path} cannot be opened as NIfTI: {reason(error)} (docs/volumes.md lists formats)"
            ) from error

    def read(self, slices: Slices) -> np.ndarray:
        try:
            with self.handle() as (_, array):
                return np.asarray(array[slices], self.dtype)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.path} cannot be read at {describe_box(slices)}: {reason(error)}"
            ) from error
