# SPDX-License-Identifier: BSD-3-Clause
"""What the method sparse_2d3d is to a configuration and to ``fastseg check``."""

from __future__ import annotations

from collections.abc import Sequence

from fastseg.data.annotations import AnnotatedVolume
from fastseg.methods.base import Method
from fastseg.methods.sparse_2d3d.config import Sparse2d3dConfig
from fastseg.train.config import Config

_TEMPLATE = """\
sparse_2d3d:                # of method sparse_2d3d: a 2D network labels the slices between the annotated ones
  axis: null                # across the slices; null: that of annotated, or z
  patch: [128, 128]         # of the slices; data.patch is the 3D network's
  network: {kind: sliding_cnn, width: 16, pooling: [2, 2, 2], norm: instance, weights: null,
            dilations: [1, 2, 3, 5, 10, 20], gate: up, dropout: [0.1, 0.1, 0.2, 0.2, 0.3]}
  steps: 1000
  batch: 8
  learning_rate: 1.0e-3
  pseudo_labels: hard       # 0 and 1 at predict.threshold; soft: the probabilities
"""


class Sparse2d3d(Method):
    name, section, template = "sparse_2d3d", Sparse2d3dConfig, _TEMPLATE

    def describe(self, config: Config, volumes: Sequence[AnnotatedVolume]) -> list[str]:
        return self.training.describe_slices(config, volumes)


METHOD = Sparse2d3d()
