# SPDX-License-Identifier: BSD-3-Clause
"""One volume as a file that other programs open: TIFF for ImageJ, OME-TIFF, OME-Zarr, NIfTI, .npy, or PNG for a single
image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastseg.data.nifti import NIFTI_SUFFIXES
from fastseg.data.ome_zarr import write_ome_zarr
from fastseg.data.sources import need, reason
from fastseg.data.volumes import Box, Volume
from fastseg.errors import InputError

_OME_SUFFIXES = (".ome.tif", ".ome.tiff")
_OME_ZARR = ".ome.zarr"
EXPORT_SUFFIXES = (*_OME_SUFFIXES, _OME_ZARR, ".tif", ".tiff", *NIFTI_SUFFIXES, ".npy", ".png")

# Offsets of 32 bits end at 4 GiB; the rest is for tags and metadata.
_MOST_CLASSIC_BYTES = 4_000_000_000
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


def export_volume(volume: Volume, path: str, *, like: Volume | None = None) -> None:
    """Write ``volume`` as its suffix says, slice by slice; there under its name only when it is whole.

    ``.tif``: for ImageJ and Fiji, with a voxel size in micrometres, as they read up to 4 GB, beyond that OME-TIFF.
    ``.ome.tif``: Zlib, BigTIFF where it must be. Both leave out an axis z of size 1. ``.ome.zarr``: see
    ``write_ome_zarr``. ``.nii``, ``.nii.gz``: in memory as a whole; the affine is that of ``like`` where this is a
    NIfTI too. These three say where a part lies in its file: at the ``origin`` of ``like``, else of ``volume``.
    ``.npy``: (z, y, x) or (c, z, y, x). ``.png``: of one image and channel. float16 becomes float32.
    InputError where the format cannot hold the volume or the disk is full.
    """
    suffix = next(s for s in EXPORT_SUFFIXES if path.lower().endswith(s))
    partial = f"{path[: -len(suffix)]}.partial{suffix}"
    origin = (volume if like is None else like).origin
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if suffix == _OME_ZARR:
            write_ome_zarr(volume, path, _stored_dtype(volume), origin)
            return
        if suffix in NIFTI_SUFFIXES:
            _write_nifti(volume, partial, like, origin)
        elif suffix == ".npy":
            _write_npy(volume, partial)
        elif suffix == ".png":
            _write_png(volume, partial, path)
        else:
            _write_tiff(volume, partial, suffix in _OME_SUFFIXES, origin)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def require_export(path: str, volume: Volume, channels: int) -> None:
    """InputError, before anything is computed, where ``path`` cannot hold ``channels`` of ``volume``."""
    if path.lower().endswith(".png") and (volume.shape[0] > 1 or channels > 1):
        raise InputError(f"{path}: a PNG holds one image of one channel; use .tif for stacks and for classes")
    if path.lower().endswith(NIFTI_SUFFIXES):
        need("nibabel", path)


def is_export(path: str) -> bool:
    """Whether ``path`` is to hold one array in another program's format."""
    return path.lower().endswith(EXPORT_SUFFIXES)


def _stored_dtype(volume: Volume) -> np.dtype:
    stored = {"float16": np.float32, "bool": np.uint8}
    return np.dtype(stored.get(volume.dtype.name, volume.dtype))


def _planes(volume: Volume) -> Iterator[np.ndarray]:
    """Each slice as (channels, y, x)."""
    for z in range(volume.shape[0]):
        yield volume[z : z + 1][:, 0].astype(_stored_dtype(volume), copy=False)


