# SPDX-License-Identifier: BSD-3-Clause
"""Two phantoms stored at different voxel sizes, and a run that sees both at one."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from fastseg.data.phantoms import make_phantom
from tests.project import fastseg

# The second volume states no size, and its entry does; both are seen at 2 micrometres.
CONFIG = """\
output: {folder}/run
data:
  voxel_size: [2, 2, 2]
  train:
    - {{raw: fine.h5:/raw, labels: fine.h5:/labels, annotated: {{every: 3}}, region: {{x: [8, 96]}}}}
    - {{raw: coarse.npy, labels: coarse_labels.npy, voxel_size: [2, 2, 2]}}
  validation:
    - {{raw: fine.h5:/raw, labels: fine.h5:/labels, region: {{z: [0, 8]}}}}
  test:
    - {{raw: fine.h5:/raw, labels: fine.h5:/labels, region: {{y: [10, 90]}}}}
    - {{raw: coarse.npy, labels: coarse_labels.npy, voxel_size: [2, 2, 2]}}
  patch: [8, 32, 32]
network: {{width: 4, pooling: [[1, 2, 2], 2]}}
train: {{steps: 40, batch: 2, checkpoint_every: 20, validate_every: 20, learning_rate: 0.02, precision: fp32,
         device: cpu}}
predict: {{overlap: 0.25}}
"""


def write_volumes(folder: Path) -> Path:
    """fine.h5, 18 x 96 x 96 voxels of 2 x 1 x 1 um, and coarse.npy, another phantom at 2 x 2 x 2 um."""
    fine, coarse = make_phantom((18, 96, 96), seed=1), make_phantom((18, 96, 96), seed=2)
    with h5py.File(folder / "fine.h5", "w") as file:
        for name, array in (("raw", fine.raw), ("labels", (fine.instances > 0).astype("u1"))):
            file.create_dataset(name, data=array, chunks=(4, 32, 32), compression="gzip")
            file[name].attrs["element_size_um"] = (2.0, 1.0, 1.0)
    raw = coarse.raw.reshape(18, 48, 2, 48, 2).mean(axis=(2, 4)).astype("u2")
    np.save(folder / "coarse.npy", raw)
    np.save(folder / "coarse_labels.npy", (coarse.instances[:, 1::2, 1::2] > 0).astype("u1"))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder / "run.yaml"


def train_on_several_sizes(folder: Path) -> Path:
    """The folder, with the volumes, run.yaml and its run."""
    done = fastseg("train", write_volumes(folder))
    assert done.returncode == 0, done.stderr
    return folder
