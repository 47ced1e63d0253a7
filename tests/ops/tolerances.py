# SPDX-License-Identifier: BSD-3-Clause
"""How far an op may be from the float64 truth: twice the error of torch in the same dtype, and a little.

The little is EPS_FACTOR units of rounding, relative to the largest value of the result, or the smallest
normal number.
"""

import torch
from torch import Tensor

EPS_FACTOR = {
    "masked_bce": 4,
    # s / T reaches 50 in the tests, 72 in the kernels' units of log 2, where float32 is spaced 7.6e-6: the two
    # roundings that a loss of about 1 depends on are worth 45 units of its own.
    "region_contrast": 48,
    "patch_entropy": 4,
    "region_pool": 20,  # the float64 truth is itself a sum of hundreds of terms, in another order
    "soft_region_pool": 16,
}

# When there is no torch computation to compare with: relative and absolute error.
EXACT = {torch.float64: (1e-12, 1e-14), torch.float32: (1e-6, 1e-7)}


def assert_close_to_truth(op: str, ours: Tensor, torchs: Tensor, truth: Tensor) -> None:
    """`ours` is no further from the float64 `truth` than the rule above allows."""
    assert ours.shape == truth.shape
    if truth.numel() == 0:
        return
    truth = truth.double()
    error = (ours.double() - truth).abs().max().item()
    error_of_torch = (torchs.double() - truth).abs().max().item()
    rounding = torch.finfo(ours.dtype)
    allowed = 2 * error_of_torch + EPS_FACTOR[op] * rounding.eps * truth.abs().max().item() + rounding.tiny
    assert error <= allowed, (
        f"{op}: error {error:.3g}, allowed {allowed:.3g} (torch's own {error_of_torch:.3g})"
    )
