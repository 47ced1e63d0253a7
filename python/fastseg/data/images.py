# SPDX-License-Identifier: BSD-3-Clause
"""TIFF stacks and folders of images as sources."""

from __future__ import annotations

import glob
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from fastseg.data.sources import Slices, Source, describe_box, guess_axes, reason
from fastseg.errors import InputError

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)

_CACHE_BYTES = 256 << 20


class TiffSource(Source):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        file = self.handle()
        series = file.series[0]
        self.shape, self.dtype = tuple(series.shape), np.dtype(series.dtype)
        # tifffile writes S for samples (RGB), I and Q for stacks whose axis has no name.
        axes = series.axes.lower().replace("s", "c")
        self.axes = (
            axes if set(axes) <= set("czyx") and len(set(axes)) == len(axes) else guess_axes(len(self.shape))
        )
        # Uncompressed stacks in one run can be read in place, whatever their number of pages.
        self.mapped = series.dataoffset is not None
        self.page_axes = len(series.keyframe.shape)
        self.chunks = (1,) * (len(self.shape) - self.page_axes) + tuple(series.keyframe.shape)
        self.voxel_size = _tiff_voxel_size(file)
        self._cache = _ByteCache(_CACHE_BYTES)

    def open(self) -> Any:
        import tifffile

        # Of a truncated file tifffile logs what it cannot find and goes on with the pages that are left.
        complaints = _Complaints()
        logger = logging.getLogger("tifffile")
        logger.addHandler(complaints)
        propagate, logger.propagate = logger.propagate, False
        try:
            file = tifffile.TiffFile(self.path)
            if not file.series:
                raise InputError(f"{self.path} holds no image")
        except (OSError, tifffile.TiffFileError, ValueError, IndexError) as error:
            raise InputError(f"{self.path} cannot be opened as TIFF: {reason(error)}") from error
        finally:
            logger.removeHandler(complaints)
            logger.propagate = propagate
        if complaints.messages:
            raise InputError(f"{self.path} cannot be opened as TIFF: {complaints.messages[0]}")
        file.filehandle.set_lock(True)
        return file

    def read(self, slices: Slices) -> np.ndarray:
        try:
            file = self.handle()
            series = file.series[0]
            if self.mapped:
                stored = series.dtype.newbyteorder(file.byteorder)  # the series states the native order
                array = np.memmap(self.path, stored, "r", series.dataoffset, self.shape)
                return np.array(array[slices])
            leading, within = self.shape[: -self.page_axes], slices[-self.page_axes :]
            ranges = [range(*s.indices(n)) for s, n in zip(slices, leading, strict=False)]
            box = tuple(len(r) for r in ranges)
            out = np.empty(box + _extent(within, self.shape[-self.page_axes :]), self.dtype)
            for position in np.ndindex(*box):
                index = [r[i] for r, i in zip(ranges, position, strict=True)]
                page = int(np.ravel_multi_index(index, leading)) if index else 0
                out[position] = self._cache.get(page, lambda p=page: series.pages[p].asarray())[within]
            return out
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"{self.path} cannot be read at {describe_box(slices)}: {reason(error)}"
            ) from error


class _Complaints(logging.Handler):
    """Collects the errors that a library logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


def _tiff_voxel_size(file: Any) -> tuple[float, float, float] | None:
    metadata = file.imagej_metadata or {}
    to_micrometre = {"micron": 1.0, "um": 1.0, "µm": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3}
    factor = to_micrometre.get(metadata.get("unit", ""))
    tags = file.pages[0].tags
    if factor is None or "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    pixels_per_unit = [tags[key].value[0] / tags[key].value[1] for key in ("YResolution", "XResolution")]
    if min(pixels_per_unit) <= 0:
        return None
    return (float(metadata["spacing"]) * factor, factor / pixels_per_unit[0], factor / pixels_per_unit[1])


class FolderSource(Source):
    """Images of one size as the slices of a stack, in natural order of their names (z2 before z10)."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.name = self.path = pattern
        found = os.path.join(pattern, "*") if os.path.isdir(pattern) else pattern
        self.paths = sorted(
            (p for p in glob.glob(found) if p.lower().endswith(IMAGE_SUFFIXES)), key=_natural_order
        )
        if not self.paths:
            raise InputError(f"{pattern} matches no image ({', '.join(IMAGE_SUFFIXES)})")
        self._cache = _ByteCache(_CACHE_BYTES)
        first = self._decode(self.paths[0])
        self.slice_shape, self.dtype = first.shape, first.dtype
        self.shape = (len(self.paths), *first.shape)
        self.axes = "zyxc" if first.ndim == 3 else "zyx"
        self.chunks = (1, *first.shape)

    def open(self) -> Any:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        rows = range(*slices[0].indices(self.shape[0]))
        out = np.empty((len(rows), *_extent(slices[1:], self.slice_shape)), self.dtype)
        for position, row in enumerate(rows):
            out[position] = self._cache.get(row, lambda r=row: self._checked(self.paths[r]))[slices[1:]]
        return out

    def _checked(self, path: str) -> np.ndarray:
        image = self._decode(path)
        if image.shape != self.slice_shape or image.dtype != self.dtype:
            raise InputError(
                f"{path} must be {self.slice_shape} {self.dtype} like {self.paths[0]}, got {image.shape} "
                f"{image.dtype}; give images of another size an entry of their own"
            )
        return image

    @staticmethod
    def _decode(path: str) -> np.ndarray:
        import imageio.v3 as imageio

        try:
            image = np.asarray(imageio.imread(path))
        except (OSError, ValueError, RuntimeError, SyntaxError) as error:
            raise InputError(f"{path} cannot be read as an image: {reason(error)}") from error
        if image.ndim == 3 and image.shape[2] in (2, 4):  # the last channel is transparency
            image = image[:, :, :-1]
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        return image


class _ByteCache:
    """Least recently used arrays up to a number of bytes; decoding happens outside the lock."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._clear()

    def _clear(self) -> None:
        self._held = 0
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = decode()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self._held += array.nbytes
            while self._held > self.most_bytes and len(self._arrays) > 1:
                self._held -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"most_bytes": self.most_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.most_bytes = state["most_bytes"]
        self._clear()


def _natural_order(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _extent(slices: Slices, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(*s.indices(n))) for s, n in zip(slices, shape, strict=True))
