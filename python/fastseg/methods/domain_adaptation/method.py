# SPDX-License-Identifier: BSD-3-Clause
"""What the method domain_adaptation is to a configuration and to ``fastseg check``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastseg.data.annotations import AnnotatedVolume
from fastseg.methods.base import Method
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig
from fastseg.train.config import Config
from fastseg.train.data_config import DataConfig, RegionConfig

_TEMPLATE = """\
domain_adaptation:          # of method domain_adaptation: labels in data.train, images alone in data.target
  strategy: none            # or pretrain: restores images of both first; ynet: restores and segments; style: restyles
  phase: all                # written by the run itself into the folders of its phases
  match_histograms: null    # of data.train to data.target; null: with pretrain and ynet
  target_share: 0.5         # of the patches, while both domains are seen
  transductive: false       # true: the images of data.test are learnt from too
  freeze: encoder           # at the end of pretrain, ynet; or above_bottleneck: all but its deepest level; or nothing
  pretrain:                 # of strategy pretrain: degraded images are restored
    steps: 20000
    batch: 6
    learning_rate: 5.0e-4
    optimizer: adam         # or sgd, with momentum
    momentum: 0.99
    schedule: one_cycle     # or constant
    patience: null          # validations without a lower loss that end the phase; needs data.validation
    noise: 0.3              # of the largest value of a patch
    factor: 2               # smaller and large again along both axes
  step_1: {weights: [0.98, 0.02], steps: 5000, batch: 4, learning_rate: 1.0e-3, optimizer: sgd, momentum: 0.99,
           schedule: constant, patience: null}   # of strategy ynet; weights of image and segmentation in the loss
  step_2: {weights: [1.0, 0.0], steps: 4000, batch: 4, learning_rate: 2.0e-4, optimizer: adam, momentum: 0.99,
           schedule: constant, patience: null}   # the last step, of the segmentation alone, is train
  style:                    # of strategy style: images of data.target are given the style of data.train
    steps: 20000
    batch: 1                # images of either domain per step, of all processes together
    patch: [512, 512]       # y, x of the crops; several times what the generator should keep in proportion
    width: 64               # of generator and discriminator
    blocks: 9               # residual blocks of the generator
    patches: 256            # places of an image and layer that must be told apart
    projection: 256         # dimensions of what tells them apart
    temperature: 0.07
    nce_weight: 1.0         # of keeping what is where, against 1 of looking like the source
    identity: true          # source images must stay what they are
    learning_rate: 2.0e-4
    decay: 0.5              # share of the steps, the last ones, in which the learning rate falls to 0
    sample_steps: 8         # batches that tell what has been learnt
    picture_every: 200      # steps between pictures, in figures/ and TensorBoard
"""


class DomainAdaptation(Method):
    name, section, template = "domain_adaptation", DomainAdaptationConfig, _TEMPLATE

    # The published network, its optimizer in the last phase, and no change of intensities, which would be an
    # adaptation of its own.
    defaults: ClassVar[dict[str, Any]] = {
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

    def check(self, config: Config) -> None:
        settings = config.section(DomainAdaptationConfig)
        data, kind = config.data, config.network.kind
        if kind != "attention_unet":
            raise ValueError(
                f"domain_adaptation trains the Attention U-Net: network.kind must be attention_unet, got {kind}"
            )
        if config.network.weights is not None and settings.strategy != "none":
            raise ValueError(
                f"network.weights begins strategy none alone: {settings.strategy} begins with a phase of its own"
            )
        if settings.phase not in (
            "all",
            *settings.phases,
            *(("style",) if settings.strategy == "style" else ()),
        ):
            raise ValueError(
                f"domain_adaptation.phase {settings.phase} is none of strategy {settings.strategy}: leave it out"
            )
        images = [*data.target, *(data.test if settings.transductive else [])]
        if (settings.matching or settings.strategy != "none") and not images:
            wanting = "match_histograms" if settings.strategy == "none" else f"strategy {settings.strategy}"
            raise ValueError(
                f"domain_adaptation.{wanting} needs data.target, images of the domain to segment"
            )
        if settings.strategy == "style" and settings.matching:
            raise ValueError(
                "domain_adaptation.match_histograms changes the source, whose style strategy style gives to the "
                "target: leave it out"
            )
        for name in settings.phases:
            if (
                settings.phase == "all"
                and getattr(settings, name).patience is not None
                and not data.validation
            ):
                raise ValueError(
                    f"domain_adaptation.{name}.patience needs data.validation, the volumes to judge by"
                )
        for step in (settings.step_1, settings.step_2):
            if sum(step.weights) == 0:
                raise ValueError("domain_adaptation: one of the weights of a step must be above 0")
        if not settings.transductive:
            _check_apart(data)

    def segments(self, config: Config) -> bool:
        return config.section(DomainAdaptationConfig).phase != "pretrain"

    def describe(self, config: Config, volumes: Sequence[AnnotatedVolume]) -> list[str]:
        section = config.section(DomainAdaptationConfig)
        lines = ["histograms: of data.train matched to data.target"] if section.matching else []
        if section.phases:
            lines.append(
                f"phases before that of train, {section.target_share:.0%} of their patches of the target"
            )
        for name in section.phases:
            settings = getattr(section, name)
            lines.append(
                f"  {name}: {settings.steps} steps, batch {settings.batch}, {settings.optimizer}, learning rate "
                f"{settings.learning_rate:g}, {settings.schedule}"
            )
        return lines


def _check_apart(data: DataConfig) -> None:
    for i, test in enumerate(data.test):
        for k, target in enumerate(data.target):
            if test.raw == target.raw and _overlap(test.region, target.region):
                raise ValueError(
                    f"data.test.{i} and data.target.{k} share a part of {test.raw}, and a test would see images "
                    "that were learnt from: give them regions apart, or domain_adaptation.transductive: true"
                )


def _overlap(first: RegionConfig, second: RegionConfig) -> bool:
    """Whether two regions share a voxel; an axis without limits is whole."""
    pairs = [(getattr(first, axis), getattr(second, axis)) for axis in "zyx"]
    return all(not a or not b or (a[0] < b[1] and b[0] < a[1]) for a, b in pairs)


METHOD = DomainAdaptation()
