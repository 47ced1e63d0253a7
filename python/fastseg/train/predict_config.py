# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of prediction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastseg.morphology import Operation, Step
from fastseg.predict import Flips, Tiling
from fastseg.train.section import Positive, Section, Share

Radius = Positive | list[Annotated[int, Field(ge=0)]]  # in voxels: of a disk or ball, or one per axis


class PredictConfig(Section):
    window: list[Positive] | None = None  # as large as data.patch if None
    overlap: Annotated[float, Field(ge=0, le=0.9)] = Tiling.overlap
    threshold: Share = 0.5
    flips: Flips = "none"
    morphology: list[tuple[Operation, Radius]] = Field(
        []
    )  # openings and closings of the segmentation, in order
    instances: Literal["auto", "components", "distance", "boundary"] = (
        "auto"  # boundary where it is a class; distance: objects that touch are taken apart at their necks
    )
    neck: Annotated[float, Field(gt=0, lt=1)] = (
        0.8  # of distance: how narrow, as a share of the smaller object
    )
    skip_below: float | None = None  # windows whose raw values all lie at or below it are background
    batch: Positive | Literal["auto"] = "auto"
    block_voxels: Annotated[int, Field(ge=1 << 15)] = Tiling.block_voxels
    probability: bool = True
    format: Literal["h5", "zarr"] = "h5"
    checkpoint: Literal["best", "newest"] = "best"

    @model_validator(mode="after")
    def _radii_have_axes(self) -> PredictConfig:
        for operation, radius in self.morphology:
            if not isinstance(radius, int) and (len(radius) not in (2, 3) or not any(radius)):
                raise ValueError(f"morphology: {operation} {radius} must have a radius, or one per axis")
        return self

    def morphology_steps(self, dims: int, slice_axis: int) -> list[Step]:
        """``morphology`` in (z, y, x): disks within the slices of a 2D network, balls for a 3D one."""
        steps: list[Step] = []
        for operation, radius in self.morphology:
            radii = [radius] * dims if isinstance(radius, int) else list(radius)
            if len(radii) != dims:
                raise ValueError(
                    f"predict.morphology: {operation} {radii} must have one radius per axis of the {dims} of data.patch"
                )
            if dims == 2:
                radii.insert(slice_axis, 0)
            steps.append((operation, (radii[0], radii[1], radii[2])))
        return steps
