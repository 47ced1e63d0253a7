# SPDX-License-Identifier: BSD-3-Clause
"""fastseg view: image, labels and prediction in napari where it is installed, else on a page to scroll through."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from typing import Any

import numpy as np

from fastseg.commands.infer import prediction_path
from fastseg.data.pairs import file_by_file
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.report.viewer import Scene, ids_of, render_viewer
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.inputs import as_stored, open_annotated

_MOST_FILES = 40  # of a folder


def view_run(
    path: str, raw: str | None = None, segmented: str | None = None, *, page: bool = False
) -> list[str]:
    """Show the test volumes of a run with labels and predictions, or its training volumes where there are none; or
    ``raw`` with ``segmented``, what fastseg predict wrote of it, or two folders of such, of which at most 40 files,
    evenly spaced, are shown. page: on a page, though napari is here. Returns what to say."""
    run = RunFolder(path)
    config = as_stored(load_config(run.file("config.yaml")))
    if (raw is None) != (segmented is None):
        raise InputError("--raw and --segmented go together: an image and what was found in it")
    if raw is not None and segmented is not None:
        files = file_by_file(raw, segmented, "segmented")
        scenes = [_predicted(*pair) for pair in files[:: math.ceil(len(files) / _MOST_FILES)]]
    else:
        scenes = []
        for number, entry in enumerate(config.data.test or config.data.train):
            volume = open_annotated(entry, config.data)
            ids = {"labels": volume.labels} if volume.labels is not None else {}
            if config.data.test and any(os.path.exists(p) for p in _predictions(run, number)):
                ids["prediction"] = open_volume(f"{prediction_path(run, number)}:/segmentation")
            scenes.append(Scene(volume.raw.label, volume.raw, ids))
    if not page and has_napari():
        show_in_napari(scenes)
        return []
    target = run.file("view.html")
    name = os.path.basename(os.path.abspath(path))
    write_atomically(target, render_viewer(scenes, name).encode())
    return [f"wrote {target}: open it in a browser"]


def _predicted(raw: str, segmented: str) -> Scene:
    image, found = open_volume(raw), open_volume(segmented, ids=True)
    if image.shape != found.shape:
        raise InputError(
            f"{segmented} must have the shape of {raw}, {image.shape} (z, y, x), got {found.shape}"
        )
    return Scene(image.label, image, {"prediction": found})


def _predictions(run: RunFolder, number: int) -> list[str]:
    return [run.file("predictions", f"test_{number}.{suffix}") for suffix in ("h5", "zarr")]


def has_napari() -> bool:
    """Whether napari is installed and there is a screen to show it on."""
    screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return screen and importlib.util.find_spec("napari") is not None


def show_in_napari(scenes: list[Scene]) -> None:
    import napari

    viewer = napari.Viewer(title="fastseg")
    for scene in scenes:
        scale = scene.image.voxel_size or (1.0, 1.0, 1.0)
        for channel in range(scene.image.channels):
            number = f" {channel}" if scene.image.channels > 1 else ""
            viewer.add_image(Lazy(scene.image.pick([channel])), name=f"{scene.title}{number}", scale=scale)
        for name, volume in scene.ids.items():
            viewer.add_labels(Lazy(volume), name=f"{scene.title}: {name}", scale=scale)
    napari.run()


class Lazy:
    """A volume as the array (z, y, x) that napari takes: what it shows is read, and no more."""

    ndim = 3

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.shape = volume.shape
        self.dtype = np.dtype(np.int32) if volume.channels > 1 else volume.dtype
        self.size = int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> np.ndarray:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            place = keys.index(Ellipsis)
            keys[place : place + 1] = [slice(None)] * (4 - len(keys))
        keys += [slice(None)] * (3 - len(keys))
        ranges, within = [], []
        for part, size in zip(keys, self.shape, strict=True):
            if isinstance(part, slice):
                first, last, step = part.indices(size)
                ranges.append((first, max(first, last)))
                within.append(slice(None, None, step))
            else:
                place = range(size)[int(part)]
                ranges.append((place, place + 1))
                within.append(0)
        box = self._volume.read([low for low, _ in ranges], [high for _, high in ranges])
        found = box[0] if len(box) == 1 else ids_of(box).astype(self.dtype)
        return found[tuple(within)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)
