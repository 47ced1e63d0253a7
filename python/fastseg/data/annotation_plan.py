# SPDX-License-Identifier: BSD-3-Clause
"""The slices of a volume that a person is to annotate: a folder with a TIFF of each, and ``plan.json``.

Nothing in the folder is ever overwritten but ``plan.json``. Pictures are written first and the plan last, so that
the same call after a crash finds what it would write itself, and goes on.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fastseg.data.imagej_rois import ROI_SUFFIXES
from fastseg.data.images import IMAGE_SUFFIXES
from fastseg.data.outputs_journal import write_durably
from fastseg.data.sources import reason
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError

PLAN = "plan.json"
LABEL_SUFFIXES = (".tif", ".tiff", ".png", *ROI_SUFFIXES)

# What OME-TIFF can hold. Of the others the TIFF states the size of a pixel alone.
_OME_DTYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")


@dataclass(frozen=True)
class PlannedSlice:
    """``index`` in the file's own numbers. score: bits, None where it was chosen by its place alone. look_first: the
    corners (row, column), in its picture, of the windows that are least certain, window their height and width."""

    index: int
    score: float | None = None
    look_first: tuple[tuple[int, int], ...] = ()
    window: tuple[int, int] | None = None


@dataclass
class Plan:
    """What ``plan.json`` holds.

    volume: its path as given, and ``path`` absolute. axes: as given, or None. axis: z, y or x, across the slices.
    region: [first, last) of z, y and x in the file; pictures and labels cover it. shape (z, y, x) and voxel_size,
    micrometres, are those of the whole file.
    """

    volume: str
    path: str
    axes: str | None
    axis: str
    region: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    channels: int
    dtype: str
    voxel_size: tuple[float, ...] | None
    slices: list[PlannedSlice] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The axis as 0, 1 or 2 for z, y or x."""
        return "zyx".index(self.axis)

    @property
    def first(self) -> int:
        """The first slice of the region."""
        return self.region[self.number][0]

    @property
    def depth(self) -> int:
        """How many slices the region has."""
        low, high = self.region[self.number]
        return high - low

    @property
    def plane(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The region's ranges in the plane of the slices: rows, columns."""
        rows, columns = (limits for axis, limits in enumerate(self.region) if axis != self.number)
        return rows, columns

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of a slice, in voxels."""
        (top, bottom), (left, right) = self.plane
        return bottom - top, right - left

    def name(self, index: int) -> str:
        return f"{self.axis}{index:04d}"

    def indexes(self) -> list[int]:
        return [planned.index for planned in self.slices]


def plan_of(volume: Volume, part: Volume, path: str, axes: str | None, axis: str) -> Plan:
    """An empty plan of ``part``, a box of ``volume``, which was opened as ``path`` with ``axes``."""
    region = tuple((low, low + size) for low, size in zip(part.origin, part.shape, strict=True))
    name, absolute = os.fspath(path), os.path.abspath(path)
    size = volume.voxel_size
    return Plan(name, absolute, axes, axis, region, volume.shape, volume.channels, str(volume.dtype), size)


def continue_plan(folder: str, fresh: Plan) -> Plan:
    """The plan in ``folder``, or ``fresh`` if it holds none. InputError where that one is of something else."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} must be a folder, it is a file")
    if not os.path.exists(os.path.join(folder, PLAN)):
        return fresh
    plan = load_plan(folder)
    for what in ("path", "axis", "axes", "region", "shape", "channels", "dtype"):
        before, now = getattr(plan, what), getattr(fresh, what)
        if before != now:
            called = {"path": "volume"}.get(what, what)
            raise InputError(
                f"{folder} holds a plan of {called} {_shown(what, before)}, now it is {_shown(what, now)}: plan in "
                "another folder"
            )
    return plan


def load_plan(folder: str) -> Plan:
    """The plan in a folder. InputError if there is none or it is damaged."""
    path = os.path.join(folder, PLAN)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder: fastseg annotate-plan makes one")
    try:
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
        stored["slices"] = [
            PlannedSlice(**{name: _tuples(value) for name, value in planned.items()})
            for planned in stored["slices"]
        ]
        for name in ("region", "shape", "voxel_size"):
            stored[name] = _tuples(stored[name])
        plan = Plan(**stored)
        if plan.axis not in ("z", "y", "x") or len(plan.shape) != 3:
            raise ValueError(f"axis {plan.axis}, shape {plan.shape}")
        if not all(0 <= a < b <= n for (a, b), n in zip(plan.region, plan.shape, strict=True)):
            raise ValueError(f"region {plan.region} of shape {plan.shape}")
        return plan
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {PLAN}: fastseg annotate-plan makes one") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, TypeError, KeyError) as error:  # whatever a file of another kind runs into
        raise InputError(f"{path} is damaged or no plan: {reason(error)}") from error


