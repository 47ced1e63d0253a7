# SPDX-License-Identifier: BSD-3-Clause
"""The section style of domain_adaptation: how the generator is trained that gives target images the source's style."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fastseg.nets.cut import SMALLEST_JUDGED
from fastseg.train.section import Positive, Section, Share

Side = Annotated[int, Field(ge=SMALLEST_JUDGED)]


class StyleConfig(Section):
    """Crop, networks, losses and optimizer are those of the paper by default, the number of steps is ours."""

    steps: Positive = 20_000
    batch: Positive = 1  # images of either domain, of all processes together
    patch: list[Side] = Field([512, 512], min_length=2, max_length=2)
    width: Positive = 64  # of generator and discriminator
    blocks: Annotated[int, Field(ge=2)] = 9
    patches: Annotated[int, Field(ge=2)] = 256  # places of an image and layer that PatchNCE tells apart
    projection: Positive = 256  # dimensions of what it compares
    temperature: Annotated[float, Field(gt=0)] = 0.07
    nce_weight: Annotated[float, Field(gt=0)] = 1.0  # against the discriminator's 1
    identity: bool = True  # source images too, which should stay what they are
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    decay: Share = 0.5  # of the steps, the last ones, in which the learning rate falls to 0
    sample_steps: Positive = 8  # batches that tell what has been learnt
    picture_every: Positive = 200
