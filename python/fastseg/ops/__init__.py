# SPDX-License-Identifier: BSD-3-Clause
"""The fused ops. Each has a kernel per device and a definition in plain PyTorch (fastseg.ops.reference)."""

from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.region_pool import RegionStats, region_pool, region_stats
from fastseg.ops.region_pool_soft import SoftRegions, soft_region_pool

__all__ = [
    "BCETerms",
    "RegionStats",
    "SoftRegions",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "region_pool",
    "region_stats",
    "soft_region_pool",
]
