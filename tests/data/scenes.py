# SPDX-License-Identifier: BSD-3-Clause
"""Small annotated volumes that several tests use."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fastseg.data.annotations import AnnotatedVolume, Annotation, index_labels
from fastseg.data.intensity import Intensity
from fastseg.data.loader import PatchLoader
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.data.volumes import Volume, open_volume

SHAPE = (12, 20, 24)
PATCH = (4, 8, 8)


def stored(folder: Path, name: str, array: np.ndarray) -> Volume:
    np.save(folder / f"{name}.npy", array)
    return open_volume(folder / f"{name}.npy")


def sizes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the numbers of values that files are asked for from now on."""
    sizes: list[int] = []
    read = Volume.read

    def counted(self: Volume, start: object, stop: object, out: object = None) -> np.ndarray:
        box = read(self, start, stop, out)
        sizes.append(box.size)
        return box

    monkeypatch.setattr(Volume, "read", counted)
    return sizes


def make_scene(folder: Path, chunked: bool = False) -> AnnotatedVolume:
    """Slices 0, 4 and 8 annotated; ids 1 and 2; label 9 says nothing."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 9], SHAPE, p=[0.8, 0.1, 0.05, 0.05]).astype("u2")
    raw = rng.integers(0, 1000, SHAPE).astype("u2")
    if chunked:
        with h5py.File(folder / "scene.h5", "w") as file:
            for name, array in (("raw", raw), ("labels", labels)):
                file.create_dataset(name, data=array, chunks=(4, 6, 7), compression="gzip", shuffle=True)
        volumes = [open_volume(folder / f"scene.h5:/{name}") for name in ("raw", "labels")]
    else:
        volumes = [stored(folder, "raw", raw), stored(folder, "labels", labels)]
    return AnnotatedVolume(*volumes, annotation=Annotation(0, (0, 4, 8)), classes=(1, 2), ignore_label=9)


def make_sampler(
    scene: AnnotatedVolume, seed: int = 0, sampling: Sampling | None = None, batch: int = 3, **options: object
) -> PatchSampler:
    index = [index_labels(scene, 0)]
    return PatchSampler([scene], index, PATCH, sampling or Sampling(), seed, batch=batch, **options)


def make_loader(
    scene: AnnotatedVolume, sampler: PatchSampler, threads: int = 1, **options: object
) -> PatchLoader:
    return PatchLoader([scene], [Intensity((1.0,), (2.0,))], sampler, threads=threads, **options)