def label_files(folder: str) -> dict[str, str]:
    """The files of labels in a folder: path by the name of the slice, as in z0012.

    Files of other kinds are not looked at. InputError for two of one slice, and for an image in a format that may not
    keep ids.
    """
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        match = re.fullmatch(r"(.+)_labels(\.\w+)", name)
        if not match:
            continue
        path, suffix = os.path.join(folder, name), match[2].lower()
        if suffix not in (*LABEL_SUFFIXES, *IMAGE_SUFFIXES):
            continue
        if suffix not in LABEL_SUFFIXES:
            raise InputError(f"{path} must be .tif or .png: other formats may change ids")
        if match[1] in found:
            raise InputError(f"{found[match[1]]} and {path} are of one slice: keep one of them")
        found[match[1]] = path
    return found


def taken_slices(plan: Plan, folder: str) -> list[int]:
    """The slices of the region, counted from its first, that are planned or have a file of labels."""
    names = (re.fullmatch(rf"{plan.axis}(\d+)", name) for name in label_files(folder))
    annotated = {int(match[1]) for match in names if match}
    return sorted(
        index - plan.first
        for index in annotated | set(plan.indexes())
        if 0 <= index - plan.first < plan.depth
    )


def extend_plan(plan: Plan, folder: str, part: Volume, chosen: Sequence[PlannedSlice]) -> list[str]:
    """Write a picture of each slice, then the plan with them. Returns the paths of the pictures, in their order.

    InputError if a file of that name with another content is there, or the disk is full.
    """
    paths = [os.path.join(folder, f"{plan.name(planned.index)}.tif") for planned in chosen]
    for path, planned in zip(paths, chosen, strict=True):
        start, stop = [0, 0, 0], list(part.shape)
        start[plan.number] = planned.index - plan.first
        stop[plan.number] = start[plan.number] + 1
        box = part.read(start, stop)
        if not os.path.exists(path):
            _write(path, _as_tiff(box, plan.number, part.voxel_size))
        elif not _holds(path, box, plan.number):
            raise InputError(f"{path} is there already and not in the plan: move it away")
    plan.slices.extend(chosen)
    _write(os.path.join(folder, PLAN), json.dumps(asdict(plan), indent=1).encode())
    return paths


def _write(path: str, content: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def _holds(path: str, box: np.ndarray, axis: int) -> bool:
    """Whether a file is the picture of a slice."""
    try:
        picture = open_volume(path)
        found = picture.read((0, 0, 0), picture.shape)[:, 0]
    except InputError:
        return False
    return found.dtype == box.dtype and np.array_equal(found, box.squeeze(axis + 1))


def _as_tiff(box: np.ndarray, axis: int, voxel_size: tuple[float, float, float] | None) -> bytes:
    """A slice (channels, z, y, x), one thick along ``axis``, as an OME-TIFF in its own dtype."""
    import tifffile

    image = box.squeeze(axis + 1)
    options: dict[str, Any] = {"photometric": "minisblack"}
    axes = "CYX"
    if len(image) == 1:
        image, axes = image[0], "YX"
    elif len(image) == 3 and image.dtype.name in ("uint8", "uint16"):
        image, axes, options = np.moveaxis(image, 0, -1), "YXS", {"photometric": "rgb"}
    metadata: dict[str, Any] = {"axes": axes}
    if voxel_size is not None:
        rows, columns = (size for place, size in enumerate(voxel_size) if place != axis)
        # In OME as micrometres, for who does not read it in the tags that every TIFF has, as pixels per centimetre.
        for key, size in zip("ZYX", (voxel_size[axis], rows, columns), strict=True):
            metadata |= {f"PhysicalSize{key}": size, f"PhysicalSize{key}Unit": "µm"}
        options |= {"resolution": (1e4 / columns, 1e4 / rows), "resolutionunit": "CENTIMETER"}
    buffer = io.BytesIO()
    has_ome = image.dtype.name in _OME_DTYPES
    tifffile.imwrite(buffer, np.ascontiguousarray(image), ome=has_ome, metadata=metadata, **options)
    return buffer.getvalue()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _shown(what: str, value: Any) -> str:
    if what == "region":
        return ",".join(f"{axis}={a}:{b}" for axis, (a, b) in zip("zyx", value, strict=True))
    return "not given" if value is None else str(value)
