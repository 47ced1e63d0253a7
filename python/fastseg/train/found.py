# SPDX-License-Identifier: BSD-3-Clause
"""A configuration for what a folder holds, as ``fastseg init FOLDER`` writes it: short, each choice with its reason."""

from __future__ import annotations

import os
import re

import yaml

from fastseg.data.images import IMAGE_SUFFIXES, image_paths, image_size
from fastseg.data.pairs import pair_by_name
from fastseg.errors import InputError
from fastseg.train.checkpoint import write_atomically

# Names of folders, the likeliest first.
_RAW = ("images", "image", "raw", "img", "imgs", "imagestr", "train_images", "x")
_LABELS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "segmentations",
    "seg",
    "gt",
    "truth",
    "labelstr",
    "y",
)

# A patch of a few MB; a stack of fewer slices is seen slice by slice.
_PATCH_2D, _PATCH_3D = 256, (16, 96, 96)
_DIVISOR = 8
_FEWEST_SLICES = 16


def write_found(folder: str, path: str) -> list[str]:
    """Write to ``path`` a configuration for the images and labels in ``folder``; returns what was found, a line each.
    InputError where the folder does not tell which are which, or the file is there already."""
    if os.path.exists(path):
        raise InputError(f"{path} exists already")
    raw, labels = _parts(folder)
    images = image_paths(raw)
    sizes = [image_size(image) for image in images]
    smallest = [min(size[axis] for size in sizes) for axis in range(3)]
    lines = [f"{len(images)} images in {raw}, {_extent(sizes)}"]
    entry = {"raw": os.path.relpath(raw, os.path.dirname(path) or ".")}
    if labels is not None:
        pairs = pair_by_name(images, image_paths(labels))
        lines.append(
            f"labels in {labels}, as in {os.path.basename(images[0])} with {os.path.basename(pairs[0])}"
        )
        entry["labels"] = os.path.relpath(labels, os.path.dirname(path) or ".")
    patch = _patch(smallest)
    method = "supervised" if labels is not None else "patch_contrast"
    lines.append(
        f"a {len(patch)}D network sees patches of {patch}"
        + ("" if labels is not None else "; there are no labels: method patch_contrast, which needs none")
    )
    data = {"train": [entry], "patch": patch}
    values = {"method": method, "output": "runs/first", "data": data}
    text = "".join(f"# {line}\n" for line in lines)
    text += "# fastseg init without a folder writes every key with its meaning.\n"
    text += yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
    write_atomically(path, text.encode())
    return lines


def _parts(folder: str) -> tuple[str, str | None]:
    """The folder of images, and that of labels if there is one."""
    inside = {name.lower(): os.path.join(folder, name) for name in sorted(os.listdir(folder))}
    folders = {name: path for name, path in inside.items() if os.path.isdir(path) and _holds_images(path)}
    labels = next((folders[name] for name in _LABELS if name in folders), None)
    raw = next((folders[name] for name in _RAW if name in folders), None)
    others = [path for path in folders.values() if path != labels]
    if raw is None and len(others) == 1:
        raw = others[0]
    if raw is None and not folders and _holds_images(folder):
        _require_one_kind(folder)
        raw = folder
    if raw is None:
        found = ", ".join(sorted(folders)) or "no images"
        raise InputError(
            f"{folder} must hold images, or a folder such as images and one such as masks, got {found}; fastseg init "
            "FILE.yaml writes a configuration to fill in"
        )
    return raw, labels


def _require_one_kind(folder: str) -> None:
    """InputError where files are named as images and their labels side by side, as in a_image.png and a_mask.png."""
    first: dict[str, str] = {}
    for path in image_paths(folder):
        name = os.path.basename(path)
        before = first.setdefault(re.sub(r"_[a-z]{2,}$", "", os.path.splitext(name.lower())[0]), name)
        if before != name:
            raise InputError(
                f"{folder} seems to hold images and their labels side by side, as in {before} and {name}: move the "
                "labels into a folder of their own, or give data.train patterns, as in {raw: 'cells/*_image.png', "
                "labels: 'cells/*_mask.png'}"
            )


def _holds_images(folder: str) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(folder))


def _patch(smallest: list[int]) -> list[int]:
    """As large as the default, or as the smallest image allows, in multiples of what a U-Net of three levels needs."""
    wanted = list(_PATCH_3D) if smallest[0] >= _FEWEST_SLICES else [_PATCH_2D, _PATCH_2D]
    available = smallest if len(wanted) == 3 else smallest[1:]
    if min(available) < 2 * _DIVISOR:
        raise InputError(
            f"images must be at least {2 * _DIVISOR} pixels to each side, the smallest are {available}"
        )
    return [min(w, n // _DIVISOR * _DIVISOR) for w, n in zip(wanted, available, strict=True)]


def _extent(sizes: list[tuple[int, int, int]]) -> str:
    low, high = ([pick(axis) for axis in zip(*sizes, strict=True)] for pick in (min, max))
    shown = " x ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True))
    return f"{shown} (z, y, x)"
