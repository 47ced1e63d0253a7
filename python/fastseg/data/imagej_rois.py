# SPDX-License-Identifier: BSD-3-Clause
"""Areas that were outlined in ImageJ or Fiji, as ids: files of the ROI manager, by roifile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastseg.data.sources import need, reason
from fastseg.errors import InputError

ROI_SUFFIXES = (".zip", ".roi")

_OUTLINES = ("POLYGON", "FREEHAND", "TRACED")


def draw_rois(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Ids (rows, columns), uint16: the n-th area of the file has n, 0 is none; of areas that overlap the later one.

    A pixel belongs to an area if its middle lies inside, as in ImageJ; of composite areas the holes do not. InputError
    for what is no area, or lies beyond the picture.
    """
    ids = np.zeros(shape, np.uint16)
    for number, roi in enumerate(_read(path), 1):
        inside = _inside(path, roi, shape)
        if not inside.any():
            raise InputError(
                f"{path}: the ROI {roi.name!r} lies beyond the picture of {shape[0]} x {shape[1]}"
            )
        ids[inside] = number
    return ids


def split_rois(path: str, slices: Sequence[int], name: Callable[[int], str]) -> list[str]:
    """Write the ROIs of a stack by slice, to the path that ``name`` gives for each; returns the paths. ImageJ counts
    slices from 1, these count from 0. InputError for a ROI of no slice, and for a file that is there already."""
    found: dict[int, list[Any]] = {}
    for roi in _read(path):
        position = roi.z_position or roi.position
        if position < 1:
            raise InputError(f"{path}: the ROI {roi.name!r} belongs to no slice: in ImageJ, set its position")
        if position - 1 not in slices:
            raise InputError(
                f"{path}: the ROI {roi.name!r} is of ImageJ's slice {position}, and there are {slices[0] + 1} to "
                f"{slices[-1] + 1}"
            )
        found.setdefault(position - 1, []).append(roi)
    targets = {index: name(index) for index in sorted(found)}
    for target in targets.values():
        if os.path.exists(target):
            raise InputError(f"{target} is there already: move it away, or leave --rois")
    for index, target in targets.items():
        # Named anew: two of one name would be one in a zip.
        for number, roi in enumerate(found[index], 1):
            roi.name = f"{number:04d}-{roi.name}"
        need("roifile", path).roiwrite(target, found[index])
    return [*targets.values()]


def _read(path: str) -> list[Any]:
    roifile = need("roifile", path)
    try:
        found = roifile.roiread(path)
    except Exception as error:  # damaged files raise whatever roifile stumbles over
        raise InputError(f"{path} cannot be read as ROIs of ImageJ: {reason(error)}") from error
    return found if isinstance(found, list) else [found]


def _inside(path: str, roi: Any, shape: tuple[int, int]) -> np.ndarray:
    from skimage.draw import polygon2mask

    kind, subtype = roi.roitype.name, roi.subtype.name
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    if roi.composite:
        inside = np.zeros(shape, bool)
        for outline in roi.coordinates(multi=True):  # outlines within outlines are holes
            inside ^= polygon2mask(shape, outline[:, ::-1] - 0.5)
        return inside
    if kind in _OUTLINES:
        return polygon2mask(shape, roi.coordinates()[:, ::-1] - 0.5)
    top, bottom, left, right = roi.top, roi.bottom, roi.left, roi.right
    if kind == "RECT" and subtype == "UNDEFINED":
        return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    if kind == "OVAL" and bottom > top and right > left:
        y = (rows + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2)
        x = (columns + 0.5 - (left + right) / 2) / ((right - left) / 2)
        return y * y + x * x <= 1
    raise InputError(f"{path}: the ROI {roi.name!r} is a {kind.lower()}, and only areas can be labels")
