# SPDX-License-Identifier: BSD-3-Clause
"""The best checkpoint without labels of what is to be segmented, after Franco-Barranco et al. (CMPB 2022;222:106949).

While a network learns one domain, its segmentation of another one passes from shapeless to shaped like the labels it
learns, and then away from it again. The rule keeps the weights whose objects in ``data.target`` come nearest in shape
to the labels of ``data.train``. docs/stopping.md says what it costs, and when it fails.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastseg.data.annotations import LABELLED, AnnotatedVolume
from fastseg.data.volumes import Volume
from fastseg.errors import InputError
from fastseg.methods.inference import predictor, tiling_of
from fastseg.methods.validation import shared_out
from fastseg.metrics import Confusion, count_confusion
from fastseg.predict import CHUNK, Grid, Network, Tiling, predict_blocks, segmented
from fastseg.shapes import Within, object_property
from fastseg.train.best import Chooser
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config
from fastseg.train.inputs import open_target
from fastseg.train.ranks import Ranks

SOURCE_FILE = "source_morphology.json"


def morphology_chooser(
    config: Config, sources: Sequence[AnnotatedVolume], network: nn.Module, ranks: Ranks, run: RunFolder
) -> MorphologyChooser | None:
    """What ``fit`` takes to choose by ``train.stop: morphology``; None where the configuration says nothing of it.

    sources: the training volumes. Their labels are measured once, where the run's folder does not have the result yet.
    """
    if config.train.stop is None or config.train.stop.rule != "morphology":
        return None
    return MorphologyChooser(config, sources, network, ranks, run)


class MorphologyChooser(Chooser):
    """Measures ``morphology_distance``, the mean over classes of |property in the target - property in the labels|, and
    ``target_<property>`` itself; of targets with labels ``target_dice`` and ``target_iou`` too, which decide nothing.
    """

    measure = "morphology_distance"

    def __init__(
        self,
        config: Config,
        sources: Sequence[AnnotatedVolume],
        network: nn.Module,
        ranks: Ranks,
        run: RunFolder,
    ) -> None:
        assert config.train.stop is not None
        self.settings, self.ranks, self.config = config.train.stop, ranks, config
        self.every = self.settings.every * steps_per_epoch(config, sources)
        self.first = math.ceil(self.settings.after * config.train.steps)
        self.source = ranks.from_first(_measured_once(config, sources, run) if ranks.first else None)
        self.targets = open_target(config, sources[0].raw)
        self.predictors: list[Network] = [
            predictor(network, volume.raw, config, ranks.device) for volume in self.targets
        ]
        self.tilings = [
            shared_out(tiling_of(config, predict, volume.raw, ranks.device), volume.shape, ranks.count)
            for predict, volume in zip(self.predictors, self.targets, strict=True)
        ]

    def measures(self) -> dict[str, float]:
        masks = [
            self._segment(volume.raw, predict, tiling)
            for volume, predict, tiling in zip(self.targets, self.predictors, self.tilings, strict=True)
        ]
        first = self.ranks.first
        return self.ranks.from_first({**self._shapes(masks), **self._scores(masks)} if first else None)

    def _segment(self, volume: Volume, predict: Network, tiling: Tiling) -> np.ndarray:
        """(classes, z, y, x), the blocks shared out over processes."""
        classes = len(self.source["values"])
        mask = torch.zeros((classes, *volume.shape), dtype=torch.uint8)
        own = Grid(volume.shape, tiling, CHUNK).blocks(self.ranks.rank, self.ranks.count)
        for start, stop, predicted in predict_blocks(
            volume, predict, tiling, classes=classes, device=self.ranks.device, blocks=own
        ):
            box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            found = segmented(predicted, self.config.predict.threshold, self.config.exclusive)
            mask[(slice(None), *box)] = found.to("cpu", torch.uint8)
        return self.ranks.sum(mask).numpy()

    def _shapes(self, masks: list[np.ndarray]) -> dict[str, float]:
        found = [self._property([mask[c] for mask in masks]) for c in range(len(self.source["values"]))]
        distances = np.abs(np.subtract(found, self.source["values"]))
        name = f"target_{self.settings.property}"
        return {"morphology_distance": float(distances.mean()), name: float(np.mean(found))}

    def _property(self, masks: list[np.ndarray]) -> float:
        keys = ("within", "components", "axis", "smallest")
        return object_property(masks, self.settings.property, **{key: self.source[key] for key in keys})

    def _scores(self, masks: list[np.ndarray]) -> dict[str, float]:
        """For the record alone."""
        pairs = [
            (volume, mask)
            for volume, mask in zip(self.targets, masks, strict=True)
            if volume.labels is not None
        ]
        if not pairs:
            return {}
        counts = [Confusion()] * len(pairs[0][1])
        for volume, mask in pairs:
            for start, stop in volume.raw.blocks():
                target, codes = volume.read_target(start, stop)
                box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
                counts = [
                    count + count_confusion(mask[c][box], target[c], codes[0] == LABELLED)
                    for c, count in enumerate(counts)
                ]
        return {
            "target_dice": float(np.mean([count.dice for count in counts])),
            "target_iou": float(np.mean([count.iou for count in counts])),
        }


def steps_per_epoch(config: Config, volumes: Sequence[AnnotatedVolume]) -> int:
    """Steps until as many voxels were seen as the training volumes have."""
    voxels = sum(math.prod(volume.shape) for volume in volumes)
    return -(-voxels // (config.train.batch * math.prod(config.patch)))


def _measured_once(config: Config, volumes: Sequence[AnnotatedVolume], run: RunFolder) -> dict[str, Any]:
    """The property of the labels, a value for each class, and how it was measured; read from the run if it is there."""
    settings = config.train.stop
    assert settings is not None
    record: dict[str, Any] = {
        "property": settings.property,
        "within": settings.within,
        "smallest": settings.smallest,
        "volumes": [entry.model_dump(mode="json") for entry in config.data.train],
        "voxel_size": config.data.voxel_size and list(config.data.voxel_size),
    }
    path = run.file(SOURCE_FILE)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
        if {key: stored.get(key) for key in record} == record:
            return stored
    record |= measure_labels(config, volumes)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    return record


def measure_labels(config: Config, volumes: Sequence[AnnotatedVolume]) -> dict[str, Any]:
    """``train.stop.property`` of the labels of ``volumes``, and how it was measured, as a prediction is to be.

    Returns ``values``, one for each class, the ``axis`` across the slices, and what ``components`` are.
    """
    settings = config.train.stop
    assert settings is not None
    axis = _slice_axis(config, volumes)
    known = [_labelled_slices(volume, axis) for volume in volumes]
    throughout = all(len(k) == volume.shape[axis] for k, volume in zip(known, volumes, strict=True))
    if settings.within == "volume" and not throughout:
        raise InputError(
            "train.stop.within: volume needs labels throughout; slices are measured within: slices"
        )
    # What joins two sections may lie in a slice that nobody annotated: then objects end with the slice, here and there.
    components: Within = "volume" if throughout else "slices"
    masks = [_read(volume, k, axis) for k, volume in zip(known, volumes, strict=True)]
    options: dict[str, Any] = {
        "within": settings.within,
        "components": components,
        "axis": axis,
        "smallest": settings.smallest,
    }
    classes = range(volumes[0].target_channels)
    values = [object_property([mask[c] for mask in masks], settings.property, **options) for c in classes]
    counts = [object_property([mask[c] for mask in masks], "object_count", **options) for c in classes]
    for value, count in zip(config.data.class_names or ["foreground"], counts, strict=True):
        if count == 0:
            raise InputError(
                f"train.stop: morphology compares with the labels of data.train, which hold no object of {value} "
                f"larger than {settings.smallest}"
            )
    return {"axis": axis, "components": components, "values": values}


def _slice_axis(config: Config, volumes: Sequence[AnnotatedVolume]) -> int:
    stated = {v.annotation.axis for v in volumes if v.annotation.slices is not None}
    if len(stated) > 1:
        raise InputError("train.stop: morphology needs data.train annotated across one axis, got several")
    return stated.pop() if stated else config.slice_axis


def _labelled_slices(volume: AnnotatedVolume, axis: int) -> list[int]:
    """The slices whose voxels are all labelled. An ignored label is not counted as a gap."""
    if volume.labels is None:
        raise InputError(
            f"train.stop: morphology compares with the labels of data.train, {volume.raw.name} has none"
        )
    slices = volume.annotated_slices()
    numbers = range(volume.shape[axis]) if slices is None else [int(s) for s in slices]
    if volume.mask is None:
        return list(numbers)
    plain = replace(volume, ignore_label=None, pseudo=None)
    found = [i for i in numbers if (_read_slice(plain, i, axis)[1] == LABELLED).all()]
    if not found:
        raise InputError(
            f"train.stop: morphology needs slices that are labelled throughout, mask {volume.mask.name} leaves none"
        )
    return found


def _read_slice(volume: AnnotatedVolume, number: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = [0, 0, 0], list(volume.shape)
    low[axis], high[axis] = number, number + 1
    return volume.read_target(low, high)


def _read(volume: AnnotatedVolume, slices: list[int], axis: int) -> np.ndarray:
    """The foreground in the labelled slices, bool (classes, z, y, x), as long along ``axis`` as they are many."""
    volume = replace(volume, pseudo=None)
    shape = list(volume.shape)
    shape[axis] = len(slices)
    mask = np.empty((volume.target_channels, *shape), bool)
    if len(slices) == volume.shape[axis]:
        for start, stop in volume.raw.blocks():
            target, codes = volume.read_target(start, stop)
            box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            mask[(slice(None), *box)] = (target != 0) & (codes == LABELLED)
        return mask
    for place, number in enumerate(slices):
        target, codes = _read_slice(volume, number, axis)
        index = (slice(None),) * (axis + 1) + (slice(place, place + 1),)
        mask[index] = (target != 0) & (codes == LABELLED)
    return mask
