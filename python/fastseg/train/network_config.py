# SPDX-License-Identifier: BSD-3-Clause
"""The section network of a configuration, and what it demands of a patch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastseg.nets.fcnn import DILATIONS
from fastseg.nets.resnet import STRIDES
from fastseg.nets.unet import Norm
from fastseg.nets.ynet import DIVISOR, DROPOUTS, Gate
from fastseg.train.section import Positive, Section

# The networks that see single slices, and what these must be multiples of.
_OF_SLICES = {"sliding_cnn": 1, "attention_unet": DIVISOR}


class NetworkConfig(Section):
    kind: Literal["unet", "resnet50", "sliding_cnn", "fcnn", "attention_unet"] = "unet"
    width: Positive = 16
    pooling: list[Positive | list[Positive]] = Field([2, 2, 2])
    norm: Norm = "instance"
    weights: str | None = None  # a run or a checkpoint to begin with
    dilations: list[Positive | list[Positive]] = Field([*DILATIONS])
    gate: Gate = "up"  # what the attention of attention_unet weights
    dropout: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [*DROPOUTS], min_length=len(DROPOUTS), max_length=len(DROPOUTS)
    )

    def halo(self, dims: int) -> list[int]:
        """How far from its border an FCNN's window knows less than the network looks; 0 for the other networks, whose
        windows are blended alone."""
        if self.kind != "fcnn":
            return [0] * dims
        steps = [[d] * dims if isinstance(d, int) else d for d in self.dilations]
        return [1 + 2 * sum(step[axis] for step in steps) for axis in range(dims)]

    def divisor(self, dims: int) -> list[int]:
        """What each axis of an image must be a multiple of. ValueError if the network cannot have ``dims`` axes."""
        if self.kind in _OF_SLICES:
            if dims != 2:
                raise ValueError(f"network.kind {self.kind} sees single slices: it needs a patch [y, x]")
            return [_OF_SLICES[self.kind]] * 2
        if self.kind == "fcnn":
            for dilation in self.dilations:
                if not isinstance(dilation, int) and len(dilation) != dims:
                    raise ValueError(
                        f"network.dilations: {dilation} must have one number per axis of a patch of {dims} axes"
                    )
            return [1] * dims
        if self.kind == "resnet50" and len(self.pooling) != len(STRIDES):
            raise ValueError(
                f"network.pooling of resnet50 must have {len(STRIDES)} strides, as in {[*STRIDES]}, got {self.pooling}"
            )
        divisor = [1] * dims
        for stride in self.pooling:
            strides = [stride] * dims if isinstance(stride, int) else stride
            if len(strides) != dims:
                raise ValueError(
                    f"network.pooling: {strides} must have one stride per axis of a patch of {dims} axes"
                )
            divisor = [d * s for d, s in zip(divisor, strides, strict=True)]
        return divisor
