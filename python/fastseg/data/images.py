# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images as sources, and single images."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

import numpy as np

from fastseg.data.chunks import ChunkedSource
from fastseg.data.czi import CZI_SUFFIXES
from fastseg.data.hdf5 import HDF5_SUFFIXES
from fastseg.data.imaris import IMARIS_SUFFIXES
from fastseg.data.lif import LIF_SUFFIXES
from fastseg.data.mrc import MRC_SUFFIXES
from fastseg.data.native_codecs import ChunkLayout
from fastseg.data.nd2 import ND2_SUFFIXES
from fastseg.data.nifti import NIFTI_SUFFIXES
from fastseg.data.sources import reason
from fastseg.data.tiff import TIFF_SUFFIXES, TiffSource
from fastseg.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)

# Files that are a volume each, and never a slice of a stack.
MICROSCOPE_SUFFIXES = (*CZI_SUFFIXES, *LIF_SUFFIXES, *ND2_SUFFIXES)
STACK_SUFFIXES = (
    *NIFTI_SUFFIXES,
    *MRC_SUFFIXES,
    *IMARIS_SUFFIXES,
    *MICROSCOPE_SUFFIXES,
    *HDF5_SUFFIXES,
    ".npy",
)

# Pillow warns of images of so many pixels, and refuses those of twice as many, as uploads of strangers.
_MOST_OF_PILLOW = 1 << 26
_MOST_PIXELS = 1 << 32


class FolderSource(ChunkedSource):
    """Images of one size as the slices of a stack, in natural order of their names (z2 before z10).

    paths: the images, by default all that ``pattern`` matches. axes: those of a TIFF, where it states none or others.
    ids: of palette images the numbers in the palette, not the colours.
    """

    cache_bytes = 256 << 20

    def __init__(
        self, pattern: str, paths: list[str] | None = None, *, axes: str | None = None, ids: bool = False
    ) -> None:
        super().__init__()
        self.name = self.path = pattern
        self.paths = image_paths(pattern) if paths is None else paths
        self._axes_of_files, self._ids = axes, ids
        first = self._decode(self.paths[0])
        self.slice_shape, self.dtype = first.shape, first.dtype
        self.shape = (len(self.paths), *first.shape)
        self.axes = "zyxc" if first.ndim == 3 else "zyx"
        self.chunks = (1, *first.shape)
        self.stored = ChunkLayout(f"{pattern}, {axes}, {ids}", self.dtype, self.chunks)

    def fetch(self, index: tuple[int, ...]) -> np.ndarray:
        path = self.paths[index[0]]
        image = self._decode(path)
        if image.shape != self.slice_shape or image.dtype != self.dtype:
            raise InputError(
                f"{path} must be {self.slice_shape} {self.dtype} like {self.paths[0]}, got {image.shape} "
                f"{image.dtype}; give images of another size an entry of their own"
            )
        return image[None]

    def _decode(self, path: str) -> np.ndarray:
        if path.lower().endswith(STACK_SUFFIXES):
            raise InputError(
                f"{path} is no slice of a stack: give the path of one such file, each is a volume"
            )
        if path.lower().endswith(TIFF_SUFFIXES):
            return _read_tiff(path, self._axes_of_files)
        try:
            image = _read_image(path, self._ids)
        except InputError:
            raise
        except Exception as error:  # each decoder has errors of its own
            raise InputError(f"{path} cannot be read as an image: {reason(error)}") from error
        if image.ndim == 3 and image.shape[2] in (2, 4):  # the last channel is transparency
            image = image[:, :, :-1]
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        return image


def _read_image(path: str, ids: bool) -> np.ndarray:
    import imagecodecs
    import imageio.v3 as imageio
    from PIL import Image
    from PIL.Image import DecompressionBombError

    height, width, is_bilevel = _png_header(path)
    pixels = height * width
    if pixels > _MOST_PIXELS:
        raise InputError(
            f"{path} has {pixels:,} pixels, and an image is decoded whole: store it as a tiled TIFF or OME-Zarr"
        )
    if pixels <= _MOST_OF_PILLOW:
        try:
            if ids:
                with Image.open(path) as opened:
                    if opened.mode == "P":
                        return np.asarray(opened)
            return np.asarray(imageio.imread(path))
        except DecompressionBombError:  # an image of another kind
            pass
    image = imagecodecs.imread(path)
    return image != 0 if is_bilevel else image


