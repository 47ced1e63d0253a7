# SPDX-License-Identifier: BSD-3-Clause
"""The section train.augment of a configuration; the names and defaults are those of ``data/augment.py``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fastseg.data.augment import Augmentation, Probability, Symmetry
from fastseg.train.section import NotNegative, Positive, Section, Share


class ProbabilityConfig(Section):
    rotate: Share = Probability.rotate
    scale: Share = Probability.scale
    elastic: Share = Probability.elastic
    gamma: Share = Probability.gamma
    contrast: Share = Probability.contrast
    brightness: Share = Probability.brightness
    noise: Share = Probability.noise
    blur: Share = Probability.blur
    missing: Share = Probability.missing


class AugmentConfig(Section):
    enabled: bool = Augmentation.enabled
    symmetry: Symmetry = Augmentation.symmetry
    rotate: Annotated[float, Field(ge=0, le=180)] = Augmentation.rotate
    tilt: Annotated[float, Field(ge=0, le=90)] = Augmentation.tilt
    scale: NotNegative = Augmentation.scale
    elastic: NotNegative = Augmentation.elastic
    elastic_grid: Positive = Augmentation.elastic_grid
    gamma: NotNegative = Augmentation.gamma
    contrast: NotNegative = Augmentation.contrast
    brightness: NotNegative = Augmentation.brightness
    noise: NotNegative = Augmentation.noise
    blur: NotNegative = Augmentation.blur
    missing: Annotated[int, Field(ge=0)] = Augmentation.missing
    probability: ProbabilityConfig = ProbabilityConfig()
