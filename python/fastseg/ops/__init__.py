# SPDX-License-Identifier: BSD-3-Clause
"""The fused ops. Each has a kernel per device and a definition in plain PyTorch (fastseg.ops.reference)."""

from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.patch_entropy import WindowEntropy, patch_entropy

__all__ = [
    "BCETerms",
    "WindowEntropy",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "patch_entropy",
]
