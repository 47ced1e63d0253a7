# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images as sources."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

import numpy as np

from fastseg.data.cache import ChunkCache
from fastseg.data.sources import Slices, Source, reason
from fastseg.data.tiff import TIFF_SUFFIXES
from fastseg.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)

_CACHE_BYTES = 256 << 20

# Pillow warns of images of so many pixels, and refuses those of twice as many, as uploads of strangers.
_MOST_OF_PILLOW = 1 << 26
_MOST_PIXELS = 1 << 32


class FolderSource(Source):
    """Images of one size as the slices of a stack, in natural order of their names (z2 before z10)."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.name = self.path = pattern
        self.paths = image_paths(pattern)
        self._cache = ChunkCache(_CACHE_BYTES)
        first = self._decode(self.paths[0])
        self.slice_shape, self.dtype = first.shape, first.dtype
        self.shape = (len(self.paths), *first.shape)
        self.axes = "zyxc" if first.ndim == 3 else "zyx"
        self.chunks = (1, *first.shape)

    def open(self) -> Any:
        return True

    def read(self, slices: Slices) -> np.ndarray:
        rows = range(*slices[0].indices(self.shape[0]))
        out = np.empty((len(rows), *(s.stop - s.start for s in slices[1:])), self.dtype)
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
        try:
            image = _read_image(path)
        except InputError:
            raise
        except Exception as error:  # each decoder has errors of its own
            raise InputError(f"{path} cannot be read as an image: {reason(error)}") from error
        if image.ndim == 3 and image.shape[2] in (2, 4):  # the last channel is transparency
            image = image[:, :, :-1]
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        return image


def _read_image(path: str) -> np.ndarray:
    import imagecodecs
    import imageio.v3 as imageio
    from PIL.Image import DecompressionBombError

    pixels, is_bilevel = _png_header(path)
    if pixels > _MOST_PIXELS:
        raise InputError(
            f"{path} has {pixels:,} pixels, and an image is decoded whole: store it as a tiled TIFF or OME-Zarr"
        )
    if pixels <= _MOST_OF_PILLOW:
        try:
            return np.asarray(imageio.imread(path))
        except DecompressionBombError:  # an image of another kind
            pass
    image = imagecodecs.imread(path)
    return image != 0 if is_bilevel else image


def _png_header(path: str) -> tuple[int, bool]:
    """The number of pixels, and whether each is a bit, as its header says; 0 for other images."""
    with open(path, "rb") as file:
        header = file.read(26)
    if header[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, False
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    return width * height, header[24:] == b"\x01\x00"


def image_paths(pattern: str) -> list[str]:
    """The image files of a folder or a pattern, in natural order; InputError if there are none."""
    found = os.path.join(pattern, "*") if os.path.isdir(pattern) else pattern
    paths = sorted((p for p in glob.glob(found) if p.lower().endswith(IMAGE_SUFFIXES)), key=_natural_order)
    if not paths:
        raise InputError(f"{pattern} matches no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


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
