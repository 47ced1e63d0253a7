# SPDX-License-Identifier: BSD-3-Clause
"""OME-Zarr images (versions 0.1 to 0.5): which array is meant, its axes and its voxel size.

https://ngff.openmicroscopy.org. A level's scale is the product of its own coordinate transformations and the image's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastseg.data.sources import MICROMETRES, attribute_voxel_size, listing
from fastseg.data.zarr_metadata import Node, read_node
from fastseg.errors import InputError

# Groups below the root that are searched for arrays when none is named.
_MOST_GROUPS = 200


@dataclass(frozen=True)
class Image:
    """axes: a letter each; scale in micrometres per voxel for axes that state a unit, None for the others. channels:
    their names, () where they have none."""

    axes: str
    scale: Sequence[float | None]
    channels: tuple[str, ...] = ()


def choose_array(root: str, inner: str, level: int | None) -> tuple[str, Image | None]:
    """The path below ``root`` of the array that is meant by ``inner``, and the image it is a level of."""
    node = read_node(os.path.join(root, inner) if inner else root)
    if node is None:
        raise InputError(f"{root} has no array or group /{inner}; it has {listing(_arrays(root))}")
    if node.is_array:
        if level is not None:
            raise InputError(
                f"{root}:/{inner} is one array: level {level} can be chosen of an OME-Zarr image alone"
            )
        return inner, _image_around(root, inner)
    levels = _levels(node)
    if levels:
        if not 0 <= (level or 0) < len(levels):
            raise InputError(f"{root}:/{inner} has the levels 0..{len(levels) - 1}, got level {level}")
        chosen, image = levels[level or 0]
        return "/".join(filter(None, (inner, chosen))), image
    below = [name for name in _arrays(root) if name.startswith(f"/{inner}" if inner else "/")]
    if len(below) != 1:
        base = os.path.basename(root.rstrip("/"))
        raise InputError(
            f"{root} needs an array, as in {base}:{(below or ['/raw'])[0]}; it has {listing(below)}"
        )
    return choose_array(root, below[0].strip("/"), level)


def array_axes(node: Node, image: Image | None, ndim: int) -> str:
    """Axes that the metadata name, or ""."""
    names = node.metadata.get("dimension_names") or node.attributes.get("_ARRAY_DIMENSIONS") or []
    for axes in (image.axes if image else "", "".join(str(name).lower() for name in names)):
        if len(axes) == ndim and set(axes) <= set("tczyx") and len(set(axes)) == ndim:
            return axes
    return ""


def array_voxel_size(node: Node, image: Image | None, axes: str) -> tuple[float, float, float] | None:
    if image and len(image.scale) == len(axes):
        scale = dict(zip(axes, image.scale, strict=True))
        sizes = [scale.get(axis) for axis in "zyx"]
        if all(size is not None and np.isfinite(size) and size > 0 for size in sizes):
            return tuple(sizes)
    return attribute_voxel_size(node.attributes)


def _levels(node: Node) -> list[tuple[str, Image]]:
    """(path below the group, image) of each level of a group's first image; [] if it is no image."""
    ome = node.attributes.get("ome", node.attributes)
    try:
        images = ome.get("multiscales")
        if not images:
            return []
        image = images[0]
        axes = image.get("axes") or ["t", "c", "z", "y", "x"]  # fixed until version 0.2
        named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
        letters = "".join(axis["name"].lower() for axis in named)
        units = [MICROMETRES.get(axis.get("unit", "")) for axis in named]
        labels = [str(c.get("label") or "") for c in (ome.get("omero") or {}).get("channels") or ()]
        channels = tuple(labels) if all(labels) else ()
        found = []
        for dataset in image["datasets"]:
            scale = np.ones(len(axes))
            for source in (dataset, image):
                for move in source.get("coordinateTransformations", ()):
                    if move["type"] == "scale":
                        scale = scale * np.asarray(move["scale"], float)
            sizes = [None if u is None else float(s) * u for s, u in zip(scale, units, strict=True)]
            found.append((dataset["path"].strip("/"), Image(letters, sizes, channels)))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{node.folder} cannot be read: its multiscales metadata are damaged: {error!r}"
        ) from error
    return found


def _image_around(root: str, inner: str) -> Image | None:
    """The image of a group above the array that names it among its levels, outside ``root`` too."""
    parts = [part for part in os.path.abspath(os.path.join(root, inner)).split("/") if part]
    for depth in range(len(parts) - 1, max(len(parts) - 4, 0), -1):
        node = read_node("/" + "/".join(parts[:depth]))
        if node is not None and not node.is_array:
            for path, image in _levels(node):
                if path == "/".join(parts[depth:]):
                    return image
    return None


def _arrays(root: str) -> list[str]:
    """Arrays and images below a group. Arrays are not entered: they may hold millions of files."""
    found, groups = [], [""]
    for count, group in enumerate(groups):
        node = read_node(os.path.join(root, group) if group else root)
        if node is None or count >= _MOST_GROUPS:
            continue
        if node.is_array or (group and _levels(node)):
            found.append("/" + group)
            continue
        with os.scandir(os.path.join(root, group)) as entries:
            groups += sorted(os.path.join(group, entry.name) for entry in entries if entry.is_dir())
    return sorted(found)
