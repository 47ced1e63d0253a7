# SPDX-License-Identifier: BSD-3-Clause
"""TIFF stacks as sources: tiles and strips are read and decoded one by one, only those that a box touches.

Reading goes around tifffile's file handle, so that threads neither wait for one another nor share a position.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from fastseg import _C
from fastseg.data.chunks import ChunkedSource, ChunkReader, read_file
from fastseg.data.codecs import stored_bytes
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.sources import MICROMETRES, Slices, describe_box, guess_axes, reason
from fastseg.errors import InputError

TIFF_SUFFIXES = (".tif", ".tiff", ".tf8", ".btf", ".svs", ".ndpi")  # slides

_MOST_PLANES = 10_000_000
_JPEG = (6, 7, 33007, 34892)


class TiffSource(ChunkedSource):
    cache_bytes = 256 << 20

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        try:
            with self.handle() as file:
                self._describe(file)
            self.stored = ChunkLayout(path, self.dtype, self.chunks or self.shape)
        except InputError:
            raise
        except Exception as error:  # damaged tags raise whatever tifffile stumbles over
            raise InputError(f"{path} cannot be opened as TIFF: {reason(error)}") from error

    def after_fork(self) -> None:
        super().after_fork()
        self._pages_lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_pages_lock"}

    def _describe(self, file: Any) -> None:
        series = file.series[0]
        self.shape, self.dtype = tuple(series.shape), np.dtype(series.dtype)
        # tifffile writes S for samples (RGB), I and Q for stacks whose axis has no name.
        axes = series.axes.lower().replace("s", "c")
        if len(set(axes) - set("tczyx")) == 1 and "z" not in axes:
            axes = re.sub("[iq]", "z", axes)
        is_named = set(axes) <= set("tczyx") and len(set(axes)) == len(axes)
        self.axes = axes if is_named else guess_axes(len(self.shape))
        # Samples that are not marked as transparency (1 premultiplied, 2 not) are channels like the others.
        extra = series.keyframe.tags.valueof("ExtraSamples") or ()
        last = extra[-1] if isinstance(extra, tuple) and extra else extra
        self.alpha = is_named and "S" in series.axes and last in (1, 2)
        # Uncompressed stacks in one run can be read in place, whatever their number of pages.
        self.mapped = series.dataoffset is not None
        if not self.mapped:
            self._describe_pages(series.keyframe)
        self.voxel_size = _ome_voxel_size(file) or _imagej_voxel_size(file) or _slide_voxel_size(file)
        self.channel_names = _ome_channel_names(file)

    def _describe_pages(self, page: Any) -> None:
        self.page_axes = len(page.shape)
        # Shapes with a last axis of size 1 may be stored as pages of another shape: they are decoded as a whole.
        self.is_paged = self.shape[-self.page_axes :] == tuple(page.shape)
        # Where the page's axes are among the five that tifffile's decoder counts in.
        planar = {"S": 0 if page.planarconfig == 2 else 4, "Z": 1, "Y": 2, "X": 3}
        places = [planar.get(axis, -1) for axis in page.axes]
        is_plain = math.prod(page.shaped) == math.prod(page.shape)
        self.places = places if is_plain and places == sorted({*places} - {-1}) else None
        if self.is_paged:
            inner = page.shape
            if self.places is not None:
                stored = _segment_shape(page)
                inner = (min(stored[place], n) for place, n in zip(self.places, page.shape, strict=True))
            self.chunks = (1,) * (len(self.shape) - self.page_axes) + tuple(inner)

    def open(self) -> Any:
        import tifffile

        # Of a truncated file tifffile logs what it cannot find and goes on with the pages that are left.
        complaints = _Complaints()
        logger = logging.getLogger("tifffile")
        logger.addHandler(complaints)
        propagate, logger.propagate = logger.propagate, False
        try:
            file = tifffile.TiffFile(self.path)
            _require_planes(self.path, file)
            if not file.series:
                raise InputError(f"{self.path} holds no image")
        except InputError:
            raise
        except Exception as error:  # damaged tags raise whatever tifffile stumbles over
            raise InputError(f"{self.path} cannot be opened as TIFF: {reason(error)}") from error
        finally:
            logger.removeHandler(complaints)
            logger.propagate = propagate
        if complaints.messages:
            raise InputError(f"{self.path} cannot be opened as TIFF: {complaints.messages[0]}")
        return file

    def chunk_reader(self) -> ChunkReader | None:
        return None if self.mapped else self

    def read_into(self, slices: Slices, out: np.ndarray) -> None:
        if not self.mapped:
            return super().read_into(slices, out)
        try:
            with self.handle() as file:
                series = file.series[0]
                stored = series.dtype.newbyteorder(file.byteorder)  # the series states the native order
                array = np.memmap(self.path, stored, "r", series.dataoffset, self.shape)
        except Exception as error:  # damaged tags raise whatever tifffile stumbles over
            raise InputError(
                f"{self.path} cannot be read at {describe_box(slices)}: {reason(error)}"
            ) from error
        _C.copy_boxes(out, [array], [tuple(-s.start for s in slices)])

    def fetch(self, index: tuple[int, ...]) -> np.ndarray | None:
        """A strip or tile, a page, or the whole series; None for a plane that an OME-TIFF leaves out."""
        with self.handle() as file:
            series = file.series[0]
            if not self.is_paged:
                return series.asarray().reshape(self.shape)
            leading = len(self.shape) - self.page_axes
            number = int(np.ravel_multi_index(index[:leading], self.shape[:leading])) if leading else 0
            with self._pages_lock:
                page = series.pages[number]
            if page is None:
                return None
            if self.places is None:
                data = page.asarray()
            else:
                segment, extent = 0, _segment_shape(page.keyframe)
                at = dict(zip(self.places, index[leading:], strict=True))
                for place, (size, part) in enumerate(zip(page.keyframe.shaped, extent, strict=True)):
                    segment = segment * -(-size // part) + at.get(place, 0)
                data = self._decode(page, segment)[None]
                data = data[tuple(slice(None) if place in at else 0 for place in range(5))]
            return data[(None,) * leading].astype(self.dtype, copy=False)

    def _decode(self, page: Any, segment: int) -> np.ndarray:
        """A strip or tile as (depth, rows, columns, samples)."""
        keyframe = page.keyframe
        offset, size = page.dataoffsets[segment], page.databytecounts[segment]
        content = None
        if size:  # otherwise it was left out: all of it is the file's value for no data
            path = page.parent.filehandle.path  # an OME-TIFF may spread over several files
            whole = math.prod(_segment_shape(keyframe)) * keyframe.dtype.itemsize
            content = read_file(path, self.path, offset, min(size, stored_bytes(whole)))
            if content is None or len(content) != size:
                raise InputError(
                    f"{self.path} cannot be read: {path} does not hold segment {segment} of a page, of {size:,} bytes"
                )
        tables = {}
        if (
            keyframe.compression in _JPEG
        ):  # of NDPI the pieces between restart markers of one JPEG are what tiles are
            tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        data, _, shape = keyframe.decode(content, segment, **tables)
        return np.broadcast_to(np.asarray(keyframe.nodata, keyframe.dtype), shape) if data is None else data


def _segment_shape(page: Any) -> tuple[int, int, int, int, int]:
    samples = page.shaped[4]
    if page.is_tiled:
        return (1, page.tiledepth, page.tilelength, page.tilewidth, samples)
    return (1, 1, page.rowsperstrip, page.shaped[3], samples)


class _Complaints(logging.Handler):
    """Collects the errors that a library logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


