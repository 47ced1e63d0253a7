# SPDX-License-Identifier: BSD-3-Clause
"""The section domain_adaptation of a configuration: strategy, data and phases; and what the method sets elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fastseg.train.section import NotNegative, Positive, Section
from fastseg.train.style_config import StyleConfig

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

    def check(self, config: Any) -> None:
        """ValueError for what cannot go together in a configuration of this method."""
        data, kind = config.data, config.network.kind
        if kind != "attention_unet":
            raise ValueError(
                f"domain_adaptation trains the Attention U-Net: network.kind must be attention_unet, got {kind}"
            )
        if config.network.weights is not None and self.strategy != "none":
            raise ValueError(
                f"network.weights begins strategy none alone: {self.strategy} begins with a phase of its own"
            )
        if self.phase not in ("all", *self.phases, *(("style",) if self.strategy == "style" else ())):
            raise ValueError(
                f"domain_adaptation.phase {self.phase} is none of strategy {self.strategy}: leave it out"
            )
        images = [*data.target, *(data.test if self.transductive else [])]
        if (self.matching or self.strategy != "none") and not images:
            wanting = "match_histograms" if self.strategy == "none" else f"strategy {self.strategy}"
            raise ValueError(
                f"domain_adaptation.{wanting} needs data.target, images of the domain to segment"
            )
        if self.strategy == "style" and self.matching:
            raise ValueError(
                "domain_adaptation.match_histograms changes the source, whose style strategy style gives to the "
                "target: leave it out"
            )
        for name in self.phases:
            if self.phase == "all" and getattr(self, name).patience is not None and not data.validation:
                raise ValueError(
                    f"domain_adaptation.{name}.patience needs data.validation, the volumes to judge by"
                )
        for step in (self.step_1, self.step_2):
            if sum(step.weights) == 0:
                raise ValueError("domain_adaptation: one of the weights of a step must be above 0")
        if not self.transductive:
            self._check_apart(data)

    @staticmethod
    def _check_apart(data: Any) -> None:
        for i, test in enumerate(data.test):
            for k, target in enumerate(data.target):
                if test.raw == target.raw and _overlap(test.region, target.region):
                    raise ValueError(
                        f"data.test.{i} and data.target.{k} share a part of {test.raw}, and a test would see images "
                        "that were learnt from: give them regions apart, or domain_adaptation.transductive: true"
                    )


def _overlap(first: Any, second: Any) -> bool:
    """Whether two regions share a voxel; an axis without limits is whole."""
    pairs = [(getattr(first, axis), getattr(second, axis)) for axis in "zyx"]
    return all(not a or not b or (a[0] < b[1] and b[0] < a[1]) for a, b in pairs)


# What other sections are by default under this method: the published network, its optimizer in the last phase, and no
# change of intensities, which would be an adaptation of its own.
DOMAIN_ADAPTATION_DEFAULTS: dict[str, Any] = {
    "network": {"kind": "attention_unet", "norm": "none"},
    "data": {"normalize": "percentile"},
    "train": {
        "steps": 10_000,
        "batch": 4,
        "learning_rate": 2e-4,
        "weight_decay": 0.0,
        "augment": {"contrast": 0.0, "brightness": 0.0},
    },
}
