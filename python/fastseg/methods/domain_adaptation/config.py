# SPDX-License-Identifier: BSD-3-Clause
"""The section domain_adaptation of a configuration: strategy, data and phases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastseg.methods.domain_adaptation.style.config import StyleConfig
from fastseg.train.section import NotNegative, Positive, Section

# A run is made of those, each but the last in a folder of its name.
Phase = Literal["all", "pretrain", "step_1", "step_2", "style"]


class PhaseConfig(Section):
    """What is trained before the source's labels alone are, and how; the last phase has the section train."""

    steps: Positive
    batch: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99  # of sgd
    schedule: Literal["constant", "one_cycle"] = "constant"
    patience: Positive | None = None  # validations without a lower loss that end the phase


class PretrainConfig(PhaseConfig):
    steps: Positive = 20_000
    batch: Positive = 6
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    noise: NotNegative = 0.3  # of the largest value of a patch
    factor: Positive = 2  # down and up again, along both axes


class StepConfig(PhaseConfig):
    """A step of the Y-Net. weights: of the restored image and of the segmentation in the loss."""

    weights: tuple[NotNegative, NotNegative]


class FirstStepConfig(StepConfig):
    weights: tuple[NotNegative, NotNegative] = (0.98, 0.02)
    steps: Positive = 5_000
    batch: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: Literal["adam", "sgd"] = "sgd"


class SecondStepConfig(StepConfig):
    weights: tuple[NotNegative, NotNegative] = (1.0, 0.0)
    steps: Positive = 4_000
    batch: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4


class DomainAdaptationConfig(Section):
    strategy: Literal["none", "pretrain", "ynet", "style"] = "none"
    phase: Phase = "all"  # what a run in one of the folders is of; written by the run itself
    match_histograms: bool | None = None  # of the source to the target; None: with pretrain and ynet
    target_share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the patches, while both domains are seen
    transductive: bool = False  # data.test are images of the target too
    # In the last phase of pretrain and ynet.
    freeze: Literal["encoder", "above_bottleneck", "nothing"] = "encoder"
    pretrain: PretrainConfig = PretrainConfig()
    step_1: FirstStepConfig = FirstStepConfig()
    step_2: SecondStepConfig = SecondStepConfig()
    style: StyleConfig = StyleConfig()

    @property
    def matching(self) -> bool:
        """Whether histograms are matched."""
        return self.phases != () if self.match_histograms is None else self.match_histograms

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those before the last one."""
        phases: dict[str, tuple[Phase, ...]] = {"pretrain": ("pretrain",), "ynet": ("step_1", "step_2")}
        return phases.get(self.strategy, ())
