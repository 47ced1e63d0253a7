# SPDX-License-Identifier: BSD-3-Clause
"""The section sparse_2d3d of a configuration: how the slices' own network is trained, and what it hands on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastseg.train.network_config import NetworkConfig
from fastseg.train.section import Axis, Positive, Section


class Sparse2d3dConfig(Section):
    axis: Axis | None = None  # across the annotated slices; None: as data.train says, z where it says nothing
    patch: list[Positive] = Field([128, 128], min_length=2, max_length=2)
    network: NetworkConfig = NetworkConfig(kind="sliding_cnn")
    steps: Positive = 1000
    batch: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    pseudo_labels: Literal["hard", "soft"] = "hard"
