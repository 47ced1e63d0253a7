# SPDX-License-Identifier: BSD-3-Clause
"""A configuration for what a folder holds, as ``fastseg init FOLDER`` writes it: short, each choice with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import yaml

from fastseg.commands.annotated_slices import gather_slices
from fastseg.data.images import IMAGE_SUFFIXES, STACK_SUFFIXES, image_paths, image_size
from fastseg.data.pairs import pair_by_name, side_by_side
from fastseg.errors import InputError
from fastseg.methods.registry import METHODS
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


@dataclass
class Found:
    """Images, by path; entries of data.train that hold them; lines that say what is what."""

    images: list[str]
    entries: list[dict[str, Any]]
    lines: list[str] = field(default_factory=list)


def write_found(folder: str, path: str, first: int = 0) -> list[str]:
    """Write to ``path`` a configuration for the images and labels in ``folder``; returns what was found, a line each.

    first: the number of the first slice, where masks of a few slices of a stack have the numbers of their slices in
    their names; these are gathered into ``annotations.h5`` beside ``path``. InputError where the folder does not tell
    which are which, or the file is there already."""
    if os.path.exists(path):
        raise InputError(f"{path} exists already")
    beside = os.path.dirname(path) or "."
    found = _look(folder, beside, first)
    sizes = [image_size(image) for image in found.images]
    smallest = [min(size[axis] for size in sizes) for axis in range(3)]
    patch = _patch(smallest)
    labelled = "labels" in found.entries[0]
    count = f"{len(sizes)} image{'' if len(sizes) == 1 else 's'}"
    lines = [f"{count} in {folder}, {_extent(sizes)}", *found.lines]
    method = next(name for name, method in METHODS.items() if method.learns_labels is labelled)
    lines.append(
        f"a {len(patch)}D network sees patches of {patch}"
        + ("" if labelled else f"; there are no labels: method {method}, which needs none")
    )
    data = {"train": found.entries, "patch": patch}
    values = {"method": method, "output": "runs/first", "data": data}
    text = "".join(f"# {line}\n" for line in lines)
    text += "# fastseg init without a folder writes every key with its meaning.\n"
    text += yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
    write_atomically(path, text.encode())
    return lines


def _look(folder: str, beside: str, first: int) -> Found:
    """The images of a folder, and the labels that belong to them."""
    inside = {name.lower(): os.path.join(folder, name) for name in sorted(os.listdir(folder))}
    folders = {name: path for name, path in inside.items() if os.path.isdir(path) and _files(path)}
    labels = next((folders[name] for name in _LABELS if name in folders), None)
    raw = next((folders[name] for name in _RAW if name in folders), None)
    others = [path for path in folders.values() if path != labels]
    loose = _files(folder)
    if raw is None and len(others) == 1:
        raw = others[0]
    if raw is not None:
        images = image_paths(raw)
    elif len(loose) == 1 and not others:
        (raw,) = images = loose
        if labels is not None and 1 < len(image_paths(labels)) < image_size(raw)[0]:
            return _few_slices(raw, labels, beside, first)
    elif loose and not folders:
        pairs = side_by_side(loose)
        if pairs is not None:
            return _side_by_side(pairs, loose, beside)
        raw, images = folder, loose
    else:
        found = ", ".join(sorted(folders)) or "no images"
        raise InputError(
            f"{folder} must hold images, or a folder such as images and one such as masks, got {found}; fastseg init "
            "FILE.yaml writes a configuration to fill in"
        )
    entry = {"raw": os.path.relpath(raw, beside)}
    if labels is None:
        return Found(images, [entry])
    entry["labels"] = os.path.relpath(labels, beside)
    masks = image_paths(labels)
    if len(images) == 1 and len(masks) > 1 and image_size(images[0])[0] == len(masks):
        line = f"labels in {labels}, an image for each slice, in the order of their names from {masks[0]}"
        return Found(images, [{**entry, "raw": os.path.relpath(images[0], beside)}], [line])
    pairs = pair_by_name(images, masks)
    line = f"labels in {labels}, as in {os.path.basename(images[0])} with {os.path.basename(pairs[0])}"
    return Found(images, [entry], [line])


def _few_slices(stack: str, labels: str, beside: str, first: int) -> Found:
    """A stack and the masks of some of its slices."""
    path = os.path.normpath(os.path.join(beside, "annotations.h5"))
    slices, doubts = gather_slices(stack, image_paths(labels), path, first)
    shown = ", ".join(map(str, slices[:6])) + (", ..." if len(slices) > 6 else "")
    entry = {
        "raw": os.path.relpath(stack, beside),
        "labels": f"{os.path.relpath(path, beside)}:/labels",
        "mask": f"{os.path.relpath(path, beside)}:/mask",
        "annotated": {"axis": "z", "slices": slices},
    }
    counted = "their numbers are those of slices counted from " + str(first)
    lines = [f"labels in {labels} of {len(slices)} slices, z = {shown}: {counted}; gathered in {path}"]
    return Found([stack], [entry], [*lines, *doubts])


def _side_by_side(pairs: list[tuple[str, str]], files: list[str], beside: str) -> Found:
    """Images with their labels beside them: by patterns where these tell them apart, else an entry for each."""
    images, labels = ([pair[place] for pair in pairs] for place in (0, 1))
    lines = [f"labels beside the images, as in {' with '.join(map(os.path.basename, pairs[0]))}"]
    alone = [path for path in files if path not in {*images, *labels}]
    if alone:
        names = ", ".join(map(os.path.basename, alone[:5])) + (", ..." if len(alone) > 5 else "")
        lines.append(f"{len(alone)} images without labels are left out: {names}")
    patterns = [_pattern(paths) for paths in (images, labels)]
    if None not in patterns and len(pairs) > 1:
        pairs = [(str(patterns[0]), str(patterns[1]))]
    entries = [{"raw": os.path.relpath(a, beside), "labels": os.path.relpath(b, beside)} for a, b in pairs]
    return Found(images, entries, lines)


def _pattern(paths: list[str]) -> str | None:
    """A pattern that matches these files of a folder and no other, by what their names end in."""
    folder, name = os.path.split(paths[0])
    ends = (name[place:] for place in range(len(name) + 1))
    end = next(end for end in ends if all(os.path.basename(path).endswith(end) for path in paths))
    if any(character in folder + end for character in "*?["):
        return None
    pattern = os.path.join(folder, f"*{end}")
    return pattern if image_paths(pattern) == paths else None


def _files(folder: str) -> list[str]:
    """The images in a folder, or where there are none the files of other volumes."""
    suffixes = (*IMAGE_SUFFIXES, *STACK_SUFFIXES)
    return image_paths(folder) if any(n.lower().endswith(suffixes) for n in os.listdir(folder)) else []


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
