# SPDX-License-Identifier: BSD-3-Clause
"""The fused ops. Each has a kernel per device and a definition in plain PyTorch (fastseg.ops.reference)."""

from fastseg.ops import vmap as _vmap  # noqa: F401 - registers what the ops do under torch.func.vmap
from fastseg.ops.dispatch import find_kernels as _find_kernels
from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.masked_bce_across_ranks import masked_weighted_bce_across_ranks
from fastseg.ops.patch_entropy import WindowEntropy, patch_entropy
from fastseg.ops.patch_entropy_crops import extract_patches
from fastseg.ops.patch_entropy_sampling import PatchSamples, sample_patches
from fastseg.ops.region_contrast import ContrastRows, region_contrast, region_contrast_rows
from fastseg.ops.region_contrast_sharded import (
    gather_rows,
    remembering_region_contrast,
    sharded_region_contrast,
)
from fastseg.ops.region_pool import RegionStats, region_pool, region_stats
from fastseg.ops.region_pool_soft import SoftRegions, soft_region_pool

__all__ = [
    "BCETerms",
    "ContrastRows",
    "PatchSamples",
    "RegionStats",
    "SoftRegions",
    "WindowEntropy",
    "extract_patches",
    "gather_rows",
    "masked_weighted_bce",
    "masked_weighted_bce_across_ranks",
    "masked_weighted_bce_terms",
    "patch_entropy",
    "region_contrast",
    "region_contrast_rows",
    "region_pool",
    "region_stats",
    "remembering_region_contrast",
    "sample_patches",
    "sharded_region_contrast",
    "soft_region_pool",
]

_find_kernels()
