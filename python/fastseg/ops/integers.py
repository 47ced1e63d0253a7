# SPDX-License-Identifier: BSD-3-Clause
"""Whole numbers as arguments: Python's, numpy's, and those that torch traces."""

import numbers
from typing import Any

import torch


def as_int(name: str, value: Any, expected: str = "an int") -> Any:
    """``value`` as an int, or as the torch.SymInt that it is. expected: what else the argument may be, too."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return int(value)
