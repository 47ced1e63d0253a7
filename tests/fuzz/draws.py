# SPDX-License-Identifier: BSD-3-Clause
"""What random calls are made of: shapes with axes of 0 and 1, dtypes, layouts, and the door that a call takes."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from fastseg.ops import doors

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Of the largest term that a result is summed from: a few roundings of the accumulation. Results are float32 or float64.
ROUNDING = {torch.float64: 1e-11, torch.float32: 3e-5}


class Draws:
    """Random choices of one case; the same seed makes the same case."""

    def __init__(self, seed: int, case: int) -> None:
        self.rng = np.random.default_rng([seed, case])

    def one_of(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def size(self, most: int, empty: float = 0.05) -> int:
        return 0 if self.chance(empty) else int(self.rng.integers(1, most + 1))

    def spatial(self, most: int = 9) -> tuple[int, ...]:
        return tuple(self.size(most, 0.03) for _ in range(self.one_of(1, 2, 3)))

    def door(self) -> tuple[str, AbstractContextManager[None]]:
        """impl=, and what to make the call in."""
        return self.one_of(
            ("fused", contextlib.nullcontext()),
            ("fused", contextlib.nullcontext()),
            ("fused", doors.force_library()),
            ("reference", contextlib.nullcontext()),
        )

    def floats(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal numbers in some layout."""
        return self.lay(torch.from_numpy(self.rng.normal(0, scale, shape)).to(dtype))

    def lay(self, tensor: Tensor) -> Tensor:
        """The same values in another layout: channels last, a transposed axis, or with gaps in between."""
        kind = self.one_of("contiguous", "contiguous", "channels_last", "transposed", "gaps")
        if kind == "channels_last" and tensor.dim() in (4, 5):
            layout = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
            return tensor.contiguous(memory_format=layout)
        if kind == "transposed" and tensor.dim() > 1:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "gaps" and tensor.dim():
            wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3))
            part = wide[..., 3::2] if tensor.shape[-1] else wide[..., :0]
            return part.copy_(tensor)
        return tensor


def array(tensor: Tensor | None) -> np.ndarray | None:
    """As the oracles take it: float64, integers as they are."""
    if tensor is None:
        return None
    if tensor.dtype == torch.bool or not tensor.is_floating_point():
        return tensor.numpy()
    return tensor.detach().double().numpy()


def require_close(found: Tensor, truth: np.ndarray, terms: float, dtype: torch.dtype) -> None:
    """terms: the largest magnitude of what was summed. dtype: that of the widest argument."""
    assert tuple(found.shape) == truth.shape, f"shape {tuple(found.shape)}, should be {truth.shape}"
    rounding = ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]
    if found.dtype in (torch.bfloat16, torch.float16):
        rounding = 1e-2
    found64 = found.detach().double().numpy()
    np.testing.assert_array_equal(np.isnan(found64), np.isnan(truth))
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(found64 - truth), nan=0.0)
    worst = float(error.max(initial=0.0))
    assert worst <= rounding * max(terms, 1e-3), f"error {worst:.3g} of terms up to {terms:.3g}"
