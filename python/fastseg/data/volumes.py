# SPDX-License-Identifier: BSD-3-Clause
"""Volumes of any format behind one face: (channels, z, y, x), read lazily, box by box."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from fastseg.data.cache import ChunkCache
from fastseg.data.czi import CZI_SUFFIXES, CziSource
from fastseg.data.hdf5 import HDF5_SUFFIXES, Hdf5Source
from fastseg.data.images import IMAGE_SUFFIXES, MICROSCOPE_SUFFIXES, FolderSource
from fastseg.data.imaris import IMARIS_SUFFIXES, ImarisSource
from fastseg.data.lif import LIF_SUFFIXES, LifSource
from fastseg.data.mrc import MRC_SUFFIXES, MrcSource
from fastseg.data.n5 import N5_SUFFIXES, N5Source, is_n5
from fastseg.data.nd2 import Nd2Source
from fastseg.data.nifti import NIFTI_SUFFIXES, NiftiSource
from fastseg.data.sources import NpySource, Source
from fastseg.data.tiff import TIFF_SUFFIXES, TiffSource
from fastseg.data.zarr import ZARR_SUFFIXES, ZarrSource, is_zarr
from fastseg.errors import InputError

Box = tuple[int, int, int]

_MOST_DECODED = 8 << 30  # HDF5 knows chunks of up to 4 GiB, Blosc of 2

# What the field's programs write and others read better: the way over.
_CONVERTED = {
    ".oib .oif .vsi .lsm .dv": "bioformats2raw, or save as TIFF in Fiji",
    ".mrxs .scn": "bioformats2raw or vips dzsave, or crop regions to TIFF in QuPath",
    ".dcm": "dcm2niix, to NIfTI",
    ".mha .mhd .nrrd": "SimpleITK, to NIfTI",
}


class Volume:
    """A box of a file as (channels, z, y, x); images are volumes of one slice.

    Attributes: ``name`` as the user wrote it, ``shape`` (z, y, x), ``channels``, ``dtype`` (native byte
    order), ``chunks`` (z, y, x) or None, ``voxel_size`` in micrometres (z, y, x) or None, ``origin`` of the
    box in the file. Cheap to copy, picklable, safe to read from several threads.
    """

    def __init__(self, source: Source, axes: str | None = None) -> None:
        axes = axes or source.axes
        if (
            len(axes) != len(source.shape)
            or len(set(axes)) != len(axes)
            or not {*"yx"} <= {*axes} <= {*"tczyx"}
        ):
            raise InputError(
                f"{source.name} has shape {source.shape}: axes must name each once, as in zyx, czyx or yxc, "
                f"got {axes or 'none'!r}"
            )
        if "t" in axes and source.shape[axes.index("t")] != 1:
            times = source.shape[axes.index("t")]
            raise InputError(
                f"{source.name} has {times} time points: write the one to use to a file of its own, or give axes that "
                f"call them slices ({axes.replace('t', 'z') if 'z' not in axes else axes!r}) or channels "
                f"({axes.replace('t', 'c') if 'c' not in axes else axes!r})"
            )
        if source.dtype.kind not in "buif" or source.dtype.itemsize > 8:
            raise InputError(f"{source.name} must hold numbers, got dtype {source.dtype}")
        if 0 in source.shape:
            raise InputError(f"{source.name} is empty: shape {source.shape}")
        decoded = math.prod(source.chunks or ()) * source.dtype.itemsize
        if decoded > _MOST_DECODED:
            raise InputError(
                f"{source.name} is stored in chunks {source.chunks} of {decoded / 2**30:,.0f} GiB, each of which must "
                f"be decoded whole: at most {_MOST_DECODED >> 30} GiB can be; store it in smaller chunks or tiles"
            )
        self.source, self.axes, self.name = source, axes, source.name
        sizes = dict(zip(axes, source.shape, strict=True))
        self.channels = sizes.get("c", 1) - (source.alpha and axes == source.axes)
        self.shape: Box = (sizes.get("z", 1), sizes["y"], sizes["x"])
        self.origin: Box = (0, 0, 0)
        self.dtype = source.dtype.newbyteorder("=")
        chunk = dict(zip(axes, source.chunks, strict=True)) if source.chunks else None
        self.chunks: Box | None = (chunk.get("z", 1), chunk["y"], chunk["x"]) if chunk else None
        self.voxel_size = source.voxel_size
        self.cache: ChunkCache | None = None
        self.picked: tuple[int, ...] | None = None  # channels of the file; None: all

    def pick(self, channels: Sequence[int | str] | None) -> Volume:
        """This volume with these of its channels alone, in this order: numbers from 0, or names that the file states.
        None: with all. InputError where one is missing."""
        if channels is None:
            return self
        names = list(self.source.channel_names)
        has = ", ".join(names) if names else f"{self.channels}, numbered from 0, and states no names"
        found = []
        for channel in channels:
            place = names.index(channel) if channel in names else channel
            if not isinstance(place, int) or not 0 <= place < self.channels:
                raise InputError(f"{self.name} has no channel {channel!r}; its channels are {has}")
            found.append(place)
        part = object.__new__(Volume)
        part.__dict__.update(self.__dict__)
        part.picked, part.channels = tuple(found), len(found)
        return part

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Volume:
        """The box [start, stop) of this volume, as a volume of its own that shares the file."""
        for axis, low, high, size in zip("zyx", start, stop, self.shape, strict=True):
            if not 0 <= low < high <= size:
                raise InputError(f"{self.name}: the range {axis} {low}:{high} must lie within 0:{size}")
        box = object.__new__(Volume)
        box.__dict__.update(self.__dict__)
        box.origin = _triple(o + s for o, s in zip(self.origin, start, strict=True))
        box.shape = _triple(b - a for a, b in zip(start, stop, strict=True))
        return box

    def with_cache(self, cache: ChunkCache) -> Volume:
        """This volume, its chunks decoded by the reading threads themselves and kept in ``cache``, if they can be."""
        cached = object.__new__(Volume)
        cached.__dict__.update(self.__dict__)
        cached.cache = cache if self.source.chunk_reader() is not None else None
        return cached

    def read(self, start: Sequence[int], stop: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """The box [start, stop) as (channels, z, y, x), in ``out`` if given. Reads only what the box touches."""
        if self.picked is None:
            return self._read(start, stop, slice(0, self.channels), out)
        if out is None:
            box = (b - a for a, b in zip(start, stop, strict=True))
            out = np.empty((self.channels, *box), self.dtype)
        for place, channel in enumerate(self.picked):
            self._read(start, stop, slice(channel, channel + 1), out[place : place + 1])
        return out

    def _read(
        self, start: Sequence[int], stop: Sequence[int], channels: slice, out: np.ndarray | None
    ) -> np.ndarray:
        low = {axis: o + a for axis, o, a in zip("zyx", self.origin, start, strict=True)}
        low["c"], low["t"] = channels.start, 0
        if self.cache is not None and (reader := self.source.chunk_reader()) is not None:
            if out is None:
                box = (b - a for a, b in zip(start, stop, strict=True))
                out = np.empty((channels.stop - channels.start, *box), self.dtype)
            self.cache.read(reader, [low[axis] for axis in self.axes], self._in_file_axes(out))
            return out
        high = {axis: o + b for axis, o, b in zip("zyx", self.origin, stop, strict=True)}
        high["c"], high["t"] = channels.stop, 1
        slices = tuple(slice(low[axis], high[axis]) for axis in self.axes)
        if out is not None:
            self.source.read_into(slices, self._in_file_axes(out))
            return out
        array = self.source.read(slices)
        order = [self.axes.index(axis) for axis in "tczyx" if axis in self.axes]
        array = array.transpose(order)
        if "t" in self.axes:
            array = array[0]
        if "z" not in self.axes:
            array = array[..., None, :, :][..., : stop[0] - start[0], :, :]
        if "c" not in self.axes:
            array = array[None]
        return np.ascontiguousarray(array, dtype=self.dtype)

    def _in_file_axes(self, array: np.ndarray) -> np.ndarray:
        """A view of (channels, z, y, x) with the axes of the file in its order."""
        if self.axes in ("zyx", "czyx"):  # mostly
            return array[0] if self.axes == "zyx" else array
        kept = [axis for axis in "tczyx" if axis in self.axes]
        view = array[None][tuple(slice(None) if axis in kept else 0 for axis in "tczyx")]
        return view.transpose([kept.index(axis) for axis in self.axes])

    def __getitem__(self, key: tuple[slice, slice, slice] | slice) -> np.ndarray:
        """``volume[z0:z1, y0:y1, x0:x1]`` as (channels, z, y, x); missing slices mean all of the axis."""
        key = key if isinstance(key, tuple) else (key,)
        if len(key) > 3 or not all(isinstance(k, slice) and k.step in (None, 1) for k in key):
            raise TypeError("a volume is indexed by up to three slices (z, y, x) of step 1")
        ranges = [
            k.indices(n)[:2] for k, n in zip((*key, *[slice(None)] * (3 - len(key))), self.shape, strict=True)
        ]
        return self.read([r[0] for r in ranges], [max(r) for r in ranges])

    @property
    def label(self) -> str:
        """The name without its folder, for tables and titles."""
        return self.name[len(os.path.dirname(self.source.path)) :].lstrip("/")

    @property
    def image_files(self) -> list[str]:
        """The image file of each slice; none where the slices are not files of their own."""
        if isinstance(self.source, FolderSource):
            return self.source.paths[self.origin[0] : self.origin[0] + self.shape[0]]
        alone = self.shape[0] == 1 and self.source.path.lower().endswith(IMAGE_SUFFIXES)
        return [self.source.path] if alone else []

    def blocks(self, most_voxels: int = 1 << 24) -> Iterator[tuple[Box, Box]]:
        """Boxes (start, stop) that tile the volume, aligned to its chunks, of about most_voxels at most."""
        z, y, x = self.shape
        unit = self.chunks or (1, 64, 4096)
        columns = x
        rows = max(unit[1], most_voxels // (unit[0] * x) // unit[1] * unit[1])
        planes = unit[0] * max(1, most_voxels // (unit[0] * y * x)) if rows >= y else unit[0]
        if unit[0] * unit[1] * x > 8 * most_voxels:  # lines so long that a row of chunks is too much at once
            columns = max(unit[2], most_voxels // (unit[0] * unit[1]) // unit[2] * unit[2])
        for z0 in range(0, z, planes):
            for y0 in range(0, y, rows):
                for x0 in range(0, x, columns):
                    yield (z0, y0, x0), (min(z0 + planes, z), min(y0 + rows, y), min(x0 + columns, x))

    def __repr__(self) -> str:
        channels = f", {self.channels} channels" if self.channels > 1 else ""
        return f"Volume({self.name!r}, shape={self.shape}{channels}, dtype={self.dtype})"


def is_image_folder(path: str) -> bool:
    """Whether a path is a folder of images, or a pattern of their names."""
    if not os.path.exists(path):
        return any(character in path for character in "*?[")
    lower = path.lower().rstrip("/")
    return os.path.isdir(path) and not (
        lower.endswith((*ZARR_SUFFIXES, *N5_SUFFIXES)) or is_zarr(path) or is_n5(path)
    )


def open_volume(
    path: str | os.PathLike[str],
    axes: str | None = None,
    level: int | None = None,
    *,
    ids: bool = False,
) -> Volume:
    """Open ``brain.h5:/raw``, ``brain.zarr:/raw``, ``brain.n5:/raw``, ``stack.tif``, ``slices/*.png``, a folder of
    images or ``array.npy``, lazily.

    axes names the file's axes, as in "czyx" or "yxc"; by default what the file states, otherwise yx, zyx, czyx and
    tczyx by their number, and zyx or zyxc for a folder, whose files each state their own; axes without z are then those
    of its TIFF files. t must have size 1. ids: palette images are read as the numbers in the palette, as labels are.
    level: of an OME-Zarr image, 0 (the finest) by default; ``brain.ome.zarr:/2`` names a level by its path. InputError
    where the file is missing, unreadable or truncated.
    """
    path = os.fspath(path)
    file, dataset = _split(path)
    lower = file.lower().rstrip("/")
    is_folder = is_image_folder(file)
    if not is_folder and not os.path.exists(file):
        raise InputError(f"{file} does not exist")
    source: Source
    if os.path.isdir(file) and (lower.endswith(ZARR_SUFFIXES) or is_zarr(file)):
        source = ZarrSource(file, dataset, level)
        level = None
    elif os.path.isdir(file) and (lower.endswith(N5_SUFFIXES) or is_n5(file)):
        source = N5Source(file, dataset)
    elif lower.endswith((*ZARR_SUFFIXES, *N5_SUFFIXES)) and not is_folder:
        raise InputError(f"{file} must be a folder; a zip archive of one must be unpacked")
    elif is_folder:
        of_files = axes if axes and "z" not in axes else None
        source = FolderSource(file, axes=of_files, ids=ids)
        axes = None if of_files else axes
    elif lower.endswith(IMARIS_SUFFIXES) and dataset is None:
        source = ImarisSource(file, level or 0)
        level = None
    elif lower.endswith(MICROSCOPE_SUFFIXES):
        kinds = {CZI_SUFFIXES: CziSource, LIF_SUFFIXES: LifSource}
        source = next((k for s, k in kinds.items() if lower.endswith(s)), Nd2Source)(file, dataset)
    elif lower.endswith(NIFTI_SUFFIXES):
        source = NiftiSource(file)
    elif lower.endswith(MRC_SUFFIXES):
        source = MrcSource(file)
    elif lower.endswith((*HDF5_SUFFIXES, *IMARIS_SUFFIXES)):
        source = Hdf5Source(file, dataset)
    elif lower.endswith(TIFF_SUFFIXES):
        source = TiffSource(file)
    elif lower.endswith(".npy"):
        source = NpySource(file)
    elif lower.endswith(IMAGE_SUFFIXES):
        source = FolderSource(file, [file], ids=ids)
    else:
        for suffixes, way in _CONVERTED.items():
            if lower.endswith(tuple(suffixes.split())):
                raise InputError(
                    f"{file}: convert it to OME-Zarr or TIFF first, with {way} (docs/volumes.md)"
                )
        array_suffixes = (*HDF5_SUFFIXES, *ZARR_SUFFIXES, *N5_SUFFIXES, ".npy")
        known = ", ".join(
            (
                *array_suffixes,
                *NIFTI_SUFFIXES,
                *MRC_SUFFIXES,
                *IMARIS_SUFFIXES,
                *MICROSCOPE_SUFFIXES,
                *IMAGE_SUFFIXES,
            )
        )
        raise InputError(f"{file} has no known suffix; known are {known}, a pattern or a folder of images")
    if level is not None:
        raise InputError(f"{source.name} has no levels, got level {level}")
    return Volume(source, axes)


def _split(path: str) -> tuple[str, str | None]:
    """``brain.h5:/raw`` as file and dataset; a colon elsewhere is part of the name."""
    file, colon, dataset = path.rpartition(":")
    if colon and file.lower().rstrip("/").endswith(
        (*HDF5_SUFFIXES, *IMARIS_SUFFIXES, *MICROSCOPE_SUFFIXES, *ZARR_SUFFIXES, *N5_SUFFIXES)
    ):
        return file, dataset or None
    return path, None


def require_finite(array: np.ndarray, volume: Volume, start: Sequence[int]) -> None:
    """InputError that says where, if a box read from ``volume`` at ``start`` holds NaN or infinity."""
    if array.dtype.kind != "f":
        return
    # One sum is far cheaper than a mask of the box; a finite sum means no NaN and no infinity.
    if math.isfinite(float(array.sum(dtype=np.float64))):
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        channel, *offset = bad[0]
        where = tuple(int(o + s + p) for o, s, p in zip(volume.origin, start, offset, strict=True))
        value = array[tuple(bad[0])]
        raise InputError(
            f"{volume.name} holds {value} at (z, y, x) = {where}, channel {channel}; values must be finite"
        )


def _triple(values: Iterator[int]) -> Box:
    z, y, x = values
    return (z, y, x)
