# SPDX-License-Identifier: BSD-3-Clause
"""Folders and patterns of files in a configuration, as an entry for each file, with the labels that belong to it."""

from __future__ import annotations

import os

from fastseg.data.images import STACK_SUFFIXES, image_paths, image_size
from fastseg.data.pairs import pair_by_name, pairs_of_csv
from fastseg.data.volumes import is_image_folder
from fastseg.errors import InputError
from fastseg.train.config import Config
from fastseg.train.data_config import DataConfig, VolumeConfig


def each_image(config: Config) -> Config:
    """The configuration with an entry for each image of a folder or a pattern, so that images may differ in size and
    each is scaled by itself. Their labels, of a folder or a pattern too, are paired by name."""
    return _with_entries(config, always=True)


def each_file_apart(config: Config) -> Config:
    """As ``each_image`` for folders whose files cannot be the slices of one stack: stacks themselves, images of several
    sizes, or pairs that a CSV file lists. Other folders stay; InputError where the names of their images and labels do
    not pair up in the order that both are read in."""
    return _with_entries(config, always=False)


def _with_entries(config: Config, *, always: bool) -> Config:
    changed = {
        name: [
            single for entry in getattr(config.data, name) for single in _singles(entry, config.data, always)
        ]
        for name in ("train", "validation", "test", "target")
    }
    return config.model_copy(update={"data": config.data.model_copy(update=changed)})


def _singles(entry: VolumeConfig, data: DataConfig, always: bool) -> list[VolumeConfig]:
    images = files_of(entry.raw, data)
    if images is None:
        return [entry]
    apart = always or entry.pairs is not None or _differ(images, entry)
    fields: dict[str, list[str]] = {"raw": images}
    for name in ("labels", "mask"):
        stated = getattr(entry, name)
        if stated is None:
            continue
        found = files_of(stated, data)
        if entry.pairs is not None:
            fields[name] = pairs_of_csv(_whole(entry.pairs, data), images, name)
        elif found is not None:
            fields[name] = pair_by_name(images, found, name)
            if not apart and fields[name] != found:
                raise InputError(
                    f"{name} {stated} are in another order than raw {entry.raw}: {found[0]} is read beside "
                    f"{images[0]}, and by its name {fields[name][0]} should be"
                )
        elif apart and len(images) > 1:
            raise InputError(
                f"{name} {stated} must be a folder or pattern like raw {entry.raw}, which is {len(images)} files, got "
                "one volume"
            )
        else:
            fields[name] = [stated]
    if not apart:
        return [entry]
    weight = entry.weight and entry.weight / len(images)
    return [
        entry.model_copy(update={**dict(zip(fields, values, strict=True)), "weight": weight, "pairs": None})
        for values in zip(*fields.values(), strict=True)
    ]


def files_of(path: str, data: DataConfig) -> list[str] | None:
    """The images of a folder or pattern; None for other paths."""
    whole = _whole(path, data)
    return [os.path.abspath(name) for name in image_paths(whole)] if is_image_folder(whole) else None


def _differ(images: list[str], entry: VolumeConfig) -> bool:
    if images[0].lower().endswith(STACK_SUFFIXES):
        return True
    axes = entry.axes if entry.axes and "z" not in entry.axes else None
    sizes = {image_size(path, axes) for path in images}
    return len(sizes) > 1 or next(iter(sizes))[0] > 1


def _whole(path: str, data: DataConfig) -> str:
    return os.path.join(data.root or ".", os.path.expanduser(path))