def _write_tiff(volume: Volume, path: str, ome: bool, origin: Box) -> None:
    import tifffile

    (z, y, x), channels, dtype = volume.shape, volume.channels, _stored_dtype(volume)
    size = z * y * x * channels * dtype.itemsize
    ome = ome or size > _MOST_CLASSIC_BYTES or dtype.name not in _IMAGEJ_DTYPES
    sizes = {"Z": z, "C": channels, "Y": y, "X": x}
    axes = "".join(axis for axis in sizes if axis in "YX" or sizes[axis] > 1)
    metadata: dict[str, Any] = {"axes": axes}
    options: dict[str, Any] = {"compression": "zlib"} if ome else {}
    if volume.voxel_size is not None:
        depth, height, width = volume.voxel_size
        if ome:
            for axis, value in zip("ZYX", volume.voxel_size, strict=True):
                metadata |= {f"PhysicalSize{axis}": value, f"PhysicalSize{axis}Unit": "µm"}
            if any(origin):
                metadata["Plane"] = _places(origin, volume)
        else:
            metadata |= {"spacing": depth, "unit": "um"}
            options["resolution"] = (1 / width, 1 / height)
    if not ome and dtype == np.uint8:
        highest = max(int(plane.max()) for plane in _planes(volume))
        metadata |= {"min": 0, "max": max(highest, 1)}  # or a mask of 0 and 1 is shown black
    with tifffile.TiffWriter(path, bigtiff=size > _MOST_CLASSIC_BYTES, imagej=not ome, ome=ome) as file:
        file.write(
            (image for plane in _planes(volume) for image in plane),
            shape=tuple(sizes[axis] for axis in axes),
            dtype=dtype,
            photometric="minisblack",
            metadata=metadata,
            **options,
        )


def _places(origin: Box, volume: Volume) -> dict[str, list[Any]]:
    """OME's positions of all planes of a part of a file."""
    depth, height, width = volume.voxel_size or (1.0, 1.0, 1.0)
    z, y, x = origin
    planes = [z + i for i in range(volume.shape[0]) for _ in range(volume.channels)]
    places = {
        "Z": [n * depth for n in planes],
        "Y": [y * height] * len(planes),
        "X": [x * width] * len(planes),
    }
    units = {f"Position{axis}Unit": ["µm"] * len(planes) for axis in places}
    return {f"Position{axis}": values for axis, values in places.items()} | units


def _write_npy(volume: Volume, path: str) -> None:
    shape = (*((volume.channels,) if volume.channels > 1 else ()), *volume.shape)
    array = np.lib.format.open_memmap(path, "w+", _stored_dtype(volume), shape)
    for z, plane in enumerate(_planes(volume)):
        array[..., z, :, :] = plane if volume.channels > 1 else plane[0]
    array.flush()


def _write_png(volume: Volume, path: str, name: str) -> None:
    import imageio.v3 as imageio

    require_export(name, volume, volume.channels)
    image = volume[:][0, 0]
    if image.dtype.kind == "f":  # probabilities
        image = np.round(image.astype(np.float32) * 255).astype(np.uint8)
    if image.dtype.kind not in "bu" or image.dtype.itemsize > 2:
        raise InputError(f"{name}: a PNG holds 8 or 16 bits, not {image.dtype}; use .tif")
    imageio.imwrite(path, image)


def _write_nifti(volume: Volume, path: str, like: Volume | None, origin: Box) -> None:
    nibabel = need("nibabel", path)
    array = np.stack(list(_planes(volume)))  # z, c, y, x
    array = array.transpose(3, 2, 0, 1)
    array = array[..., 0] if volume.channels == 1 else array[:, :, :, None]  # channels are NIfTI's fifth axis
    affine = getattr(like.source, "affine", None) if like is not None else None
    shift = np.eye(4)
    shift[:3, 3] = origin[::-1]
    if affine is not None and like is not None:
        image = nibabel.Nifti1Image(array, affine @ shift)
        image.header.set_xyzt_units(*like.source.units)
    else:
        depth, height, width = volume.voxel_size or (1.0, 1.0, 1.0)
        image = nibabel.Nifti1Image(array, np.diag([width, height, depth, 1.0]) @ shift)
        if volume.voxel_size is not None:
            image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
