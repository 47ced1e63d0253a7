# SPDX-License-Identifier: BSD-3-Clause
"""The definitions of the ops in plain PyTorch: any device, float64-able, never optimised."""

from fastseg.ops.reference.masked_bce import masked_bce_reference
from fastseg.ops.reference.patch_entropy import patch_entropy_reference
from fastseg.ops.reference.patch_entropy_crops import extract_patches_reference
from fastseg.ops.reference.patch_entropy_sampling import sample_patches_reference
from fastseg.ops.reference.region_contrast import region_contrast_reference
from fastseg.ops.reference.region_pool import (
    region_counts_reference,
    region_pool_reference,
    soft_region_pool_reference,
)

__all__ = [
    "extract_patches_reference",
    "masked_bce_reference",
    "patch_entropy_reference",
    "region_contrast_reference",
    "region_counts_reference",
    "region_pool_reference",
    "sample_patches_reference",
    "soft_region_pool_reference",
]
