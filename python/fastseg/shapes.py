# SPDX-License-Identifier: BSD-3-Clause
"""The shape of segmented objects: solidity, size and number, of their sections slice by slice or of whole volumes.

Per voxel a mask costs one comparison with its neighbour and the labelling of connected components, which is
connected-components-3d's; all else is done on runs of foreground along x, of which there are a few per object and row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

Property = Literal[
    "solidity",
    "area_ratio",
    "object_count",
    # of scikit-image's regionprops
    "area",
    "area_bbox",
    "axis_major_length",
    "axis_minor_length",
    "eccentricity",
    "equivalent_diameter_area",
    "euler_number",
    "extent",
    "feret_diameter_max",
    "orientation",
    "perimeter",
    "perimeter_crofton",
]
Within = Literal["slices", "volume"]

# Those of regionprops that a volume's objects do not have.
PLANAR: tuple[Property, ...] = ("eccentricity", "orientation", "perimeter", "perimeter_crofton")


def object_property(
    masks: Iterable[np.ndarray],
    name: Property,
    *,
    within: Within = "slices",
    components: Within = "volume",
    axis: int = 0,
    smallest: int = 10,
) -> float:
    """The mean of ``object_values`` over all ``masks`` together; 0 where there is no object.

    This is what Franco-Barranco et al. (CMPB 2022) compare between a prediction and the labels of another domain.
    """
    options: dict[str, Any] = {"within": within, "components": components, "axis": axis, "smallest": smallest}
    values = [object_values(mask, name, **options) for mask in masks]
    pooled = np.concatenate(values) if values else np.zeros(0)
    return float(pooled.mean()) if len(pooled) else 0.0


def object_values(
    mask: np.ndarray,
    name: Property,
    *,
    within: Within = "slices",
    components: Within = "volume",
    axis: int = 0,
    smallest: int = 10,
) -> np.ndarray:
    """A property of each object of a mask (z, y, x), nonzero is foreground; float64.

    solidity: area / area of the convex hull. Pixels are unit squares and voxels unit cubes, so that three squares in an
    L have 3 / 3.5 = 6/7. (scikit-image counts the pixels whose centres lie in the hull of the midpoints of all pixels'
    edges: 1 for that L; the two agree as objects grow.) area_ratio: area / area of the slice (or volume).
    object_count: the number of objects, a value per slice (or one). Others: those of scikit-image's ``regionprops``,
    in voxels.

    within: "slices" takes the section of an object with a slice across ``axis``, each by itself, "volume" the object
    as a whole. components: what an object is: voxels that touch, by a corner at least, in the "volume", or within one
    of its "slices" only. An object that a slice meets in two pieces has one section there if components are the
    volume's. smallest: sections (objects) of up to so many pixels (voxels) are ignored.

    Errors: ValueError for another shape, an unknown name, or a property that exists in 2D alone within the volume.
    Cost: memory of 7 bytes per voxel (mask, edges of runs, labels), each written once and read once or twice; then some
    hundred bytes per row of an object. Those of regionprops are found one object at a time.
    """
    mask = np.asarray(mask) != 0
    if mask.ndim != 3:
        raise ValueError(f"mask must be (z, y, x), got {mask.shape}")
    if name not in get_args(Property):
        raise ValueError(f"property must be one of {', '.join(get_args(Property))}, got {name!r}")
    if within == "volume" and (name in PLANAR or components == "slices"):
        what = f"property {name}" if name in PLANAR else "components: slices"
        raise ValueError(f"{what} is of slices, not of a volume: it needs within: slices")
    mask = np.ascontiguousarray(np.moveaxis(mask, axis, 0))
    labels = _components(mask, components)
    if name not in ("solidity", "area_ratio", "object_count"):
        return _region_properties(labels, name, within, smallest)
    rows = _rows(mask, labels)
    objects = _sections(rows, smallest) if within == "slices" else _bodies(rows, smallest)
    if name == "object_count":
        return np.bincount(objects.place, minlength=len(mask) if within == "slices" else 1).astype(np.float64)
    if name == "area_ratio":
        return objects.area / (mask.size if within == "volume" else mask[0].size)
    hulls = _hull_areas(rows, objects) if within == "slices" else _hull_volumes(rows, objects)
    return objects.area / hulls


class _Rows(NamedTuple):
    """Rows of objects, sorted by object, slice and y: foreground is ``area`` pixels of [low, high) along x."""

    label: np.ndarray
    z: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: np.ndarray


class _Objects(NamedTuple):
    """Sections or whole objects: their rows [first, last), the slice they are in (0 for whole ones), and their area."""

    first: np.ndarray
    last: np.ndarray
    place: np.ndarray
    area: np.ndarray


def _components(mask: np.ndarray, components: Within) -> np.ndarray:
    """Ids from 1, uint32 or smaller; of slices they begin anew in each, as sections are told apart by both."""
    import cc3d

    if components == "volume" and len(mask) > 1:
        return cc3d.connected_components(mask, connectivity=26)
    return np.stack([cc3d.connected_components(plane, connectivity=8, out_dtype=np.uint32) for plane in mask])


def _rows(mask: np.ndarray, labels: np.ndarray) -> _Rows:
    """Runs of foreground along x, those of one object in one row put together."""
    _, height, width = mask.shape
    flat = mask.reshape(-1, width)
    edges = np.zeros((len(flat), width + 1), bool)
    edges[:, 0], edges[:, -1] = flat[:, 0], flat[:, -1]
    np.not_equal(flat[:, 1:], flat[:, :-1], out=edges[:, 1:-1])
    places = np.flatnonzero(edges)
    row, x = np.divmod(places, width + 1)
    row, low, high = (
        row[::2],
        x[::2],
        x[1::2],
    )  # a run begins at every second edge, as none goes beyond its row
    label = labels.reshape(-1, width)[row, low].astype(np.int64)
    # Two objects cannot touch within a row, so a run has one label; stable: low stays sorted within a row.
    order = np.argsort(label * len(flat) + row, kind="stable")
    label, row, low, high = (values[order] for values in (label, row, low, high))
    first = _starts(label, row)
    if not len(first):
        return _Rows(*(np.zeros(0, np.int64) for _ in range(6)))
    z, y = np.divmod(row[first], height)
    ends = np.append(first[1:], len(row)) - 1
    return _Rows(label[first], z, y, low[first], high[ends], np.add.reduceat(high - low, first))


def _sections(rows: _Rows, smallest: int) -> _Objects:
    return _grouped(rows, _starts(rows.label, rows.z), rows.z, smallest)


def _bodies(rows: _Rows, smallest: int) -> _Objects:
    return _grouped(rows, _starts(rows.label), np.zeros_like(rows.z), smallest)


def _grouped(rows: _Rows, first: np.ndarray, place: np.ndarray, smallest: int) -> _Objects:
    if not len(first):
        return _Objects(*(np.zeros(0, np.int64) for _ in range(4)))
    area = np.add.reduceat(rows.area, first)
    last = np.append(first[1:], len(rows.label))
    kept = area > smallest
    return _Objects(first[kept], last[kept], place[first[kept]], area[kept])


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where one of the keys differs from the one before."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changed = np.zeros(len(keys[0]), bool)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)


def _hull_areas(rows: _Rows, sections: _Objects) -> np.ndarray:
    """The area of the convex hull of each section's unit squares; exact.

    Of a row of squares only the four outermost corners can be corners of the hull. At each height, then, only the
    leftmost and the rightmost matter: the hull lies between the convex envelope of the one and the concave envelope of
    the other.
    """
    count = sections.last - sections.first
    which = np.repeat(np.arange(len(count)), count)
    chosen = np.repeat(sections.first - np.cumsum(count) + count, count) + np.arange(len(which))
    low, high, y = rows.low[chosen], rows.high[chosen], rows.y[chosen]
    # Each row gives a corner at its upper and one at its lower edge; of two rows that meet, the outer one stays.
    which, y = np.concatenate((which, which)), np.concatenate((y, y + 1))
    low, high = np.concatenate((low, low)), np.concatenate((high, high))
    order = np.lexsort((y, which))
    which, y, low, high = which[order], y[order], low[order], high[order]
    first = _starts(which, y)
    left, right = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    which, y = which[first], y[first]
    areas = [_under_envelope(which, y, edge, len(count)) for edge in (left, -right)]
    return -(areas[0] + areas[1])


def _under_envelope(which: np.ndarray, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    """The integral over y of the lower convex envelope of the points of each of ``count`` groups, sorted by y.

    A point that does not lie below the line between its two neighbours is no corner of the envelope, whichever others
    go too: all such are dropped at once, in rounds over all groups, until none is left.
    """
    while True:
        inner = np.zeros(len(y), bool)
        inner[1:-1] = (which[2:] == which[1:-1]) & (which[:-2] == which[1:-1])
        turn = (x[1:-1] - x[:-2]) * (y[2:] - y[1:-1]) - (x[2:] - x[1:-1]) * (y[1:-1] - y[:-2])
        inner[1:-1] &= turn >= 0
        if not inner.any():
            break
        which, y, x = which[~inner], y[~inner], x[~inner]
    twice = np.where(which[1:] == which[:-1], (x[1:] + x[:-1]) * (y[1:] - y[:-1]), 0)
    return np.bincount(which[1:], twice, count) / 2


def _hull_volumes(rows: _Rows, objects: _Objects) -> np.ndarray:
    from scipy.spatial import ConvexHull

    corners = np.stack(np.meshgrid((0, 1), (0, 1), indexing="ij"), -1).reshape(-1, 2)

    def hulls() -> Iterator[float]:
        for first, last in zip(objects.first, objects.last, strict=True):
            part = slice(first, last)
            yx = np.stack((rows.z[part], rows.y[part]), -1)[:, None] + corners
            ends = (np.broadcast_to(x[part, None], yx.shape[:2]) for x in (rows.low, rows.high))
            points = np.concatenate([np.concatenate((yx, x[..., None]), -1) for x in ends]).reshape(-1, 3)
            yield ConvexHull(points).volume

    return np.fromiter(hulls(), np.float64, len(objects.first))


def _region_properties(labels: np.ndarray, name: str, within: Within, smallest: int) -> np.ndarray:
    from skimage.measure import regionprops_table

    values = []
    for part in labels if within == "slices" else [labels]:
        table = regionprops_table(part.astype(np.int64), properties=(*dict.fromkeys(("area", name)),))
        values.append(table[name][table["area"] > smallest].astype(np.float64))
    return np.concatenate(values)
