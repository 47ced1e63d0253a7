# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a run but for its method: sections, their defaults, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from fastseg.data.object_parts import PARTS
from fastseg.data.volumes import Box
from fastseg.train.augment_config import AugmentConfig
from fastseg.train.data_config import DataConfig
from fastseg.train.network_config import NetworkConfig
from fastseg.train.predict_config import PredictConfig
from fastseg.train.section import NotNegative, Positive, Section, Share
from fastseg.train.stop_config import StopConfig

S = TypeVar("S", bound=Section)


class LossConfig(Section):
    pseudo_weight: NotNegative = 0.25
    pseudo_ramp: tuple[Share, Share] | None = None
    pos_weight: list[NotNegative] | None = None
    normalize: Literal["voxels", "weight", "terms"] = "voxels"

    @model_validator(mode="after")
    def _ramp_rises(self) -> LossConfig:
        if self.pseudo_ramp is not None and self.pseudo_ramp[0] > self.pseudo_ramp[1]:
            raise ValueError(
                f"pseudo_ramp must be [first, last] shares of the steps, got {list(self.pseudo_ramp)}"
            )
        return self

    def pseudo_weight_at(self, step: int, steps: int) -> float:
        """0 before the ramp, ``pseudo_weight`` after it, a straight line in between (Lee 2013, equation 16)."""
        if self.pseudo_ramp is None:
            return self.pseudo_weight
        first, last = (share * steps for share in self.pseudo_ramp)
        risen = (step - first) / (last - first) if last > first else float(step >= first)
        return self.pseudo_weight * min(max(risen, 0.0), 1.0)


class TrainConfig(Section):
    steps: Positive = 2000
    batch: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2
    weight_decay: NotNegative = 1e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    compile: bool = False
    graph: Literal["auto", "on", "off"] = "auto"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    checkpoint_every: Positive = 500
    validate_every: Positive = 500
    measure: Literal["dice", "loss"] = "dice"
    stop: StopConfig | None = None
    augment: AugmentConfig = AugmentConfig()

    @field_validator("graph", mode="before")
    @classmethod
    def _yaml_reads_on_and_off(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("augment", mode="before")
    @classmethod
    def _off_by_one_word(cls, value: Any) -> Any:
        return {"enabled": False} if value == "none" else value


class Config(Section):
    """What all runs have; ``fastseg.methods.config`` adds the sections of the methods."""

    method: str
    output: str
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Config:
        dims = len(self.data.patch)
        for key, box in (("data.patch", self.data.patch), ("predict.window", self.predict.window)):
            if box is None:
                continue
            if len(box) != dims:
                raise ValueError(f"{key} {box} must have the axes of data.patch {self.data.patch}")
            divisor = self.network.divisor(dims)
            if any(p % d for p, d in zip(box, divisor, strict=True)):
                raise ValueError(
                    f"{key} {box} must be a multiple of {divisor}, the product of network.pooling"
                )
            normed = self.network.kind != "attention_unet" and self.network.norm == "instance"
            if box == divisor and normed and max(divisor) > 1:
                raise ValueError(
                    f"{key} {box} must be larger than {divisor}, the product of network.pooling: of a single voxel "
                    "network.norm instance leaves nothing"
                )
        self.predict.morphology_steps(dims, self.slice_axis)
        channels = len(self.data.classes or [1])
        if self.loss.pos_weight is not None and len(self.loss.pos_weight) != channels:
            raise ValueError(f"loss.pos_weight must have {channels} values, one per class")
        if self.predict.instances == "boundary" and not self._has_boundaries:
            raise ValueError("predict.instances: boundary needs data.classes: [interior, boundary]")
        if self.train.stop is not None:
            part = "target" if self.train.stop.rule == "morphology" else "validation"
            if not getattr(self.data, part):
                raise ValueError(f"train.stop needs data.{part}, the volumes to judge by")
        return self

    def section(self, kind: type[S]) -> S:
        """The section of a method, by its class."""
        return next(value for _, value in self if isinstance(value, kind))

    @property
    def exclusive(self) -> bool:
        """Whether there are several classes that exclude one another."""
        return self.data.exclusive and len(self.data.classes or ()) > 1

    @property
    def instances(self) -> str:
        """``predict.instances``, with auto decided."""
        chosen = self.predict.instances
        return ("boundary" if self._has_boundaries else "components") if chosen == "auto" else chosen

    @property
    def _has_boundaries(self) -> bool:
        return self.data.parts and len(self.data.classes or ()) == len(PARTS)

    @property
    def patch(self) -> Box:
        """The patch as (z, y, x); one slice for a 2D network."""
        return self._box(self.data.patch)

    @property
    def window(self) -> Box:
        """What prediction gives to the network at a time, as (z, y, x)."""
        return self._box(self.predict.window or self.data.patch)

    @property
    def halo(self) -> Box:
        """How far from a window's border the network's view is cut, as (z, y, x); see ``NetworkConfig.halo``."""
        halo = self.network.halo(len(self.data.patch))
        if len(halo) == 2:
            halo.insert(self.slice_axis, 0)
        z, y, x = halo
        return (z, y, x)

    @property
    def slice_axis(self) -> int:
        return "zyx".index(self.data.slice_axis)

    def _box(self, sizes: list[int]) -> Box:
        box = list(sizes)
        if len(box) == 2:
            box.insert(self.slice_axis, 1)
        z, y, x = box
        return (z, y, x)
