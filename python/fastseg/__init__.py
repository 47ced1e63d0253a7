# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

from fastseg import nn
from fastseg._C import build_info
from fastseg.ops import (
    BCETerms,
    RegionStats,
    SoftRegions,
    masked_weighted_bce,
    masked_weighted_bce_terms,
    region_pool,
    region_stats,
    soft_region_pool,
)

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "RegionStats",
    "SoftRegions",
    "__version__",
    "build_info",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "nn",
    "region_pool",
    "region_stats",
    "soft_region_pool",
]
