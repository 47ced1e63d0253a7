# SPDX-License-Identifier: BSD-3-Clause
"""The section train.stop of a configuration: which checkpoint is the best one, and when a run ends early."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fastseg.shapes import PLANAR, Property, Within
from fastseg.train.section import NotNegative, Positive, Section


class StopConfig(Section):
    """rule validation: ``patience`` validations in a row that did not gain more than ``gain`` end the run. rule
    morphology: the best checkpoint is the one whose objects in data.target are shaped most like the labels of
    data.train; patience and gain, if given, count its looks at the target."""

    rule: Literal["validation", "morphology"] = "validation"
    patience: Positive | None = None
    gain: NotNegative = 0.0
    property: Property = "solidity"
    within: Within = "slices"
    smallest: Annotated[int, Field(ge=0)] = 10
    every: Positive = 2  # epochs
    after: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the steps, before the first look

    @model_validator(mode="before")
    @classmethod
    def _rule_by_its_name(cls, values: Any) -> Any:
        return {"rule": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> StopConfig:
        if self.rule == "validation" and self.patience is None:
            raise ValueError("rule validation needs patience, as in {patience: 5}")
        if self.within == "volume" and self.property in PLANAR:
            raise ValueError(f"property {self.property} is of slices: it needs within: slices")
        return self
