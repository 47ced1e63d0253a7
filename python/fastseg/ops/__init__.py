# SPDX-License-Identifier: BSD-3-Clause
"""The fused ops. Each has a kernel per device and a definition in plain PyTorch (fastseg.ops.reference)."""

from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.patch_entropy import WindowEntropy, patch_entropy
from fastseg.ops.patch_entropy_crops import extract_patches
from fastseg.ops.patch_entropy_sampling import PatchSamples, sample_patches

__all__ = [
    "BCETerms",
    "PatchSamples",
    "WindowEntropy",
    "extract_patches",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "patch_entropy",
    "sample_patches",
]
