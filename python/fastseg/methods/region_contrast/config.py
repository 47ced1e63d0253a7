# SPDX-License-Identifier: BSD-3-Clause
"""The section region_contrast of a configuration: what is pretrained, by which task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastseg.train.section import NotNegative, Positive, Section, Share

PerAxis = Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]]


class RegionContrastConfig(Section):
    stage: Literal["pretrain", "finetune"] = "pretrain"
    pretext: Literal["regions", "masked", "images"] = "regions"
    regions: Annotated[int, Field(ge=2, le=256)] = 16
    given: bool = False  # data.train's labels are the regions, instead of an assignment that is learnt
    assignment: Literal["shared", "own"] = "shared"  # by both views together, or each by itself
    embedding: Positive = 32
    temperature: Annotated[float, Field(gt=0)] = 0.2
    semantic_weight: NotNegative = 1.0
    grey_weight: NotNegative = 1.0
    beta: NotNegative = 1.0
    margin: NotNegative = 0.2
    negatives: Literal["batch", "image"] = "batch"
    least_share: Share = 1e-3
    memory: Annotated[int, Field(ge=0)] = 0  # regions of earlier steps, as further negatives
    shift: PerAxis = 16  # voxels between a view and the middle of both, at most
    mask_size: Positive | list[Positive] = 16
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    sample_steps: Positive = 4
    picture_every: Positive = 200

    @model_validator(mode="after")
    def _weighted(self) -> RegionContrastConfig:
        if self.semantic_weight + self.grey_weight == 0:
            raise ValueError("one of semantic_weight and grey_weight must be above 0")
        if self.given and self.semantic_weight == 0:
            raise ValueError("given regions learn by their semantics alone: semantic_weight must be above 0")
        if self.memory and (self.negatives == "image" or self.pretext == "masked"):
            raise ValueError("memory holds negatives of other images: it goes with negatives: batch")
        return self
