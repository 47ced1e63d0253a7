# SPDX-License-Identifier: BSD-3-Clause
"""A training that is scored against the labels of a test while it runs, to see what the stop by morphology takes.

``supervised.morphology_chooser = RecordingChooser`` puts it in place of the rule. What it adds to validation.jsonl
decides nothing.
"""

import json
from pathlib import Path

import numpy as np

from fastseg.methods.inference import predictor, tiling_of
from fastseg.methods.stopping import MorphologyChooser, measure_labels
from fastseg.metrics import count_confusion
from fastseg.shapes import object_property
from fastseg.train.inputs import open_annotated


class RecordingChooser(MorphologyChooser):
    """The stop by morphology, which looks ``looks`` times, evenly, and notes more, for the record alone: ``test_dice``
    and ``test_iou``, the mean over the volumes of data.test, and ``<property>_distance`` for each of ``properties``, of
    the same prediction of the target."""

    looks = 10
    properties = ()

    def __init__(self, config, sources, network, ranks, run):
        super().__init__(config, sources, network, ranks, run)
        self.every = max(config.train.steps // self.looks, 1)
        self.labels = {name: measure_labels(with_property(config, name), sources) for name in self.properties}
        self.tests = [open_annotated(entry, config.data) for entry in config.data.test]
        found = [predictor(network, volume.raw, config, ranks.device) for volume in self.tests]
        self.test_predictors = found
        self.test_tilings = [
            tiling_of(config, predict, volume.raw, ranks.device)
            for predict, volume in zip(found, self.tests, strict=True)
        ]

    def measures(self):
        counts = []
        for volume, predict, tiling in zip(self.tests, self.test_predictors, self.test_tilings, strict=True):
            mask = self._segment(volume.raw, predict, tiling)
            truth, _ = volume.read_target((0, 0, 0), volume.shape)
            counts.append(count_confusion(mask[0], truth[0]))
        scores = {
            f"test_{name}": float(np.mean([getattr(c, name) for c in counts])) for name in ("dice", "iou")
        }
        return {**super().measures(), **scores}

    def _shapes(self, masks):
        options = {"within": self.settings.within, "smallest": self.settings.smallest}
        distances = {}
        for name, labels in self.labels.items():
            measured = {**options, "components": labels["components"], "axis": labels["axis"]}
            found = object_property([mask[0] for mask in masks], name, **measured)
            distances[f"{name}_distance"] = abs(found - labels["values"][0])
        return {**super()._shapes(masks), **distances}


def with_property(config, name):
    stop = config.train.stop.model_copy(update={"property": name})
    return config.model_copy(update={"train": config.train.model_copy(update={"stop": stop})})


def looks_of(run):
    """What a run's folder holds of each look at the target, in order."""
    lines = (Path(run) / "validation.jsonl").read_text().splitlines()
    return [look for look in map(json.loads, lines) if "morphology_distance" in look]
