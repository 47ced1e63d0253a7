# SPDX-License-Identifier: BSD-3-Clause
"""What region_contrast refuses, before any kernel sees it."""

import math
from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops.checks import (
    FLOATS,
    as_int,
    check_device,
    check_dtype,
    check_option,
    is_number,
    name_of,
)
from fastseg.ops.checks import check_types as check_are_tensors

SIMILARITIES = {name: int(value) for name, value in _C.ContrastSimilarity.__members__.items()}
DENOMINATORS = {name: int(value) for name, value in _C.ContrastDenominator.__members__.items()}
REDUCTIONS = {name: int(value) for name, value in _C.ContrastReduction.__members__.items()}

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_types(
    anchors: Tensor,
    bank: Tensor | None,
    anchor_ids: Tensor,
    bank_ids: Tensor | None,
    anchor_groups: Tensor | None,
    bank_groups: Tensor | None,
    temperature: Tensor | float,
    self_offset: int | None,
    similarity: str,
    denominator: str,
    reduction: str,
) -> None:
    """What neither C++ nor Triton would understand."""
    labels = {"bank_ids": bank_ids, "anchor_groups": anchor_groups, "bank_groups": bank_groups}
    check_are_tensors({"anchors": anchors, "anchor_ids": anchor_ids}, {"bank": bank, **labels})
    if not isinstance(temperature, Tensor):
        number: Any = temperature
        if type(number) is not float and not is_number(number):
            raise TypeError(f"temperature must be a number or a tensor, got {type(number).__name__}")
        if not 0 < number < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {number}")
    if self_offset is not None:
        offset = as_int("self_offset", self_offset, "an int or None")
        if not -(2**63) <= offset < 2**63:
            raise ValueError(f"self_offset must fit in 64 bits with sign, got {self_offset}")
    check_option("similarity", similarity, SIMILARITIES)
    check_option("denominator", denominator, DENOMINATORS)
    check_option("reduction", reduction, REDUCTIONS)


def check_tensors(
    anchors: Tensor,
    bank: Tensor | None,
    anchor_ids: Tensor,
    bank_ids: Tensor | None,
    anchor_groups: Tensor | None,
    bank_groups: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float = 1.0,
    self_offset: int | None = None,
    *_: object,
) -> None:
    """What C++ checks, for all that C++ does not see: a GPU's tensors, a tracer's, and those of the reference."""
    _check_rows("anchors", anchors, "anchor_ids", anchor_ids, "anchor_groups", anchor_groups, anchors)
    if bank is None:
        for name, value in (
            ("bank_ids", bank_ids),
            ("bank_groups", bank_groups),
            ("self_offset", self_offset),
        ):
            if value is not None:
                raise ValueError(f"{name} must be None without a bank, got {type(value).__name__}")
    else:
        if bank_ids is None:
            raise ValueError("bank_ids must be given with bank, got None")
        if (anchor_groups is None) != (bank_groups is None):
            missing = "anchor_groups" if anchor_groups is None else "bank_groups"
            raise ValueError(f"{missing} must be given too, as both or neither of the groups, got None")
        _check_rows("bank", bank, "bank_ids", bank_ids, "bank_groups", bank_groups, anchors)
        if bank.shape[1] != anchors.shape[1]:
            raise ValueError(
                f"bank must be (N, D) with the D of anchors, {anchors.shape[1]}, got {tuple(bank.shape)}"
            )
        if bank.dtype != anchors.dtype:
            raise ValueError(
                f"bank must be of the dtype of anchors, {name_of(anchors.dtype)}, got {name_of(bank.dtype)}"
            )
    if temperature is not None:
        if temperature.dim() or temperature.dtype not in FLOATS:
            raise ValueError(
                "temperature must be a number or a floating tensor with no axes, "
                f"got {name_of(temperature.dtype)} {tuple(temperature.shape)}"
            )
        check_device("temperature", temperature, "anchors", anchors)


def _check_rows(name, rows, ids_name, ids, groups_name, groups, anchors) -> None:
    check_dtype(name, rows, FLOATS)
    check_device(name, rows, "anchors", anchors)
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must be (rows, D) with D at least 1, got {tuple(rows.shape)}")
    for each, labels in ((ids_name, ids), (groups_name, groups)):
        if labels is None:
            continue
        check_dtype(each, labels, _INTEGERS)
        check_device(each, labels, "anchors", anchors)
        if tuple(labels.shape) != (rows.shape[0],):
            raise ValueError(
                f"{each} must be one per row of {name}, ({rows.shape[0]},), got {tuple(labels.shape)}"
            )
