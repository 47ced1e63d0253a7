# SPDX-License-Identifier: BSD-3-Clause
"""fastseg demo: two phantoms, a few annotated slices of the first, and what three networks make of the second."""

from __future__ import annotations

import os
import shutil

from fastseg.commands.infer import evaluate_run, predict_run
from fastseg.commands.report import train_and_report
from fastseg.data.phantoms import write_phantoms
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.metrics import Confusion
from fastseg.report import draw_comparison
from fastseg.train.checkpoint import write_atomically
from fastseg.train.inputs import open_annotated

_SHAPE = (64, 128, 128)

_CONFIG = """\
# Written by fastseg demo. Run it again by hand: fastseg train {folder}/demo.yaml output=another_folder
method: sparse_2d3d
output: {folder}/run
seed: {seed}
data:
  train:
    - raw: phantoms.h5:/train/raw
      labels: phantoms.h5:/train/somata
      annotated: {{axis: z, every: 12}}   # 6 of 64 slices
  test:
    - raw: phantoms.h5:/test/raw
      labels: phantoms.h5:/test/somata
  patch: [16, 64, 64]
network: {{width: 4, pooling: [[1, 2, 2], 2, 2]}}
sparse_2d3d: {{patch: [96, 96], steps: 400, batch: 4}}
train:
  steps: 400
  batch: 2
  learning_rate: 5.0e-3
  checkpoint_every: 200
"""

# The same slices and steps for a 3D network that learns from nothing else.
_SLICES_ONLY = ("method=supervised", "sparse_2d3d={{}}", "output={folder}/slices_only")


def run_demo(folder: str, seed: int, overwrite: bool = False) -> tuple[dict[str, Confusion], list[str]]:
    """Make, train, predict, evaluate; returns the scores by network and the files a person wants to open."""
    if os.path.exists(os.path.join(folder, "demo.yaml")):
        if not overwrite:
            raise InputError(f"{folder} already holds a demo: add --overwrite or name another folder")
        for name in ("run", "slices_only"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    phantoms = os.path.join(folder, "phantoms.h5")
    write_phantoms(phantoms, _SHAPE, {"train": 2 * seed, "test": 2 * seed + 1})
    path = os.path.join(folder, "demo.yaml")
    write_atomically(path, _CONFIG.format(folder=folder, seed=seed).encode())
    config = load_config(path)
    run = train_and_report(config)
    print("3D network on the annotated slices alone, to compare with")
    alone = train_and_report(load_config(path, [text.format(folder=folder) for text in _SLICES_ONLY]))
    runs = {
        "2D network": run.file("slices"),
        "3D, slices only": alone.path,
        "3D + pseudo-labels": run.path,
    }
    results, predictions = {}, {}
    for name, trained in runs.items():
        (written,) = predict_run(trained)
        predictions[name] = open_volume(f"{written}:/segmentation")
        (results[name],) = evaluate_run(trained)[0].values()
    picture = os.path.join(folder, "demo.png")
    truth = open_annotated(config.data.test[0], config.data)
    title = ", ".join(f"{name}: Dice {counts.dice:.3f}" for name, counts in results.items())
    draw_comparison(picture, truth, predictions, title)
    return results, [path, phantoms, *(volume.source.path for volume in predictions.values()), picture]
