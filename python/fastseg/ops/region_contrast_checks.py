# SPDX-License-Identifier: BSD-3-Clause
"""What region_contrast refuses, before any kernel sees it."""

import math
import numbers

import torch
from torch import Tensor

SIMILARITIES = ("cosine", "dot", "neg_mse")  # the order is the kernels'
DENOMINATORS = ("all", "negatives")
REDUCTIONS = ("mean", "sum", "none")

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_region_contrast(
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
    _check_rows("anchors", anchors, "anchor_ids", anchor_ids, "anchor_groups", anchor_groups, anchors)
    if bank is not None:
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
    else:
        for name, value in (
            ("bank_ids", bank_ids),
            ("bank_groups", bank_groups),
            ("self_offset", self_offset),
        ):
            if value is not None:
                raise ValueError(f"{name} must be None without a bank, got {_kind(value)}")
    if isinstance(temperature, Tensor):
        if temperature.dim() or temperature.dtype not in _FLOATS:
            raise ValueError(
                "temperature must be a number or a floating tensor with no axes, "
                f"got {_name(temperature.dtype)} {tuple(temperature.shape)}"
            )
        if temperature.device != anchors.device:
            raise ValueError(
                f"temperature must be on {anchors.device}, where anchors is, got {temperature.device}"
            )
    elif isinstance(temperature, bool) or not isinstance(temperature, numbers.Real | torch.SymFloat):
        raise TypeError(f"temperature must be a number or a tensor, got {type(temperature).__name__}")
    elif not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    if self_offset is not None and (isinstance(self_offset, bool) or not isinstance(self_offset, int)):
        raise TypeError(f"self_offset must be an int or None, got {type(self_offset).__name__}")
    for option, chosen, names in (
        ("similarity", similarity, SIMILARITIES),
        ("denominator", denominator, DENOMINATORS),
        ("reduction", reduction, REDUCTIONS),
    ):
        if chosen not in names:
            raise ValueError(f"{option} must be one of {', '.join(names)}, got {chosen!r}")


def _check_rows(name, rows, ids_name, ids, groups_name, groups, anchors) -> None:
    for each, tensor, dtypes in (
        (name, rows, _FLOATS),
        (ids_name, ids, _INTEGERS),
        (groups_name, groups, _INTEGERS),
    ):
        if tensor is None and each == groups_name:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{each} must be a torch.Tensor, got {_kind(tensor)}")
        if tensor.dtype not in dtypes:
            raise TypeError(f"{each} must be {' or '.join(map(_name, dtypes))}, got {_name(tensor.dtype)}")
        if tensor.device != anchors.device:
            raise ValueError(f"{each} must be on {anchors.device}, where anchors is, got {tensor.device}")
        if tensor is rows:
            if rows.dim() != 2 or rows.shape[1] == 0:
                raise ValueError(f"{each} must be (rows, D) with D at least 1, got {tuple(rows.shape)}")
        elif tuple(tensor.shape) != (rows.shape[0],):
            raise ValueError(
                f"{each} must be one per row of {name}, ({rows.shape[0]},), got {tuple(tensor.shape)}"
            )


def _kind(value: object) -> str:
    return type(value).__name__


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
