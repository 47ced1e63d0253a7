# SPDX-License-Identifier: BSD-3-Clause
"""The section patch_contrast of a configuration: windows, loss, channel choice."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastseg.train.section import NotNegative, Positive, Section, Share

PerAxis = Positive | list[Positive]


class PatchContrastConfig(Section):
    channels: Positive = 4
    patch_size: PerAxis = 50
    stride: PerAxis = 20
    windows: Positive = 10  # per image and channel
    anchors: Positive = 10  # per channel
    floor: Share = 1e-3
    similarity: Literal["neg_mse", "bce", "features"] = "neg_mse"
    void: Literal["skip", "keep"] = "skip"
    contrast: Literal["image", "negative"] = "image"
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.05
    batch_norm: Literal["recalibrated", "batch"] = "recalibrated"
    sample_steps: Positive = 5
    choice: Literal["unlabelled", "labelled"] = "unlabelled"
    criterion: Literal["gap", "separation", "entropy"] = "gap"
    foreground: tuple[Share, Share] = (0.02, 0.6)
    appearance: Literal["dark", "bright", "either"] = "either"
    stop_gain: NotNegative | None = 0.01
    stop_window: Positive = 50
    picture_every: Positive = 100

    @model_validator(mode="after")
    def _range_rises(self) -> PatchContrastConfig:
        if self.foreground[0] >= self.foreground[1]:
            raise ValueError(
                f"foreground must be [least, most] shares of the image, got {list(self.foreground)}"
            )
        return self