def _imagej_voxel_size(file: Any) -> tuple[float, float, float] | None:
    metadata = file.imagej_metadata or {}
    factor = MICROMETRES.get(metadata.get("unit", ""))
    tags = file.pages[0].tags
    if factor is None or "spacing" not in metadata or "XResolution" not in tags or "YResolution" not in tags:
        return None
    ratios = [tags[key].value for key in ("YResolution", "XResolution")]
    if min(min(ratio) for ratio in ratios) <= 0:
        return None
    y, x = (factor * unit / pixels for pixels, unit in ratios)
    return (float(metadata["spacing"]) * factor, y, x)


def _slide_voxel_size(file: Any) -> tuple[float, float, float] | None:
    """Of a slide, whose description states micrometres per pixel, or its tags pixels per centimetre; one slice is as
    thick as a pixel is wide."""
    if file.is_ndpi:
        tags = file.pages[0].tags
        ratios = [tags.valueof(f"{axis}Resolution", (0, 0)) for axis in "YX"]
        if tags.valueof("ResolutionUnit") != 3 or min(min(ratio) for ratio in ratios) <= 0:
            return None
        y, x = (1e4 * unit / pixels for pixels, unit in ratios)
        return (max(y, x), y, x)
    found = re.search(r"\|\s*MPP\s*=\s*([\d.]+)", file.pages[0].description) if file.is_svs else None
    size = float(found[1]) if found else 0.0
    return (size, size, size) if size > 0 else None


def _require_planes(path: str, file: Any) -> None:
    """tifffile makes a list of all planes that OME metadata declare."""
    if not file.is_ome:
        return
    for pixels in ElementTree.fromstring(file.ome_metadata).findall(".//{*}Pixels"):
        planes = math.prod(int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT")
        if planes > _MOST_PLANES:
            raise InputError(
                f"{path} cannot be opened as TIFF: its OME metadata declare {planes:,} planes, more than "
                f"{_MOST_PLANES:,}"
            )


def _ome_channel_names(file: Any) -> tuple[str, ...]:
    """Of the first image; () unless all are named."""
    pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels") if file.is_ome else None
    names = [] if pixels is None else [channel.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return tuple(names) if all(names) else ()


def _ome_voxel_size(file: Any) -> tuple[float, float, float] | None:
    if not file.is_ome:
        return None
    pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    if pixels is None:
        return None
    sizes = []
    for axis in "ZYX":
        size = pixels.get(f"PhysicalSize{axis}")
        factor = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None or factor is None or not float(size) > 0:
            return None
        sizes.append(float(size) * factor)
    return (sizes[0], sizes[1], sizes[2])
