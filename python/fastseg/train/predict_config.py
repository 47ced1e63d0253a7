# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of prediction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastseg.predict import Flips, Tiling
from fastseg.train.section import Positive, Section, Share


class PredictConfig(Section):
    window: list[Positive] | None = None  # as large as data.patch if None
    overlap: Annotated[float, Field(ge=0, le=0.9)] = Tiling.overlap
    threshold: Share = 0.5
    flips: Flips = "none"
    skip_below: float | None = None  # windows whose raw values all lie at or below it are background
    batch: Positive | Literal["auto"] = "auto"
    block_voxels: Annotated[int, Field(ge=1 << 15)] = Tiling.block_voxels
    probability: bool = True
    format: Literal["h5", "zarr"] = "h5"
    checkpoint: Literal["best", "newest"] = "best"
