# SPDX-License-Identifier: BSD-3-Clause
"""fastseg demo: two phantoms, a few annotated slices of the first, and a score on the second."""

from __future__ import annotations

import os
import shutil

from fastseg.commands.infer import evaluate_run, predict_run
from fastseg.data.outputs import ArraySpec, open_output
from fastseg.data.phantoms import make_phantom
from fastseg.errors import InputError
from fastseg.methods.supervised import train
from fastseg.metrics import Confusion
from fastseg.train.checkpoint import write_atomically
from fastseg.train.config_file import load_config

_SHAPE = (64, 128, 128)

_CONFIG = """\
# Written by fastseg demo. Run it again by hand: fastseg train {folder}/demo.yaml output=another_folder
method: supervised
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
network: {{width: 4, pooling: [[1, 2, 2], [2, 2, 2], [2, 2, 2]], norm: batch}}
train:
  steps: 500
  batch: 2
  learning_rate: 5.0e-3
  checkpoint_every: 250
"""


def run_demo(folder: str, seed: int, overwrite: bool = False) -> tuple[dict[str, Confusion], list[str]]:
    """Make, train, predict, evaluate; returns the scores and the files a person wants to open."""
    if os.path.exists(os.path.join(folder, "demo.yaml")):
        if not overwrite:
            raise InputError(f"{folder} already holds a demo: add --overwrite or name another folder")
        shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
    phantoms = os.path.join(folder, "phantoms.h5")
    arrays, specs = {}, {}
    for name, offset in (("train", 0), ("test", 1)):
        phantom = make_phantom(_SHAPE, seed=2 * seed + offset)
        for dataset, array in (("raw", phantom.raw), ("somata", phantom.instances)):
            arrays[f"{name}/{dataset}"] = array
            specs[f"{name}/{dataset}"] = ArraySpec(
                _SHAPE, array.dtype, (16, 64, 64), voxel_size=phantom.voxel_size
            )
    with open_output(phantoms, specs) as output:
        output.write((0, 0, 0), _SHAPE, arrays)
    config = os.path.join(folder, "demo.yaml")
    write_atomically(config, _CONFIG.format(folder=folder, seed=seed).encode())
    run = train(load_config(config))
    predictions = predict_run(run.path)
    results, files = evaluate_run(run.path)
    return results, [config, phantoms, *predictions, *files]
