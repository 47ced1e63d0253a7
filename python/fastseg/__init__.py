# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

from fastseg import nn
from fastseg._C import build_info
from fastseg.ops import (
    BCETerms,
    ContrastRows,
    PatchSamples,
    RegionStats,
    SoftRegions,
    WindowEntropy,
    extract_patches,
    gather_rows,
    masked_weighted_bce,
    masked_weighted_bce_across_ranks,
    masked_weighted_bce_terms,
    patch_entropy,
    region_contrast,
    region_contrast_rows,
    region_pool,
    region_stats,
    sample_patches,
    sharded_region_contrast,
    soft_region_pool,
)

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "ContrastRows",
    "PatchSamples",
    "RegionStats",
    "SoftRegions",
    "WindowEntropy",
    "__version__",
    "build_info",
    "extract_patches",
    "gather_rows",
    "masked_weighted_bce",
    "masked_weighted_bce_across_ranks",
    "masked_weighted_bce_terms",
    "nn",
    "patch_entropy",
    "region_contrast",
    "region_contrast_rows",
    "region_pool",
    "region_stats",
    "sample_patches",
    "sharded_region_contrast",
    "soft_region_pool",
]