def _png_header(path: str) -> tuple[int, int, bool]:
    """Height, width, and whether each pixel is a bit, as its header says; 0 for other images."""
    with open(path, "rb") as file:
        header = file.read(26)
    if header[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, 0, False
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    return height, width, header[24:] == b"\x01\x00"


def image_paths(pattern: str) -> list[str]:
    """The image files of a folder or a pattern, in natural order, or, where there are none, those that are volumes
    each; InputError if there are none of either."""
    found = sorted(
        glob.glob(os.path.join(glob.escape(pattern), "*") if os.path.isdir(pattern) else pattern),
        key=_natural_order,
    )
    for suffixes in (IMAGE_SUFFIXES, STACK_SUFFIXES):
        paths = [path for path in found if path.lower().endswith(suffixes)]
        if paths:
            return paths
    raise InputError(f"{pattern} matches no image ({', '.join((*IMAGE_SUFFIXES, *STACK_SUFFIXES))})")


def bare_name(path: str) -> str:
    """The name of a file without its suffix, as ``a`` of ``folder/a.nii.gz``."""
    name = os.path.basename(path.rstrip("/"))
    for suffix in (".ome.tif", ".ome.tiff", ".ome.zarr", ".nii.gz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return os.path.splitext(name)[0]


def image_size(path: str, axes: str | None = None) -> tuple[int, int, int]:
    """Slices (1 but for TIFF stacks and other volumes), height and width, from the header alone."""
    if path.lower().endswith(STACK_SUFFIXES):
        from fastseg.data.volumes import open_volume  # which is built on this module

        return open_volume(path, axes).shape
    if path.lower().endswith(TIFF_SUFFIXES):
        source = TiffSource(path)
        sizes = _tiff_sizes(source, axes)
        with source.handle() as file:
            file.close()
        return sizes.get("z", 1) * sizes.get("t", 1), sizes["y"], sizes["x"]
    from PIL import Image

    try:
        height, width, _ = _png_header(path)
        if height:
            return 1, height, width
        with Image.open(path) as image:
            return 1, image.height, image.width
    except Exception as error:  # each decoder has errors of its own
        raise InputError(f"{path} cannot be read as an image: {reason(error)}") from error


def _tiff_sizes(source: TiffSource, axes: str | None) -> dict[str, int]:
    axes = axes or source.axes
    if len(axes) != len(source.shape) or not {*"yx"} <= {*axes} <= {*"tczyx"} or len({*axes}) < len(axes):
        raise InputError(
            f"{source.path} has shape {source.shape}: axes must name each once, as in yx, cyx or yxc, got "
            f"{axes or 'none'!r}"
        )
    return dict(zip(axes, source.shape, strict=True))


def _read_tiff(path: str, axes: str | None) -> np.ndarray:
    """A TIFF of one image as (y, x) or (y, x, channels)."""
    source = TiffSource(path)
    axes = axes or source.axes
    sizes = _tiff_sizes(source, axes)
    slices = sizes.get("z", 1) * sizes.get("t", 1)
    if slices > 1:
        raise InputError(
            f"{path} holds a stack of {slices} slices, axes {axes}: a folder of stacks is a volume for each file, "
            "which data.train takes as it is and open_volume one by one; if they are channels, say so by axes: cyx"
        )
    with source.handle() as file:
        array = source.read(tuple(slice(0, size) for size in source.shape))
        file.close()  # thousands of images would stay open, which are never read again
    array = array.transpose([axes.index(axis) for axis in "tzyxc" if axis in axes])
    array = array.reshape(sizes["y"], sizes["x"], -1)
    if source.alpha and axes == source.axes:
        array = array[:, :, :-1]
    return array[:, :, 0] if array.shape[2] == 1 else array


def write_mask_image(path: str, mask: np.ndarray) -> None:
    """Write a mask (y, x) as an image, 0 and 255."""
    import imageio.v3 as imageio

    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        imageio.imwrite(path, (mask != 0).astype(np.uint8) * 255)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def _natural_order(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
